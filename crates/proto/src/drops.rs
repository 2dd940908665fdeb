//! Reasons for dropping packets, and their counters.
//!
//! Owns the closed list of drop reasons. Every packet that enters the data path either leaves it or is counted here.
//! Never holds anything about a single packet.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The reason why a packet was dropped.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the reason's name in statistics: kebab-case, stable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Datagram shorter than any packet or longer than a buffer.
    BadLength = "bad-length",
    /// Packet type that this end does not accept.
    UnknownType = "unknown-type",
    /// No session has this receiver index.
    UnknownIndex = "unknown-index",
    /// The session's shard could not take the datagram: its ring is full.
    RingFull = "ring-full",
    /// Authentication failed.
    BadTag = "bad-tag",
    /// The key epoch is neither the current one, nor the previous one, nor one that follows.
    UnknownEpoch = "unknown-epoch",
    /// This counter was seen before.
    Replayed = "replayed",
    /// This counter is older than the replay window reaches.
    TooOld = "too-old",
    /// The frame inside is malformed or of a kind not allowed here.
    BadFrame = "bad-frame",
    /// The session has not finished its handshake or admission.
    NotAdmitted = "not-admitted",
    /// The session reached the limit of its key and waits for a new one.
    KeyExhausted = "key-exhausted",
    /// No circuit has this tag, or it belongs to another session.
    UnknownCircuit = "unknown-circuit",
    /// The peer's new path is unproven, and three times the bytes received from it have been sent.
    PathUnproven = "path-unproven",
    /// The inner packet is not well-formed IPv4 or IPv6.
    BadPacket = "bad-packet",
    /// The inner packet's source is not the address of its sender.
    ForeignSource = "foreign-source",
    /// The inner packet's destination may not be reached through a relay.
    ForbiddenDestination = "forbidden-destination",
    /// A new flow or a fragment beyond what its client may have open.
    TooManyFlows = "too-many-flows",
    /// No session has this inner destination.
    NoSuchClient = "no-such-client",
    /// The inner packet does not fit the path, and its sender was told.
    PacketTooBig = "packet-too-big",
    /// A first packet that replays an earlier one.
    HandshakeReplay = "handshake-replay",
    /// A first packet whose time differs from the relay's by more than a minute: one of the two clocks is wrong, or the
    /// packet is an old replay.
    HandshakeClock = "handshake-clock",
    /// A handshake packet that fits no handshake in progress.
    HandshakeStray = "handshake-stray",
    /// A handshake packet that does not verify.
    HandshakeInvalid = "handshake-invalid",
    /// A handshake packet for which the handshaker's queue has no room, or a first packet for which the replay filter
    /// or its network's share has none.
    HandshakeLoad = "handshake-load",
    /// No room for another session.
    TableFull = "table-full",
    /// The kernel refused to send (full queue, no route).
    SendFailed = "send-failed",
    /// The tunnel device refused the packet.
    TunnelFailed = "tunnel-failed",
    /// The tunnel is not connected yet, or is down.
    NotConnected = "not-connected",
}

/// One counter for each drop reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Counts one packet dropped for `reason`.
    pub fn count(&mut self, reason: DropReason) {
        self.count_many(reason, 1);
    }

    /// Counts `packets` packets dropped for `reason`.
    pub fn count_many(&mut self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter += packets;
        }
    }

    /// Returns how many packets were dropped for `reason`.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Returns how many packets were dropped in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds the counters of `other`.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Returns the reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.of(reason))).filter(|&(_, n)| n > 0)
    }
}
