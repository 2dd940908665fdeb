//! `openrelay-dev thin`: a mirror that lies by omission.
//!
//! It serves another mirror's records without the descriptors that it must withhold from a reader. It owns none of
//! the product's functions. Its files match the chain's root, so withholding is all that it can do.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use alloy_primitives::B256;
use anyhow::{Context as _, Result, anyhow, ensure};
use openrelay_chain::transport::get;
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::set::{ChainRecord, Entry, MAX_FILE, RecordSet, write};

use crate::net::output::say;

/// The longest time that the honest mirror may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The position of the root in a file of records, in bytes. Source: crates/ledger/src/chain/set/file.rs.
const ROOT: std::ops::Range<usize> = 20..52;

/// Serves `/records/READER` until the process ends.
///
/// The file `READER` in the folder `lists` holds the IDs of the relays whose descriptors that reader gets. Without
/// the file the reader gets all descriptors.
pub(crate) fn serve(listen: SocketAddr, of: &str, lists: &Path) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    say(&format!("ready url=http://{}/records/", listener.local_addr()?));
    for stream in listener.incoming() {
        let (of, lists) = (of.to_owned(), lists.to_owned());
        // A reader that disconnects gets no answer.
        std::thread::spawn(move || stream.map(|stream| answer(stream, &of, &lists)));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, of: &str, lists: &Path) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let reader = line.split_whitespace().nth(1).and_then(|path| path.strip_prefix("/records/"));
    let reader = reader.filter(|reader| reader.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
    let (status, body) = match reader.context("no reader").and_then(|reader| records(of, &lists.join(reader))) {
        Ok(body) => ("200 OK", body),
        Err(error) => ("502 Bad Gateway", error.to_string().into_bytes()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(&body)?)
}

/// Returns the honest mirror's records. Only relays in the list keep their descriptors.
fn records(of: &str, list: &Path) -> Result<Vec<u8>> {
    let (_, whole) = get(of, PATIENCE, u64::try_from(MAX_FILE)?).map_err(|why| anyhow!("{why}"))?;
    let Ok(list) = fs::read_to_string(list) else { return Ok(whole) };
    let keeps: Vec<u64> = list.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let root = B256::from_slice(whole.get(ROOT).context("the file of records is malformed")?);
    let set = RecordSet::verify(&whole, root)?;
    ensure!(set.withheld.is_empty() && set.malformed.is_empty(), "the honest mirror does not have all descriptors");
    let entry = |record: &ChainRecord| -> Result<Entry> {
        let bytes = record.descriptor.encode().context("a parsed descriptor cannot be encoded")?;
        Ok(if keeps.contains(&record.registration.relay_id) {
            Entry::Whole(record.registration, bytes)
        } else {
            Entry::Withheld(record.registration, Descriptor::hash(&bytes))
        })
    };
    write(set.records.iter().map(entry).collect::<Result<_>>()?).context("the records cannot be written")
}
