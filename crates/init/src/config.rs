//! What a machine is told: its addresses, and files for the relay.
//!
//! ```text
//! openrelay-machine/1
//! address IP/PREFIX NEIGHBOUR          up to four of these
//! file NAME LENGTH                     then so many bytes; names are those below
//! end
//! ```
//!
//! Owns the form. Faults name the line by its number and quote nothing. Nothing in it is believed: what it names
//! wrongly is not what the relay's evidence is bound to. Nothing in it changes what is logged, for nothing is.

use std::net::IpAddr;

const HEAD: &str = "openrelay-machine/1";
/// Files that a relay reads.
const NAMES: [&str; 2] = ["relay.toml", "chain.toml"];
/// Files that a simulation reads as well.
const SIMULATION: [&str; 3] = ["sim.json", "vendors", "manifest.json"];
/// Largest configuration, in bytes.
const MAX_LENGTH: usize = 1 << 20;
const MAX_ADDRESSES: usize = 4;

/// What a machine is told.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Config {
    /// Addresses with the bits of their networks, and the neighbour that everything else goes to.
    pub(crate) addresses: Vec<(IpAddr, u8, IpAddr)>,
    /// Files by name.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Whether it is told what to simulate; a relay that does not simulate does not look.
    pub(crate) simulation: bool,
}

impl Config {
    /// Reads it; `None` before its end has come.
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
                        return Err(fault("names a file that is not known here, or one that is there already"));
                    }
                    let Some((content, tail)) = rest.split_at_checked(length) else { return Ok(None) };
                    this.simulation |= SIMULATION.contains(name);
                    this.files.push(((*name).to_owned(), content.to_vec()));
                    rest = tail;
                }
                ["end"] => return Ok(Some(this)),
                _ => return Err(fault("has words that are not known here")),
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
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use super::*;

    const WHOLE: &str = "openrelay-machine/1\naddress 192.0.2.2/24 192.0.2.1\naddress 2001:db8::2/64 2001:db8::1\nfile relay.toml 5\na = 1file chain.toml 0\nend\n";

    #[test]
    fn it_is_read_when_it_is_whole_and_not_before() {
        for end in 0..WHOLE.len() {
            assert_eq!(Config::parse(&WHOLE.as_bytes()[..end]), Ok(None), "{end}");
        }
        let config = Config::parse(WHOLE.as_bytes()).unwrap().unwrap();
        assert_eq!((config.addresses.len(), config.simulation), (2, false));
        assert_eq!(config.files, [("relay.toml".into(), b"a = 1".to_vec()), ("chain.toml".into(), Vec::new())]);
    }

    #[test]
    fn whatever_else_it_says_is_refused() {
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
