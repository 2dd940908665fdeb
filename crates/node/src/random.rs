//! The system's random number generator, as the protocol's `Random`.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use openrelay_proto::random::Random;

/// The operating system's random number generator.
#[derive(Debug, Default)]
pub struct OsRandom(SystemRandom);

impl Random for OsRandom {
    #[expect(
        clippy::expect_used,
        reason = "the program must not go on without randomness; aws-lc itself aborts before it fails"
    )]
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes).expect("the system's generator works");
    }
}
