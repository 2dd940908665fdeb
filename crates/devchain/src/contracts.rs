//! The network's contracts on a development chain.
//!
//! Owns their deployment and the faucet. The artifacts are the committed ones.
#![allow(missing_docs, clippy::too_many_arguments, reason = "the bindings are made by a macro")]

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolCall, SolValue, sol};

use crate::chain::{Chain, Receipt};
use crate::genesis::KNOWN;
use crate::{Failure, Node};

sol!(RelayRegistry, "../../contracts/artifacts/RelayRegistry.json");
sol!(TestToken, "../../contracts/artifacts/TestToken.json");

/// Stake for each Mbit/s, and the bounds that it can be set to, in the token's smallest unit.
const RATE: (u64, u64, u64) = (1_000_000_000_000_000_000, 1, 10_000_000_000_000_000_000);
/// What the faucet gives for gas, in wei: ten ether.
const ETHER: u64 = 10_000_000_000_000_000_000;

/// Where the contracts are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// What tells the chain from others.
    pub chain_id: u64,
    /// The Directory contract.
    pub directory: Address,
    /// Keccak-256 of its code.
    pub code_hash: B256,
    /// The registry that writes it.
    pub registry: Address,
    /// The token of bonds.
    pub token: Address,
}

impl Node {
    /// Puts token and registry on the chain; its first known account governs.
    ///
    /// # Errors
    /// [`Failure`] of a deployment.
    pub fn deploy(&mut self) -> Result<Network, Failure> {
        let network = deploy(self.chain_mut())?;
        self.keep_all();
        Ok(network)
    }

    /// Sends for somebody who signs nothing.
    ///
    /// # Errors
    /// [`Failure`] of the call.
    pub fn send_unsigned(&mut self, from: Address, to: Address, data: Bytes) -> Result<Receipt, Failure> {
        let receipt = self.chain_mut().send(from, to, data)?;
        self.keep_all();
        Ok(receipt)
    }

    /// Gives an account ether for gas and so much of a token.
    pub(crate) fn fund(&mut self, account: Address, token: Address, amount: U256) -> Result<(), Failure> {
        let chain = self.chain_mut();
        chain.give(KNOWN[0].0, account, U256::from(ETHER))?;
        chain.send(KNOWN[0].0, token, mint_call(account, amount))?;
        self.keep_all();
        Ok(())
    }
}

fn deploy(chain: &mut Chain) -> Result<Network, Failure> {
    let governor = KNOWN[0].0;
    let none = || Failure::Refused("a contract was not made".into());
    let token = chain.deploy(governor, token_code())?.created.ok_or_else(none)?;
    let registry = chain.deploy(governor, registry_code(token))?.created.ok_or_else(none)?;
    let answer = chain.call(governor, registry, RelayRegistry::directoryCall {}.abi_encode().into())?;
    let directory = RelayRegistry::directoryCall::abi_decode_returns(&answer).map_err(|_| none())?;
    let code_hash = chain.newest().account(directory).ok_or_else(none)?.code_hash();
    Ok(Network { chain_id: chain.chain_id(), directory, code_hash, registry, token })
}

/// What makes the token.
pub fn token_code() -> Bytes {
    TestToken::BYTECODE.clone()
}

/// What makes a registry whose bonds are in `token`; the first known account governs, the second guards.
pub fn registry_code(token: Address) -> Bytes {
    let (rate, min, max) = RATE;
    let arguments =
        (token, KNOWN[0].0, KNOWN[1].0, U256::from(rate), U256::from(min), U256::from(max)).abi_encode_params();
    [&RelayRegistry::BYTECODE[..], &arguments].concat().into()
}

/// The call that makes so many tokens for somebody.
pub fn mint_call(to: Address, amount: U256) -> Bytes {
    TestToken::mintCall { to, amount }.abi_encode().into()
}
