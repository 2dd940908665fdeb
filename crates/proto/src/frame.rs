//! Frames with fields: what stands where in the plaintext of a data packet.
//!
//! Owns the layout of each frame that has one. A frame begins with its kind byte; [`crate::session::frame`] returns it
//! without header, tag and padding rules. Never seals and never keeps state. `control` has the layout of its own frame.

use crate::wire::{FORWARD_LEN, FrameKind, KIND_LEN, take};

/// What stands before a packet of the inner session: kind 1, circuit tag 4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Forward {
    /// The circuit's tag.
    pub(crate) tag: u32,
}

impl Forward {
    /// Bytes of the kind and the tag.
    pub(crate) const LEN: usize = FORWARD_LEN;

    /// Reads the tag of a forwarded frame.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        Some(Self { tag: u32::from_be_bytes(take(frame, KIND_LEN)?) })
    }

    /// Writes kind and tag to the start of `frame`; `None` when it is too short.
    pub(crate) fn write(self, frame: &mut [u8]) -> Option<()> {
        let [kind, tag @ ..] = frame.first_chunk_mut::<{ Self::LEN }>()?;
        *kind = FrameKind::Forward.byte();
        *tag = self.tag.to_be_bytes();
        Some(())
    }
}

/// A path challenge and the response to it: nonce 8, the sender's fresh index 4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PathChallenge {
    /// The challenger's nonce.
    pub(crate) nonce: [u8; 8],
    /// The index that packets to the sender of this frame carry from then on.
    pub(crate) index: u32,
}

impl PathChallenge {
    /// Bytes of the body.
    pub(crate) const LEN: usize = 12;

    /// Reads a challenge or a response.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let body: [u8; Self::LEN] = take(frame, KIND_LEN)?;
        Some(Self { nonce: take(&body, 0)?, index: u32::from_be_bytes(take(&body, 8)?) })
    }

    /// Returns the body.
    pub(crate) fn write(self) -> [u8; Self::LEN] {
        let mut body = [0; Self::LEN];
        body[..8].copy_from_slice(&self.nonce);
        body[8..].copy_from_slice(&self.index.to_be_bytes());
        body
    }
}

/// A client's report to its egress: path MTU 2, acknowledged bytes of the control stream 4.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Report {
    /// The largest inner packet that the path is known to carry, in bytes.
    pub(crate) mtu: u16,
    /// How much of the receiver's control stream has arrived.
    pub(crate) acknowledged: u32,
}

impl Report {
    /// Bytes of the body.
    pub(crate) const LEN: usize = 6;

    /// Reads the report of a path MTU frame.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        Self::read(take(frame, KIND_LEN)?)
    }

    fn read(body: [u8; Self::LEN]) -> Option<Self> {
        Some(Self { mtu: u16::from_be_bytes(take(&body, 0)?), acknowledged: u32::from_be_bytes(take(&body, 2)?) })
    }

    /// Returns the body.
    pub(crate) fn write(self) -> [u8; Self::LEN] {
        let mut body = [0; Self::LEN];
        body[..2].copy_from_slice(&self.mtu.to_be_bytes());
        body[2..].copy_from_slice(&self.acknowledged.to_be_bytes());
        body
    }
}

/// An MTU probe: nonce 8, report 6, filled with zeros to the probed size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Probe {
    /// The nonce, which the answer repeats.
    pub(crate) nonce: [u8; 8],
    /// The prober's report.
    pub(crate) report: Report,
}

impl Probe {
    /// Bytes of the body before the filling.
    pub(crate) const LEN: usize = 8 + Report::LEN;

    /// Reads a probe.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let body: [u8; Self::LEN] = take(frame, KIND_LEN)?;
        Some(Self { nonce: take(&body, 0)?, report: Report::read(take(&body, 8)?)? })
    }

    /// Returns the body of a probe of `size` bytes.
    pub(crate) fn write(self, size: usize) -> Vec<u8> {
        let mut body = [&self.nonce[..], &self.report.write()].concat();
        body.resize(size.max(Self::LEN), 0);
        body
    }
}

/// The answer to an MTU probe: nonce 8, filled with zeros to the probe's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProbeAck {
    /// The probe's nonce.
    pub(crate) nonce: [u8; 8],
    /// Bytes of the body.
    pub(crate) size: usize,
}

impl ProbeAck {
    /// Bytes of the body before the filling.
    pub(crate) const LEN: usize = 8;

    /// Reads an answer to a probe.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        Some(Self { nonce: take(frame, KIND_LEN)?, size: frame.len() - KIND_LEN })
    }

    /// Returns the body of the answer to the probe in `frame`, which needs no report to be answered.
    pub(crate) fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        let Self { nonce, size } = Self::parse(frame)?;
        let mut body = nonce.to_vec();
        body.resize(size, 0);
        Some(body)
    }
}

const _: () = assert!(Forward::LEN == KIND_LEN + size_of::<u32>());
const _: () = assert!(PathChallenge::LEN == size_of::<[u8; 8]>() + size_of::<u32>());
const _: () = assert!(Report::LEN == size_of::<u16>() + size_of::<u32>());
const _: () = assert!(ProbeAck::LEN <= Probe::LEN);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_kind(body: &[u8]) -> Vec<u8> {
        [&[0], body].concat()
    }

    proptest! {
        #[test]
        fn frame_parses_as_written_and_not_when_truncated(nonce: [u8; 8], index: u32, mtu: u16, size in 14usize..40) {
            let challenge = PathChallenge { nonce, index };
            let report = Report { mtu, acknowledged: index };
            let probe = Probe { nonce, report };
            let bodies = [with_kind(&challenge.write()), with_kind(&report.write()), with_kind(&probe.write(size))];
            prop_assert_eq!(PathChallenge::parse(&bodies[0]), Some(challenge));
            prop_assert_eq!(Report::parse(&bodies[1]), Some(report));
            prop_assert_eq!(Probe::parse(&bodies[2]), Some(probe));
            prop_assert_eq!(ProbeAck::parse(&with_kind(&ProbeAck::answer(&bodies[2]).unwrap())),
                Some(ProbeAck { nonce, size }));
            for end in 0..PathChallenge::LEN + KIND_LEN {
                prop_assert_eq!(PathChallenge::parse(&bodies[0][..end]), None);
            }
            for end in 0..Report::LEN + KIND_LEN {
                prop_assert_eq!(Report::parse(&bodies[1][..end]), None);
            }
            for end in 0..Probe::LEN + KIND_LEN {
                prop_assert_eq!(Probe::parse(&bodies[2][..end]), None);
            }
            let mut front = [0; Forward::LEN];
            Forward { tag: index }.write(&mut front).unwrap();
            prop_assert_eq!(Forward::parse(&front), Some(Forward { tag: index }));
            prop_assert_eq!(Forward::parse(&front[..4]), None);
            prop_assert_eq!(Forward { tag: index }.write(&mut front[..4]), None);
        }
    }
}
