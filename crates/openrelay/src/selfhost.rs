//! `openrelay selfhost init` and `renew`: everything for a network of your own relays.
//!
//! Owns the files that they write: keys (mode 0600), one configuration for each relay and one for the client, and the
//! signed directory, copied into each folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use openrelay_ledger::directory::{Body, Directory, DirectoryError, DirectoryKey};
use openrelay_ledger::hex;
use openrelay_ledger::record::{Record, Role};
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::read_secret;
use openrelay_node::directory::replace;
use openrelay_node::random::OsRandom;
use openrelay_proto::keys::RelaySecret;
use openrelay_proto::random::Random;

use crate::failure::Failure;
use crate::output::{quoted, say, talk};

const DIRECTORY: &str = "directory.signed";
const KEY: &str = "directory.key";

#[derive(clap::Subcommand)]
pub(crate) enum SelfhostCommand {
    /// Write configurations, keys and a directory for relays
    ///
    /// The directory is signed and lists only your own relays.
    Init {
        /// Folder to write; must be empty or not exist
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Address of an ingress, HOST:PORT; repeatable
        #[arg(long, value_name = "HOST:PORT", required = true)]
        ingress: Vec<String>,
        /// Address of an egress, HOST:PORT; repeatable
        #[arg(long, value_name = "HOST:PORT", required = true)]
        egress: Vec<String>,
        /// Name server to use through the tunnel; repeatable
        #[arg(long, value_name = "ADDRESS", default_values = ["9.9.9.9", "2620:fe::fe"])]
        dns: Vec<IpAddr>,
        /// Days until the directory must be signed again
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
    },
    /// Sign the next directory, before the old one expires
    ///
    /// Also removes relays from the directory.
    Renew {
        /// Folder that `init` wrote
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// ID of a relay to leave out; repeatable
        #[arg(long, value_name = "RELAY")]
        remove: Vec<u64>,
        /// Days until the directory must be signed again
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
    },
}

/// Runs the command that the arguments name.
pub(crate) fn run(command: SelfhostCommand) -> Result<(), Failure> {
    match command {
        SelfhostCommand::Init { out, ingress, egress, dns, days } => {
            init(&NetworkPlan { out, ingress, egress, dns, days })
        }
        SelfhostCommand::Renew { dir, remove, days } => renew(&dir, &remove, days),
    }
}

/// What `init` writes, and where.
pub(crate) struct NetworkPlan {
    pub(crate) out: PathBuf,
    pub(crate) ingress: Vec<String>,
    pub(crate) egress: Vec<String>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) days: u32,
}

struct Relay {
    name: String,
    record: Record,
    secret: RelaySecret,
}

/// Writes all files of a new network. Refuses a folder that is not empty.
pub(crate) fn init(plan: &NetworkPlan) -> Result<(), Failure> {
    if fs::read_dir(&plan.out).is_ok_and(|mut entries| entries.next().is_some()) {
        let shown = plan.out.display();
        return Err(Failure::plain(format!("{shown} is not empty and may hold keys; choose another folder")));
    }
    let mut random = OsRandom::default();
    let mut relays = Vec::new();
    for (role, hosts) in [(Role::Ingress, &plan.ingress), (Role::Egress, &plan.egress)] {
        for (number, host) in (1..).zip(hosts) {
            let relay_id = relays.len() as u64 + 1;
            relays.push(relay(role, number, relay_id, host, &mut random)?);
        }
    }
    refuse_shared_endpoints(&relays)?;
    let mut seed = [0; 32];
    random.fill(&mut seed);
    let key = DirectoryKey::from_seed(seed).ok_or_else(|| Failure::plain("cannot make a key"))?;
    let mut name = [0; 8];
    random.fill(&mut name);
    let now = unix_seconds();
    let body = Body {
        network: format!("selfhost-{}", hex::encode(&name)),
        sequence: 1,
        issued: now,
        expires: now + u64::from(plan.days) * 86_400,
        single_operator: true,
        relays: relays.iter().map(|relay| relay.record.clone()).collect(),
    };
    let directory = key.sign(&body).map_err(Failure::plain)?;
    write_all(plan, &relays, &key, &directory)?;
    explain(plan, &relays);
    Ok(())
}

/// Signs the next directory of the network in `dir`, without the relays `remove`, and replaces the old directory.
pub(crate) fn renew(dir: &Path, remove: &[u64], days: u32) -> Result<(), Failure> {
    let seed = read_secret(&dir.join(KEY)).map_err(Failure::plain)?;
    let key = DirectoryKey::from_seed(*seed).ok_or_else(|| Failure::plain("the directory's key is invalid"))?;
    let path = dir.join(DIRECTORY);
    let bytes = fs::read(&path).map_err(|error| Failure::plain(format!("cannot read {}: {error}", path.display())))?;
    let now = unix_seconds();
    let old = match Directory::verify(&bytes, &key.public(), now, 0) {
        // An expired directory can still be renewed: it is checked as of its last second.
        Err(DirectoryError::Expired(ago)) => Directory::verify(&bytes, &key.public(), now - ago - 1, 0),
        other => other,
    };
    let old = old.map_err(|error| Failure::new(5, format!("{}: directory refused: {error}", path.display())))?;
    if let Some(unknown) = remove.iter().find(|id| old.relay(**id).is_none()) {
        return Err(Failure::new(2, format!("--remove {unknown}: no such relay in the directory")));
    }
    let relays: Vec<Record> =
        old.body().relays.iter().filter(|relay| !remove.contains(&relay.relay_id)).cloned().collect();
    for role in [Role::Ingress, Role::Egress] {
        if !relays.iter().any(|relay| relay.role == role) {
            let why = format!("the directory would have no {role}, and no circuit works without one");
            return Err(Failure::new(2, format!("--remove: {why}; to end the network, stop its relays")));
        }
    }
    let body = Body {
        sequence: old.body().sequence + 1,
        issued: now,
        expires: now + u64::from(days) * 86_400,
        relays,
        ..old.body().clone()
    };
    let directory = key.sign(&body).map_err(Failure::plain)?;
    let folders =
        fs::read_dir(dir).map_err(Failure::plain)?.filter_map(|entry| Some(entry.ok()?.path().join(DIRECTORY)));
    for path in folders.filter(|path| path.exists()).chain([path]) {
        replace(&path, &directory)
            .map_err(|error| Failure::plain(format!("cannot write {}: {error}", path.display())))?;
        say(&path.display().to_string());
    }
    talk(&format!(
        "Directory number {}. Copy it to each relay and restart the relay; clients read it at their next up.",
        body.sequence
    ));
    Ok(())
}

fn relay(role: Role, number: u32, relay_id: u64, host: &str, random: &mut OsRandom) -> Result<Relay, Failure> {
    let wrong = |why: &str| {
        Failure::new(2, format!("--{role} {host}: {why}; write HOST:PORT, like 198.51.100.7:443 or [2001:db8::7]:443"))
    };
    let addresses: Vec<SocketAddr> = host.to_socket_addrs().map_err(|error| wrong(&error.to_string()))?.collect();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    let v6 = addresses.iter().find(|address| address.is_ipv6());
    let endpoints: Vec<SocketAddr> = v4.into_iter().chain(v6).copied().collect();
    if endpoints.iter().any(|endpoint| endpoint.port() == 0 || endpoint.ip().is_unspecified()) || endpoints.is_empty() {
        return Err(wrong("is not a reachable address"));
    }
    let secret = RelaySecret::generate(random);
    let record = Record {
        relay_id,
        role,
        handshake_key: hex::encode(secret.public().as_bytes()),
        key_epoch: 0,
        endpoints,
        operator: "self".into(),
        family: None,
        stake: 0,
        bandwidth_mbit: 0,
    };
    Ok(Relay { name: format!("{role}-{number}"), record, secret })
}

/// Refuses two relays at one address: only one of them can listen there.
fn refuse_shared_endpoints(relays: &[Relay]) -> Result<(), Failure> {
    let mut known = BTreeMap::new();
    for relay in relays {
        for endpoint in &relay.record.endpoints {
            if let Some(other) = known.insert(*endpoint, &relay.name) {
                let why = format!("{} and {other} have the same address {endpoint}", relay.name);
                return Err(Failure::new(2, format!("{why}; give each relay its own port")));
            }
        }
    }
    Ok(())
}

fn write_all(plan: &NetworkPlan, relays: &[Relay], key: &DirectoryKey, directory: &[u8]) -> Result<(), Failure> {
    let public = hex::encode(&key.public());
    folder(&plan.out)?;
    write(&plan.out.join(DIRECTORY), directory, 0o644)?;
    write(&plan.out.join(KEY), format!("{}\n", hex::encode(key.expose())).as_bytes(), 0o600)?;
    for relay in relays {
        let dir = plan.out.join(&relay.name);
        folder(&dir)?;
        write(&dir.join(DIRECTORY), directory, 0o644)?;
        write(&dir.join("handshake.key"), format!("{}\n", hex::encode(relay.secret.expose())).as_bytes(), 0o600)?;
        write(&dir.join("relay.toml"), relay_toml(relay, &public).as_bytes(), 0o644)?;
    }
    let dir = plan.out.join("client");
    folder(&dir)?;
    write(&dir.join(DIRECTORY), directory, 0o644)?;
    write(&dir.join("client.toml"), client_toml(&plan.dns, &public).as_bytes(), 0o644)
}

fn folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| Failure::plain(format!("cannot create {}: {error}", path.display())))
}

/// Writes a file that must not exist yet.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| Failure::plain(format!("cannot write {}: {error}", path.display())))
}

fn relay_toml(relay: &Relay, directory_key: &str) -> String {
    let listen: Vec<String> = relay.record.endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    let (role, relay_id, listen) = (relay.record.role, relay.record.relay_id, listen.join(", "));
    let mut text = format!(
        "# A relay of your own network. Start it with: openrelay-relay run --config relay.toml\n\
         role = \"{role}\"\n\
         relay_id = {relay_id}\n\
         # Addresses of this machine. Behind a NAT that forwards the port, use the internal address.\n\
         listen = [{listen}]\n\
         directory = \"directory.signed\"\n\
         directory_key = \"{directory_key}\"\n\
         # Only the owner may read this file (mode 0600).\n\
         handshake_key = \"handshake.key\"\n\
         # Every client that knows the directory is admitted; it proves and pays nothing.\n\
         admission = \"open\"\n"
    );
    if relay.record.role == Role::Egress {
        text.push_str(
            "# Clients may connect without an ingress (openrelay up --one-hop); this relay then sees their addresses.\n\
             one_hop = true\n",
        );
    }
    text
}

fn client_toml(dns: &[IpAddr], directory_key: &str) -> String {
    let dns: Vec<String> = dns.iter().map(|server| format!("\"{server}\"")).collect();
    format!(
        "# A client of your own network. Connect with: openrelay up --config client.toml --wait\n\
         directory = \"directory.signed\"\n\
         directory_key = \"{directory_key}\"\n\
         # These relays prove nothing: you trust them because you run them.\n\
         attestation = \"none\"\n\
         admission = \"open\"\n\
         # Name servers, asked through the tunnel.\n\
         dns = [{}]\n\
         # ingress = 1    # use only this ingress\n\
         # egress = 2     # use only this egress\n",
        dns.join(", ")
    )
}

fn explain(plan: &NetworkPlan, relays: &[Relay]) {
    let out = plan.out.display();
    say(&format!("{out}/directory.signed"));
    for relay in relays {
        say(&format!("{out}/{}/relay.toml", relay.name));
    }
    say(&format!("{out}/client/client.toml"));
    talk("\nNext:");
    for relay in relays {
        talk(&format!(
            "  copy {} to {} and run there as root: openrelay-relay run --config {}/relay.toml",
            quoted(&plan.out.join(&relay.name)),
            relay.record.endpoints[0].ip(),
            relay.name
        ));
    }
    let client = plan.out.join("client/client.toml");
    talk(&format!("  here, as root: openrelay up --config {} --wait", quoted(&client)));
    talk(&format!(
        "Keep {} safe and offline. It signs the next directory, due in {} days: openrelay selfhost renew --dir {}",
        quoted(&plan.out.join(KEY)),
        plan.days,
        quoted(&plan.out)
    ));
}
