//! A chain reading: everything that proves the directory at one block, as bytes that anybody can keep, pass on and
//! verify again.
//!
//! Owns what a client or relay trusts of a chain, and the order of the checks. It never checks that the header belongs
//! to the chain: a quorum of endpoints confirms that first.
//!
//! ```text
//! "openrelay-reading/3\n" | length 4, header | account 104 | proof
//!                         | states 1 | per state: address 20 | 1 and account 104, or 0 | proof
//!                                    | slots 2 | per slot: key 32 | value 32 | proof
//!                         | length 4, attestation | records to the end
//! account: nonce 8 | balance 32 | storage root 32 | code hash 32
//! proof: nodes 1 | per node: length 2, node
//! ```

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};

use super::header::{Header, MAX_HEADER, MalformedHeader};
use super::proof::{Account, MAX_NODE, MAX_NODES, ProofError, verify_account};
use super::set::{ChainRecord, MAX_FILE, RecordSet, Registration, SetError, Status};
use super::voted::{Contracts, Proven, Slot, Voted, VotedError};
use crate::directory::{Body, Directory, Facts, Leaving, Source};
use crate::hex;
use crate::record::{Record, Role};

const HEAD: &[u8] = b"openrelay-reading/3\n";
/// Largest age of a block that endpoints call the newest, in seconds: one day.
pub const MAX_LAG: u64 = 86_400;
/// Largest age of a directory when no endpoint answers, in seconds: 72 hours, the time for which its relays' evidence
/// is accepted. No setting raises it.
pub const MAX_AGE: u64 = 3 * 86_400;
/// Largest time that this machine's clock may be behind the chain's, in seconds.
const CLOCK_SKEW: u64 = 300;

/// Trusted parameters of a chain. The release or the network's founder fixes them; no endpoint is asked for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trust {
    /// Chain ID.
    pub chain_id: u64,
    /// Address of the Directory contract.
    pub directory: Address,
    /// Keccak-256 of the Directory contract's code.
    pub code_hash: B256,
    /// The contracts that decide which images and which collateral are good. Without them no relay can be attested.
    pub contracts: Option<Contracts>,
}

impl Trust {
    /// Returns the network ID for handshakes: the hash of chain ID and Directory contract.
    pub fn network_id(&self) -> [u8; 32] {
        keccak256([b"openrelay chain\n", &self.chain_id.to_be_bytes()[..], self.directory.as_slice()].concat()).0
    }
}

/// A chain reading: what proves the directory at one block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    /// The block's header, RLP.
    pub header: Vec<u8>,
    /// Claimed account of the Directory contract.
    pub account: Account,
    /// Proof nodes from the state root to that account.
    pub proof: Vec<Bytes>,
    /// Further accounts and slots under the same state root.
    pub states: Vec<Proven>,
    /// A mirror's evidence file. This module does not parse it.
    pub attestation: Vec<u8>,
    /// A mirror's records file.
    pub records: Vec<u8>,
}

/// Largest share of weight that may be missing from a directory from which hops are chosen, in thousandths. An honest
/// mirror withholds nothing. A mirror that could withhold more would influence the choice.
pub const MAX_MISSING: u16 = 20;

/// Why a whole reading is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadingError {
    /// The bytes are not a reading.
    #[error("this is not a chain reading")]
    Malformed,
    /// The header is malformed.
    #[error(transparent)]
    Header(#[from] MalformedHeader),
    /// The block is too old.
    #[error(
        "the newest block shown is {age} s old; the limit is {limit} s; \
         endpoints may withhold newer blocks, or the chain has stalled"
    )]
    Stale {
        /// Age of the block, in seconds.
        age: u64,
        /// Largest accepted age, in seconds.
        limit: u64,
    },
    /// The block is from the future.
    #[error("the block is from {0} s in the future; check this machine's clock")]
    NotYetValid(u64),
    /// A newer block was seen before.
    #[error("the block shown is number {found}, but number {seen} was seen before: an endpoint serves an old block")]
    RolledBack {
        /// Height of the block.
        found: u64,
        /// Greatest height that was seen.
        seen: u64,
    },
    /// The account's proof is wrong.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The account has another contract's code.
    #[error("the contract at this address has other code than the trusted one")]
    OtherCode,
    /// The records are wrong.
    #[error(transparent)]
    Records(#[from] SetError),
    /// Images, collateral or blocks are not proven.
    #[error("the chain's images and collateral are not proven: {0}")]
    Voted(#[from] VotedError),
    /// The chain's parameters have no contracts of images and collateral.
    #[error("chain.toml has no contracts for images and collateral; set images and collateral")]
    NoContracts,
}

impl Reading {
    /// Verifies the reading from the header on, at `now` in seconds since the Unix epoch. The block may be at most
    /// `max_age` seconds old, and not lower than `seen`, the greatest height seen so far.
    ///
    /// # Errors
    /// [`ReadingError`]; then nothing of the reading may be used.
    pub fn verify(&self, trust: &Trust, now: u64, max_age: u64, seen: u64) -> Result<Directory, ReadingError> {
        let (set, header) = self.record_set(trust, now, max_age, seen)?;
        let all = set.records.len();
        let active = |record: &&ChainRecord| {
            // A relay that was registered but never started has no key yet.
            record.registration.is_active() && record.descriptor.handshake_key != [0; 32]
        };
        let relays: Vec<Record> = set.records.iter().filter(active).map(to_record).collect();
        let draining = |record: &&ChainRecord| {
            let (relay, key) = (&record.registration, record.descriptor.handshake_key);
            relay.status == Status::Draining && relay.bond_class > 0 && key != [0; 32]
        };
        let serves = |relay: &&Registration| relay.status != Status::Unbonding && relay.bond_class > 0;
        let leaving = Leaving {
            draining: set.records.iter().filter(draining).map(to_record).collect(),
            withheld: set.withheld.iter().filter(serves).map(|relay| relay.relay_id).collect(),
        };
        let missing = missing_share(&relays, &set.withheld);
        let facts = Facts {
            block: header.number,
            block_hash: header.hash,
            timestamp: header.timestamp,
            state_root: header.state_root,
            storage_root: self.account.storage_root,
            withheld: set.withheld.len(),
            malformed: set.malformed.len(),
            inactive: all - relays.len(),
            missing,
        };
        let body = Body {
            network: format!("chain {}", trust.chain_id),
            sequence: header.number,
            issued: header.timestamp,
            expires: header.timestamp.saturating_add(MAX_AGE),
            single_operator: false,
            relays,
        };
        Ok(Directory::proven(body, trust.network_id(), Source::Chain(facts)).with_leaving(leaving))
    }

    /// Verifies the reading like [`Reading::verify`], and returns all relays of the chain, including those that take
    /// no circuits.
    ///
    /// # Errors
    /// Those of [`Reading::verify`].
    pub fn record_set(
        &self,
        trust: &Trust,
        now: u64,
        max_age: u64,
        seen: u64,
    ) -> Result<(RecordSet, Header), ReadingError> {
        let header = Header::decode(&self.header)?;
        if header.timestamp > now.saturating_add(CLOCK_SKEW) {
            return Err(ReadingError::NotYetValid(header.timestamp - now));
        }
        let (age, limit) = (now.saturating_sub(header.timestamp), max_age.min(MAX_AGE));
        if age > limit {
            return Err(ReadingError::Stale { age, limit });
        }
        if header.number < seen {
            return Err(ReadingError::RolledBack { found: header.number, seen });
        }
        verify_account(header.state_root, trust.directory, Some(&self.account), &self.proof)?;
        if self.account.code_hash != trust.code_hash {
            return Err(ReadingError::OtherCode);
        }
        Ok((RecordSet::verify(&self.records, self.account.storage_root)?, header))
    }

    /// Returns the chain's images and collateral at the block, and the hashes of earlier blocks. The reading itself
    /// must have been verified.
    ///
    /// # Errors
    /// [`ReadingError`]; then nothing of this data may be used.
    pub fn voted(&self, trust: &Trust) -> Result<Voted, ReadingError> {
        let contracts = trust.contracts.as_ref().ok_or(ReadingError::NoContracts)?;
        Ok(Voted::verify(&self.states, &Header::decode(&self.header)?, contracts)?)
    }

    /// Returns the encoded reading; `None` if a part is longer than [`Reading::decode`] accepts.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let slots = self.states.iter().map(|state| state.slots.len()).max().unwrap_or(0);
        let proofs =
            self.states.iter().flat_map(|state| state.slots.iter().map(|slot| &slot.proof).chain([&state.proof]));
        let mut proofs = proofs.chain([&self.proof]);
        let fits = self.header.len() <= MAX_HEADER
            && self.attestation.len() <= MAX_ATTESTATION
            && self.records.len() <= MAX_FILE
            && self.states.len() <= MAX_STATES
            && slots <= MAX_SLOTS
            && proofs.all(|proof| proof.len() <= MAX_NODES && proof.iter().all(|node| node.len() <= MAX_NODE));
        if !fits {
            return None;
        }
        let mut out = HEAD.to_vec();
        out.extend(u32::try_from(self.header.len()).ok()?.to_be_bytes());
        out.extend(&self.header);
        put_account(&mut out, &self.account);
        put_proof(&mut out, &self.proof)?;
        out.push(u8::try_from(self.states.len()).ok()?);
        for state in &self.states {
            out.extend(state.address);
            out.push(state.account.is_some().into());
            if let Some(account) = &state.account {
                put_account(&mut out, account);
            }
            put_proof(&mut out, &state.proof)?;
            out.extend(u16::try_from(state.slots.len()).ok()?.to_be_bytes());
            for slot in &state.slots {
                out.extend(slot.key);
                out.extend(slot.value.to_be_bytes::<32>());
                put_proof(&mut out, &slot.proof)?;
            }
        }
        out.extend(u32::try_from(self.attestation.len()).ok()?.to_be_bytes());
        out.extend(&self.attestation);
        out.extend(&self.records);
        Some(out)
    }

    /// Decodes a reading. Checks the format only.
    ///
    /// # Errors
    /// [`ReadingError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ReadingError> {
        let mut rest = bytes.strip_prefix(HEAD).ok_or(ReadingError::Malformed)?;
        let length = usize::try_from(u32::from_be_bytes(take(&mut rest)?)).unwrap_or(usize::MAX);
        let header = cut(&mut rest, length, MAX_HEADER)?.to_vec();
        let (account, proof) = (take_account(&mut rest)?, take_proof(&mut rest)?);
        let [count] = take(&mut rest)?;
        if usize::from(count) > MAX_STATES {
            return Err(ReadingError::Malformed);
        }
        let mut states = Vec::new();
        for _ in 0..count {
            states.push(take_state(&mut rest)?);
        }
        let length = usize::try_from(u32::from_be_bytes(take(&mut rest)?)).unwrap_or(usize::MAX);
        let attestation = cut(&mut rest, length, MAX_ATTESTATION)?.to_vec();
        if rest.len() > MAX_FILE {
            return Err(ReadingError::Malformed);
        }
        Ok(Self { header, account, proof, states, attestation, records: rest.to_vec() })
    }
}

fn put_account(out: &mut Vec<u8>, account: &Account) {
    out.extend(account.nonce.to_be_bytes());
    out.extend(account.balance.to_be_bytes::<32>());
    out.extend(account.storage_root);
    out.extend(account.code_hash);
}

fn put_proof(out: &mut Vec<u8>, proof: &[Bytes]) -> Option<()> {
    out.push(u8::try_from(proof.len()).ok()?);
    for node in proof {
        out.extend(u16::try_from(node.len()).ok()?.to_be_bytes());
        out.extend(node);
    }
    Some(())
}

fn take_account(rest: &mut &[u8]) -> Result<Account, ReadingError> {
    Ok(Account {
        nonce: u64::from_be_bytes(take(rest)?),
        balance: U256::from_be_bytes(take::<32>(rest)?),
        storage_root: B256::new(take(rest)?),
        code_hash: B256::new(take(rest)?),
    })
}

fn take_proof(rest: &mut &[u8]) -> Result<Vec<Bytes>, ReadingError> {
    let [nodes] = take(rest)?;
    if usize::from(nodes) > MAX_NODES {
        return Err(ReadingError::Malformed);
    }
    let node = |_| {
        let length = usize::from(u16::from_be_bytes(take(rest)?));
        Ok(Bytes::copy_from_slice(cut(rest, length, MAX_NODE)?))
    };
    (0..nodes).map(node).collect()
}

fn take_state(rest: &mut &[u8]) -> Result<Proven, ReadingError> {
    let address = Address::new(take(rest)?);
    let account = match take(rest)? {
        [0] => None,
        [1] => Some(take_account(rest)?),
        [_] => return Err(ReadingError::Malformed),
    };
    let proof = take_proof(rest)?;
    let count = u16::from_be_bytes(take(rest)?);
    if usize::from(count) > MAX_SLOTS {
        return Err(ReadingError::Malformed);
    }
    let slot = |_| {
        let (key, value) = (B256::new(take(rest)?), U256::from_be_bytes(take::<32>(rest)?));
        Ok(Slot { key, value, proof: take_proof(rest)? })
    };
    Ok(Proven { address, account, proof, slots: (0..count).map(slot).collect::<Result<_, ReadingError>>()? })
}

/// Largest reading, in bytes.
pub const MAX_READING: usize = MAX_FILE + MAX_ATTESTATION + MAX_PROOFS;
/// Largest evidence file, in bytes: 4 KiB for each of 100,000 relays, which is more than the evidence of one relay
/// takes, and the common part.
pub const MAX_ATTESTATION: usize = 416 << 20;
/// Largest header and proofs together, in bytes. The proof of a slot takes about 2 KiB.
const MAX_PROOFS: usize = 4 << 20;
/// Maximum number of accounts besides the Directory contract's, and of slots of each account.
const MAX_STATES: usize = 4;
const MAX_SLOTS: usize = 256;

/// Returns the missing share of weight, in thousandths, rounded up. A withheld descriptor does not reveal the relay's
/// role, so all of them count against the role with the smaller weight.
fn missing_share(relays: &[Record], withheld: &[Registration]) -> u16 {
    let weight = |mbit: u32| u64::from(mbit.max(1));
    let missing: u64 =
        withheld.iter().filter(|relay| relay.is_active()).map(|relay| weight(relay.advertised_mbit)).sum();
    let of = |role| relays.iter().filter(|relay| relay.role == role).map(|relay| weight(relay.bandwidth_mbit)).sum();
    let present: u64 = u64::min(of(Role::Ingress), of(Role::Egress));
    // No overflow: at most 100,000 relays with 32-bit weights.
    let share = (missing * 1_000).div_ceil((missing + present).max(1));
    u16::try_from(share).unwrap_or(1_000)
}

/// Converts a relay into the record that clients choose from. Its weight is the advertised bandwidth, which the bond
/// covers; nothing tests it.
fn to_record(record: &ChainRecord) -> Record {
    let (registration, descriptor) = (&record.registration, &record.descriptor);
    Record {
        relay_id: registration.relay_id,
        role: descriptor.role,
        handshake_key: hex::encode(&descriptor.handshake_key),
        key_epoch: descriptor.key_epoch,
        endpoints: descriptor.endpoints.clone(),
        operator: registration.operator.to_string(),
        family: descriptor.family.clone(),
        stake: 1,
        bandwidth_mbit: registration.advertised_mbit,
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ReadingError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(ReadingError::Malformed)?;
    *rest = tail;
    Ok(*head)
}

fn cut<'a>(rest: &mut &'a [u8], length: usize, most: usize) -> Result<&'a [u8], ReadingError> {
    let (head, tail) = rest.split_at_checked(length).filter(|_| length <= most).ok_or(ReadingError::Malformed)?;
    *rest = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(role: Role, bandwidth_mbit: u32) -> Record {
        let operator = "a".to_owned();
        let (handshake_key, endpoints, family) = (hex::encode(&[1; 32]), Vec::new(), None);
        Record { relay_id: 1, role, handshake_key, key_epoch: 0, endpoints, operator, family, stake: 1, bandwidth_mbit }
    }

    fn withheld(status: Status, advertised_mbit: u32) -> Registration {
        Registration { relay_id: 2, operator: Address::ZERO, advertised_mbit, bond_class: 1, status }
    }

    #[test]
    fn missing_share_counts_withheld_weight_against_the_smaller_role() {
        let relays = [relay(Role::Ingress, 900), relay(Role::Egress, 300), relay(Role::Egress, 680)];
        assert_eq!(missing_share(&relays, &[]), 0);
        // 100 of 900 + 100, and one part more is rounded up.
        assert_eq!(missing_share(&relays, &[withheld(Status::Active, 100)]), 100);
        assert_eq!(missing_share(&relays, &[withheld(Status::Active, 50), withheld(Status::Active, 51)]), 101);
        // A relay that does not serve is no loss; one that advertises nothing still counts.
        assert_eq!(missing_share(&relays, &[withheld(Status::Draining, 100)]), 0);
        assert_eq!(missing_share(&relays, &[withheld(Status::Active, 0)]), 2);
        // Without any relay of a role, everything is missing.
        assert_eq!(missing_share(&relays[..1], &[withheld(Status::Active, 1)]), 1_000);
    }

    #[test]
    fn largest_reading_has_room_for_records_evidence_and_proofs() {
        assert_eq!(MAX_READING, MAX_FILE + (416 << 20) + (4 << 20));
    }
}
