//! The egress' guard: the only process of a serving relay with a capability.
//!
//! Owns the firewall's table, the deletion of tracked connections, and the kernel settings that the relay has changed.
//! It is a separate process, so a relay that handles strangers' packets has neither a netlink socket nor a capability.
//! It starts before privileges are given up, drops all but CAP_NET_ADMIN, and ends when its input does. Then the
//! table goes, and the settings return to their earlier values.
//!
//! ```text
//! setup: length 4 | JSON      answer: length 4 | JSON      then messages of 40 bytes, never answered
//! message: protocol 1 | IPv6 1 | zeros 2 | ports 2, 2 | source 16 | destination 16
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use openrelay_proto::ip::UDP;
use openrelay_sys::conntrack::{Conntrack, Tuple};
use openrelay_sys::event::wait;
use openrelay_sys::nft::{NftError, OwnedTable};
use openrelay_sys::sandbox::{self, Keep};
use openrelay_sys::signal::Signals;
use serde_json::{Value, json};

use crate::threads::StartError;

/// The argument that makes this program such a process.
pub(crate) const GUARD: &str = "guard";
/// Bytes of a message.
const MESSAGE: usize = 40;
/// The largest setup or answer, in bytes: a table with 100,000 addresses.
const MAX_TEXT: u32 = 16 << 20;
/// How long the relay waits for the guard to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a guard needs to start.
pub(crate) struct Setup {
    /// The user that it becomes; `None` where there is no other.
    pub(crate) user: Option<u32>,
    /// Name of the table.
    pub(crate) table: &'static str,
    /// Text of the table.
    pub(crate) text: String,
    /// Kernel settings that the relay has changed, with their earlier values.
    pub(crate) restore: Vec<(String, String)>,
}

/// The guard, from the relay's side.
#[derive(Clone)]
pub(crate) struct Guard(Arc<UnixStream>);

impl Guard {
    /// Starts the guard and waits until the table is in force.
    pub(crate) fn start(setup: &Setup) -> Result<Self, StartError> {
        let step = |step: &str| StartError::host(format!("{step} the process that guards the firewall"));
        let (own, theirs) = UnixStream::pair().map_err(step("connect to"))?;
        // The process ends by itself; a serving relay may not wait for it.
        let _child = Command::new("/proc/self/exe")
            .arg(GUARD)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(step("start"))?;
        let restore: Vec<Value> = setup.restore.iter().map(|(path, value)| json!([path, value])).collect();
        let setup = json!({"user": setup.user, "table": setup.table, "text": setup.text, "restore": restore});
        let mut stream = &own;
        own.set_read_timeout(Some(PATIENCE)).map_err(step("set up"))?;
        send(&mut stream, &setup).map_err(step("set up"))?;
        let answer = receive(&mut stream).map_err(step("set up"))?;
        own.set_nonblocking(true).map_err(step("set up"))?;
        let text = |key: &str| answer[key].as_str().map(str::to_owned);
        if answer["missing"] == true {
            return Err(NftError::Missing.into());
        }
        if let Some(why) = text("refused") {
            return Err(NftError::Refused(why).into());
        }
        if let Some(why) = text("fault") {
            let source = match answer["errno"].as_i64().and_then(|code| i32::try_from(code).ok()) {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::other(why),
            };
            return Err(step("start")(source));
        }
        Ok(Self(Arc::new(own)))
    }

    /// Deletes a tracked connection. Returns false if the guard is too busy.
    pub(crate) fn forget(&self, tuple: &Tuple) -> bool {
        // The socket takes a message of this size as a whole or not at all.
        matches!((&*self.0).write(&encode(tuple)), Ok(MESSAGE))
    }

    /// Returns a descriptor that becomes readable when the guard has ended, and the table with it.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn encode(tuple: &Tuple) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    message[0] = tuple.protocol;
    message[1] = tuple.source.is_ipv6().into();
    message[4..6].copy_from_slice(&tuple.source.port().to_be_bytes());
    message[6..8].copy_from_slice(&tuple.destination.port().to_be_bytes());
    message[8..24].copy_from_slice(&octets(tuple.source.ip()));
    message[24..40].copy_from_slice(&octets(tuple.destination.ip()));
    message
}

/// Returns the connection that a message names; `None` if its source is no inner address of a client.
fn decode(message: &[u8; MESSAGE]) -> Option<Tuple> {
    let (head, addresses) = message.split_first_chunk::<8>()?;
    let [protocol, v6, _, _, from_high, from_low, to_high, to_low] = *head;
    let (source, destination) = addresses.split_first_chunk::<16>()?;
    let ip = |octets: [u8; 16]| match Ipv6Addr::from(octets) {
        address if v6 == 1 => Some(IpAddr::V6(address)),
        address => address.to_ipv4_mapped().map(IpAddr::V4),
    };
    let source = ip(*source)?;
    openrelay_proto::relay::Shard::shard_of(source)?;
    Some(Tuple {
        protocol,
        source: SocketAddr::new(source, u16::from_be_bytes([from_high, from_low])),
        destination: SocketAddr::new(ip(destination.try_into().ok()?)?, u16::from_be_bytes([to_high, to_low])),
    })
}

fn send(stream: &mut impl io::Write, value: &Value) -> io::Result<()> {
    let text = value.to_string();
    let length = u32::try_from(text.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(text.as_bytes())
}

fn receive(stream: &mut impl io::Read) -> io::Result<Value> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_TEXT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Guards until standard input ends.
pub(crate) fn run() {
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return };
    let stream = UnixStream::from(input);
    // Signals reach a whole service or terminal. The guard must outlive the relay, which handles them.
    let Ok(_signals) = Signals::block() else { return };
    let Ok(setup) = receive(&mut &stream) else { return };
    match Guarding::start(&setup) {
        Ok(mut guarding) => {
            if send(&mut &stream, &json!({})).is_ok() {
                guarding.guard(&stream);
            }
            guarding.restore();
        }
        Err(refusal) => {
            let _ = send(&mut &stream, &refusal);
        }
    }
}

/// The guard's own state.
struct Guarding {
    table: OwnedTable,
    conntrack: Conntrack,
    settings: Vec<(File, Vec<u8>)>,
    /// Bytes of a message that has not arrived completely.
    partial: Vec<u8>,
}

impl Guarding {
    /// Creates the table and gives up all privileges but one. Returns the refusal to send if that fails.
    fn start(setup: &Value) -> Result<Self, Value> {
        let fault = |why: &dyn std::fmt::Display| json!({ "fault": why.to_string() });
        let system = |error: io::Error| json!({ "fault": error.to_string(), "errno": error.raw_os_error() });
        let text = |key: &str| setup[key].as_str().ok_or_else(|| fault(&"the setup is malformed"));
        let mut settings = Vec::new();
        for pair in setup["restore"].as_array().into_iter().flatten() {
            if let (Some(path), Some(value)) = (pair[0].as_str(), pair[1].as_str()) {
                let file = fs::OpenOptions::new().write(true).open(path).map_err(system)?;
                settings.push((file, value.as_bytes().to_vec()));
            }
        }
        let user = setup["user"].as_u64().and_then(|id| u32::try_from(id).ok());
        sandbox::drop_privileges(user, Keep::NetAdmin).map_err(|error| fault(&error))?;
        let (table, rules) = (text("table")?, text("text")?);
        let created = sandbox::lending_net_admin(|| OwnedTable::create(table, rules)).map_err(|error| fault(&error))?;
        let table = created.map_err(|error| match error {
            NftError::Missing => json!({ "missing": true }),
            NftError::Run(error) => system(error),
            NftError::Refused(why) => json!({ "refused": why }),
            NftError::Late(_) => fault(&error),
        })?;
        let conntrack = Conntrack::open().map_err(system)?;
        // No client has this address, so there is no such connection.
        let nobody = SocketAddr::new(IpAddr::V4(openrelay_proto::ip::GATEWAY_V4), 0);
        match conntrack.forget(&Tuple { protocol: UDP, source: nobody, destination: nobody }) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system(error)),
            _ => {}
        }
        sandbox::forbid_files().map_err(|error| fault(&error))?;
        sandbox::only_messages().map_err(|error| fault(&error))?;
        Ok(Self { table, conntrack, settings, partial: Vec::with_capacity(MESSAGE) })
    }

    /// Handles messages until the relay or the table is gone.
    fn guard(&mut self, stream: &UnixStream) {
        loop {
            let ready = wait(&[stream.as_fd(), self.table.as_fd()], Duration::from_secs(3_600)).unwrap_or_default();
            if (ready[1] && self.table.is_gone()) || (ready[0] && !self.take(stream)) {
                return;
            }
        }
    }

    /// Handles the messages that have arrived. Returns false when the relay is gone.
    fn take(&mut self, mut stream: &UnixStream) -> bool {
        let mut bytes = [0; MESSAGE * 64];
        let count = match stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == io::ErrorKind::Interrupted,
        };
        self.partial.extend(bytes.iter().take(count));
        let whole = self.partial.len() - self.partial.len() % MESSAGE;
        let messages: Vec<u8> = self.partial.drain(..whole).collect();
        for message in messages.chunks_exact(MESSAGE) {
            if let Some(tuple) = <&[u8; MESSAGE]>::try_from(message).ok().and_then(decode) {
                // It may have ended by itself.
                let _ = self.conntrack.forget(&tuple);
            }
        }
        true
    }

    /// Gives the settings back their earlier values.
    fn restore(&mut self) {
        for (file, value) in self.settings.iter_mut().rev() {
            let _ = file.write_all(value);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    #[test]
    fn message_names_the_connection_of_a_client_and_no_other() {
        for (source, destination) in
            [("100.64.1.7:4000", "93.184.215.2:443"), ("[fd6f:7265:6c61:7900:0:1:0:107]:4000", "[2001:db8::1]:53")]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let tuple = Tuple { protocol: 17, source, destination };
            assert_eq!(decode(&encode(&tuple)), Some(tuple));
        }
        for stranger in ["192.0.2.20:22", "[2001:db8::20]:22", "[::1]:22"] {
            let stranger = stranger.parse().unwrap();
            assert_eq!(decode(&encode(&Tuple { protocol: 6, source: stranger, destination: stranger })), None);
        }
        assert_eq!(decode(&[0; MESSAGE]), None);
        assert_eq!(decode(&[0xff; MESSAGE]), None);
    }
}
