// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Governed} from "./Governed.sol";
import {ReleaseKeys} from "./ReleaseKeys.sol";
import {Rounds} from "./Rounds.sol";
import {ValidatorSet} from "./ValidatorSet.sol";

/// @title Images that validators rebuilt, and their current states.
/// @notice Anyone with a signed release can propose it with a deposit and a hidden value; validators rebuild it and vote for the value that they get. An
/// image is named by the number of its round. Its state follows from time, newer images of its kind and motions against it; nobody has to
/// call anything for it to change.
contract ImageRegistry is Governed, Rounds {
    /// @notice State of a proposal or image.
    enum State {
        None,
        Proposed,
        Reveal,
        Challenge,
        Ended,
        Rejected,
        NoQuorum,
        ApprovedPending,
        Active,
        Deprecated,
        Retired,
        Suspended,
        Revoked
    }

    /// @notice How a round is held. Canary rounds, with errors on purpose, have their number and are not opened yet.
    enum RoundKind {
        Normal,
        Emergency,
        Canary
    }

    /// @dev What was proposed, and what became of it.
    struct Image {
        address proposer;
        uint64 version;
        uint8 kind;
        RoundKind roundKind;
        uint48 usableFrom;
        uint48 suspendedUntil;
        uint48 revokedAt;
        bytes32 release;
        bytes32 blind;
    }

    /// @dev Validators against an image; weights as of the block before the first.
    struct Motion {
        uint48 snapshotBlock;
        uint48 end;
        uint96 cap;
        bool suspended;
        bool revoked;
        uint96 total;
        uint96 weight;
    }

    /// @notice From approval to use.
    uint48 public constant PENDING = 24 hours;
    /// @notice How long an image stays good after a newer one can be used.
    uint48 public constant GRACE = 14 days;
    /// @notice How long a suspension lasts, and how long a motion collects.
    uint48 public constant SUSPENSION = 72 hours;
    /// @notice Ten-thousandths of a bond that a suspension costs its voters when it lapses.
    uint256 public constant LAPSED = 100;
    /// @notice How long a release waits after a round without quorum.
    uint48 public constant RETRY = 24 hours;

    /// @notice Whose sources are releases.
    ReleaseKeys public immutable releaseKeys;
    /// @notice What a proposal deposits.
    uint96 public immutable deposit;
    /// @notice Families that must name the value.
    uint8 public immutable minFamilies;
    /// @notice 1; development networks divide all times of rounds and images by more.
    uint32 public immutable haste;

    /// @notice From when a release can be proposed again after a round without quorum.
    mapping(bytes32 release => uint48) public retryAt;
    /// @notice The approved image of a version; zero when there is none.
    mapping(uint8 kind => mapping(uint64 version => uint64 round)) public imageOf;

    mapping(uint64 round => Image) private _images;
    mapping(uint8 kind => uint64[]) private _approved;
    mapping(uint64 round => Motion[]) private _motions;
    mapping(uint64 round => mapping(uint256 motion => mapping(uint64 validatorId => bool))) private _against;

    /// @notice A release is to be rebuilt.
    event Proposed(
        uint64 indexed round, address indexed proposer, RoundKind roundKind, ReleaseKeys.Release release, bytes32 blind
    );
    /// @notice The proposer has shown the value.
    event Opened(uint64 indexed round, bytes32 image, bytes32 measurements);
    /// @notice A validator is against an image, for the reason of which this is the hash.
    event Accused(uint64 indexed round, uint256 motion, uint64 indexed validatorId, uint96 weight, bytes32 reason);
    /// @notice An image is not to be used until then.
    event Suspended(uint64 indexed round, uint256 motion, uint48 until);
    /// @notice An image is never to be used again.
    event Revoked(uint64 indexed round, uint256 motion);

    /// @notice The release has an approved image, or must wait.
    error NotNow();
    /// @notice What is shown is not what was proposed.
    error WrongProposal();
    /// @notice The image is not in a state for this.
    error WrongState();

    /// @param governor_ Who announces a successor.
    /// @param guardian_ Who may stop proposals.
    /// @param validators_ The validators.
    /// @param releaseKeys_ Whose sources are releases.
    /// @param deposit_ What a proposal deposits.
    /// @param minFamilies_ Families that must name the value.
    /// @param haste_ 1, or what a development network divides times by.
    constructor(
        address governor_,
        address guardian_,
        ValidatorSet validators_,
        ReleaseKeys releaseKeys_,
        uint96 deposit_,
        uint8 minFamilies_,
        uint32 haste_
    ) Governed(governor_, guardian_) Rounds(validators_) EIP712("OpenRelay images", "1") {
        if (minFamilies_ == 0 || haste_ == 0 || haste_ > 21_600) revert BadValue();
        (releaseKeys, deposit, minFamilies, haste) = (releaseKeys_, deposit_, minFamilies_, haste_);
    }

    /// @notice Proposes a signed release; the caller has approved the deposit to the validators' contract.
    /// @param roundKind Normal, or an emergency: hours instead of days, and no time for proofs of equivocation after the reveals.
    /// @param release What was signed.
    /// @param signatures By the release keys, ascending by signer.
    /// @param blind From {blindOf}.
    /// @return round The round, and the image's number if it is approved.
    function propose(
        RoundKind roundKind,
        ReleaseKeys.Release calldata release,
        bytes[] calldata signatures,
        bytes32 blind
    ) external whenNotPaused returns (uint64 round) {
        if (roundKind == RoundKind.Canary) revert BadValue();
        bytes32 hash = releaseKeys.check(release, signatures);
        if (imageOf[release.kind][release.version] != 0 || block.timestamp < retryAt[hash]) revert NotNow();
        round = _open(_terms(roundKind), true, roundKind == RoundKind.Emergency);
        Image storage image = _images[round];
        (image.proposer, image.version, image.kind) = (msg.sender, release.version, release.kind);
        (image.roundKind, image.release, image.blind) = (roundKind, hash, blind);
        emit Proposed(round, msg.sender, roundKind, release, blind);
        validators.deposit(msg.sender, deposit);
    }

    /// @notice Shows the proposed value while votes are revealed; only the proposer may, and loses the deposit otherwise.
    /// @param round The round.
    /// @param image SHA-256 of the image.
    /// @param measurements SHA-256 of its list of measurements.
    /// @param salt What was hidden with it.
    function open(uint64 round, bytes32 image, bytes32 measurements, bytes32 salt) external {
        Round storage r = _rounds[round];
        if (block.timestamp < r.commitEnd || block.timestamp >= _revealEnd(r)) revert WrongPhase();
        Image storage proposal = _images[round];
        bytes32 blind = blindOf(msg.sender, proposal.release, image, measurements, salt);
        if (msg.sender != proposal.proposer || blind != proposal.blind) revert WrongProposal();
        (r.opened, r.value) = (true, valueOf(image, measurements));
        emit Opened(round, image, measurements);
    }

    /// @notice Votes against an image. From a third of the weight on it is suspended, if another image of its kind can be used meanwhile; from two
    /// thirds on it is revoked. A suspension that lapses costs its voters.
    /// @param round The image.
    /// @param validatorId The caller's validator.
    /// @param reason SHA-256 of a text that says why.
    function accuse(uint64 round, uint64 validatorId, bytes32 reason) external {
        Image storage image = _images[round];
        if (image.usableFrom == 0 || image.revokedAt != 0) revert WrongState();
        (uint256 number, Motion storage motion) = _motion(round);
        if (_against[round][number][validatorId]) revert WrongMark();
        validators.lock(validatorId, msg.sender);
        (uint96 weight,) = validators.weightAt(validatorId, motion.snapshotBlock, motion.cap);
        if (weight == 0) revert NotAllowed();
        _against[round][number][validatorId] = true;
        motion.weight += weight;
        emit Accused(round, number, validatorId, weight, reason);
        uint256 thirds = 3 * uint256(motion.weight);
        if (thirds >= 2 * uint256(motion.total)) {
            (motion.revoked, motion.end) = (true, uint48(block.timestamp));
            image.revokedAt = uint48(block.timestamp);
            emit Revoked(round, number);
        } else if (!motion.suspended && thirds >= motion.total && _anotherLasts(round, image)) {
            (motion.suspended, motion.end) = (true, uint48(block.timestamp) + SUSPENSION / haste);
            image.suspendedUntil = motion.end;
            emit Suspended(round, number, motion.end);
        }
    }

    /// @notice Settles a motion that is over with those who voted for it; anybody may.
    /// @param round The image.
    /// @param number The motion.
    /// @param ids The validators; those who did not vote or are settled are passed over.
    function settleMotion(uint64 round, uint256 number, uint64[] calldata ids) external {
        Motion storage motion = _motions[round][number];
        if (block.timestamp < motion.end) revert WrongPhase();
        for (uint256 i = 0; i < ids.length; ++i) {
            if (!_against[round][number][ids[i]]) continue;
            delete _against[round][number][ids[i]];
            validators.unlock(ids[i]);
            if (motion.suspended && !motion.revoked) validators.slash(ids[i], LAPSED, address(0), 0);
        }
    }

    /// @notice A proposal and what became of it.
    /// @param round The round.
    /// @return All of it.
    function imageBy(uint64 round) external view returns (Image memory) {
        return _images[round];
    }

    /// @notice The approved images of a kind, by ascending version.
    /// @param kind The kind.
    /// @return The numbers of their rounds.
    function approved(uint8 kind) external view returns (uint64[] memory) {
        return _approved[kind];
    }

    /// @notice The motions against an image.
    /// @param round The image.
    /// @return From the first to the newest.
    function motionsOf(uint64 round) external view returns (Motion[] memory) {
        return _motions[round];
    }

    /// @notice Where a proposal or image stands now.
    /// @param round The round.
    /// @return The state.
    function stateOf(uint64 round) external view returns (State) {
        Round storage r = _rounds[round];
        if (r.commitEnd == 0) return State.None;
        if (r.outcome == Outcome.Open) {
            if (block.timestamp < r.commitEnd) return State.Proposed;
            if (block.timestamp < _revealEnd(r)) return State.Reveal;
            return block.timestamp < _revealEnd(r) + r.challengeTime ? State.Challenge : State.Ended;
        }
        if (r.outcome == Outcome.Rejected) return State.Rejected;
        if (r.outcome == Outcome.NoQuorum) return State.NoQuorum;
        Image storage image = _images[round];
        if (image.revokedAt != 0) return State.Revoked;
        if (block.timestamp < image.suspendedUntil) return State.Suspended;
        if (block.timestamp < image.usableFrom) return State.ApprovedPending;
        uint48 superseded = _supersededAt(round, image);
        if (block.timestamp < superseded) return State.Active;
        return block.timestamp < superseded + GRACE / haste ? State.Deprecated : State.Retired;
    }

    /// @notice What validators vote for.
    /// @param image SHA-256 of the image.
    /// @param measurements SHA-256 of its list of measurements.
    /// @return The value.
    function valueOf(bytes32 image, bytes32 measurements) public pure returns (bytes32) {
        return keccak256(abi.encode(image, measurements));
    }

    /// @notice What hides a proposed value: bound to chain, contract, proposer and release, so that nobody can propose a copy.
    /// @param proposer Who proposes.
    /// @param release The release's hash.
    /// @param image SHA-256 of the image.
    /// @param measurements SHA-256 of its list of measurements.
    /// @param salt 32 random bytes.
    /// @return What is given to {propose}.
    function blindOf(address proposer, bytes32 release, bytes32 image, bytes32 measurements, bytes32 salt)
        public
        view
        returns (bytes32)
    {
        return keccak256(abi.encode(block.chainid, address(this), proposer, release, image, measurements, salt));
    }

    function _finished(uint64 round, Outcome counted) internal override returns (Outcome outcome, bool stands) {
        Image storage image = _images[round];
        (uint8 kind, uint64 version) = (image.kind, image.version);
        bool second = imageOf[kind][version] != 0;
        stands = !second && !releaseKeys.conflicted(kind, version);
        outcome = counted == Outcome.Approved && !stands ? Outcome.NoQuorum : counted;
        bool opened = _rounds[round].opened;
        if (outcome == Outcome.Approved) {
            image.usableFrom = uint48(block.timestamp) + PENDING / haste;
            imageOf[kind][version] = round;
            _insert(_approved[kind], round, version);
        } else if (outcome == Outcome.NoQuorum && opened) {
            retryAt[image.release] = uint48(block.timestamp) + RETRY / haste;
        }
        // Half of it for a round that was one too many, so that filling all of them with one release is not free.
        uint256 back = !opened || outcome == Outcome.Rejected ? 0 : second ? deposit / 2 : deposit;
        if (back != 0) validators.giveBack(image.proposer, back);
        validators.burnHeld(deposit - back);
    }

    /// @dev A rejected round earns no more than its proposer has lost, or proposers would earn by it.
    function _earns(Outcome outcome) internal view override returns (uint256 part, uint256 most) {
        return (10, outcome == Outcome.Approved ? type(uint96).max : deposit);
    }

    function _needsOpening() internal pure override returns (bool) {
        return true;
    }

    /// @dev The image of the round's version was revoked, or has another value.
    function _overturnedAt(uint64 round) internal view override returns (uint48) {
        uint64 approvedRound = imageOf[_images[round].kind][_images[round].version];
        Round storage r = _rounds[approvedRound];
        return r.right == _rounds[round].right ? _images[approvedRound].revokedAt : r.finishedAt;
    }

    function _terms(RoundKind kind) private view returns (Terms memory) {
        if (kind == RoundKind.Emergency) {
            // Two thirds, or a fifth could stop what is urgent; the time that is saved is that of commitments and of proofs.
            return Terms(6 hours / haste, 6 hours / haste, 6 hours / haste, 0, 2, 3, minFamilies);
        }
        return Terms(3 days / haste, 1 days / haste, 1 days / haste, 3 days / haste, 2, 3, minFamilies);
    }

    /// @dev The motion that collects or suspends now, or a new one.
    function _motion(uint64 round) private returns (uint256 number, Motion storage motion) {
        Motion[] storage motions = _motions[round];
        number = motions.length;
        if (number != 0 && block.timestamp < motions[number - 1].end) return (number - 1, motions[number - 1]);
        motion = motions.push();
        motion.snapshotBlock = uint48(block.number) - 1;
        (motion.total, motion.cap) = validators.snapshot(motion.snapshotBlock);
        motion.end = uint48(block.timestamp) + SUSPENSION / haste;
    }

    /// @dev Whether another image of this kind can be used now and until a suspension would end.
    function _anotherLasts(uint64 round, Image storage image) private view returns (bool) {
        uint64[] storage list = _approved[image.kind];
        uint256 until = block.timestamp + SUSPENSION / haste;
        for (uint256 i = list.length; i != 0; --i) {
            Image storage other = _images[list[i - 1]];
            if (other.revokedAt != 0) continue;
            bool usable = block.timestamp >= other.usableFrom && block.timestamp >= other.suspendedUntil;
            if (list[i - 1] != round && usable) return true;
            // Older ones end with the grace that this one gives them.
            if (until >= uint256(other.usableFrom) + GRACE / haste) return false;
        }
        return false;
    }

    /// @dev From when a newer image of its kind that is not revoked can be used; far in the future when there is none.
    function _supersededAt(uint64 round, Image storage image) private view returns (uint48 since) {
        uint64[] storage list = _approved[image.kind];
        since = type(uint48).max - GRACE;
        for (uint256 i = list.length; i != 0 && list[i - 1] != round; --i) {
            Image storage newer = _images[list[i - 1]];
            if (newer.revokedAt == 0 && newer.usableFrom < since) since = newer.usableFrom;
        }
    }

    /// @dev Keeps the list ascending by version.
    function _insert(uint64[] storage list, uint64 round, uint64 version) private {
        list.push(round);
        for (uint256 i = list.length - 1; i != 0 && _images[list[i - 1]].version > version; --i) {
            (list[i], list[i - 1]) = (list[i - 1], round);
        }
    }
}
