//! The arguments of the relay's program.
//!
//! Owns the commands, the help and the form of usage errors, which is that of `openrelay`.

use std::ffi::OsString;
use std::path::PathBuf;

/// The help. PROGRAM stands for the program's name.
const HELP: &str = "Run one ingress or egress

Usage: PROGRAM run --config <FILE> [--guest] [--unconfined]
       PROGRAM evidence
       PROGRAM --check <FILE>

Commands:
  run       Serve until SIGTERM. Prints a line when it serves, and statistics on SIGUSR1 and at the end
  evidence  Ask this machine's trusted execution environment for evidence once, and discard it

Options:
  --config <FILE>  Configuration of the relay
  --guest          Read only FILE and chain.toml beside it, and quote no file in errors
  --unconfined     Keep all privileges, for tests that inspect the process
  --check <FILE>   Read FILE and every file that it names, print what is wrong, and start nothing
  -h, --help       Print help
  -V, --version    Print version

Keys of FILE (TOML; paths count from its folder):
  role           \"ingress\" or \"egress\"; required
  relay_id       The relay's ID in the directory; required
  listen         Addresses, at most one of each family: [\"203.0.113.9:443\", \"[2001:db8::9]:443\"]; required
  admission      \"open\": everybody is admitted; required
  directory      The signed directory; with directory_key and handshake_key, instead of chain
  directory_key  The key that signs it, 64 hexadecimal digits
  handshake_key  File with the secret handshake key, mode 0600
  chain          The chain file; with image, instead of directory
  image          SHA-256 of the image that the relay runs, 64 hexadecimal digits
  one_hop        Egress: also accept clients without an ingress, which shows it their addresses [default: false]
  shards         Threads that carry packets; 0 for one per core [default: 0]
  capacity       Most sessions of each shard [default: 65536]
  user           User ID that the relay switches to before it serves [default: 65534]
  udp_trains     Send and receive datagrams in trains [default: true]
  device         Egress: name of the tunnel device [default: orp-egress]";

const USAGE: &str = "Usage: PROGRAM run --config <FILE>

For more information, try '--help'.";

/// What the program shall do.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Run(RunArguments),
    Evidence,
    /// Check this configuration.
    Check(PathBuf),
    Help,
    Version,
}

/// How a relay runs.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct RunArguments {
    pub(crate) config: PathBuf,
    pub(crate) guest: bool,
    pub(crate) unconfined: bool,
}

pub(crate) fn help(program: &str) -> String {
    HELP.replace("PROGRAM", program)
}

/// Returns the message about wrong usage.
pub(crate) fn wrong_usage(program: &str, fault: &str) -> String {
    format!("error: {fault}\n\n{}", USAGE.replace("PROGRAM", program))
}

/// Parses the arguments after the program's name. Options are written as `--name VALUE` or `--name=VALUE`.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut arguments = arguments.flat_map(split).peekable();
    let Some(first) = arguments.next() else { return Err("a command is required".into()) };
    let command = match first.to_str() {
        Some("-h" | "--help" | "help") => return Ok(Command::Help),
        Some("-V" | "--version") => Command::Version,
        Some("evidence") => Command::Evidence,
        Some("--check") => Command::Check(value("--check", arguments.next())?),
        Some("run") => return run(arguments),
        Some(option) if option.starts_with('-') => return Err(format!("unexpected argument '{option}' found")),
        _ => return Err(format!("unrecognized subcommand '{}'", first.display())),
    };
    match arguments.next() {
        Some(more) if more == "--help" || more == "-h" => Ok(Command::Help),
        Some(more) => Err(format!("unexpected argument '{}' found", more.display())),
        None => Ok(command),
    }
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let (mut config, mut guest, mut unconfined) = (None, false, false);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--config") if config.is_some() => {
                return Err("the argument '--config <FILE>' cannot be used multiple times".into());
            }
            Some("--config") => config = Some(value("--config", arguments.next())?),
            Some("--guest") => guest = true,
            Some("--unconfined") => unconfined = true,
            Some("-h" | "--help") => return Ok(Command::Help),
            Some("-V" | "--version") => return Ok(Command::Version),
            _ => return Err(format!("unexpected argument '{}' found", argument.display())),
        }
    }
    let config = config.ok_or("the following required arguments were not provided: --config <FILE>")?;
    Ok(Command::Run(RunArguments { config, guest, unconfined }))
}

fn value(option: &str, given: Option<OsString>) -> Result<PathBuf, String> {
    let missing = || format!("a value is required for '{option} <FILE>' but none was supplied");
    given.filter(|value| !value.is_empty()).map(PathBuf::from).ok_or_else(missing)
}

/// Splits `--name=VALUE` into its two parts.
fn split(argument: OsString) -> Vec<OsString> {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let bytes = argument.as_bytes();
    for name in ["--config=", "--check="] {
        if let Some(value) = bytes.strip_prefix(name.as_bytes()) {
            let name = name.trim_end_matches('=');
            return vec![name.into(), OsString::from_vec(value.to_vec())];
        }
    }
    vec![argument]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;
    use openrelay_node::config::RelayFile;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn both_forms_of_an_option_are_accepted() {
        let expected = |guest| Command::Run(RunArguments { config: "a.toml".into(), guest, unconfined: false });
        assert_eq!(parsed("run --config a.toml"), Ok(expected(false)));
        assert_eq!(parsed("run --guest --config=a.toml"), Ok(expected(true)));
        for line in ["--check a.toml", "--check=a.toml"] {
            assert_eq!(parsed(line), Ok(Command::Check("a.toml".into())));
        }
        for line in ["--version", "-V", "run --version"] {
            assert_eq!(parsed(line), Ok(Command::Version));
        }
        for line in ["--help", "-h", "run -h", "run --config a --help", "evidence --help"] {
            assert_eq!(parsed(line), Ok(Command::Help), "{line}");
        }
        assert_eq!(parsed("evidence"), Ok(Command::Evidence));
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (line, words) in [
            ("", "a command is required"),
            ("start", "unrecognized subcommand 'start'"),
            ("--verbose", "unexpected argument '--verbose'"),
            ("run", "--config <FILE>"),
            ("run --config", "a value is required for '--config <FILE>'"),
            ("run --config=", "a value is required for '--config <FILE>'"),
            ("run --config a --config=b", "cannot be used multiple times"),
            ("run --config a more", "unexpected argument 'more'"),
            ("--check", "a value is required for '--check <FILE>'"),
            ("--check a b", "unexpected argument 'b'"),
            ("evidence now", "unexpected argument 'now'"),
        ] {
            let said = parsed(line).unwrap_err();
            assert!(said.contains(words), "{line:?}: {said}");
        }
        let said = wrong_usage("openrelay-relay", "x");
        assert!(said.starts_with("error: x\n\nUsage: openrelay-relay run") && !said.contains("PROGRAM"), "{said}");
    }

    /// serde lists all keys when one is unknown.
    #[test]
    fn help_names_every_key_of_the_configuration() {
        let said = toml_error("unknown_key = 1\n");
        let known = said.split_once("expected one of ").unwrap().1;
        let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert!(keys.len() >= 15 && keys.contains(&"udp_trains"), "{keys:?}");
        let help = help("openrelay-relay");
        for key in &keys {
            assert!(help.lines().any(|line| line.starts_with(&format!("  {key} "))), "{key}");
        }
        let shown = help.lines().skip_while(|line| !line.starts_with("Keys of FILE")).skip(1).count();
        assert_eq!(shown, keys.len(), "the help names a key that the configuration does not have");
    }

    fn toml_error(text: &str) -> String {
        let path = std::env::temp_dir().join(format!("openrelay-help-{}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let said = openrelay_node::config::read::<RelayFile>(&path).unwrap_err().to_string();
        std::fs::remove_file(path).unwrap();
        said
    }
}
