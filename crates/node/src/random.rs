//! The system's generator, as the protocol wants it.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use openrelay_proto::random::Random;

/// The operating system's generator.
#[derive(Debug, Default)]
pub struct OsRandom(SystemRandom);

impl Random for OsRandom {
    #[expect(
        clippy::expect_used,
        reason = "without randomness nothing may go on; aws-lc itself aborts before it fails"
    )]
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes).expect("the system's generator works");
    }
}
