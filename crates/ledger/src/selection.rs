//! Selection of a circuit's hops.
//!
//! Owns the rules:
//!
//! - The two hops never share an operator, a /16 or /32, or a declared family. If one person runs all relays, and the
//!   directory says so, this rule does not apply.
//! - The two hops can always reach each other.
//! - The egress is drawn at random, weighted by stake and advertised bandwidth.
//! - The ingress is kept once it was chosen.
//!
//! Randomness is an argument.

use crate::chain::reading::MAX_MISSING;
use crate::directory::{Directory, Source};
use crate::record::{Record, Role};

/// A user's wishes for a circuit.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wish {
    /// Use this ingress and no other.
    pub ingress: Option<u64>,
    /// Use this egress and no other.
    pub egress: Option<u64>,
    /// Keep the previous ingress if it is still in the directory.
    pub sticky_ingress: Option<u64>,
    /// Use only relays that this host can reach by IPv4 or IPv6.
    pub families: Families,
}

/// Address families that this host has.
#[derive(Clone, Copy, Debug)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Default for Families {
    fn default() -> Self {
        Self { v4: true, v6: true }
    }
}

/// Why no hops can be chosen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SelectionError {
    /// The requested relay is not in the directory, or not in this role.
    #[error("relay {0} is not in the directory as {1}")]
    NotThere(u64, Role),
    /// There is no relay in this role.
    #[error("the directory has no {0} that this machine can reach")]
    None(Role),
    /// Every pair breaks a rule.
    #[error(
        "no two relays can form a circuit: each pair shares an operator, a family or a network, or has no common \
         address family; choose other relays, or set single_operator in the signed directory"
    )]
    Conflict,
    /// So much weight is missing that a source that withholds it would influence the choice.
    #[error(
        "every queried source withholds the descriptors of {relays} relays, up to {} of the weight of a role; the \
         limit is {}; add mirrors to chain.toml",
        percent(*.missing), percent(MAX_MISSING)
    )]
    Missing {
        /// Number of relays without descriptor.
        relays: usize,
        /// Their share of weight, in thousandths.
        missing: u16,
    },
}

/// Formats thousandths as a percentage.
pub fn percent(thousandths: u16) -> String {
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

/// Chooses an ingress and an egress, which `together` must allow as hops of one circuit besides the rules here.
/// `random` returns numbers below its argument.
///
/// # Errors
/// [`SelectionError`].
pub fn circuit<'a>(
    directory: &'a Directory,
    wish: &Wish,
    together: impl Fn(&Record, &Record) -> bool,
    mut random: impl FnMut(u64) -> u64,
) -> Result<(&'a Record, &'a Record), SelectionError> {
    complete(directory)?;
    let apart =
        |ingress: &Record, egress: &Record| may_be_hops(directory, ingress, egress) && together(ingress, egress);
    let ingresses = candidates(directory, Role::Ingress, wish.ingress, Some(wish.families))?;
    let egresses = candidates(directory, Role::Egress, wish.egress, None)?;
    let sticky = ingresses.iter().copied().find(|relay| Some(relay.relay_id) == wish.sticky_ingress);
    let usable: Vec<&Record> =
        ingresses.into_iter().filter(|ingress| egresses.iter().any(|egress| apart(ingress, egress))).collect();
    let ingress = match sticky.filter(|sticky| usable.iter().any(|relay| relay.relay_id == sticky.relay_id)) {
        Some(sticky) => sticky,
        None => weighted(&usable, &mut random).ok_or(SelectionError::Conflict)?,
    };
    let egresses: Vec<&Record> = egresses.into_iter().filter(|egress| apart(ingress, egress)).collect();
    let egress = weighted(&egresses, &mut random).ok_or(SelectionError::Conflict)?;
    Ok((ingress, egress))
}

/// Chooses an egress for a circuit through this ingress, which need not be in the directory. A relay in `avoid` is
/// chosen only if there is no other.
///
/// # Errors
/// [`SelectionError`].
pub fn egress<'a>(
    directory: &'a Directory,
    ingress: &Record,
    avoid: &[u64],
    mut random: impl FnMut(u64) -> u64,
) -> Result<&'a Record, SelectionError> {
    complete(directory)?;
    let egresses = candidates(directory, Role::Egress, None, None)?;
    let usable: Vec<&Record> = egresses.into_iter().filter(|egress| may_be_hops(directory, ingress, egress)).collect();
    let others: Vec<&Record> = usable.iter().copied().filter(|egress| !avoid.contains(&egress.relay_id)).collect();
    let from = if others.is_empty() { &usable } else { &others };
    weighted(from, &mut random).ok_or(SelectionError::Conflict)
}

/// Returns whether two relays may be hops of one circuit: no party runs both, and they share an address family.
fn may_be_hops(directory: &Directory, ingress: &Record, egress: &Record) -> bool {
    let allowed = directory.body().single_operator || !ingress.conflicts_with(egress);
    allowed && [false, true].iter().any(|&v6| ingress.endpoint(v6).is_some() && egress.endpoint(v6).is_some())
}

/// Chooses the egress of a one-hop circuit.
///
/// # Errors
/// [`SelectionError`].
pub fn one_hop<'a>(
    directory: &'a Directory,
    wish: &Wish,
    mut random: impl FnMut(u64) -> u64,
) -> Result<&'a Record, SelectionError> {
    complete(directory)?;
    let egresses = candidates(directory, Role::Egress, wish.egress, Some(wish.families))?;
    weighted(&egresses, &mut random).ok_or(SelectionError::None(Role::Egress))
}

/// Checks that hops may be chosen from this directory: at most [`MAX_MISSING`] of the weight is missing.
///
/// # Errors
/// [`SelectionError::Missing`].
pub fn complete(directory: &Directory) -> Result<(), SelectionError> {
    match directory.source() {
        Source::Chain(facts) if facts.missing > MAX_MISSING => {
            Err(SelectionError::Missing { relays: facts.withheld, missing: facts.missing })
        }
        Source::Chain(_) | Source::Signed => Ok(()),
    }
}

fn candidates(
    directory: &Directory,
    role: Role,
    wanted: Option<u64>,
    families: Option<Families>,
) -> Result<Vec<&Record>, SelectionError> {
    let reachable = |relay: &&Record| match families {
        Some(families) => {
            (families.v4 && relay.endpoint(false).is_some()) || (families.v6 && relay.endpoint(true).is_some())
        }
        None => true,
    };
    let all = directory.body().relays.iter().filter(|relay| relay.role == role).filter(reachable);
    let found: Vec<&Record> = all.filter(|relay| wanted.is_none_or(|wanted| relay.relay_id == wanted)).collect();
    match (found.is_empty(), wanted) {
        (false, _) => Ok(found),
        (true, Some(wanted)) => Err(SelectionError::NotThere(wanted, role)),
        (true, None) => Err(SelectionError::None(role)),
    }
}

/// Draws one of `relays`, weighted by stake times advertised bandwidth, each counted as at least one.
fn weighted<'a>(relays: &[&'a Record], random: &mut impl FnMut(u64) -> u64) -> Option<&'a Record> {
    let weight = |relay: &Record| u128::from(relay.stake.max(1)) * u128::from(relay.bandwidth_mbit.max(1));
    let total: u128 = relays.iter().map(|relay| weight(relay)).sum();
    // Scales the weights so that their sum fits the generator's range. The loss is below one part in 2^32.
    let shift = (128 - total.leading_zeros()).saturating_sub(63);
    let scaled = |relay: &Record| u64::try_from(weight(relay) >> shift).unwrap_or(u64::MAX).max(1);
    let sum: u64 = relays.iter().map(|relay| scaled(relay)).sum();
    let mut left = random(sum.max(1));
    for relay in relays {
        let own = scaled(relay);
        if left < own {
            return Some(relay);
        }
        left -= own;
    }
    relays.last().copied()
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;

    use super::*;
    use crate::directory::{Body, DirectoryKey, Facts};
    use crate::hex;
    use proptest::prelude::*;

    fn directory(relays: Vec<Record>, single_operator: bool) -> Directory {
        let key = DirectoryKey::from_seed([7; 32]).unwrap();
        let body = Body { network: "t".into(), sequence: 1, issued: 0, expires: 10, single_operator, relays };
        Directory::verify(&key.sign(&body).unwrap(), &key.public(), 1, 0).unwrap()
    }

    fn relay(relay_id: u64, role: Role, operator: u8, network: u8, stake: u64) -> Record {
        Record {
            relay_id,
            role,
            handshake_key: hex::encode(&[1; 32]),
            key_epoch: 0,
            endpoints: vec![format!("100.{network}.0.{}:443", relay_id % 250 + 1).parse().unwrap()],
            operator: format!("o{operator}"),
            family: None,
            stake,
            bandwidth_mbit: 1,
        }
    }

    #[test]
    fn hops_are_chosen_while_at_most_the_tolerated_share_is_missing() {
        let with = |missing| {
            let relays = vec![relay(1, Role::Ingress, 1, 1, 1), relay(2, Role::Egress, 2, 2, 1)];
            let facts = Facts {
                block: 1,
                block_hash: B256::ZERO,
                timestamp: 0,
                state_root: B256::ZERO,
                storage_root: B256::ZERO,
                withheld: 7,
                malformed: 0,
                inactive: 0,
                missing,
            };
            let directory = directory(relays, false);
            let source = Source::Chain(facts);
            complete(&Directory::proven(directory.body().clone(), directory.network_id(), source))
        };
        assert_eq!([0, MAX_MISSING].map(with), [Ok(()), Ok(())]);
        let refused = SelectionError::Missing { relays: 7, missing: MAX_MISSING + 1 };
        assert_eq!(with(MAX_MISSING + 1), Err(refused.clone()));
        let text = refused.to_string();
        assert!(text.contains("7 relays") && text.contains("2.1 %") && text.contains("2.0 %"), "{text}");
        assert_eq!(complete(&directory(Vec::new(), true)), Ok(()));
    }

    fn whoever(_: &Record, _: &Record) -> bool {
        true
    }

    proptest! {
        #[test]
        fn hops_never_share_an_operator_or_a_network(
            seeds in prop::collection::vec((any::<bool>(), 0u8..4, 0u8..4), 2..12),
            dice: u64,
        ) {
            let relays: Vec<Record> = seeds.iter().enumerate().map(|(i, (ingress, operator, network))| {
                let role = if *ingress { Role::Ingress } else { Role::Egress };
                relay(i as u64 + 1, role, *operator, *network, 1)
            }).collect();
            let directory = directory(relays, false);
            if let Ok((ingress, egress)) = circuit(&directory, &Wish::default(), whoever, |below| dice % below) {
                prop_assert!(!ingress.conflicts_with(egress));
            }
        }
    }

    #[test]
    fn egresses_are_chosen_in_proportion_to_their_weight() {
        let relays = vec![
            relay(1, Role::Ingress, 1, 1, 1),
            relay(2, Role::Egress, 2, 2, 1_000),
            relay(3, Role::Egress, 3, 3, 3_000),
        ];
        let directory = directory(relays, false);
        let mut chosen = [0u32; 4];
        for dice in 0..4_000u64 {
            let (_, egress) = circuit(&directory, &Wish::default(), whoever, |below| dice % below).unwrap();
            chosen[usize::try_from(egress.relay_id).unwrap()] += 1;
        }
        assert_eq!(chosen, [0, 0, 1_000, 3_000]);
    }

    #[test]
    fn one_operator_may_run_both_hops_if_the_directory_says_so() {
        let relays = vec![relay(1, Role::Ingress, 1, 1, 1), relay(2, Role::Egress, 1, 1, 1)];
        assert_eq!(
            circuit(&directory(relays.clone(), false), &Wish::default(), whoever, |_| 0),
            Err(SelectionError::Conflict)
        );
        assert!(circuit(&directory(relays, true), &Wish::default(), whoever, |_| 0).is_ok());
    }

    #[test]
    fn sticky_ingress_is_kept_and_unknown_egress_is_refused() {
        let relays =
            vec![relay(1, Role::Ingress, 1, 1, 1), relay(2, Role::Ingress, 2, 2, 1), relay(3, Role::Egress, 3, 3, 1)];
        let directory = directory(relays, false);
        for dice in 0..10 {
            let wish = Wish { sticky_ingress: Some(2), ..Wish::default() };
            assert_eq!(circuit(&directory, &wish, whoever, |below| dice % below).unwrap().0.relay_id, 2);
        }
        let wish = Wish { egress: Some(9), ..Wish::default() };
        assert_eq!(circuit(&directory, &wish, whoever, |_| 0), Err(SelectionError::NotThere(9, Role::Egress)));
    }

    #[test]
    fn only_allowed_pair_is_found() {
        let ingresses = (1..=40).map(|id| relay(id, Role::Ingress, 1, 1, 1_000_000));
        let egresses = (41..=80).map(|id| relay(id, Role::Egress, 2, 2, 1_000_000));
        let directory = directory(ingresses.chain(egresses).collect(), false);
        let only = |ingress: &Record, egress: &Record| (ingress.relay_id, egress.relay_id) == (7, 77);
        for dice in [0, 1, 12_345_678, u64::MAX] {
            let (ingress, egress) = circuit(&directory, &Wish::default(), only, |below| dice % below).unwrap();
            assert!(only(ingress, egress));
        }
        let none = circuit(&directory, &Wish::default(), |_, _| false, |_| 0);
        assert_eq!(none, Err(SelectionError::Conflict));
    }

    #[test]
    fn avoided_egress_is_chosen_only_if_there_is_no_other() {
        let relays = vec![
            relay(1, Role::Ingress, 1, 1, 1),
            relay(2, Role::Egress, 2, 2, 1_000_000),
            relay(3, Role::Egress, 3, 3, 1),
            relay(4, Role::Egress, 1, 4, 1_000_000),
        ];
        let directory = directory(relays.clone(), false);
        for dice in [0, 1, 500_000, u64::MAX] {
            let chosen = |avoid: &[u64]| egress(&directory, &relays[0], avoid, |below| dice % below).unwrap().relay_id;
            // Relay 4 belongs to the ingress' operator.
            assert_eq!((chosen(&[2]), chosen(&[3, 9])), (3, 2));
            assert!([2, 3].contains(&chosen(&[2, 3])) && [2, 3].contains(&chosen(&[])));
        }
        let gone = relay(9, Role::Ingress, 9, 9, 1);
        assert!(egress(&directory, &gone, &[], |_| 0).is_ok(), "the ingress need not be in the directory");
        assert_eq!(egress(&directory, &relay(9, Role::Ingress, 2, 2, 1), &[], |_| u64::MAX).map(|r| r.relay_id), Ok(4));
    }
}
