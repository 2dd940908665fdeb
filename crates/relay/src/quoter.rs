//! The source of a relay's evidence: a separate process, because a serving relay may open no files.
//!
//! Owns that process and the pipes to it. The process starts before privileges are given up, knows nothing about
//! users, and ends when its input does.
//!
//! ```text
//! question: binding 149    answer: 1 staple, 0 reason, 2 there is no such environment | length 4 | its bytes
//! ```

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use openrelay_attest::binding::{Binding, LENGTH};
use openrelay_attest::verdict::Staple;
use openrelay_sys::event::wait;

/// The largest answer, in bytes.
const MAX_ANSWER: usize = 1 << 17;
/// The argument that makes this program such a process.
pub(crate) const QUOTE: &str = "quote";

/// Why there is no evidence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuoteError {
    /// This machine has no such environment.
    #[error(
        "Linux reports no trusted execution environment (no /sys/kernel/config/tsm/report); a relay on a chain needs \
         one: start the published image in a confidential virtual machine (SEV-SNP, TDX)"
    )]
    NoEnvironment,
    /// The chain has no block to bind evidence to.
    #[error(
        "the reading proves no block that evidence can name; set images and collateral in chain.toml, and use a chain \
         that keeps block hashes (EIP-2935)"
    )]
    NoBlock,
    /// The environment failed.
    #[error("the trusted execution environment gave no evidence: {0}")]
    Environment(String),
}

/// A source of evidence: this machine's environment, or a simulation of one.
pub trait Quoter {
    /// Returns its name in the ready line: `tsm`, or `sim` for a simulation.
    fn name(&self) -> &'static str;

    /// Returns evidence that binds `binding` to what was started.
    ///
    /// # Errors
    /// [`QuoteError`].
    fn quote(&mut self, binding: Binding) -> Result<Staple, QuoteError>;
}

/// Answers requests on standard input until the input ends.
pub(crate) fn answer(quoter: &mut dyn Quoter) {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut question = [0; LENGTH];
    while input.read_exact(&mut question).is_ok() {
        // The relay, which is this same program, wrote it.
        let Ok(binding) = Binding::decode(&question) else { return };
        let (good, bytes) = match quoter.quote(binding) {
            Ok(staple) => (1, staple.encode()),
            Err(QuoteError::NoEnvironment) => (2, Vec::new()),
            Err(QuoteError::Environment(why)) => (0, why.into_bytes()),
            // A relay reports this before it asks, so no quoter returns it.
            Err(error @ QuoteError::NoBlock) => (0, error.to_string().into_bytes()),
        };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
        let whole = [&[good][..], &length, &bytes].concat();
        if output.write_all(&whole).and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

/// The process, from the relay's side.
pub(crate) struct Quoting {
    /// The process ends when this is closed. Nothing waits for the process, because a serving relay may not.
    input: ChildStdin,
    output: ChildStdout,
    buffer: Vec<u8>,
    asked: bool,
}

impl Quoting {
    /// Starts the process.
    pub(crate) fn start() -> std::io::Result<Self> {
        let mut child =
            Command::new("/proc/self/exe").arg(QUOTE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let none = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let (input, output) = (child.stdin.take().ok_or_else(none)?, child.stdout.take().ok_or_else(none)?);
        Ok(Self { input, output, buffer: Vec::new(), asked: false })
    }

    /// Asks for evidence. Returns false while an answer is pending, or if the process has ended.
    pub(crate) fn ask(&mut self, binding: &Binding) -> bool {
        if self.asked {
            return false;
        }
        self.asked = self.input.write_all(&binding.encode()).and_then(|()| self.input.flush()).is_ok();
        self.asked
    }

    /// Returns what becomes readable when more of an answer arrives; `None` if no request is pending.
    pub(crate) fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.asked.then(|| self.output.as_fd())
    }

    /// Reads more of the answer, and returns it once it is complete.
    pub(crate) fn take(&mut self) -> Option<Result<Staple, QuoteError>> {
        let mut piece = [0; 1 << 14];
        let gone = || QuoteError::Environment("the process that asks for it has ended".into());
        match self.output.read(&mut piece) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return None,
            Ok(0) | Err(_) => {
                self.asked = false;
                return Some(Err(gone()));
            }
            Ok(count) => self.buffer.extend(piece.iter().take(count)),
        }
        let (kind, length) = (*self.buffer.first()?, *self.buffer.get(1..)?.first_chunk::<4>()?);
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_ANSWER {
            self.asked = false;
            return Some(Err(gone()));
        }
        let bytes = self.buffer.get(5..5 + length)?.to_vec();
        self.buffer.clear();
        self.asked = false;
        Some(match kind {
            1 => Staple::decode(&bytes).map_err(|refusal| QuoteError::Environment(refusal.to_string())),
            2 => Err(QuoteError::NoEnvironment),
            _ => Err(QuoteError::Environment(String::from_utf8_lossy(&bytes).into_owned())),
        })
    }

    /// Checks that an environment answers. The evidence, which is bound to nothing, is discarded.
    pub(crate) fn try_out(&mut self, patience: Duration) -> Result<(), QuoteError> {
        let nobody = Binding {
            network: [0; 32],
            relay_id: 0,
            handshake_key: [0; 32],
            key_epoch: 0,
            roles: 1,
            image: [0; 32],
            block_hash: [0; 32],
            block_height: 0,
        };
        self.ask_and_wait(&nobody, patience).map(drop)
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask_and_wait(&mut self, binding: &Binding, patience: Duration) -> Result<Staple, QuoteError> {
        self.ask(binding);
        let until = std::time::Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            let Some(readable) = self.readable().filter(|_| !left.is_zero()) else {
                return Err(QuoteError::Environment("it did not answer in time".into()));
            };
            if wait(&[readable], left).unwrap_or_default()[0]
                && let Some(answer) = self.take()
            {
                return answer;
            }
        }
    }
}
