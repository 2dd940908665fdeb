//! `openrelay validator accuse`: a vote to suspend or revoke an approved image.
//!
//! Owns the words about what it can cost, and the settlement of motions that are over. The contract has only the hash
//! of the reason, so its text must be published.

use std::path::PathBuf;

use alloy_primitives::{B256, U256};
use alloy_sol_types::{SolCall, SolEvent as _};
use openrelay_chain::logs::{Logs, Wanted};
use openrelay_chain::voting::ImageRegistry;
use openrelay_image::sha256;
use openrelay_node::config::read_bytes;

use super::{Folder, Standing};
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::say;
use crate::rpc::{block_time, newest_block};
use crate::units::span;

/// The options of `accuse`.
#[derive(clap::Args)]
pub(crate) struct AccuseArguments {
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Number of the round that approved the image
    round: u64,
    /// File that says why; publish it, the chain has its hash
    #[arg(long, value_name = "FILE", required_unless_present = "settle")]
    reason: Option<PathBuf>,
    /// Settle own accusations whose time is over
    #[arg(long, conflicts_with = "reason")]
    settle: bool,
    /// Agree to what can be lost
    #[arg(long)]
    yes: bool,
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

pub(super) fn accuse(arguments: &AccuseArguments) -> Result<(), Failure> {
    let folder = Folder::open(&arguments.dir)?;
    let standing = folder.bonded()?;
    match &arguments.reason {
        Some(reason) => vote(&folder, &standing, arguments, reason),
        None => settle(&folder, &standing, arguments),
    }
}

fn vote(
    folder: &Folder,
    Standing { id, shown }: &Standing,
    arguments: &AccuseArguments,
    reason: &std::path::Path,
) -> Result<(), Failure> {
    let (round, id, images) = (arguments.round, *id, folder.images);
    let hash = B256::new(sha256(&read_bytes(reason).map_err(Failure::plain)?));
    let image = folder.ask(images, &ImageRegistry::imageByCall { round })?;
    if image.usableFrom.is_zero() {
        return Err(Failure::new(3, format!("round {round} has approved no image")));
    }
    if !image.revokedAt.is_zero() {
        return Err(Failure::new(3, format!("the image of round {round} is revoked already")));
    }
    let time: u64 = folder.ask(images, &ImageRegistry::SUSPENSIONCall {})?.to();
    let time = span(time / u64::from(folder.account.chain.time_divisor.max(1)));
    let part = folder.ask(images, &ImageRegistry::LAPSEDCall {})?;
    let lost = U256::from(shown.bond).saturating_mul(part) / U256::from(10_000);
    let costs = [
        format!(
            "if the image is suspended and not revoked within {time}, {} of the bond are lost",
            folder.unit()?.show(lost)
        ),
        format!(
            "the bond stays locked until the motion is over and settled, up to {time}; nothing takes the vote back"
        ),
        format!("with enough weight, clients refuse all relays of this image; version {}", image.version),
        format!("the chain has only the hash of the reason, {hash}: publish {}", reason.display()),
    ];
    confirm(&format!("validator {id} accuses the image of round {round}"), &costs, arguments.yes)?;
    let sender = folder.account.sender(arguments.password_file.as_deref())?;
    let call = ImageRegistry::accuseCall { round, validatorId: id, reason: hash };
    let receipt = sender.send(&format!("accuse {round}"), images, &call.abi_encode())?;
    let motions = folder.ask(images, &ImageRegistry::motionsOfCall { round })?;
    let against = motions.last().map_or_else(String::new, |motion| {
        let done = if motion.revoked {
            ", revoked"
        } else if motion.suspended {
            ", suspended"
        } else {
            ""
        };
        let percent =
            U256::from(motion.weight).saturating_mul(U256::from(100)) / U256::from(motion.total).max(U256::from(1));
        format!("; {percent} % of the weight is against it{done}")
    });
    say(&format!("round {round}: accused, block {}{against}", receipt.block));
    Ok(())
}

/// Settles the motions in which the validator voted and whose time is over.
fn settle(folder: &Folder, Standing { id, .. }: &Standing, arguments: &AccuseArguments) -> Result<(), Failure> {
    let (round, id, images) = (arguments.round, *id, folder.images);
    let motions = folder.ask(images, &ImageRegistry::motionsOfCall { round })?;
    let now = block_time(&folder.endpoint())?;
    let mut sender = None;
    let mut settled = 0;
    for number in accused(folder, round, id)? {
        let motion = usize::try_from(number).ok().and_then(|at| motions.get(at));
        let Some(motion) = motion else { continue };
        let left = motion.end.to::<u64>().saturating_sub(now);
        if left > 0 {
            say(&format!("motion {number}: open for another {}; run this again then", span(left)));
            continue;
        }
        if sender.is_none() {
            sender = Some(folder.account.sender(arguments.password_file.as_deref())?);
        }
        let Some(sender) = &sender else { continue };
        let call = ImageRegistry::settleMotionCall { round, number: U256::from(number), ids: vec![id] };
        let receipt = sender.send(&format!("settle motion {round} {number}"), images, &call.abi_encode())?;
        say(&format!("motion {number}: settled, block {}", receipt.block));
        settled += 1;
    }
    if settled == 0 {
        say(&format!("round {round}: no accusation of validator {id} can be settled"));
    }
    Ok(())
}

/// Returns the numbers of the motions against the image in which the validator voted, as one endpoint reports them.
/// One that is settled already is among them; to settle it again does nothing.
fn accused(folder: &Folder, round: u64, id: u64) -> Result<Vec<u64>, Failure> {
    let topics =
        vec![vec![ImageRegistry::Accused::SIGNATURE_HASH], vec![U256::from(round).into()], vec![U256::from(id).into()]];
    let endpoint = folder.endpoint();
    let head = newest_block(&endpoint)?;
    let wanted = Wanted { address: folder.images, topics };
    let logs = Logs::new(endpoint, wanted).all(folder.account.chain.first_block, head)?;
    let number = |log| ImageRegistry::Accused::decode_log(log).ok().map(|event| event.motion.saturating_to());
    Ok(logs.iter().filter_map(number).collect())
}
