//! A machine's configuration: its addresses, and files for the relay.
//!
//! ```text
//! openrelay-machine/1
//! address IP/PREFIX NEIGHBOUR          up to four of these
//! file NAME LENGTH                     followed by that many bytes; names are those below
//! end
//! ```
//!
//! Owns the format. Errors give the number of a line and quote nothing. Nothing in a configuration is trusted: a false
//! value in it does not match what the relay's evidence is bound to. Nothing in it enables logging, because nothing is
//! logged.

use std::net::IpAddr;

const HEAD: &str = "openrelay-machine/1";
/// The files that a relay reads.
const NAMES: [&str; 2] = ["relay.toml", "chain.toml"];
/// The files that a simulation reads as well.
const SIMULATION: [&str; 3] = ["sim.json", "vendors", "manifest.json"];
/// The largest configuration, in bytes.
const MAX_LENGTH: usize = 1 << 20;
const MAX_ADDRESSES: usize = 4;

/// A machine's configuration.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Config {
    /// Addresses with the prefix lengths of their networks, and the neighbour that is the gateway for everything
    /// else.
    pub(crate) addresses: Vec<(IpAddr, u8, IpAddr)>,
    /// Files by name.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Whether it has files for a simulation, which a relay that does not simulate ignores.
    pub(crate) simulation: bool,
}

impl Config {
    /// Parses a configuration. Returns `None` while its end is missing.
    ///
    /// # Errors
    /// The reason, if it is malformed or too large.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        if bytes.len() > MAX_LENGTH {
            return Err(format!("the configuration has more than {MAX_LENGTH} bytes"));
        }
        let (mut this, mut rest, mut number) = (Self::default(), bytes, 0);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or(&[]);
            number += 1;
            let fault = |what: &str| format!("line {number} of the configuration {what}");
            let line = std::str::from_utf8(line).map_err(|_| fault("is not UTF-8 text"))?;
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                [HEAD] if number == 1 => {}
                _ if number == 1 => return Err(format!("the configuration does not begin with {HEAD}")),
                ["address", own, neighbour] if this.addresses.len() < MAX_ADDRESSES => {
                    this.addresses.push(address(own, neighbour).ok_or_else(|| fault("has no address"))?);
                }
                ["file", name, length] => {
                    let known = NAMES.contains(name) || SIMULATION.contains(name);
                    let twice = this.files.iter().any(|(own, _)| own == name);
                    let length: usize = length.parse().map_err(|_| fault("has no length"))?;
                    if !known || twice || length > MAX_LENGTH {
                        return Err(fault("names an unknown or duplicate file, or one that is too large"));
                    }
                    let Some((content, tail)) = rest.split_at_checked(length) else { return Ok(None) };
                    this.simulation |= SIMULATION.contains(name);
                    this.files.push(((*name).to_owned(), content.to_vec()));
                    rest = tail;
                }
                ["end"] => return Ok(Some(this)),
                _ => return Err(fault("is malformed")),
            }
        }
        Ok(None)
    }
}

fn address(own: &str, neighbour: &str) -> Option<(IpAddr, u8, IpAddr)> {
    let (address, prefix) = own.split_once('/')?;
    let (address, prefix, neighbour): (IpAddr, u8, IpAddr) =
        (address.parse().ok()?, prefix.parse().ok()?, neighbour.parse().ok()?);
    let most = if address.is_ipv6() { 128 } else { 32 };
    (prefix <= most && address.is_ipv6() == neighbour.is_ipv6()).then_some((address, prefix, neighbour))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    const WHOLE: &str = "openrelay-machine/1\naddress 192.0.2.2/24 192.0.2.1\naddress 2001:db8::2/64 2001:db8::1\n\
                         file relay.toml 5\na = 1file chain.toml 0\nend\n";

    #[test]
    fn configuration_is_parsed_once_it_is_complete() {
        for end in 0..WHOLE.len() {
            assert_eq!(Config::parse(&WHOLE.as_bytes()[..end]), Ok(None), "{end}");
        }
        let config = Config::parse(WHOLE.as_bytes()).unwrap().unwrap();
        assert_eq!((config.addresses.len(), config.simulation), (2, false));
        assert_eq!(config.files, [("relay.toml".into(), b"a = 1".to_vec()), ("chain.toml".into(), Vec::new())]);
    }

    #[test]
    fn malformed_configuration_is_refused_without_quoting_it() {
        let head = "openrelay-machine/1\n";
        for text in [
            "something else\n".to_owned(),
            format!("{head}{head}"),
            format!("{head}address 192.0.2.2/33 192.0.2.1\n"),
            format!("{head}address 192.0.2.2/24 2001:db8::1\n"),
            format!("{head}file ../init 1\nx"),
            format!("{head}file relay.toml 1\nxfile relay.toml 1\nx"),
            format!("{head}file relay.toml 99999999999\n"),
            format!("{head}log everything\n"),
            format!("{head}{}", "address 192.0.2.2/24 192.0.2.1\n".repeat(5)),
            "x".repeat(MAX_LENGTH + 1),
        ] {
            let said = Config::parse(text.as_bytes()).unwrap_err();
            for quoted in ["something", "192.0.2", "../init", "999", "everything"] {
                assert!(!said.contains(quoted), "{said}");
            }
        }
    }
}
