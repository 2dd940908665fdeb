//! `openrelay checkpoint`: makes checkpoint keys, and signs blocks that a quorum of endpoints shows.
//!
//! Owns the checkpoint file that mirrors serve. Never signs a block that this machine's own endpoints do not show.

use std::path::{Path, PathBuf};

use openrelay_ledger::chain::checkpoint::{Checkpoint, CheckpointFile, MAX_FILE, Signed};
use openrelay_ledger::directory::{DirectoryKey, Source};
use openrelay_ledger::hex;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::read_secret;
use openrelay_node::directory::replace;

use crate::failure::Failure;
use crate::output::{say, talk};
use crate::selfhost::write;

#[derive(clap::Subcommand)]
pub(crate) enum CheckpointCommand {
    /// Make a key, and print its public part for chain files
    Key {
        /// File to write; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Sign the block in FILE, or the newest one
    ///
    /// Signs only after checking the block on the chain.
    Sign {
        /// Chain file that lists all keys
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// File with the signing key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Checkpoint file, which includes the reading at its block
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Sign the newest block instead of the block in the file
        #[arg(long)]
        newest: bool,
    },
}

/// Runs the command that the arguments name.
pub(crate) fn run(command: &CheckpointCommand) -> Result<(), Failure> {
    match command {
        CheckpointCommand::Key { out } => make_key(out),
        CheckpointCommand::Sign { chain, key, file, newest } => sign(chain, key, file, *newest),
    }
}

/// Makes a key, writes it to `out` and prints its public part.
pub(crate) fn make_key(out: &Path) -> Result<(), Failure> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(Failure::plain)?;
    let key = DirectoryKey::from_seed(seed).ok_or_else(|| Failure::plain("cannot make a key"))?;
    let text = zeroize::Zeroizing::new(format!("{}\n", hex::encode(key.expose())));
    write(out, text.as_bytes(), 0o600)?;
    say(&format!("checkpoint_key {}", hex::encode(&key.public())));
    Ok(())
}

/// Signs the block in `file`, or the newest block, and writes the file with the reading at that block.
pub(crate) fn sign(chain: &Path, key: &Path, file: &Path, always_newest: bool) -> Result<(), Failure> {
    let trusted = ChainFile::load(chain).map_err(Failure::plain)?;
    let seed = read_secret(key).map_err(Failure::plain)?;
    let key = DirectoryKey::from_seed(*seed).ok_or_else(|| Failure::plain("this is not a checkpoint key"))?;
    let public = hex::encode(&key.public());
    let place = trusted.checkpoint_keys.iter().position(|known| *known == public);
    let place = place
        .and_then(|place| u8::try_from(place).ok())
        .ok_or_else(|| Failure::plain(format!("{}: checkpoint_keys does not list {public}", chain.display())))?;
    let mut made = if file.exists() && !always_newest { again(&trusted, file)? } else { newest(&trusted)? };
    made.signed.sign(place, &key);
    let number = made.signed.checkpoint.number;
    let bytes = made.encode().ok_or_else(|| Failure::plain("the reading is too large"))?;
    replace(file, &bytes).map_err(|error| Failure::plain(format!("cannot write {}: {error}", file.display())))?;
    match made.signed.verify(&trusted.signers(), trusted.chain_id) {
        Ok(_) => say(&format!("checkpoint {number}: signed by a quorum of keys")),
        Err(error) => say(&format!("checkpoint {number}: signed; {error}")),
    }
    Ok(())
}

/// Returns the newest block that a quorum of endpoints shows, without signatures.
fn newest(trusted: &ChainFile) -> Result<CheckpointFile, Failure> {
    let (reading, directory) = openrelay_chain::read(trusted, unix_seconds(), 0)?;
    let Source::Chain(facts) = directory.source() else {
        return Err(Failure::plain("this directory is not on a chain"));
    };
    let checkpoint = Checkpoint {
        chain_id: trusted.chain_id,
        number: facts.block,
        hash: facts.block_hash,
        timestamp: facts.timestamp,
    };
    Ok(CheckpointFile { signed: Signed::new(checkpoint), reading })
}

/// Returns the file that another signer has signed, if a quorum of this machine's endpoints shows the same block.
fn again(trusted: &ChainFile, file: &Path) -> Result<CheckpointFile, Failure> {
    let refuse = |why: &dyn std::fmt::Display| Failure::new(5, format!("{}: {why}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| refuse(&error))?.len();
    if size > MAX_FILE as u64 {
        return Err(refuse(&"is too large for a checkpoint"));
    }
    let bytes = std::fs::read(file).map_err(|error| refuse(&error))?;
    let made = CheckpointFile::decode(&bytes).map_err(|error| refuse(&error))?;
    let checkpoint = made.signed.checkpoint;
    let shown = openrelay_chain::hashes_at(trusted, checkpoint.number);
    let agree = shown.iter().filter(|shown| **shown == Some(checkpoint.hash)).count();
    if agree < trusted.quorum {
        let why = format!(
            "{agree} of {} endpoints show block {} with this hash, quorum is {}; use --newest to sign the newest block",
            shown.len(),
            checkpoint.number,
            trusted.quorum
        );
        return Err(refuse(&why));
    }
    // The first signer may have put another reading or another time into the file.
    made.fits().map_err(|error| refuse(&error))?;
    made.reading
        .verify(&trusted.trust(), unix_seconds(), trusted.max_age_s, checkpoint.number)
        .map_err(|error| refuse(&error))?;
    talk(&format!("openrelay: {agree} endpoints show block {} with the hash in {}", checkpoint.number, file.display()));
    Ok(made)
}
