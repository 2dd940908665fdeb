//! The network's contracts on a development chain.
//!
//! Owns their deployment and the faucet. Uses the committed artifacts.
#![allow(missing_docs, clippy::too_many_arguments, reason = "the bindings are made by a macro")]

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolCall, SolValue, sol};
use openrelay_chain::registry::RelayRegistry;
use openrelay_chain::voting::{Beacon, Collateral, ImageRegistry, Issuers, ReleaseKeys, ValidatorSet};

use crate::chain::{Chain, Receipt};
use crate::genesis::KNOWN;
use crate::{Failure, Node};

sol!(TestToken, "../../contracts/artifacts/TestToken.json");

/// One token, in its smallest unit.
const TOKEN: u64 = 1_000_000_000_000_000_000;
/// What the faucet gives for gas, in wei: ten ether.
const ETHER: u64 = 10 * TOKEN;

/// Addresses of the contracts on a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// Chain ID, which distinguishes the chain from others.
    pub chain_id: u64,
    /// Address of the Directory contract.
    pub directory: Address,
    /// Keccak-256 of the Directory contract's code.
    pub code_hash: B256,
    /// The contracts that were created one by one.
    pub contracts: Contracts,
}

/// The contracts' addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contracts {
    /// The token of bonds.
    pub token: Address,
    /// The registry, which writes the directory.
    pub registry: Address,
    /// The keys that sign releases.
    pub release_keys: Address,
    /// Validators and their bonds.
    pub validators: Address,
    /// Votes on images.
    pub images: Address,
    /// Votes on vendors' collateral.
    pub collateral: Address,
    /// Randomness.
    pub beacon: Address,
    /// Issuers of tokens.
    pub issuers: Address,
}

/// The constructor arguments of the contracts.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Stake for each Mbit/s, and the lower and upper bound to which it can be set, in the token's smallest unit.
    pub rate: [u64; 3],
    /// Smallest bond of a relay, in the token's smallest unit.
    pub relay_bond: u64,
    /// Contracts that may slash relays' bonds; zero for none.
    pub relay_judges: [Address; 2],
    /// Smallest bond of a validator.
    pub min_bond: u64,
    /// Deposit of a proposal.
    pub deposit: u64,
    /// Number of families that must name a value.
    pub families: u8,
    /// Divisor of the times of rounds and images.
    pub time_divisor: u32,
    /// Number of keys that must sign a release, and the keys in ascending order.
    pub release_keys: (u8, Vec<Address>),
    /// Duration of a beacon epoch, in seconds.
    pub epoch: u64,
}

impl Default for Rules {
    /// Returns the rules of development chains: three families, days of a few seconds, and the third known key signs
    /// releases.
    fn default() -> Self {
        Self {
            rate: [TOKEN, 1, 10 * TOKEN],
            relay_bond: TOKEN,
            relay_judges: [Address::ZERO; 2],
            min_bond: TOKEN,
            deposit: TOKEN,
            families: 3,
            time_divisor: 7_200,
            release_keys: (1, vec![KNOWN[2].0]),
            epoch: 600,
        }
    }
}

impl Contracts {
    /// Returns the contracts' addresses and the data of the transactions that create them.
    ///
    /// `deployer` must create them in this order from `nonce` on, with nothing in between. The first known account is
    /// the governor, the second the guardian. `code` returns a contract's creation code by name: [`committed`], or
    /// another function.
    ///
    /// Contracts that name each other get each other's addresses in advance.
    pub fn creations(deployer: Address, nonce: u64, rules: &Rules, code: &dyn Fn(&str) -> Bytes) -> (Self, Vec<Bytes>) {
        let at = |place: u64| deployer.create(nonce + place);
        let this = Self {
            token: at(0),
            registry: at(1),
            release_keys: at(2),
            validators: at(3),
            images: at(4),
            collateral: at(5),
            beacon: at(6),
            issuers: at(7),
        };
        let (governor, guardian) = (KNOWN[0].0, KNOWN[1].0);
        let number = U256::from::<u64>;
        let [rate, min, max] = rules.rate.map(number);
        let judges = [this.images, this.collateral, this.beacon];
        let (families, time_divisor) = (number(rules.families.into()), number(rules.time_divisor.into()));
        let deposit = number(rules.deposit);
        let make = |name: &str, arguments: Vec<u8>| [&code(name)[..], &arguments].concat().into();
        let creations = vec![
            make("TestToken", Vec::new()),
            make(
                "RelayRegistry",
                (this.token, governor, guardian, rate, min, max, number(rules.relay_bond), rules.relay_judges)
                    .abi_encode_params(),
            ),
            make(
                "ReleaseKeys",
                (number(rules.release_keys.0.into()), rules.release_keys.1.clone()).abi_encode_params(),
            ),
            make("ValidatorSet", (this.token, governor, guardian, number(rules.min_bond), judges).abi_encode_params()),
            make(
                "ImageRegistry",
                (governor, guardian, this.validators, this.release_keys, deposit, families, time_divisor)
                    .abi_encode_params(),
            ),
            make("Collateral", (this.validators, families, time_divisor).abi_encode_params()),
            make("Beacon", (this.validators, number(rules.epoch)).abi_encode_params()),
            make("Issuers", (this.token, governor, guardian, deposit).abi_encode_params()),
        ];
        (this, creations)
    }

    /// Creates the contracts on a chain, for a sender that signs nothing.
    ///
    /// # Errors
    /// [`Failure`] of a creation.
    pub fn make(chain: &mut Chain, rules: &Rules, code: &dyn Fn(&str) -> Bytes) -> Result<Self, Failure> {
        let deployer = KNOWN[0].0;
        let nonce = chain.newest().account(deployer).map_or(0, |account| account.nonce);
        let (this, creations) = Self::creations(deployer, nonce, rules, code);
        for creation in creations {
            chain.deploy(deployer, creation)?;
        }
        Ok(this)
    }
}

impl Node {
    /// Deploys all contracts on the chain. Its first known account is the governor.
    ///
    /// # Errors
    /// [`Failure`] of a deployment.
    pub fn deploy(&mut self, rules: &Rules) -> Result<Network, Failure> {
        let network = deploy(self.chain_mut(), rules)?;
        self.keep_all();
        Ok(network)
    }

    /// Sends a transaction for a sender that signs nothing.
    ///
    /// # Errors
    /// [`Failure`] of the call.
    pub fn send_unsigned(&mut self, from: Address, to: Address, data: Bytes) -> Result<Receipt, Failure> {
        let receipt = self.chain_mut().send(from, to, data)?;
        self.keep_all();
        Ok(receipt)
    }

    /// Gives an account ether for gas, and `amount` of a token.
    pub(crate) fn fund(&mut self, account: Address, token: Address, amount: U256) -> Result<(), Failure> {
        let chain = self.chain_mut();
        chain.give(KNOWN[0].0, account, U256::from(ETHER))?;
        chain.send(KNOWN[0].0, token, mint_call(account, amount))?;
        self.keep_all();
        Ok(())
    }
}

fn deploy(chain: &mut Chain, rules: &Rules) -> Result<Network, Failure> {
    let contracts = Contracts::make(chain, rules, &committed)?;
    let none = || Failure::Refused("the registry has no directory".into());
    let answer = chain.call(KNOWN[0].0, contracts.registry, RelayRegistry::directoryCall {}.abi_encode().into())?;
    let directory = RelayRegistry::directoryCall::abi_decode_returns(&answer).map_err(|_| none())?;
    let code_hash = chain.newest().account(directory).ok_or_else(none)?.code_hash();
    Ok(Network { chain_id: chain.chain_id(), directory, code_hash, contracts })
}

/// Returns the committed creation code of a contract, or nothing for an unknown name.
pub fn committed(name: &str) -> Bytes {
    match name {
        "TestToken" => TestToken::BYTECODE.clone(),
        "RelayRegistry" => RelayRegistry::BYTECODE.clone(),
        "ReleaseKeys" => ReleaseKeys::BYTECODE.clone(),
        "ValidatorSet" => ValidatorSet::BYTECODE.clone(),
        "ImageRegistry" => ImageRegistry::BYTECODE.clone(),
        "Collateral" => Collateral::BYTECODE.clone(),
        "Beacon" => Beacon::BYTECODE.clone(),
        "Issuers" => Issuers::BYTECODE.clone(),
        _ => Bytes::new(),
    }
}

/// Returns the call that mints `amount` tokens for `to`.
pub fn mint_call(to: Address, amount: U256) -> Bytes {
    TestToken::mintCall { to, amount }.abi_encode().into()
}
