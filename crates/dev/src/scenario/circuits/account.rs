//! The account of a bench: every datagram of a program is its host kernel's, and every missing one is a link's.
//!
//! Owns how a client connects and disconnects so that the counts can be compared.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::net::account::{self, Datagrams};
use crate::net::wait::wait_for;
use crate::net::{loss, wire};
use crate::scenario::bench::Bench;
use crate::world::counts;
use crate::world::relays::{RELAYS, relay_in_status};

/// The longest time in which a change must show.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// Hosts whose kernels count. The NAT is one of them, because it drops datagrams to a mapping that it has deleted.
pub(super) const WATCHED: [&str; 7] = ["client", "nat", "ingress-1", "ingress-2", "egress-1", "egress-2", "server"];

impl Bench {
    /// Connects the client and begins to count. Returns the client's status.
    pub(super) fn connect(&mut self, extra: &[&str]) -> Result<Value> {
        self.account.before = account::of_kernel(&self.network.client)?;
        let config = self.config();
        let mut arguments = vec!["up", "--wait", "--config", &config];
        arguments.extend(extra);
        let (code, _, said) = self.openrelay(&arguments)?;
        ensure!(code == Some(0), "openrelay up: exit code {code:?}: {said}");
        let status = self.status()?;
        let first = relay_in_status(&status, if status["ingress"].is_null() { "egress" } else { "ingress" })?;
        wire::watch(
            self.network.host("nat")?,
            [self.network.address(first, false)?, self.network.address(first, true)?],
        )?;
        Ok(status)
    }

    /// Takes the account and then disconnects the client.
    pub(super) fn disconnect(&mut self) -> Result<()> {
        self.account.lost = self.account_in_peace()?;
        self.take_down()
    }

    /// Checks what has left the client's host and then disconnects the client.
    pub(super) fn take_down(&self) -> Result<()> {
        wire::judge(self.network.host("nat")?)?;
        wire::unwatch(self.network.host("nat")?)?;
        self.down()
    }

    /// Takes the account when no datagram is in flight. A ping beforehand makes every socket report what its kernel
    /// dropped before.
    pub(super) fn account_in_peace(&mut self) -> Result<u64> {
        self.in_peace(|bench| {
            bench.ping()?;
            bench.take_account()
        })
    }

    /// Repeats `judge` until it succeeds, because datagrams may be in flight. Returns its result, or its last error
    /// after 20 attempts.
    pub(super) fn in_peace<T>(&mut self, mut judge: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        for _ in 1..20 {
            if let Ok(outcome) = judge(self) {
                return Ok(outcome);
            }
        }
        judge(self)
    }

    /// Compares the counts of client and relays with those of their hosts' kernels, and missing datagrams with the
    /// losses of links.
    ///
    /// Returns how many datagrams links have lost so far.
    pub(super) fn take_account(&mut self) -> Result<u64> {
        let before = self.all_kernels()?;
        self.account_of_client()?;
        for name in RELAYS {
            self.account_of_relay(name)?;
        }
        let all = self.all_kernels()?;
        ensure!(all == before, "datagrams were still in flight");
        self.account_of_links(all)
    }

    pub(super) fn account_of_client(&self) -> Result<()> {
        let client = counts::of_client(&self.status()?["traffic"])?;
        let kernel = account::of_kernel(&self.network.client)?.since(self.account.before);
        ensure!(client == kernel, "the client counted {client:?}, its host's kernel {kernel:?}");
        Ok(())
    }

    pub(super) fn account_of_relay(&mut self, name: &str) -> Result<()> {
        let counted = counts::of_relay(name, &serde_json::from_str(&self.service(name)?.ask("USR1")?)?)?;
        let kernel = account::of_kernel(self.network.host(name)?)?;
        ensure!(counted == kernel, "{name} counted {counted:?}, its host's kernel {kernel:?}");
        Ok(())
    }

    pub(super) fn account_of_links(&self, all: Datagrams) -> Result<u64> {
        let refused: u64 =
            WATCHED.iter().map(|name| account::refused(self.network.host(name)?)).sum::<Result<u64>>()?;
        let lost = loss::counted(&self.network)? - self.account.lost_before;
        ensure!(all.sent == all.received + refused + lost, "{all:?}, {refused} refused, links lost {lost}");
        Ok(lost)
    }

    pub(super) fn all_kernels(&self) -> Result<Datagrams> {
        let mut all = Datagrams::default();
        for name in WATCHED {
            all += account::of_kernel(self.network.host(name)?)?;
        }
        Ok(all)
    }

    /// Waits until `holds` returns true, at most for [`SOON`].
    pub(super) fn soon(&self, what: &str, holds: impl FnMut() -> Result<bool>) -> Result<()> {
        wait_for(what, SOON, holds).map(drop)
    }
}
