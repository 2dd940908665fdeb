//! `openrelay relay check`: tries everything that can fail, before the operator locks money.
//!
//! Owns the list of points, each with its remedy. A point that nothing here can decide is skipped with the reason, and
//! never reported as good.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::process::{Command, Stdio};

use alloy_primitives::Address;
use openrelay_attest::file::AttestationFile;
use openrelay_attest::verdict::ImageState;
use openrelay_chain::attestation::JudgedRelays;
use openrelay_chain::registry::{RelayRegistry, Token};
use openrelay_chain::{ChainError, Endpoint, EndpointError};
use openrelay_ledger::chain::reading::{Reading, ReadingError};
use openrelay_ledger::directory::Directory;
use openrelay_ledger::record::Role;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{RelayFile, read};
use openrelay_node::directory::VerifiedDirectory;
use openrelay_sys::nft::{self, NftError};
use serde_json::json;

use super::agent::relay_program;
use super::folder::{Folder, OPERATOR, RELAY};
use crate::account::GAS_FUNDS;
use crate::failure::Failure;
use crate::findings;
use crate::program::Program;
use crate::rpc::DEVELOPMENT;
use crate::units::{Ether, Unit, span};

/// How many seconds this machine's clock may be behind the newest block.
const BEHIND: u64 = 30;
/// How old the newest block may be by this machine's clock, in seconds. Public chains have a block every few seconds.
const STALE: u64 = 300;

/// What was found about one point.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Finding {
    Good,
    /// What to do about it.
    Missing(String),
    /// Why nothing can tell.
    Skipped(String),
}

/// The points that were checked so far.
#[derive(Default)]
pub(super) struct Checked(Vec<(String, Finding)>);

impl Checked {
    fn add(&mut self, what: impl Into<String>, finding: Finding) {
        self.0.push((what.into(), finding));
    }

    fn decide(&mut self, good: bool, what: impl Into<String>, otherwise: impl Into<String>) {
        self.add(what, if good { Finding::Good } else { Finding::Missing(otherwise.into()) });
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(what, finding)| match finding {
            Finding::Good => format!("ok       {what}"),
            Finding::Missing(how) => format!("missing  {what}: {how}"),
            Finding::Skipped(why) => format!("skipped  {what}: {why}"),
        })
    }

    pub(super) fn missing(&self) -> usize {
        self.0.iter().filter(|(_, finding)| matches!(finding, Finding::Missing(_))).count()
    }
}

/// Checks all points. `machine` is whether the relay will run in a virtual machine of this host.
///
/// # Errors
/// [`Failure`] if the folder is unusable, or no endpoint of the chain answers. `checked` then has the points before.
pub(super) fn examine(program: &Program, folder: &Folder, machine: bool, checked: &mut Checked) -> Result<(), Failure> {
    let operator = folder.account.address()?;
    folder.descriptor(0, [0; 32])?;
    checked.add(format!("the {} has valid endpoints: {:?}", folder.plan.role, folder.plan.endpoints), Finding::Good);
    withdrawal(folder.plan.withdrawal, operator, checked);
    if machine {
        host_of_machine(checked);
    } else {
        ports(folder, checked);
        tools(folder.plan.role, checked);
        evidence(program, checked);
    }
    endpoints(folder, checked)?;
    // A relay that has left counts as one that was never registered.
    let relay_id = match folder.relay_id()? {
        Some(relay_id) if folder.is_registered(relay_id)? => Some(relay_id),
        _ => None,
    };
    chain(program, folder, relay_id, checked);
    money(folder, operator, relay_id.is_some(), checked)
}

fn withdrawal(to: Address, operator: Address, checked: &mut Checked) {
    let own = if to == operator { ", which is the operator's own key: a thief of it gets the bond" } else { "" };
    let how = format!("write withdrawal = \"0x…\" into {OPERATOR}");
    checked.decide(to != Address::ZERO, format!("the bond is returned to {to}{own}"), how);
}

fn ports(folder: &Folder, checked: &mut Checked) {
    let path = folder.path().join(RELAY);
    let listen = read::<RelayFile>(&path).map_or_else(|_| folder.plan.endpoints.clone(), |file| file.listen);
    for endpoint in &listen {
        let bound = UdpSocket::bind(endpoint).map(drop);
        let what = format!("this machine can listen on {endpoint} (UDP)");
        checked.add(
            what,
            match bound {
                Ok(()) => Finding::Good,
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    Finding::Skipped("another program uses the port; that is right only if it is this relay".into())
                }
                Err(error) => Finding::Missing(error.to_string()),
            },
        );
    }
}

/// What an egress needs of this machine.
fn tools(role: Role, checked: &mut Checked) {
    if role != Role::Egress {
        return;
    }
    let device = std::path::Path::new("/dev/net/tun").exists();
    checked.decide(device, "this machine has tunnel devices (/dev/net/tun)", "load the module: modprobe tun");
    let missing = match nft::list("inet", "openrelay-check") {
        Err(error @ NftError::Missing) => Some(error.to_string()),
        // Listing a table needs privileges that a check need not have.
        Ok(_) | Err(NftError::Run(_) | NftError::Refused(_) | NftError::Late(_)) => None,
    };
    checked.decide(missing.is_none(), "this machine has nft", missing.unwrap_or_default());
}

/// Asks for evidence once, because no client uses a relay without it.
fn evidence(program: &Program, checked: &mut Checked) {
    let relay = relay_program(program);
    let what = format!("{} gets evidence on this machine", relay.display());
    let output = Command::new(&relay).arg("evidence").stdin(Stdio::null()).output();
    checked.add(
        what,
        match output {
            Ok(output) if output.status.success() => Finding::Good,
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said.trim().trim_start_matches(program.relay()).trim_start_matches(": ");
                Finding::Missing(format!("{said} ({})", output.status))
            }
            Err(error) => Finding::Missing(format!("cannot run it: {error}; install {}", program.relay())),
        },
    );
}

/// A machine has its own addresses and gets its own evidence, and it starts only with a relay ID.
fn host_of_machine(checked: &mut Checked) {
    let is_on = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| matches!(text.trim(), "Y" | "1"));
    let can = ["/sys/module/kvm_amd/parameters/sev_snp", "/sys/module/kvm_intel/parameters/tdx"].into_iter().any(is_on);
    let how = "enable SEV-SNP or TDX in the firmware and in KVM (kvm_amd.sev_snp=1, kvm_intel.tdx=1)";
    checked.decide(can, "this host can start confidential virtual machines", how);
    let why = "the machine starts only after the relay is registered; see its console then";
    checked.add("the machine has the relay's addresses and gets evidence", Finding::Skipped(why.into()));
}

fn endpoints(folder: &Folder, checked: &mut Checked) -> Result<(), Failure> {
    let mut alive = false;
    for url in &folder.account.chain.endpoints {
        let found = Endpoint::new(url).check_chain(folder.account.chain.chain_id);
        alive |= found.is_ok();
        let why = found.err().map(|error| error.to_string());
        checked.decide(why.is_none(), format!("endpoint {url}"), why.unwrap_or_default());
    }
    if alive { Ok(()) } else { Err(Failure::new(3, "no endpoint of the chain answers")) }
}

/// What a proven directory says: the clock, the image, and whether others have reached the relay.
fn chain(program: &Program, folder: &Folder, relay_id: Option<u64>, checked: &mut Checked) {
    const CLOCK: &str = "the clock agrees with the newest verified block";
    let plan = &folder.plan;
    let image_is = if plan.image.is_zero() { "is set".into() } else { format!("is approved: {}", plan.image) };
    let image_is = format!("the relay's image {image_is}");
    let reached = format!("others reach the relay at {:?}", plan.endpoints);
    let now = unix_seconds();
    let (reading, directory) = match openrelay_chain::read(&folder.account.chain, now, 0) {
        Ok(read) => read,
        Err(error) => {
            let unread = || Finding::Skipped("the directory was not read".into());
            let is_late =
                matches!(error, ChainError::Refused(ReadingError::NotYetValid(_) | ReadingError::Stale { .. }));
            let how = "compare this machine's clock with another one".into();
            checked.decide(false, "the directory can be read and proven", error.to_string());
            checked.add(CLOCK, if is_late { Finding::Missing(how) } else { unread() });
            checked.add(image_is, unread());
            return checked.add(reached, unread());
        }
    };
    checked.add("the directory can be read and proven", Finding::Good);
    let block = directory.body().issued;
    checked.add(CLOCK, clock(block, now));
    let outside = outside(&reading, &directory, relay_id);
    let directory = VerifiedDirectory::of_proven(directory, reading);
    let judged = JudgedRelays::of(&directory, &folder.account.chain.trust(), &program.standard, now);
    checked.add(image_is, image(folder, &judged));
    checked.add(reached, outside);
}

fn clock(block: u64, now: u64) -> Finding {
    if block > now.saturating_add(BEHIND) {
        let behind = span(block - now);
        return Finding::Missing(format!("it is at least {behind} behind; synchronise it, for example with chrony"));
    }
    let age = now.saturating_sub(block);
    if age > STALE {
        let why = "either the clock is ahead, or the chain has stalled";
        return Finding::Missing(format!("the block is {} old: {why}; compare the clock with another one", span(age)));
    }
    Finding::Good
}

fn image(folder: &Folder, judged: &JudgedRelays) -> Finding {
    let show = "openrelay image show lists approved images";
    if folder.plan.image.is_zero() {
        return Finding::Missing(format!("write image = \"…\" into {OPERATOR}: {show}"));
    }
    let states = judged.images().filter(|approved| approved.image.hash == folder.plan.image.0);
    match (ImageState::of_all(states.map(|approved| approved.image.state)), judged.fault()) {
        (Some(ImageState::Active | ImageState::Deprecated), _) => Finding::Good,
        (Some(state), _) => Finding::Missing(format!("it is {}; choose another: {show}", findings::state(state))),
        (None, Some(fault)) => Finding::Missing(fault.into()),
        (None, None) => Finding::Missing(format!("validators have not approved it; {show}")),
    }
}

/// Mirrors ask relays for their evidence, so a mirror that has it has reached the relay. Nothing else outside answers.
fn outside(reading: &Reading, directory: &Directory, relay_id: Option<u64>) -> Finding {
    let skipped = |why: &str| Finding::Skipped(why.into());
    let Some(relay_id) = relay_id else {
        return skipped(
            "nobody asks a relay that is not registered; check the firewall, and run this again after the start",
        );
    };
    let Some(key) = directory.relay(relay_id).and_then(|own| own.key()) else {
        return skipped("the relay does not run; run this again after the start");
    };
    let file = AttestationFile::decode(&reading.attestation).unwrap_or_default();
    let is_own =
        |binding: &openrelay_attest::binding::Binding| binding.relay_id == relay_id && binding.handshake_key == key;
    if file.staples.iter().any(|staple| is_own(&staple.binding)) {
        return Finding::Good;
    }
    skipped("no mirror has reached it yet, which is normal for about a minute after a start; then check the firewall")
}

/// Whether the account can pay, in tokens and ether.
fn money(folder: &Folder, operator: Address, bonded: bool, checked: &mut Checked) -> Result<(), Failure> {
    let paused: u64 = folder.ask(&RelayRegistry::pausedUntilCall {})?.saturating_to();
    let left = paused.saturating_sub(unix_seconds());
    let faucet = folder.account.chain.chain_id == DEVELOPMENT && has_faucet(&folder.account.endpoint());
    let free = "; this development chain's faucet pays the rest at openrelay relay bond";
    if !bonded {
        checked.decide(left == 0, "the registry accepts relays", format!("it is paused for {}", span(left)));
        let needed = folder.ask(&RelayRegistry::neededBondCall { advertisedMbit: folder.plan.advertised_mbit })?;
        let token = folder.ask(&RelayRegistry::tokenCall {})?;
        let has = folder.account.ask(token, &Token::balanceOfCall { account: operator })?;
        let unit = Unit::of(&folder.account.endpoint(), token);
        let paid = if has < needed && faucet { free } else { "" };
        let what = format!("the bond is {}, and {operator} has {}{paid}", unit.show(needed), unit.show(has));
        let rest = unit.show(needed.saturating_sub(has));
        checked.decide(has >= needed || faucet, what, format!("send it {rest} of the token {token}"));
    }
    let wei = folder.account.ether_of(operator)?;
    let paid = if wei < GAS_FUNDS && faucet { free } else { "" };
    let what = format!("{operator} has {} for gas{paid}", Ether(wei));
    checked.decide(wei >= GAS_FUNDS || (faucet && !bonded), what, format!("send it at least {}", Ether(GAS_FUNDS)));
    Ok(())
}

/// Returns whether a development chain has a faucet. A question without arguments pays nothing.
fn has_faucet(endpoint: &Endpoint) -> bool {
    matches!(endpoint.ask("devchain_fund", &json!([])), Err(EndpointError::Refused { code, .. }) if code != -32_601)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_is_compared_with_the_block_in_both_directions() {
        for (block, now, good) in [
            (1_000, 1_000, true),
            (1_000 + BEHIND, 1_000, true),
            (1_001 + BEHIND, 1_000, false),
            (1_000, 1_000 + STALE, true),
            (1_000, 1_001 + STALE, false),
        ] {
            assert_eq!(clock(block, now) == Finding::Good, good, "{block} {now}");
        }
    }

    #[test]
    fn skipped_points_are_neither_good_nor_missing() {
        let mut checked = Checked::default();
        checked.add("one", Finding::Skipped("nothing can tell".into()));
        assert_eq!((checked.missing(), checked.lines().next().as_deref()), (0, Some("skipped  one: nothing can tell")));
        checked.decide(false, "two", "do it");
        assert_eq!(checked.missing(), 1);
    }
}
