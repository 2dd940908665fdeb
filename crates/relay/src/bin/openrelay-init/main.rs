//! `openrelay-init`: the first process of a relay's image.
//!
//! Owns what a machine needs before a relay can run: file systems in memory, the kernel's modules, and addresses.
//! Then it starts the relay and, when that ends, powers off. There is no disk, no shell and no login. It prints one
//! line with public data: the kernel's release, and what the machine's TPM has measured, if it has one.
//!
//! ```text
//! port org.openrelay.config ─▶ addresses, files in memory
//! port org.openrelay.feed ◀─▶ the relay's standard input and output
//! ```

mod config;

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openrelay_sys::boot::{load_module, mount, power_off};
use openrelay_sys::net::Netlink;

use config::Config;

/// File systems that the kernel has from the start; `CONFIGFS` needs a module.
const MOUNTS: [(&str, &str); 5] =
    [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")];
const CONFIGFS: (&str, &str) = ("configfs", "/sys/kernel/config");
const MODULES: &str = "/modules";
const PORTS: &str = "/sys/class/virtio-ports";
const CONFIG_PORT: &str = "org.openrelay.config";
const FEED_PORT: &str = "org.openrelay.feed";
/// The network card that all machines of this kind have.
const CARD: &str = "eth0";
/// The error of a module for hardware that is absent.
const ENODEV: i32 = 19;
/// How long a card may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    if std::process::id() != 1 {
        say("this is the first process of a relay's image; it does nothing elsewhere");
        return;
    }
    if let Err(why) = run() {
        say(&format!("openrelay-init: {why}"));
    }
    let error = power_off();
    say(&format!("openrelay-init: cannot power off: {error}"));
}

fn run() -> Result<(), String> {
    for (kind, at) in MOUNTS {
        mount(kind, Path::new(at)).map_err(|error| format!("cannot mount {at}: {error}"))?;
    }
    load_modules()?;
    mount(CONFIGFS.0, Path::new(CONFIGFS.1)).map_err(|error| format!("cannot mount {}: {error}", CONFIGFS.1))?;
    say(&format!("ready {}", measured()));
    let Some(port) = port(CONFIG_PORT) else { return Err("there is no configuration; ending".into()) };
    let config = read_config(&port)?;
    configure(&config)?;
    let feed = port_of(FEED_PORT)?;
    // A port can be opened once.
    let input = OpenOptions::new().read(true).write(true).open(&feed).map_err(|error| format!("the feed: {error}"))?;
    let output = input.try_clone().map_err(|error| format!("the feed: {error}"))?;
    let status = Command::new("/relay")
        .args(["run", "--guest", "--config", "/run/relay.toml"])
        .env_clear()
        .env("PATH", "/usr/sbin")
        .envs(config.simulation.then_some(("OPENRELAY_SIM", "/run/sim.json")))
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .status()
        .map_err(|error| format!("cannot start the relay: {error}"))?;
    Err(format!("the relay has ended ({status})"))
}

/// Prints a line on the console. It is never about users, because nothing here knows of them.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Loads all modules, in the order of their numbers.
fn load_modules() -> Result<(), String> {
    let listed = fs::read_dir(MODULES).map_err(|error| format!("{MODULES}: {error}"))?;
    let mut paths: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let packed = path.extension().is_some_and(|extension| extension == "xz");
        let loaded = File::open(&path).and_then(|file| load_module(&file, packed));
        match loaded {
            Ok(()) => {}
            // A module for a chip of the other vendor.
            Err(error) if error.raw_os_error() == Some(ENODEV) => {}
            Err(error) => return Err(format!("cannot load {}: {error}", path.display())),
        }
    }
    Ok(())
}

/// Returns the kernel's release, and the TPM registers that measure what was started.
fn measured() -> String {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_lowercase()).ok();
    let mut line = format!("kernel={}", read("/proc/sys/kernel/osrelease").unwrap_or_default());
    for register in [4, 9, 11, 12] {
        if let Some(value) = read(&format!("/sys/class/tpm/tpm0/pcr-sha256/{register}")) {
            line += &format!(" pcr{register}={value}");
        }
    }
    line
}

/// Returns the device of the port with this name.
fn port(name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir(PORTS).ok()?.flatten();
    let found = ports
        .map(|entry| entry.path())
        .find(|path| fs::read_to_string(path.join("name")).is_ok_and(|found| found.trim() == name))?;
    Some(Path::new("/dev").join(found.file_name()?))
}

fn port_of(name: &str) -> Result<PathBuf, String> {
    port(name).ok_or_else(|| format!("there is no port {name}"))
}

fn read_config(port: &Path) -> Result<Config, String> {
    let mut file = File::open(port).map_err(|error| format!("the configuration: {error}"))?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4_096]);
    loop {
        match Config::parse(&bytes)? {
            Some(config) => return Ok(config),
            // A port whose other side is not connected yet has nothing to read.
            None => match file.read(&mut piece).map_err(|error| format!("the configuration: {error}"))? {
                0 => std::thread::sleep(Duration::from_millis(20)),
                count => bytes.extend(piece.iter().take(count)),
            },
        }
    }
}

fn configure(config: &Config) -> Result<(), String> {
    for (name, content) in &config.files {
        fs::write(Path::new("/run").join(name), content).map_err(|error| format!("{name}: {error}"))?;
    }
    let fault = |what: &'static str| move |error: std::io::Error| format!("cannot {what}: {error}");
    let mut netlink = Netlink::open().map_err(fault("open a netlink socket"))?;
    let until = Instant::now() + PATIENCE;
    let card = loop {
        match netlink.link(CARD) {
            Ok(card) => break card,
            Err(error) if Instant::now() > until => return Err(format!("there is no {CARD}: {error}")),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let loopback = netlink.link("lo").map_err(fault("find the loopback"))?;
    netlink.set_up(loopback).map_err(fault("bring the loopback up"))?;
    for (address, prefix, _) in &config.addresses {
        netlink.add_address(card, *address, *prefix).map_err(fault("add an address"))?;
    }
    netlink.set_up(card).map_err(fault("bring the card up"))?;
    for (_, _, neighbour) in &config.addresses {
        netlink.add_gateway(*neighbour).map_err(fault("add a route"))?;
    }
    Ok(())
}
