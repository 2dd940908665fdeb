//! The objects of the control socket.
//!
//! Owns their keys. Text, JSON and the schemas in `openapi.json` all come from these types. Keys are only added; a
//! removed or changed key needs a new schema version.

use std::collections::BTreeMap;

use openrelay_client::{AttestedHop, Counts};
use openrelay_ledger::directory::{Facts, Source};
use openrelay_ledger::hex;
use serde::{Deserialize, Serialize};

use crate::findings::{addresses, firmware, state};

/// `openrelay.status/1`: the state of the connection.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct StatusV1 {
    /// `openrelay.status/1`.
    pub(crate) schema: String,
    /// The state.
    pub(crate) state: State,
    /// The circuit, once it has carried packets.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) circuit: Option<CircuitV1>,
}

impl StatusV1 {
    pub(crate) fn new(state: State, circuit: Option<CircuitV1>) -> Self {
        Self { schema: "openrelay.status/1".into(), state, circuit }
    }
}

/// The state of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum State {
    /// No tunnel: traffic leaves as without OpenRelay.
    Down,
    /// The circuit is being opened.
    Connecting,
    /// Packets pass the tunnel.
    Connected,
    /// All traffic is blocked.
    Blocked,
}

/// A circuit.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CircuitV1 {
    /// Number of relays: 1 or 2.
    pub(crate) hops: u8,
    /// Relay ID of the ingress; null with one hop.
    pub(crate) ingress: Option<u64>,
    /// Relay ID of the egress.
    pub(crate) egress: u64,
    /// Name of the network.
    pub(crate) network: String,
    /// `file` for a signed directory, `chain` for a proven one.
    pub(crate) directory: String,
    /// Sequence number of the directory; on a chain, the block number.
    pub(crate) directory_sequence: u64,
    /// What the chain proves; null for a signed directory.
    pub(crate) directory_proof: Option<DirectoryProofV1>,
    /// Seconds since the directory was last read while connected.
    pub(crate) directory_read_s: Option<u64>,
    /// Why the directory is not newer.
    pub(crate) directory_warning: Option<String>,
    /// Whether `chain.toml` allows plain HTTP or a single endpoint.
    pub(crate) insecure: bool,
    /// Whether the relays of the circuit are still listed with the same keys; null without a chain.
    pub(crate) hops_listed: Option<bool>,
    /// Whether one person runs all relays.
    pub(crate) single_operator: bool,
    /// How the client is admitted: `open`.
    pub(crate) admission: String,
    /// What evidence stands behind the hops: `none`, `sim` or `verified`.
    pub(crate) attestation: String,
    /// The verdicts on the hops, the first hop first.
    pub(crate) evidence: Vec<HopV1>,
    /// Why a relay of the circuit is no longer accepted.
    pub(crate) refused: Option<String>,
    /// State of the running program among approved packages.
    pub(crate) program: Option<String>,
    /// The tunnel device.
    pub(crate) device: String,
    /// Largest inner packet that the path carries, in bytes.
    pub(crate) mtu: u16,
    /// Milliseconds from the first datagram to the first packet.
    pub(crate) setup_ms: u64,
    /// Seconds since then.
    pub(crate) connected_s: Option<u64>,
    /// What was carried.
    pub(crate) traffic: TrafficV1,
}

/// What a chain proves about a directory.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DirectoryProofV1 {
    /// Block number.
    pub(crate) block: u64,
    /// Hash of the block, hexadecimal.
    pub(crate) block_hash: String,
    /// Time of the block, in seconds since 1970.
    pub(crate) timestamp: u64,
    /// Relays whose descriptors no mirror delivered.
    pub(crate) withheld: u64,
    /// Relays whose descriptors are malformed.
    pub(crate) malformed: u64,
    /// Relays that drain, unbond, or lack bond.
    pub(crate) inactive: u64,
    /// Largest share of the weight of a role that the withheld descriptors may have, in thousandths.
    pub(crate) missing_permille: u16,
}

impl DirectoryProofV1 {
    /// Returns what proves a directory; `None` for a signed one.
    pub(crate) fn of(source: Source) -> Option<Self> {
        match source {
            Source::Signed => None,
            Source::Chain(facts) => Some(facts.into()),
        }
    }
}

impl From<Facts> for DirectoryProofV1 {
    fn from(facts: Facts) -> Self {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Self {
            block: facts.block,
            block_hash: facts.block_hash.to_string(),
            timestamp: facts.timestamp,
            withheld: number(facts.withheld),
            malformed: number(facts.malformed),
            inactive: number(facts.inactive),
            missing_permille: facts.missing,
        }
    }
}

/// The verdict on a hop.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HopV1 {
    /// Relay ID.
    pub(crate) relay: u64,
    /// `SEV-SNP` or `TDX`.
    pub(crate) platform: String,
    /// Whether the vendor is a mock: the evidence then proves nothing.
    pub(crate) simulated: bool,
    /// The chip's product or processor model.
    pub(crate) product: String,
    /// The image's value, hexadecimal.
    pub(crate) image: String,
    /// The round in which the image was approved.
    pub(crate) image_round: u64,
    /// State of the image.
    pub(crate) image_state: String,
    /// Addresses of the rebuilders who signed that they reproduced the image.
    pub(crate) image_rebuilt_by: Vec<String>,
    /// The relay's handshake key, hexadecimal.
    pub(crate) handshake_key: String,
    /// Epoch of that key.
    pub(crate) key_epoch: u32,
    /// Block to which the evidence is bound.
    pub(crate) block: u64,
    /// The chip's key that signed.
    pub(crate) signed_by: String,
    /// The first eight bytes of the chip's identifier, hexadecimal.
    pub(crate) chip: Option<String>,
    /// Whether simultaneous multithreading is on, if the evidence says so.
    pub(crate) smt: Option<bool>,
    /// Firmware versions or the vendor's status, in words.
    pub(crate) firmware: String,
    /// Who can touch the machine: always `unknown`.
    pub(crate) custody: String,
    /// When the verdict expires, in seconds since 1970.
    pub(crate) expires: u64,
}

impl From<&AttestedHop> for HopV1 {
    fn from(hop: &AttestedHop) -> Self {
        let (facts, binding) = (hop.verdict.facts(), hop.verdict.binding());
        Self {
            relay: hop.relay_id,
            platform: facts.platform.name().into(),
            simulated: facts.simulated,
            product: facts.product.clone(),
            image: hex::encode(&binding.image),
            image_round: hop.round,
            image_state: state(hop.verdict.image()).into(),
            image_rebuilt_by: addresses(&hop.rebuilt_by),
            handshake_key: hex::encode(&binding.handshake_key),
            key_epoch: binding.key_epoch,
            block: binding.block_height,
            signed_by: facts.key.name().into(),
            chip: facts.chip.map(|chip| hex::encode(&chip[..8])),
            smt: facts.smt,
            firmware: firmware(facts),
            custody: "unknown".into(),
            expires: facts.expires,
        }
    }
}

/// What a client carried. docs/statistics.md defines the counts.
#[derive(Clone, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct TrafficV1 {
    /// Packets read from the device.
    pub(crate) device_read: u64,
    /// Bytes of these packets.
    pub(crate) device_read_bytes: u64,
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Datagrams that the circuit originated.
    pub(crate) originated: u64,
    /// Datagrams received.
    pub(crate) received: u64,
    /// Packets delivered to the device.
    pub(crate) delivered: u64,
    /// Bytes of these packets.
    pub(crate) delivered_bytes: u64,
    /// Received datagrams without a packet.
    pub(crate) control: u64,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub(crate) receive_overflows: u64,
    /// Dropped packets and datagrams, by reason.
    pub(crate) drops: BTreeMap<String, u64>,
}

impl From<&Counts> for TrafficV1 {
    fn from(counts: &Counts) -> Self {
        Self {
            device_read: counts.device_read,
            device_read_bytes: counts.device_read_bytes,
            sent: counts.sent,
            originated: counts.originated,
            received: counts.received,
            delivered: counts.delivered,
            delivered_bytes: counts.delivered_bytes,
            control: counts.control,
            receive_overflows: counts.overflows,
            drops: counts.drops.iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
        }
    }
}

/// `openrelay.rekey/1`: the answer to a request for new keys.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RekeyV1 {
    /// `openrelay.rekey/1`.
    pub(crate) schema: String,
    /// Whether a handshake has begun: true.
    pub(crate) started: bool,
}

/// `openrelay.down/1`: the answer to a request to disconnect.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DownV1 {
    /// `openrelay.down/1`.
    pub(crate) schema: String,
    /// Whether the daemon is stopping: true.
    pub(crate) stopping: bool,
}
