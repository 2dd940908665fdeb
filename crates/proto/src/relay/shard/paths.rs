//! Paths of clients: what a client reports about its path, and how it proves a new one.
//!
//! Owns challenges and the places of fresh indices. Never handles a user's packet.

use std::sync::PoisonError;
use std::time::Duration;

use super::{Entry, EntryId, Kind, Shard};
use crate::drops::DropReason;
use crate::frame::{PathChallenge, Report};
use crate::index::Place;
use crate::relay::Route;
use crate::relay::entry::Path;
use crate::session::frame;
use crate::time::Time;
use crate::wire::{FrameKind, MAX_MTU};

/// How long an index stays valid after its successor is in use.
const RETIRE_TIME: Duration = Duration::from_secs(10);
/// Smallest inner MTU that a client may claim: that of an IPv4 path of 1238 bytes.
const SMALLEST_MTU: u16 = 1152;

impl Shard {
    /// Sends a challenge with a fresh index to a client on an unproven path, when one is due.
    pub(super) fn challenge_if_unproven(&mut self, id: EntryId, now: Time) {
        let slots = &self.slots;
        let Some(entry) = self.table.get_mut(id) else { return };
        let current = entry.place;
        let Some(path) = entry.kind.path_mut() else { return };
        let fresh = || slots.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((nonce, place)) = path.challenge(now, current, fresh) else { return };
        self.table.point(place, id);
        self.arm(id);
        let index = self.index_key.index(place);
        self.transmit_frame(id, FrameKind::PathChallenge, &PathChallenge { nonce, index }.write(), now);
    }

    /// Handles the echo of a challenge: the path is proven, and both ends use fresh indices from then on.
    pub(super) fn path_response(
        &mut self,
        id: EntryId,
        route: Route,
        datagram: &[u8],
        now: Time,
    ) -> Result<(), DropReason> {
        let PathChallenge { nonce, index } = PathChallenge::parse(frame(datagram)).ok_or(DropReason::BadFrame)?;
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let Some(proven) = entry.kind.path_mut().and_then(|path| path.prove(route, nonce)) else { return Ok(()) };
        entry.link.session.remote_index = index;
        let Some(place) = proven.fresh else { return Ok(()) };
        let old = std::mem::replace(&mut entry.place, place);
        let retired = entry.retiring.replace((old, now.after(RETIRE_TIME)));
        if let Some((older, _)) = retired {
            self.table.unpoint(older);
            self.release(older);
        }
        Ok(())
    }

    pub(super) fn release_unused(&mut self, path: &Path) {
        if let Some(place) = path.unused_place() {
            self.table.unpoint(place);
            self.release(place);
        }
    }

    pub(super) fn release(&self, place: Place) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).release(place);
    }
}

/// Handles a client's report about its path and the control stream; ignores a report of any other peer.
pub(super) fn take_report(entry: &mut Entry, report: Option<Report>) -> Result<(), DropReason> {
    if let Kind::Inner { mtu, .. } = &mut entry.kind
        && entry.admitted
    {
        let report = report.ok_or(DropReason::BadFrame)?;
        entry.link.handle_report(report);
        *mtu = report.mtu.clamp(SMALLEST_MTU, MAX_MTU);
    }
    Ok(())
}
