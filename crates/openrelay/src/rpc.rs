//! Calls to one endpoint of the chain, without proofs.
//!
//! Owns the calls that several commands make. Nothing that a client trusts comes from here.

use alloy_primitives::{Address, B256, Log, U256};
use alloy_sol_types::SolCall;
use openrelay_chain::logs::{Logs, Wanted};
use openrelay_chain::voting::ImageRegistry;
use openrelay_chain::{Endpoint, EndpointError};
use openrelay_node::chain_file::ChainFile;
use serde_json::json;

use crate::failure::Failure;
use crate::output::talk;

/// The chain ID of development chains with a faucet.
pub(crate) const DEVELOPMENT: u64 = 31_337;

/// Calls a contract through one endpoint, without a proof.
pub(crate) fn ask<C: SolCall>(endpoint: &Endpoint, to: Address, call: &C) -> Result<C::Return, Failure> {
    let answer = endpoint.call(to, &call.abi_encode())?;
    C::abi_decode_returns(&answer)
        .map_err(|error| Failure::plain(format!("{}: {to} returned malformed data: {error}", endpoint.url())))
}

/// Returns the events of these kinds in a round of votes on images, as one endpoint reports them. Covers the blocks
/// from the round's proposal to the end of its reveals.
pub(crate) fn round_logs(
    endpoint: &Endpoint,
    chain: &ChainFile,
    images: Address,
    kinds: &[B256],
    round: u64,
) -> Result<Vec<Log>, Failure> {
    let held = ask(endpoint, images, &ImageRegistry::roundOfCall { round })?;
    let first = held.snapshotBlock.to::<u64>().max(chain.first_block);
    let until = ask(endpoint, images, &ImageRegistry::revealEndCall { round })?;
    let last = last_block_by(endpoint, until.to(), first)?;
    let topics = vec![kinds.to_vec(), vec![U256::from(round).into()]];
    Ok(Logs::new(endpoint.clone(), Wanted { address: images, topics }).all(first, last)?)
}

/// Returns the number of the newest block, as one endpoint reports it.
pub(crate) fn newest_block(endpoint: &Endpoint) -> Result<u64, Failure> {
    Ok(endpoint.ask_number("eth_blockNumber", &json!([]))?.saturating_to())
}

/// Returns the time of an endpoint's newest block, by which contracts decide, in seconds since the Unix epoch.
pub(crate) fn block_time(endpoint: &Endpoint) -> Result<u64, Failure> {
    let block = endpoint.ask("eth_getBlockByNumber", &json!(["latest", false]))?;
    let time = block["timestamp"].as_str().and_then(|text| text.parse::<U256>().ok());
    time.map(|time| time.saturating_to()).ok_or_else(|| Failure::plain("the newest block has no timestamp"))
}

/// Returns the last block from `first` on that is not newer than `time`, in seconds since the Unix epoch. Returns
/// `first` if all blocks are newer.
fn last_block_by(endpoint: &Endpoint, time: u64, first: u64) -> Result<u64, Failure> {
    let is_by = |number: u64| -> Result<bool, Failure> {
        let block = endpoint.ask("eth_getBlockByNumber", &json!([format!("{number:#x}"), false]))?;
        let shown = block["timestamp"].as_str().and_then(|text| text.parse::<U256>().ok());
        let missing = || Failure::plain(format!("{}: block {number} is unavailable", endpoint.url()));
        Ok(shown.ok_or_else(missing)? <= U256::from(time))
    };
    let (mut good, mut beyond) = (first, newest_block(endpoint)?.max(first).saturating_add(1));
    while beyond - good > 1 {
        let middle = good + (beyond - good) / 2;
        if is_by(middle)? {
            good = middle;
        } else {
            beyond = middle;
        }
    }
    Ok(good)
}

/// Asks a development chain's faucet to give an account `amount` of a token, and ether. Does nothing on other chains.
pub(crate) fn faucet(
    chain: &ChainFile,
    endpoint: &Endpoint,
    account: Address,
    token: Address,
    amount: U256,
) -> Result<(), Failure> {
    if chain.chain_id != DEVELOPMENT {
        return Ok(());
    }
    let fund = json!([account.to_string(), token.to_string(), format!("{amount:#x}")]);
    match endpoint.ask("devchain_fund", &fund) {
        Ok(_) => talk("openrelay: this is a development chain; its faucet paid the bond and ether"),
        // A development chain without a faucet.
        Err(EndpointError::Refused { code: -32_601, .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
