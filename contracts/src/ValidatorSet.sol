// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Checkpoints} from "@openzeppelin/contracts/utils/structs/Checkpoints.sol";
import {Governed} from "./Governed.sol";

/// @title Validators, their bonds, and all money that votes move.
/// @notice A validator's number is its permanent ID; its hot key votes, its withdrawal address, which can stay cold, gets what is paid. What a vote
/// weighs is the bond at a past block, with one family's share capped. The contracts that hold votes are named at the start and are the only
/// ones that lock, slash and reward; each token here is in exactly one of: bonds, held, credits, pot, reserved, burned.
contract ValidatorSet is Governed, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;
    using Checkpoints for Checkpoints.Trace208;

    /// @notice Where a validator stands.
    enum Status {
        None,
        Active,
        Unbonding
    }

    /// @dev First slot: 160 + 48 + 16 + 16 + 8 bits; second: 160 + 96.
    struct Validator {
        address operator;
        uint48 freeAt;
        uint16 family;
        uint16 locks;
        Status status;
        address withdrawal;
        uint96 bond;
    }

    /// @notice How long a bond is held after its validator has left: longer than any round, and than what can be proven of one.
    uint48 public constant UNBONDING = 21 days;
    /// @notice Families that have a bond at one time; a vote counts its families in as many bits.
    uint16 public constant MAX_FAMILIES = 128;

    /// @notice The token of bonds; one that takes a fee on transfers is refused.
    IERC20 public immutable token;
    /// @notice Smallest bond to join with.
    uint96 public immutable minBond;
    /// @notice Votes on images.
    address public immutable imageRegistry;
    /// @notice Votes on vendors' collateral.
    address public immutable collateral;
    /// @notice Makes randomness.
    address public immutable beacon;

    /// @notice Validators that ever joined.
    uint64 public count;
    /// @notice What was taken from bonds and is undecided, and proposers' deposits.
    uint256 public held;
    /// @notice What may be claimed, all together.
    uint256 public credits;
    /// @notice What future rounds earn.
    uint256 public pot;
    /// @notice What finished rounds have earned and is not yet shared out.
    uint256 public reserved;
    /// @notice What belongs to nobody any more.
    uint256 public burned;
    /// @notice The validator that this hot key has ever served: a key serves one, so what it signed can always be charged.
    mapping(address operator => uint64 validatorId) public validatorOf;
    /// @notice The block in which a hot key was replaced; zero while it was not. For rounds that open later it says nothing.
    mapping(address operator => uint48 blockNumber) public replacedAt;
    /// @notice What an address may claim.
    mapping(address owner => uint256 amount) public creditOf;
    /// @notice The place of a family, plus one; zero when it has none.
    mapping(address family => uint16 place) public placeOf;
    /// @notice Which hot keys a family lets into it: whoever shares its cap has its consent.
    mapping(address family => mapping(address operator => bool)) public admits;
    /// @notice The hot key that the withdrawal address wants and that has not taken over yet.
    mapping(uint64 validatorId => address operator) public nextOperatorOf;

    mapping(uint64 validatorId => Validator) private _validators;
    mapping(uint64 validatorId => Checkpoints.Trace208) private _weights;
    /// @dev By place. A place is free when it has no name.
    address[] private _families;
    mapping(uint16 place => Checkpoints.Trace208) private _familyWeights;

    /// @notice A validator has come.
    event Joined(
        uint64 indexed validatorId, address indexed operator, address withdrawal, address family, uint256 amount
    );
    /// @notice A family admits a hot key, or no longer does.
    event Admitted(address indexed family, address indexed operator, bool admitted);
    /// @notice A bond has changed.
    event BondChanged(uint64 indexed validatorId, uint256 bond);
    /// @notice A validator's hot key has changed.
    event OperatorChanged(uint64 indexed validatorId, address operator);
    /// @notice A validator leaves; its bond is free then, unless a commitment is still open.
    event Unbonded(uint64 indexed validatorId, uint48 freeAt);
    /// @notice A bond went back.
    event Withdrawn(uint64 indexed validatorId, address withdrawal, uint256 amount);
    /// @notice Something was taken from a bond; what the reporter gets is part of it.
    event Slashed(uint64 indexed validatorId, uint256 amount, address reporter, uint256 bounty);
    /// @notice An address may claim this much more.
    event Credited(address indexed owner, uint256 amount);
    /// @notice An address has claimed.
    event Claimed(address indexed owner, uint256 amount);
    /// @notice Somebody added to the pot.
    event Funded(uint256 amount);

    /// @notice The validator is not there, or not in a state for this.
    error WrongStatus();
    /// @notice The bond is smaller than {minBond}.
    error BondTooSmall();
    /// @notice The hot key serves, or has served, a validator.
    error OperatorTaken();
    /// @notice There are {MAX_FAMILIES} families.
    error TooManyFamilies();
    /// @notice The validator has open commitments.
    error Locked();
    /// @notice The caller is not the validator's hot key.
    error NotTheVoter();
    /// @notice The token took a part of the transfer.
    error FeeOnTransfer();

    /// @param token_ The token of bonds.
    /// @param governor_ Who announces a successor.
    /// @param guardian_ Who may stop joining.
    /// @param minBond_ Smallest bond to join with.
    /// @param judges Where votes on images and on collateral and the beacon are, or will be.
    constructor(IERC20 token_, address governor_, address guardian_, uint96 minBond_, address[3] memory judges)
        Governed(governor_, guardian_)
    {
        if (address(token_) == address(0) || minBond_ == 0) revert BadValue();
        (token, minBond) = (token_, minBond_);
        (imageRegistry, collateral, beacon) = (judges[0], judges[1], judges[2]);
    }

    modifier onlyJudge() {
        if (msg.sender != imageRegistry && msg.sender != collateral && msg.sender != beacon) revert NotAllowed();
        _;
    }

    /// @notice Joins with a bond; votes in rounds that open in later blocks.
    /// @param family Whose it is: the caller, or an address that has admitted the caller. Validators of one family share its cap.
    /// @param withdrawal Where everything is paid to.
    /// @param amount The bond.
    /// @return validatorId Its number for ever.
    function join(address family, address withdrawal, uint96 amount)
        external
        nonReentrant
        whenNotPaused
        returns (uint64 validatorId)
    {
        if (withdrawal == address(0)) revert BadValue();
        if (family != msg.sender && !admits[family][msg.sender]) revert NotAllowed();
        if (amount < minBond) revert BondTooSmall();
        validatorId = ++count;
        _serve(validatorId, msg.sender);
        uint16 place = _place(family);
        _validators[validatorId] = Validator({
            operator: msg.sender,
            freeAt: 0,
            family: place,
            locks: 0,
            status: Status.Active,
            withdrawal: withdrawal,
            bond: 0
        });
        emit Joined(validatorId, msg.sender, withdrawal, family, amount);
        _setBond(validatorId, amount);
        _take(msg.sender, amount);
    }

    /// @notice Adds to a bond; anybody may.
    /// @param validatorId The validator.
    /// @param amount How much.
    function topUp(uint64 validatorId, uint96 amount) external nonReentrant {
        Validator storage validator = _validators[validatorId];
        // One of which everything was taken for equivocation can only leave.
        if (validator.status != Status.Active || validator.bond == 0) revert WrongStatus();
        _setBond(validatorId, validator.bond + amount);
        _take(msg.sender, amount);
    }

    /// @notice Lets a hot key join the caller's family, or no more; those in it stay.
    /// @param operator The hot key.
    /// @param admitted Which of the two.
    function admit(address operator, bool admitted) external {
        admits[msg.sender][operator] = admitted;
        emit Admitted(msg.sender, operator, admitted);
    }

    /// @notice Names the next hot key, which then calls {takeOver}; the withdrawal address alone may.
    /// @param validatorId The validator.
    /// @param operator The new hot key.
    function setOperator(uint64 validatorId, address operator) external {
        Validator storage validator = _validators[validatorId];
        if (validator.status == Status.None || msg.sender != validator.withdrawal) revert NotAllowed();
        nextOperatorOf[validatorId] = operator;
    }

    /// @notice Becomes the hot key; only the named key may call it, so that nobody can use up another person's key.
    /// @param validatorId The validator.
    function takeOver(uint64 validatorId) external {
        if (msg.sender != nextOperatorOf[validatorId]) revert NotAllowed();
        _serve(validatorId, msg.sender);
        delete nextOperatorOf[validatorId];
        replacedAt[_validators[validatorId].operator] = uint48(block.number);
        _validators[validatorId].operator = msg.sender;
        emit OperatorChanged(validatorId, msg.sender);
    }

    /// @notice Leaves: weighs nothing in rounds that open from now on, reveals what it has committed, is free after {UNBONDING}.
    /// @param validatorId The validator.
    function unbond(uint64 validatorId) external {
        Validator storage validator = _validators[validatorId];
        if (validator.status != Status.Active) revert WrongStatus();
        if (msg.sender != validator.operator && msg.sender != validator.withdrawal) revert NotAllowed();
        _weigh(validatorId, validator.family, 0);
        (validator.status, validator.freeAt) = (Status.Unbonding, uint48(block.timestamp) + UNBONDING);
        emit Unbonded(validatorId, validator.freeAt);
    }

    /// @notice Pays a free bond to its withdrawal address; anybody may. What is left is where a late refund goes to.
    /// @param validatorId The validator.
    function withdraw(uint64 validatorId) external nonReentrant {
        Validator storage validator = _validators[validatorId];
        if (validator.status != Status.Unbonding) revert WrongStatus();
        if (block.timestamp < validator.freeAt) revert TooEarly();
        if (validator.locks != 0) revert Locked();
        uint96 amount = validator.bond;
        (validator.operator, validator.status, validator.bond) = (address(0), Status.None, 0);
        delete nextOperatorOf[validatorId];
        emit Withdrawn(validatorId, validator.withdrawal, amount);
        token.safeTransfer(validator.withdrawal, amount);
    }

    /// @notice Pays what an address may claim, to it; anybody may.
    /// @param owner The address.
    function claim(address owner) external nonReentrant {
        uint256 amount = creditOf[owner];
        creditOf[owner] = 0;
        credits -= amount;
        emit Claimed(owner, amount);
        token.safeTransfer(owner, amount);
    }

    /// @notice Adds to what future rounds earn; anybody may.
    /// @param amount How much.
    function fund(uint256 amount) external nonReentrant {
        pot += amount;
        emit Funded(amount);
        _take(msg.sender, amount);
    }

    /// @notice Frees a family's place in which no bond is, nor was at the end of the block before; anybody may.
    /// @param family The family.
    function prune(address family) external {
        uint16 place = placeOf[family];
        if (place == 0) revert BadValue();
        Checkpoints.Trace208 storage weights = _familyWeights[place - 1];
        if (weights.latest() != 0 || weights.upperLookupRecent(_lastBlock()) != 0) revert WrongStatus();
        placeOf[family] = 0;
        _families[place - 1] = address(0);
    }

    /// @notice One more open commitment; judges only.
    /// @param validatorId A validator that has a bond and has not left.
    /// @param caller Who must be its hot key.
    function lock(uint64 validatorId, address caller) external onlyJudge {
        Validator storage validator = _validators[validatorId];
        if (validator.operator != caller) revert NotTheVoter();
        if (validator.status != Status.Active || validator.bond == 0) revert WrongStatus();
        ++validator.locks;
    }

    /// @notice One open commitment less; judges only.
    /// @param validatorId The validator.
    function unlock(uint64 validatorId) external onlyJudge {
        --_validators[validatorId].locks;
    }

    /// @notice Takes a part of a bond; judges only. What the reporter does not get belongs to nobody.
    /// @param validatorId The validator; of one that is gone nothing can be taken.
    /// @param basisPoints How many ten-thousandths of the bond.
    /// @param reporter Who is rewarded; zero for nobody.
    /// @param reporterBasisPoints How many ten-thousandths of what is taken.
    function slash(uint64 validatorId, uint256 basisPoints, address reporter, uint256 reporterBasisPoints)
        external
        onlyJudge
    {
        uint256 amount = _cut(validatorId, basisPoints);
        uint256 bounty = reporter == address(0) ? 0 : amount * reporterBasisPoints / 10_000;
        burned += amount - bounty;
        emit Slashed(validatorId, amount, reporter, bounty);
        if (bounty != 0) _credit(reporter, bounty);
    }

    /// @notice Takes a part of a bond and keeps it until it is decided; judges only.
    /// @param validatorId The validator.
    /// @param basisPoints How many ten-thousandths of the bond.
    /// @return amount What was taken.
    function hold(uint64 validatorId, uint256 basisPoints) external onlyJudge returns (uint256 amount) {
        amount = _cut(validatorId, basisPoints);
        held += amount;
        emit Slashed(validatorId, amount, address(0), 0);
    }

    /// @notice Takes a deposit from somebody who has approved it; judges only.
    /// @param from Who.
    /// @param amount How much.
    function deposit(address from, uint256 amount) external onlyJudge nonReentrant {
        held += amount;
        _take(from, amount);
    }

    /// @notice Returns held tokens; judges only.
    /// @param owner To whom.
    /// @param amount How much.
    function giveBack(address owner, uint256 amount) external onlyJudge {
        held -= amount;
        _credit(owner, amount);
    }

    /// @notice What was held belongs to nobody from now on; judges only.
    /// @param amount How much.
    function burnHeld(uint256 amount) external onlyJudge {
        held -= amount;
        burned += amount;
    }

    /// @notice Sets aside what a round with a result has earned; judges only.
    /// @param part One part in so many of the pot.
    /// @param most But no more than this.
    /// @return amount How much.
    function reserve(uint256 part, uint256 most) external onlyJudge returns (uint256 amount) {
        amount = pot / part < most ? pot / part : most;
        pot -= amount;
        reserved += amount;
    }

    /// @notice Credits a validator's withdrawal address with a part of what was set aside; judges only.
    /// @param validatorId The validator.
    /// @param amount How much.
    function share(uint64 validatorId, uint256 amount) external onlyJudge {
        address owner = _validators[validatorId].withdrawal;
        reserved -= amount;
        _credit(owner, amount);
    }

    /// @notice A validator's two slots.
    /// @param validatorId The validator.
    /// @return What is held of it.
    function get(uint64 validatorId) external view returns (Validator memory) {
        return _validators[validatorId];
    }

    /// @notice What all bonds together weigh at the end of a past block, with each family's share capped at the larger of a tenth and one and a half
    /// times its even share of the uncapped sum.
    /// @param blockNumber The block.
    /// @return total The sum of the families' capped weights.
    /// @return cap What one family weighs at most; zero when none has more.
    function snapshot(uint48 blockNumber) external view returns (uint96 total, uint96 cap) {
        uint256 places = _families.length;
        uint256[] memory weights = new uint256[](places);
        (uint256 sum, uint256 families) = (0, 0);
        for (uint16 place = 0; place < places; ++place) {
            if (_families[place] == address(0)) continue;
            uint256 weight = _familyWeights[place].upperLookupRecent(blockNumber);
            if (weight == 0) continue;
            weights[place] = weight;
            sum += weight;
            ++families;
        }
        if (families == 0) return (0, 0);
        uint256 even = 3 * sum / (2 * families);
        uint256 most = even > sum / 10 ? even : sum / 10;
        for (uint16 place = 0; place < places; ++place) {
            if (weights[place] > most) cap = SafeCast.toUint96(most);
            total += SafeCast.toUint96(weights[place] > most ? most : weights[place]);
        }
    }

    /// @notice What one validator weighs at the end of a past block.
    /// @param validatorId The validator.
    /// @param blockNumber The block.
    /// @param cap What its family weighs at most, from {snapshot}.
    /// @return weight Its bond, or its part of the cap.
    /// @return place Its family's place.
    function weightAt(uint64 validatorId, uint48 blockNumber, uint96 cap)
        public
        view
        returns (uint96 weight, uint16 place)
    {
        uint256 bond = _weights[validatorId].upperLookupRecent(blockNumber);
        place = _validators[validatorId].family;
        weight = uint96(bond);
        if (cap != 0 && bond != 0) {
            uint256 family = _familyWeights[place].upperLookupRecent(blockNumber);
            if (family > cap) weight = uint96(bond * cap / family);
        }
    }

    /// @notice The same, of the caller's validator.
    /// @param validatorId The validator.
    /// @param caller Who must be its hot key.
    /// @param blockNumber The block.
    /// @param cap What its family weighs at most, from {snapshot}.
    /// @return weight Its bond, or its part of the cap.
    /// @return place Its family's place.
    function weightOf(uint64 validatorId, address caller, uint48 blockNumber, uint96 cap)
        external
        view
        returns (uint96 weight, uint16 place)
    {
        if (_validators[validatorId].operator != caller) revert NotTheVoter();
        return weightAt(validatorId, blockNumber, cap);
    }

    function _lastBlock() private view returns (uint48) {
        return uint48(block.number) - 1;
    }

    function _serve(uint64 validatorId, address operator) private {
        if (validatorOf[operator] != 0) revert OperatorTaken();
        validatorOf[operator] = validatorId;
    }

    /// @dev The family's place, found or given.
    function _place(address family) private returns (uint16 place) {
        place = placeOf[family];
        if (place != 0) return place - 1;
        while (place < _families.length && _families[place] != address(0)) ++place;
        if (place == MAX_FAMILIES) revert TooManyFamilies();
        if (place == _families.length) _families.push();
        _families[place] = family;
        placeOf[family] = place + 1;
    }

    function _setBond(uint64 validatorId, uint96 bond) private {
        _weigh(validatorId, _validators[validatorId].family, bond);
        _validators[validatorId].bond = bond;
        emit BondChanged(validatorId, bond);
    }

    /// @dev Sets what one weighs, and its family with it, from the end of this block on.
    function _weigh(uint64 validatorId, uint16 place, uint96 weight) private {
        Checkpoints.Trace208 storage family = _familyWeights[place];
        uint208 others = family.latest() - _weights[validatorId].latest();
        family.push(uint48(block.number), others + weight);
        _weights[validatorId].push(uint48(block.number), weight);
    }

    function _cut(uint64 validatorId, uint256 basisPoints) private returns (uint256 amount) {
        Validator storage validator = _validators[validatorId];
        amount = uint256(validator.bond) * basisPoints / 10_000;
        if (validator.status == Status.Active) {
            _setBond(validatorId, validator.bond - uint96(amount));
        } else {
            validator.bond -= uint96(amount);
        }
    }

    function _credit(address owner, uint256 amount) private {
        creditOf[owner] += amount;
        credits += amount;
        emit Credited(owner, amount);
    }

    function _take(address from, uint256 amount) private {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(from, address(this), amount);
        if (token.balanceOf(address(this)) != before + amount) revert FeeOnTransfer();
    }
}
