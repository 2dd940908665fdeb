//! An endpoint that is honest except about one account, one slot or one block.

use alloy_primitives::{Address, B256, U256};
use openrelay_attest::file::AttestationFile;
use openrelay_chain::{ChainError, Direct};
use openrelay_devchain::{Fault, KNOWN, Lie, Node};
use openrelay_ledger::chain::reading::Reading;
use openrelay_ledger::record::Role;
use sha2::{Digest as _, Sha256};

use super::world::*;

const RELAYS: [(Role, u32); 2] = [(Role::Ingress, 100), (Role::Egress, 100)];
/// Number of blocks: enough for evidence to name blocks 0, 256 and 512.
const BLOCKS: u64 = 600;

/// Returns every lie about what this reading proves, with its subject and whether it may go unnoticed. Only an
/// omitted slot that no reader needs may go unnoticed.
fn lies(world: &World, reading: &Reading) -> Vec<(String, Fault, bool)> {
    let mut all = Vec::new();
    let directory = world.network.directory;
    let accounts = reading.states.iter().map(|state| (state.address, state.slots.as_slice()));
    for (account, slots) in accounts.chain([(directory, &[][..])]) {
        let mut about = |what: String, lie| {
            all.push((what, Fault::LiesAbout { account, lie }, matches!(lie, Lie::Omitted { .. })));
        };
        about(format!("{account}: balance"), Lie::Balance);
        about(format!("{account}: absent"), Lie::Absent);
        for held in slots {
            let slot = U256::from_be_bytes(held.key.0);
            about(format!("{account}: value of {slot:#x}"), Lie::Value { slot });
            about(format!("{account}: {slot:#x} left out"), Lie::Omitted { slot });
            if !held.value.is_zero() {
                about(format!("{account}: {slot:#x} empty"), Lie::Empty { slot });
            }
            if !held.proof.is_empty() {
                about(format!("{account}: proof of {slot:#x}"), Lie::Proof { slot });
            }
        }
    }
    all.push(("block 512".into(), Fault::ForgedBlock { number: 512 }, false));
    all
}

#[test]
fn endpoint_that_lies_about_one_slot_makes_the_next_one_lead() {
    let mut world = World::new("slots", &RELAYS, BLOCKS, |_| ());
    world.file.mirrors = vec![serve_bytes(world.records.clone())];
    let (honest, found) = world.read(&Direct, None).unwrap();
    let voted = honest.voted(&world.file.trust()).unwrap();
    assert_eq!(voted.blocks.keys().copied().collect::<Vec<_>>(), [0, 256, 512]);
    let lies = lies(&world, &honest);
    assert!(lies.len() > 40, "{}", lies.len());
    let endpoints = world.file.endpoints.clone();
    let mut unnoticed = 0;
    for (what, fault, may_pass) in lies {
        world.fault(0, Some(&fault));
        // The lie is detected when this is the only endpoint.
        (world.file.endpoints, world.file.quorum) = (endpoints[..1].to_vec(), 1);
        match world.read(&Direct, Some(&honest)) {
            Err(ChainError::Endpoints(_) | ChainError::Refused(_)) => {}
            Ok((reading, again)) if may_pass => {
                unnoticed += 1;
                assert_eq!((reading.voted(&world.file.trust()).as_ref(), &again), (Ok(&voted), &found), "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
        // The lie has no effect when other endpoints are queried too, whichever answers first.
        (world.file.endpoints, world.file.quorum) = (endpoints.clone(), 2);
        let (reading, again) = world.read(&Direct, Some(&honest)).unwrap();
        assert_eq!((reading.voted(&world.file.trust()).as_ref(), &again), (Ok(&voted), &found), "{what}");
        assert_eq!(reading.attestation, honest.attestation, "{what}");
    }
    // The unnoticed slots are places in the list of images, which is still empty.
    assert_eq!(unnoticed, 8);
}

/// Creates a contract with the storage layout of the collateral contract and this entry. Its code only writes the two
/// slots.
fn collateral(node: &mut Node, bundle: B256) -> Address {
    // PUSH32 bundle, PUSH1 12, SSTORE; PUSH1 1, PUSH1 13, SSTORE; PUSH0, PUSH0, RETURN.
    let code = [&[0x7f][..], bundle.as_slice(), &[0x60, 12, 0x55, 0x60, 1, 0x60, 13, 0x55, 0x5f, 0x5f, 0xf3]].concat();
    let mut chain = node.chain().clone();
    let made = chain.deploy(KNOWN[4].0, code.into()).unwrap().created.unwrap();
    *node = Node::new(chain, true, None);
    made
}

#[test]
fn kept_collateral_stays_unless_a_proven_entry_names_another() {
    let hash = |bundle: &[u8]| B256::from_slice(&Sha256::digest(bundle));
    let (old, new) = (b"the kept collateral".to_vec(), b"newer collateral".to_vec());
    let mut contracts = Vec::new();
    let mut world = World::new("bundle", &RELAYS, 0, |node| {
        contracts = vec![collateral(node, hash(&old)), collateral(node, hash(&new))];
    });
    world.file.mirrors = vec![serve_bytes(world.records.clone())];
    world.file.collateral = Some(contracts[0]);
    let file = |bundle: &[u8]| AttestationFile { bundle: bundle.to_vec(), ..AttestationFile::default() }.encode();
    let bundle = |reading: &Reading| AttestationFile::decode(&reading.attestation).map(|file| file.bundle).unwrap();
    let (mut kept, _) = world.read(&Direct, None).unwrap();
    kept.attestation = file(&old);
    // A mirror serves another bundle, which the chain does not name, and an endpoint claims that the chain names it.
    world.file.evidence = vec![serve_bytes(file(&new))];
    let slot = U256::from(12);
    for lie in
        [None, Some(Lie::Value { slot }), Some(Lie::Empty { slot }), Some(Lie::Omitted { slot }), Some(Lie::Absent)]
    {
        let fault = lie.map(|lie| Fault::LiesAbout { account: contracts[0], lie });
        world.fault(0, fault.as_ref());
        let (reading, _) = world.read(&Direct, Some(&kept)).unwrap();
        assert_eq!(bundle(&reading), old, "{lie:?}");
    }
    world.fault(0, None);
    // The chain names the other bundle.
    world.file.collateral = Some(contracts[1]);
    let (reading, _) = world.read(&Direct, Some(&kept)).unwrap();
    assert_eq!(bundle(&reading), new);
}
