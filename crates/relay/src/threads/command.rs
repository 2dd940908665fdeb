//! What the threads of a relay send each other, besides packets.
//!
//! Owns the messages to a shard's thread and the counts that it reports. Never holds a packet or an outer address.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use openrelay_proto::relay::{Output, RelayConfig, ShardCounts};

/// Messages of other threads to a shard's thread.
pub(crate) enum Command {
    /// A result of the handshake thread.
    Output(Output),
    /// A changed configuration: peers, evidence or mirrored files.
    Config(Arc<RelayConfig>),
    /// Report the counts.
    Report(SyncSender<Report>),
    /// End all sessions and stop.
    Stop(SyncSender<Report>),
}

/// What a relay counted: the declared statistics, and nothing about any user.
#[derive(Clone, Default, Debug)]
pub(crate) struct Report {
    /// Counts of the shards. The drops include what the handshake thread refused.
    pub(crate) counts: ShardCounts,
    /// Datagrams that the kernel accepted.
    pub(crate) sent: u64,
    /// Datagrams that shards originated: control and handshake packets.
    pub(crate) originated: u64,
    /// Packets read from the tunnel device, counted after they were split.
    pub(crate) device_read: u64,
    /// Packets that the tunnel device accepted, counted before they were joined.
    pub(crate) device_written: u64,
    /// Datagrams that the kernel dropped because a receive buffer was full.
    pub(crate) overflows: u64,
    /// Current sessions.
    pub(crate) sessions: u64,
    /// Current circuits.
    pub(crate) circuits: u64,
    /// Relays of the other role in the directory.
    pub(crate) peers: u64,
}

impl Report {
    pub(super) fn add(&mut self, other: &Self) {
        self.counts.received += other.counts.received;
        self.counts.forwarded += other.counts.forwarded;
        self.counts.delivered += other.counts.delivered;
        self.counts.control += other.counts.control;
        self.counts.handshakes += other.counts.handshakes;
        self.counts.passed += other.counts.passed;
        self.counts.drops.add(&other.counts.drops);
        self.sent += other.sent;
        self.originated += other.originated;
        self.device_read += other.device_read;
        self.device_written += other.device_written;
        self.overflows += other.overflows;
        self.sessions += other.sessions;
        self.circuits += other.circuits;
    }
}
