//! Hosts: network and mount namespaces, kept by a process that ends with this one.
//!
//! Owns how a program runs on a host, and the check for the tools that hosts need.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// A tool that is not installed, with the line that installs it.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl Missing {
    pub(crate) fn new(line: String) -> Self {
        Self(line)
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

const TOOLS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
];

/// Checks that every tool for making hosts is installed.
pub(crate) fn check_tools() -> Result<()> {
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| find(tool).is_none()).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        let line = format!("missing tools; install them with: apt-get install -y {}", missing.join(" "));
        return Err(Missing(line).into());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err(Missing("/dev/net/tun does not exist; load its module with: modprobe tun".into()).into());
    }
    if openrelay_sys::sandbox::user() != 0 {
        let alone = Command::new("unshare").args(["--user", "--map-root-user", "true"]).stderr(Stdio::null()).status();
        if !alone.is_ok_and(|status| status.success()) {
            return Err(Missing("this user may not create user namespaces; run this command as root".into()).into());
        }
        if fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
            return Err(Missing(
                "this user may not open /dev/net/tun; run this command as root, or: chmod 666 /dev/net/tun".into(),
            )
            .into());
        }
    }
    Ok(())
}

pub(crate) fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|dir| Path::new(dir).join(tool)).find(|path| path.exists())
}

/// Search path of programs on hosts.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the variables that programs on a host get, from the host's folder. The hosts' folders are in the network's.
pub(crate) type Environment = fn(&Path) -> Vec<(&'static str, PathBuf)>;

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pid: u32,
    dir: PathBuf,
    environment: Environment,
    keeper: Child,
    _lifeline: ChildStdin,
}

impl Host {
    /// Creates a host with its own /etc below `dir`.
    pub(crate) fn new(name: &'static str, dir: &Path, environment: Environment) -> Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(dir.join("etc")).context("cannot create a host's folder")?;
        // Duplicate address detection would make a new link wait for seconds. The keeper reads its input until this
        // process ends. The copy of /etc keeps every change away from the real one.
        let script = format!(
            "cp -a /etc/. {0}/etc/ 2>/dev/null; mount --bind {0}/etc /etc && rm -f /etc/resolv.conf && \
             ip link set lo up && \
             for knob in accept_dad dad_transmits; do echo 0 > /proc/sys/net/ipv6/conf/default/$knob; done && \
             echo ready && exec cat >/dev/null",
            dir.display()
        );
        let mut keeper = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", &script])
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let lifeline = keeper.stdin.take().context("cannot write to the host's keeper")?;
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().context("cannot read from the host's keeper")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the host {name} did not start");
        }
        Ok(Self { name, pid: keeper.id(), dir, environment, keeper, _lifeline: lifeline })
    }

    /// Returns the process whose namespaces are the host's.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the host's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the packets and bytes in the counter `name` of the nftables table `table`, such as `inet account`.
    pub(crate) fn counter(&self, table: &str, name: &str) -> Result<(u64, u64)> {
        let text = self.sh(&format!("nft list counter {table} {name}"))?;
        let number = |unit: &str| -> Result<u64> {
            let mut words = text.split_whitespace().skip_while(|word| *word != unit);
            Ok(words.nth(1).with_context(|| format!("no counter {name} in {table}"))?.parse()?)
        };
        Ok((number("packets")?, number("bytes")?))
    }

    /// Returns a command that will run on the host.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.pid.to_string(), "--"]);
        command.arg(program).env("PATH", PATH).envs((self.environment)(&self.dir));
        command
    }

    /// Runs a line of shell on the host.
    pub(crate) fn sh(&self, line: &str) -> Result<String> {
        let output = self.command("sh").args(["-ec", line]).output().context("cannot run a shell")?;
        checked(&output, line)
    }

    /// Starts a program on the host without waiting for a line from it, and discards its errors.
    pub(crate) fn start_quietly(&self, mut command: Command) -> Result<Service> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("cannot read the program's output")?);
        Ok(Service { child, lines, ready: String::new() })
    }

    /// Starts a program on the host and waits until it prints a line that begins with `ready`.
    pub(crate) fn start(&self, mut command: Command, ready: &str) -> Result<Service> {
        let log = fs::File::create(self.dir.join(format!("{}.log", self.name)))?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("cannot read the program's output")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        if !line.starts_with(ready) {
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(self.dir.join(format!("{}.log", self.name))).unwrap_or_default();
            bail!("{} did not start: {line}{log}", self.name);
        }
        Ok(Service { child, lines, ready: line.trim().to_owned() })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A program that runs on a host.
pub(crate) struct Service {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    /// The line that the program printed when it was ready.
    pub(crate) ready: String,
}

impl Service {
    /// Sends a signal and returns the next line that the program prints.
    pub(crate) fn ask(&mut self, signal: &str) -> Result<String> {
        self.signal(signal)?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status()?;
        if status.success() { Ok(()) } else { bail!("cannot send a signal to a service") }
    }

    /// Returns the program's process ID. nsenter replaces itself with the program.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the process that does the work: the program's first child, or else the program itself. A relay's helper
    /// processes do not count.
    ///
    /// Source: proc(5), /proc/pid/task/tid/children and /proc/pid/cmdline.
    pub(crate) fn innermost(&self) -> u32 {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let helps = |child: &u32| {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1).is_some_and(|argument| argument == b"guard" || argument == b"quote")
        };
        children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child| !helps(child)).unwrap_or(pid)
    }

    /// Returns whether the program still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns whether the program has ended successfully.
    pub(crate) fn ended_in_order(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(status)) if status.success())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        let _ = self.signal("TERM");
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the output of a program that must have succeeded.
pub(crate) fn checked(output: &Output, what: &str) -> Result<String> {
    if !output.status.success() {
        bail!("{what}: {} {}", String::from_utf8_lossy(&output.stderr).trim(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
