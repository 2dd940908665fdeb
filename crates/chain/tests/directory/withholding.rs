//! Record sources that omit descriptors, including the circuit's own ingress.

use openrelay_chain::{Direct, read_lately};
use openrelay_ledger::chain::reading::{MAX_MISSING, Reading};
use openrelay_ledger::directory::Directory;
use openrelay_ledger::record::Role;
use openrelay_ledger::selection::{self, SelectionError, Wish};

use super::world::*;

const RELAYS: [(Role, u32); 8] = [
    (Role::Ingress, 100),
    (Role::Ingress, 100),
    (Role::Egress, 100),
    (Role::Egress, 200),
    (Role::Egress, 300),
    (Role::Egress, 400),
    (Role::Egress, 500),
    (Role::Egress, 600),
];
/// The relays of the lying operator, whose ingress is relay 1.
const OWN: [u64; 2] = [1, 3];

fn pair(directory: &Directory, below: impl FnMut(u64) -> u64) -> Result<(u64, u64), SelectionError> {
    let (ingress, egress) = selection::circuit(directory, &Wish::default(), |_, _| true, below)?;
    Ok((ingress.relay_id, egress.relay_id))
}

fn all() -> Vec<u64> {
    (1..=RELAYS.len() as u64).collect()
}

#[test]
fn one_honest_source_among_liars_gives_all_relays_and_none_gives_no_hops() {
    let mut world = World::new("subsets", &RELAYS, 0, |_| ());
    let honest = world.records.clone();
    let lying = world.withholding(|id| OWN.contains(&id));
    let (good, bad) = (serve_bytes(honest.clone()), serve_bytes(lying.clone()));
    let (whole, _) = {
        world.file.mirrors = vec![good.clone()];
        world.read(&Direct, None).unwrap()
    };
    // All combinations of a lying ingress, egress and two lying mirrors.
    for liars in 0..16u8 {
        let lies = |place: u8| liars & (1 << place) != 0;
        let file = |place| if lies(place) { lying.clone() } else { honest.clone() };
        let transport = Circuit { ingress: file(0), egress: file(1) };
        world.file.mirrors = [2, 3].map(|place| if lies(place) { bad.clone() } else { good.clone() }).to_vec();
        let (reading, found) = world.read(&transport, None).unwrap();
        if liars != 0b1111 {
            assert_eq!((ids(&found), facts(&found).missing), (all(), 0), "{liars:04b}");
            pair(&found, |_| 0).unwrap();
            continue;
        }
        // The client reports the missing share and chooses no hops: relays with 2,100 Mbit/s are missing, and each
        // role has 100.
        let missing = facts(&found).missing;
        assert_eq!((ids(&found), facts(&found).withheld), (OWN.to_vec(), 6));
        assert!((950..=960).contains(&missing), "{missing}");
        let why = pair(&found, |_| 0).unwrap_err();
        assert_eq!(why, SelectionError::Missing { relays: 6, missing });
        assert!(why.to_string().contains(&selection::percent(missing)), "{why}");
        let one_hop = selection::one_hop(&found, &Wish::default(), |_| 0);
        assert_eq!(one_hop, Err(why.clone()));
        let ingress = found.relay(1).unwrap();
        assert_eq!(selection::egress(&found, ingress, &[], |_| 0), Err(why));
        // A client that has read the descriptors before still knows them.
        let (_, found) = world.read(&transport, Some(&whole)).unwrap();
        assert_eq!((ids(&found), facts(&found).missing), (all(), 0));
        // A client without them queries again, although the root is unchanged. This time one source is honest.
        let transport = Circuit { egress: honest.clone(), ..transport };
        let (again, found) = world.read(&transport, Some(&reading)).unwrap();
        assert_eq!(again.account.storage_root, reading.account.storage_root);
        assert_eq!((ids(&found), facts(&found).missing), (all(), 0));
    }
}

#[test]
fn sources_that_withhold_different_relays_together_give_all() {
    let mut world = World::new("together", &RELAYS, 0, |_| ());
    let part = |part: u64| world.withholding(move |id| id % 3 == part);
    let transport = Circuit { ingress: part(0), egress: part(1) };
    world.file.mirrors = vec![serve_bytes(part(2))];
    let (reading, found) = world.read(&transport, None).unwrap();
    assert_eq!((ids(&found), reading.records == world.records), (all(), true));
    world.file.mirrors.clear();
    let (_, found) = world.read(&transport, None).unwrap();
    assert_eq!((facts(&found).withheld, ids(&found)), (3, vec![1, 3, 4, 6, 7]));
}

#[test]
fn share_of_at_most_two_percent_is_shown_and_hops_are_chosen() {
    let relays = [(Role::Ingress, 1_000), (Role::Egress, 1_000), (Role::Egress, 20), (Role::Egress, 1)];
    let mut world = World::new("share", &relays, 0, |_| ());
    for (missing_relay, share) in [(3, 20), (4, 1)] {
        world.file.mirrors = vec![serve_bytes(world.withholding(|id| id != missing_relay))];
        let (_, found) = world.read(&Direct, None).unwrap();
        assert_eq!((facts(&found).withheld, facts(&found).missing), (1, share));
        assert_eq!(pair(&found, |_| 0), Ok((1, 2)));
    }
    // One more Mbit/s exceeds the limit. The chain proves the weight; the source does not supply it.
    world.file.mirrors = vec![serve_bytes(world.withholding(|id| id < 3))];
    let (_, found) = world.read(&Direct, None).unwrap();
    assert_eq!(pair(&found, |_| 0), Err(SelectionError::Missing { relays: 2, missing: MAX_MISSING + 1 }));
}

#[test]
fn client_that_lacks_descriptors_asks_again_before_its_refresh_is_due() {
    let mut world = World::new("again", &RELAYS, 0, |_| ());
    world.file.refresh_s = 3_600;
    let kept = world.folder.join("reading");
    let read = |world: &World| openrelay_chain::directory(&Direct, &world.file, &kept, 0).unwrap();
    world.file.mirrors = vec![serve_bytes(world.withholding(|id| OWN.contains(&id)))];
    assert_eq!(facts(read(&world).0.directory()).withheld, 6);
    assert!(read_lately(&world.file, &kept).is_none(), "an incomplete directory must not count as recent");
    world.file.mirrors.push(serve_bytes(world.records.clone()));
    assert_eq!(facts(read(&world).0.directory()).withheld, 0);
    assert!(read_lately(&world.file, &kept).is_some());
    // Without endpoints the client also completes a cached directory.
    let (incomplete, _) = {
        world.file.mirrors.remove(1);
        world.read(&Direct, None).unwrap()
    };
    std::fs::write(&kept, incomplete.encode().unwrap()).unwrap();
    (0..3).for_each(|at| world.fault(at, Some(&openrelay_devchain::Fault::Down)));
    world.file.mirrors.push(serve_bytes(world.records.clone()));
    let (found, warning) = read(&world);
    assert_eq!(facts(found.directory()).withheld, 0);
    assert!(warning.unwrap().contains("cached directory"));
}

/// Returns a generator with a fixed seed.
///
/// Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014.
fn seeded(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }
}

/// Returns Pearson's statistic of these choices of an egress, compared with the registered weights of the relays.
fn chi_squared(chosen: &[u64]) -> f64 {
    let egresses = || (1..).zip(RELAYS).filter(|(_, (role, _))| *role == Role::Egress);
    let total: u32 = egresses().map(|(_, (_, mbit))| mbit).sum();
    let term = |(id, (_, mbit)): (u64, (Role, u32))| {
        let expected = chosen.len() as f64 * f64::from(mbit) / f64::from(total);
        let found = chosen.iter().filter(|one| **one == id).count() as f64;
        (found - expected).powi(2) / expected
    };
    egresses().map(term).sum()
}

/// Above this value a choice among six is not by weight, with an error of 1 %. Source: tables of χ² with five degrees
/// of freedom.
const CRITICAL: f64 = 15.086;

#[test]
fn choice_of_egress_under_a_lying_ingress_is_by_honest_weight() {
    let mut world = World::new("uniform", &RELAYS, 0, |_| ());
    let lying = world.withholding(|id| OWN.contains(&id));
    world.file.mirrors = vec![serve_bytes(lying.clone()), serve_bytes(world.records.clone())];
    let (reading, found) = world.read(&Circuit { ingress: lying.clone(), egress: lying.clone() }, None).unwrap();
    let mut random = seeded(18);
    let mut choose = |directory: &Directory| pair(directory, &mut random).unwrap().1;
    let chosen: Vec<u64> = (0..1_000).map(|_| choose(&found)).collect();
    let honest = chi_squared(&chosen);
    assert!(honest < CRITICAL, "χ² is {honest}");
    // The same test detects a client whose ingress replaces one choice in ten.
    let mut bias = seeded(19);
    let biased: Vec<u64> = chosen.iter().map(|egress| if bias(10) == 0 { 3 } else { *egress }).collect();
    let planted = chi_squared(&biased);
    assert!(planted > CRITICAL, "χ² is {planted}");
    // A client with only the ingress's records chooses no hops.
    let alone = Reading { records: lying, ..reading };
    let alone = alone.verify(&world.file.trust(), now(), 86_400, 0).unwrap();
    assert!(matches!(pair(&alone, seeded(20)), Err(SelectionError::Missing { relays: 6, .. })));
}

#[test]
fn bad_pages_cost_a_source_only_themselves() {
    let mut world = World::new("pages", &RELAYS, 0, |_| ());
    let (good, index) = (world.records.clone(), 56 + 40 * RELAYS.len());
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let rows: [(&str, Vec<u8>); 7] = [
        ("truncated in its page", good[..good.len() - 1].to_vec()),
        ("truncated in its index", good[..index - 1].to_vec()),
        ("without pages", good[..index].to_vec()),
        ("oversized page", changed(&|bytes| bytes[index] = 1)),
        ("page of another root", changed(&|bytes| bytes[index + 4] ^= 1)),
        ("entry changed", changed(&|bytes| bytes[index + 45] ^= 1)),
        ("40 MiB", vec![b'a'; 40 << 20]),
    ];
    for (what, bytes) in rows {
        let bad = serve_bytes(bytes);
        world.file.mirrors = vec![bad.clone()];
        let why = world.read(&Direct, None).unwrap_err().to_string();
        assert!(why.contains("no mirror has the records") && why.contains(&bad), "{what}: {why}");
        world.file.mirrors.push(serve_bytes(good.clone()));
        let (_, found) = world.read(&Direct, None).unwrap();
        assert_eq!((ids(&found), facts(&found).missing), (all(), 0), "{what}");
    }
    // A source whose answers differ in one entry each time never causes a wrong record.
    let fickle = good.clone();
    world.file.mirrors = vec![serve_each(move |number| {
        let mut bytes = fickle.clone();
        bytes[index + 41] ^= u8::try_from(number + 1).unwrap();
        bytes
    })];
    for _ in 0..3 {
        let why = world.read(&Direct, None).unwrap_err().to_string();
        assert!(why.contains("relay 1 does not match the chain"), "{why}");
    }
}
