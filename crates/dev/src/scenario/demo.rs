//! `openrelay devnet demo`: shows the main function and checks that everything works as promised.
//!
//! Owns the sequence: a plain download first, then the same through two hops with judges on the links. Then it
//! reports what each relay could see, and accounts for every datagram.

mod findings;
mod judge;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::findings::{Findings, Names};
use self::judge::Judge;
use crate::net::account::{self, Datagrams};
use crate::net::folder::in_a_folder;
use crate::net::host::{Host, Service, checked};
use crate::net::judge::{LinkRule, Rules};
use crate::net::network::{CLIENT_V4, CLIENT_V6, Network, PORT};
use crate::net::output::{say, talk};
use crate::world::approved::VALIDATORS;
use crate::world::internet::{ECHO, NAME, WEB};
use crate::world::operators::Operator;
use crate::world::programs::{Programs, network};
use crate::world::relays::{BOOTED, FIRST_LIAR, RELAYS, relay_in_status};
use crate::world::services::{Services, serve, serve_by_chain};
use crate::world::simulation::LIES;
use crate::world::{attacks, boot, chain, counts};

/// The longest time that mirrors may take to collect the relays' evidence.
const LOOKED_AT: Duration = Duration::from_secs(15);

/// Options of the demonstration.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// MiB to fetch
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Let the relays leak, to test the judge
    #[arg(long)]
    leak: bool,
    /// Run one relay from the image in this folder
    ///
    /// The relay runs in an emulated machine. Build the image with: openrelay image build --simulate
    #[arg(long, value_name = "DIR")]
    boot: Option<PathBuf>,
    /// Let the machine's host attack its boot
    ///
    /// Combines several attacks that the firmware must ignore.
    #[arg(long, value_name = "ATTACK", num_args = 1.., requires = "boot", value_parser = attacks::IGNORED)]
    attacked: Vec<String>,
    /// Folder of the image that each validator packed
    #[arg(long, hide = true)]
    packed: Option<PathBuf>,
    /// Give the relays IPv6 addresses only
    #[arg(long)]
    outer_v6: bool,
}

impl Options {
    /// Returns whether validators pack the image: only if relays show evidence and no image is given.
    ///
    /// What they pack does not depend on the outer addresses, and takes half a minute, so `--outer-v6` skips it.
    pub(crate) fn wants_image(&self) -> bool {
        !self.leak && self.boot.is_none() && !self.outer_v6
    }

    pub(crate) fn to_arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = vec!["--mib".into(), self.mib.to_string().into()];
        if self.json {
            arguments.push("--json".into());
        }
        if let Some(image) = &self.boot {
            arguments.extend(["--boot".into(), image.clone().into()]);
        }
        if !self.attacked.is_empty() {
            arguments.push("--attacked".into());
            arguments.extend(self.attacked.iter().map(Into::into));
        }
        if self.leak {
            arguments.push("--leak".into());
        }
        if self.outer_v6 {
            arguments.push("--outer-v6".into());
        }
        arguments
    }
}

/// One running demonstration.
struct Demo {
    options: Options,
    started: Instant,
    programs: Programs,
    network: Network,
    services: Services,
    /// Relays whose evidence is a lie.
    liars: Vec<(String, Service)>,
}

/// Runs the demonstration. Fails unless everything is as promised.
pub(crate) fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let (findings, names) = in_a_folder(|dir| story(options, started, dir))?;
    let ok = findings.ok();
    if options.json {
        say(&findings.to_json(ok).to_string());
    } else {
        findings.tell(&names);
    }
    if ok { Ok(()) } else { bail!("not everything works as promised") }
}

/// Returns the programs and how the options change their use.
fn programs(options: &Options) -> Result<Programs> {
    let mut programs = if options.leak { Programs::find()? } else { Programs::simulating()? };
    if options.boot.is_some() {
        boot::check_tools(false)?;
        ensure!(!options.leak && !options.outer_v6, "--boot cannot be combined with --leak or --outer-v6");
    }
    let image = options.boot.as_deref().or(options.packed.as_deref());
    programs.image = image.map(std::path::absolute).transpose()?;
    programs.boot = options.boot.is_some();
    programs.attacked.clone_from(&options.attacked);
    programs.leak = options.leak;
    programs.outer_v6 = options.outer_v6;
    Ok(programs)
}

fn story(options: &Options, started: Instant, dir: &std::path::Path) -> Result<(Findings, Names)> {
    let programs = programs(options)?;
    let network = network(dir)?;
    // A leaking relay replaces the product's relay, whose agent would not start it.
    let services = if programs.leak { serve(&network, &programs, &[])? } else { serve_by_chain(&network, &programs)? };
    let mut demo = Demo { options: options.clone(), started, programs, network, services, liars: Vec::new() };
    demo.progress("client, NAT, core, server, chain, two ingresses and two egresses are up");
    let refused = if options.leak { Vec::new() } else { demo.lie()? };
    demo.progress("four more relays are up, each with evidence that lies");
    let plain = demo.fetch(options.mib, false)?;
    demo.progress("fetched without a tunnel, for comparison");
    let state_before = demo.host_state()?;
    let core = demo.judge(&demo.network.core, demo.core_rules()?)?;
    let lan = demo.judge(demo.network.host("nat")?, demo.lan_rules()?)?;
    demo.connect()?;
    let status = demo.status()?;
    let names = demo.names(&status)?;
    demo.progress("two hops are up");
    let fetched = demo.fetch(options.mib, false)?;
    demo.progress("fetched through two hops over IPv4");
    let fetched6 = demo.fetch(16, true)?;
    demo.progress("fetched through two hops over IPv6");
    let udp_ok = demo.exchange(false)? && demo.exchange(true)?;
    let icmp_ok = demo.ping(false)? && demo.ping(true)?;
    demo.progress("exchanged UDP and ICMP");
    let (core, lan) = (core.verdict()?, lan.verdict()?);
    demo.progress("the judges have finished");
    let accounted = demo.account_in_peace();
    let confined = demo.confined()?;
    let client_drops = demo.status()?;
    let output = demo.network.client.command(&demo.programs.openrelay).arg("down").output()?;
    checked(&output, "openrelay down")?;
    let state_after = demo.host_state()?;
    let given_back = state_after == state_before;
    demo.progress("disconnected");
    let traces = demo.traces()?;
    let mut warnings: Vec<String> =
        traces.into_iter().map(|path| format!("{path} contains a trace of the session")).collect();
    warnings.extend(if client_drops["state"] == "connected" { None } else { Some("the circuit was lost".to_owned()) });
    let findings = Findings {
        directory: status["directory"].as_str().unwrap_or("none").to_owned(),
        proven_at: status["directory_proof"]["block"].as_u64(),
        attestation: status["attestation"].as_str().unwrap_or("?").to_owned(),
        evidence: status["evidence"].clone(),
        packed_by: if options.packed.is_some() { VALIDATORS.len() } else { 0 },
        booted: options.boot.is_some(),
        refused,
        setup_ms: status["setup_ms"].as_u64().unwrap_or(0),
        bytes: fetched["bytes"].as_u64().unwrap_or(0),
        sha256_ok: fetched["sha256_ok"] == true && fetched6["sha256_ok"] == true,
        gbit_s: fetched["gbit_s"].as_f64().unwrap_or(0.0),
        plain_gbit_s: plain["gbit_s"].as_f64().unwrap_or(0.0),
        udp_ok,
        icmp_ok,
        given_back,
        confined,
        core,
        lan,
        accounted,
        warnings,
    };
    Ok((findings, names))
}

impl Demo {
    fn progress(&self, what: &str) {
        if !self.options.json {
            talk(&format!("{:>6.2} s  {what}", self.started.elapsed().as_secs_f64()));
        }
    }

    fn connect(&self) -> Result<()> {
        let config = self.network.dir.join("config/client/client.toml");
        if self.options.boot.is_some() {
            // The circuit goes through the machine.
            let text = fs::read_to_string(&config)?;
            fs::write(&config, format!("egress = 4\n{text}"))?;
        }
        let output = self
            .network
            .client
            .command(&self.programs.openrelay)
            .args(["up", "--wait", "--config"])
            .arg(config)
            .output()?;
        checked(&output, "openrelay up").map(drop)
    }

    /// Starts relays whose evidence is a lie, and returns how each is refused.
    fn lie(&mut self) -> Result<Vec<(&'static str, String)>> {
        let (network, programs) = (&self.network, &self.programs);
        let started: Result<Vec<_>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(LIES)
                .map(|(place, (kind, _))| {
                    scope.spawn(move || {
                        let liar = Operator::liar(network, programs, "ingress-2", kind, FIRST_LIAR + place)?;
                        Ok((kind.to_owned(), liar))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a relay's start panicked")))
                .collect()
        });
        self.liars = started?;
        let number = |liar: &Service| -> Option<u64> {
            liar.ready.split_whitespace().find_map(|word| word.strip_prefix("relay_id="))?.parse().ok()
        };
        let deadline = Instant::now() + LOOKED_AT;
        loop {
            let relays = chain::verified(&self.network, &self.programs)?;
            let code = |id: Option<u64>| {
                let relay = relays.iter().find(|relay| relay["relay"].as_u64() == id);
                let refused = relay.map(|relay| relay["refused"]["code"].as_str().unwrap_or("believed").to_owned());
                refused.filter(|code| code != "no-evidence")
            };
            let codes: Vec<Option<String>> = self.liars.iter().map(|(_, liar)| code(number(liar))).collect();
            if Instant::now() > deadline || codes.iter().all(Option::is_some) {
                let codes = codes.into_iter().map(|code| code.unwrap_or_else(|| "not looked at".into()));
                return Ok(LIES.map(|(kind, _)| kind).into_iter().zip(codes).collect());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn tool(&self, arguments: &[String]) -> Result<Value> {
        let output = self.network.client.command(&self.programs.dev).args(arguments).output()?;
        let text = checked(&output, &arguments.join(" "))?;
        serde_json::from_str(text.trim()).context("a tool's output is malformed")
    }

    fn fetch(&self, mib: u64, v6: bool) -> Result<Value> {
        let mut arguments = vec!["fetch".to_owned(), format!("{NAME}:{WEB}"), (mib << 20).to_string()];
        if v6 {
            arguments.push("--v6".into());
        }
        self.tool(&arguments)
    }

    fn exchange(&self, v6: bool) -> Result<bool> {
        let server = self.network.server(ECHO, v6)?;
        let answer = self.tool(&["echo".into(), server.to_string(), "200".into()])?;
        Ok(answer["answered"] == answer["sent"])
    }

    fn ping(&self, v6: bool) -> Result<bool> {
        let server = self.network.address("server", v6)?.to_string();
        let output = self
            .network
            .client
            .command("ping")
            .args(["-n", "-q", "-c", "5", "-i", "0.05", "-W", "2", &server])
            .output()?;
        Ok(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(" 0% packet loss"))
    }

    fn status(&self) -> Result<Value> {
        let output = self.network.client.command(&self.programs.openrelay).args(["status", "--json"]).output()?;
        serde_json::from_slice(&output.stdout).context("the output of openrelay status is malformed")
    }

    fn names(&self, status: &Value) -> Result<Names> {
        Ok(Names { ingress: relay_in_status(status, "ingress")?, egress: relay_in_status(status, "egress")? })
    }

    /// Returns the state that `down` must restore: routes, rules, firewall and resolver.
    fn host_state(&self) -> Result<String> {
        self.network.client.sh("ip rule; ip -6 rule; ip -4 route show table all | sort; \
             ip -6 route show table all | grep -v 'fe80\\|multicast' | sort; nft list ruleset; cat /etc/resolv.conf")
    }

    fn judge(&self, host: &Host, rules: Rules) -> Result<Judge> {
        let path = host.dir().join("rules.json");
        fs::write(&path, serde_json::to_vec(&rules)?)?;
        let mut command = host.command(&self.programs.dev);
        command.arg("judge").arg("--rules").arg(path);
        Judge::start(command)
    }

    fn core_rules(&self) -> Result<Rules> {
        let server = self.servers()?;
        let client: Vec<IpAddr> = vec![
            CLIENT_V4.parse()?,
            CLIENT_V6.parse()?,
            self.network.address("nat", false)?,
            self.network.address("nat", true)?,
        ];
        let link = |link: &str, forbidden: &[IpAddr], leg, names: &[&str]| LinkRule {
            link: link.into(),
            forbidden: forbidden.to_vec(),
            leg,
            names: names.iter().map(|name| (*name).into()).collect(),
        };
        // A query contains the name's labels without the dots.
        let label = NAME.split('.').next_back().unwrap_or(NAME);
        Ok(Rules {
            port: PORT,
            links: vec![
                link("nat", &server, Some(1), &[label]),
                link("in1", &server, None, &[label]),
                link("in2", &server, None, &[]),
                link("eg1", &client, Some(2), &[]),
                link("eg2", &client, Some(2), &[]),
                link("srv", &client, None, &[]),
            ],
        })
    }

    fn lan_rules(&self) -> Result<Rules> {
        let rule = LinkRule { link: "lan".into(), forbidden: self.servers()?, leg: None, names: vec![] };
        Ok(Rules { port: PORT, links: vec![rule] })
    }

    fn servers(&self) -> Result<Vec<IpAddr>> {
        Ok(vec![self.network.address("server", false)?, self.network.address("server", true)?])
    }

    /// Returns whether every relay is confined.
    ///
    /// A confined relay serves as its own user (where there is more than one), without capabilities and with a system
    /// call filter. It cannot gain privileges and writes no core dumps. Source: proc(5).
    fn confined(&self) -> Result<bool> {
        let users = fs::read_to_string("/proc/self/uid_map")?;
        let alone = users.split_whitespace().nth(2) == Some("1");
        let in_machine = self.services.machine.is_some();
        for (_, relay) in self.services.relays.iter().filter(|(name, _)| !in_machine || *name != BOOTED) {
            let pid = relay.innermost();
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
            let is = |name: &str, value: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| rest.split_whitespace().next()) == Some(value)
            };
            let dumps = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
            let good = (alone || !is("Uid:", "0"))
                && is("CapEff:", "0000000000000000")
                && is("CapBnd:", "0000000000000000")
                && is("NoNewPrivs:", "1")
                && is("Seccomp:", "2")
                && dumps.is_some_and(|rest| rest.split_whitespace().take(2).all(|limit| limit == "0"));
            if !good {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Cuts the power of the machine, if there is one, and searches this host's disk for traces of the session.
    ///
    /// Returns the files that contain a name or an address of the session. Searches the image too, because it must
    /// not have changed.
    fn traces(&mut self) -> Result<Vec<String>> {
        let Some(machine) = self.services.machine.take() else { return Ok(Vec::new()) };
        machine.kill();
        let server = self.network.address("server", false)?;
        let canaries = [NAME.to_owned(), server.to_string(), CLIENT_V4.to_owned()];
        let image = self.programs.image.clone().context("the booted relay has no image")?;
        let mut found = Vec::new();
        for folder in [image.as_path(), self.network.host(BOOTED)?.dir()] {
            for canary in &canaries {
                let arguments = ["-r", "-l", "-a", "-F", "--exclude-dir=etc", canary.as_str()];
                let output = Command::new("grep").args(arguments).arg(folder).output()?;
                found.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
            }
        }
        Ok(found)
    }

    /// Takes the account when no datagram is in flight.
    ///
    /// A ping beforehand makes every socket report what its kernel dropped before.
    fn account_in_peace(&mut self) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..20 {
            self.ping(false)?;
            result = self.account();
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Checks that every datagram that any program sent was received, or is in a counter of drops.
    fn account(&mut self) -> Result<()> {
        let mut all = counts::of_client(&self.status()?["traffic"])?;
        let liars = self.liars.iter_mut().map(|(name, relay)| (name.as_str(), relay));
        for (name, relay) in self.services.relays.iter_mut().map(|(name, relay)| (*name, relay)).chain(liars) {
            all += counts::of_relay(name, &serde_json::from_str(&relay.ask("USR1")?)?)?;
        }
        if !self.options.leak {
            // The mirror, which queries relays for their evidence.
            let host = self.network.host("chain")?;
            all += account::of_kernel(host)?;
            all.received += account::refused(host)?;
            for name in RELAYS {
                let host = self.network.host(name)?;
                all.received += account::unheard(host)?;
                if self.options.boot.is_some() && name != BOOTED {
                    all.received += account::unheard_by_machine(host)?;
                }
            }
        }
        let Datagrams { sent, received } = all;
        if sent != received {
            bail!("{sent} datagrams were sent, but {received} were received or dropped by the kernel")
        }
        Ok(())
    }
}
