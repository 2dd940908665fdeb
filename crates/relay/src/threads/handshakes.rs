//! The thread that does handshakes.
//!
//! Owns the handshaker. Takes requests from the shards, and sends each result to the shard that it belongs to; never
//! touches a socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openrelay_proto::drops::Drops;
use openrelay_proto::relay::{Gate, Handshaker, Outputs, RelayConfig, Request};
use openrelay_sys::event::{Waker, wait};
use std::os::fd::AsFd;

use super::command::Command;
use openrelay_node::clock::{Clock, unix_minutes};
use openrelay_node::random::OsRandom;

/// Requests that are handled before the shards are woken.
const BATCH: usize = 16;
const LONGEST_WAIT: Duration = Duration::from_secs(1);

pub(super) struct HandshakeThread {
    pub(super) handshaker: Handshaker,
    pub(super) gate: Gate,
    pub(super) requests: Receiver<Request>,
    pub(super) commands: Vec<(Sender<Command>, Arc<Waker>)>,
    pub(super) bell: Arc<Waker>,
    pub(super) stop: Arc<AtomicBool>,
    /// Counts of what the handshaker refused, for reports.
    pub(super) refused: Arc<Mutex<Drops>>,
    /// A changed configuration that the handshaker has not taken yet.
    pub(super) changed: Arc<Mutex<Option<Arc<RelayConfig>>>>,
    pub(super) clock: Clock,
}

impl HandshakeThread {
    pub(super) fn run(mut self) {
        let mut random = OsRandom::default();
        loop {
            let now = self.clock.now();
            let due = self.handshaker.poll_timeout().map_or(LONGEST_WAIT, |at| at.since(now).min(LONGEST_WAIT));
            // An error here can only be a bug in this program. The loop then goes on with its timeouts alone.
            let _ = wait(&[self.bell.as_fd()], due);
            self.bell.clear();
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Some(config) = self.changed.lock().unwrap_or_else(PoisonError::into_inner).take() {
                self.handshaker.set_config(config);
            }
            while self.work_off_batch(&mut random) {}
            let outputs = self.handshaker.handle_timeout(self.clock.now(), unix_minutes(), &mut random);
            self.dispatch(outputs);
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone_from(self.handshaker.drops());
        }
    }

    /// Handles some requests. Returns whether there may be more.
    fn work_off_batch(&mut self, random: &mut OsRandom) -> bool {
        let mut outputs = Outputs::new();
        let mut taken = 0;
        while taken < BATCH
            && let Ok(request) = self.requests.try_recv()
        {
            self.gate.load().taken();
            taken += 1;
            outputs.extend(self.handshaker.handle(request, self.clock.now(), unix_minutes(), random));
        }
        self.dispatch(outputs);
        taken == BATCH
    }

    fn dispatch(&self, outputs: Outputs) {
        let mut rung = 0u64;
        for (shard, output) in outputs {
            if let Some((sender, _)) = self.commands.get(usize::from(shard)) {
                let _ = sender.send(Command::Output(output));
                rung |= 1 << shard;
            }
        }
        for (shard, (_, bell)) in self.commands.iter().enumerate() {
            if rung & (1 << shard) != 0 {
                bell.wake();
            }
        }
    }
}
