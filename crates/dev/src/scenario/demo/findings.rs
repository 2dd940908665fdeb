//! The results of the demonstration, as text and as JSON.

use anyhow::Result;
use serde_json::{Value, json};

use crate::net::judge::Sightings;
use crate::net::output::say;
use crate::world::simulation::LIES;

/// The results of the demonstration.
pub(super) struct Findings {
    /// The source of the directory.
    pub(super) directory: String,
    /// The block that proves the directory.
    pub(super) proven_at: Option<u64>,
    /// The kind of the hops' attestation in one word. `evidence` holds the details for each hop.
    pub(super) attestation: String,
    pub(super) evidence: Value,
    /// The number of validators that packed the image, each independently.
    pub(super) packed_by: usize,
    /// Whether the egress ran from its image, in a machine.
    pub(super) booted: bool,
    /// Relays whose evidence is a lie: its subject, and the code of the refusal.
    pub(super) refused: Vec<(&'static str, String)>,
    pub(super) setup_ms: u64,
    pub(super) bytes: u64,
    pub(super) sha256_ok: bool,
    pub(super) gbit_s: f64,
    pub(super) plain_gbit_s: f64,
    pub(super) udp_ok: bool,
    pub(super) icmp_ok: bool,
    pub(super) given_back: bool,
    pub(super) confined: bool,
    pub(super) core: Sightings,
    pub(super) lan: Sightings,
    pub(super) accounted: Result<()>,
    pub(super) warnings: Vec<String>,
}

/// The relays of the circuit.
pub(super) struct Names {
    pub(super) ingress: &'static str,
    pub(super) egress: &'static str,
}

impl Findings {
    fn guilty(&self, links: &[&str]) -> u64 {
        let verdicts = [&self.core, &self.lan];
        let seen =
            verdicts.iter().flat_map(|verdict| &verdict.links).filter(|(link, _)| links.contains(&link.as_str()));
        seen.map(|(_, seen)| seen.guilty).sum()
    }

    fn missed(&self) -> u64 {
        [&self.core, &self.lan].iter().flat_map(|verdict| verdict.links.values()).map(|seen| seen.missed).sum()
    }

    fn ingress_saw_destination(&self) -> bool {
        self.guilty(&["lan", "nat", "in1", "in2"]) > 0
    }

    fn egress_saw_client(&self) -> bool {
        self.guilty(&["eg1", "eg2", "srv"]) > 0
    }

    pub(super) fn ok(&self) -> bool {
        let enough = self.core.sampled.iter().all(|bytes| *bytes >= 8 << 20) && self.missed() == 0;
        self.sha256_ok
            && self.udp_ok
            && self.icmp_ok
            && self.given_back
            && self.confined
            && self.accounted.is_ok()
            && enough
            && !self.ingress_saw_destination()
            && !self.egress_saw_client()
            && self.core.shared == 0
            && (self.directory == "chain") == self.proven_at.is_some()
            && self.warnings.is_empty()
            && self.is_attested()
    }

    /// Returns whether both hops have shown evidence and each lie was refused with its own code.
    ///
    /// Without a chain, returns whether no attestation was required.
    fn is_attested(&self) -> bool {
        let refused = LIES.iter().zip(&self.refused).all(|((_, code), (_, found))| found == code);
        let both = self.evidence.as_array().is_some_and(|hops| hops.len() == 2);
        if self.directory == "chain" {
            self.attestation == "sim" && both && refused && self.refused.len() == LIES.len()
        } else {
            self.attestation == "none"
        }
    }

    pub(super) fn to_json(&self, ok: bool) -> Value {
        json!({
            "schema": "openrelay.demo/1",
            "ok": ok,
            "hops": 2,
            "directory": self.directory,
            "directory_block": self.proven_at,
            "attestation": self.attestation,
            "evidence": self.evidence,
            "refused": self.refused.iter().map(|(kind, code)| ((*kind).to_owned(), Value::from(code.as_str())))
                .collect::<serde_json::Map<_, _>>(),
            "image_packed_by": self.packed_by, "booted": self.booted,
            "setup_ms": self.setup_ms,
            "bytes": self.bytes,
            "sha256_ok": self.sha256_ok,
            "gbit_s": self.gbit_s,
            "plain_gbit_s": self.plain_gbit_s,
            "ingress_saw_destination": self.ingress_saw_destination(),
            "egress_saw_client": self.egress_saw_client(),
            "shared_bytes_between_legs": self.core.shared,
            "sampled_bytes": self.core.sampled,
            "captures_missed": self.missed(),
            "udp_ok": self.udp_ok,
            "icmp_ok": self.icmp_ok,
            "given_back": self.given_back,
            "confined": self.confined,
            "accounted": self.accounted.as_ref().map_or_else(|error| error.to_string(), |()| "exact".into()),
        })
    }

    pub(super) fn tell(&self, names: &Names) {
        let yes = |good: bool| if good { "yes" } else { "NO" };
        let seen = |links: &[&str]| -> u64 {
            let all = [&self.core, &self.lan];
            all.iter()
                .flat_map(|v| &v.links)
                .filter(|(link, _)| links.contains(&link.as_str()))
                .map(|(_, s)| s.packets)
                .sum()
        };
        say(&format!(
            "\nyou → {} → {} → internet   (connected in {} ms)\n",
            names.ingress, names.egress, self.setup_ms
        ));
        say(&format!(
            "  fetched             {} MiB over TCP, every byte correct: {}",
            self.bytes >> 20,
            yes(self.sha256_ok)
        ));
        if let Some(block) = self.proven_at {
            say(&format!(
                "  directory           from a development chain, proven at block {block}; \
                 the relays are registered and bonded there"
            ));
        }
        self.tell_evidence();
        say(&format!("  UDP, ICMP           IPv4 and IPv6: {}, {}", yes(self.udp_ok), yes(self.icmp_ok)));
        say(&format!(
            "  speed               {:.2} Gbit/s through two hops, {:.2} Gbit/s without a tunnel",
            self.gbit_s, self.plain_gbit_s
        ));
        say(&format!(
            "  ingress could see   your address; a destination in {} of {} packets on its side",
            self.guilty(&["lan", "nat", "in1", "in2"]),
            seen(&["lan", "nat", "in1", "in2"])
        ));
        say(&format!(
            "  egress could see    the destination; your address in {} of {} packets on its side",
            self.guilty(&["eg1", "eg2", "srv"]),
            seen(&["eg1", "eg2", "srv"])
        ));
        say(&format!(
            "  linking the legs    {} common strings of 8 bytes in {:.1} MiB and {:.1} MiB compared \
             ({} packets missed)",
            self.core.shared,
            self.core.sampled[0] as f64 / f64::from(1 << 20),
            self.core.sampled[1] as f64 / f64::from(1 << 20),
            self.missed()
        ));
        say(&format!("  host restored       routes, rules, firewall and resolver: {}", yes(self.given_back)));
        say(&format!(
            "  relays run          as their own user, without capabilities, with a system call filter: {}",
            yes(self.confined)
        ));
        match &self.accounted {
            Ok(()) => say("  accounting          every datagram sent was received or counted as dropped"),
            Err(error) => say(&format!("  accounting          {error}")),
        }
        for warning in &self.warnings {
            say(&format!("  warning             {warning}"));
        }
        say("\nThe trusted execution environments are SIMULATED and admission is open: \
             this shows which checks are made and what the links reveal.");
    }

    /// Prints what the hops have proven, what runs on them, and what was refused.
    fn tell_evidence(&self) {
        for (hop, place) in self.evidence.as_array().into_iter().flatten().zip(["ingress", "egress"]) {
            say(&format!(
                "  {place:<9} evidence  SIMULATED {} {}, image {:.8}… approved in round {}, key generated inside",
                hop["platform"].as_str().unwrap_or("?"),
                hop["product"].as_str().unwrap_or("?"),
                hop["image"].as_str().unwrap_or("?"),
                hop["image_round"]
            ));
        }
        match (self.packed_by, self.booted) {
            (0, false) => say("  image               none: the relay's program stands for one"),
            (0, true) => say("  image               built here"),
            (by, _) => say(&format!(
                "  image               packed from the relay's program by {by} validators independently, \
                 with identical bytes"
            )),
        }
        let refused: Vec<String> = self.refused.iter().map(|(kind, code)| format!("{kind}: {code}")).collect();
        if !refused.is_empty() {
            say(&format!("  lies refused        {}", refused.join("   ")));
        }
        if self.booted {
            say("  booted              the egress ran from its image in an emulated machine; \
                 after its power was cut, no trace of the session was on this disk");
        }
    }
}
