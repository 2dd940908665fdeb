//! Evidence from this machine's trusted execution environment, through Linux' configfs-tsm.
//!
//! Owns one entry under `/sys/kernel/config/tsm/report`, which is created for each request and removed after it.
//! Source: Linux, Documentation/ABI/testing/configfs-tsm; for the table of certificates: AMD, Guest Hypervisor
//! Communication Block (56421), section "SNP Extended Guest Request".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use openrelay_attest::binding::Binding;
use openrelay_attest::raw::convert;
use openrelay_attest::verdict::Staple;
use openrelay_attest::{Evidence, Roots, examine};
use openrelay_node::clock::unix_seconds;

use crate::quoter::{QuoteError, Quoter};

const REPORTS: &str = "/sys/kernel/config/tsm/report";
/// Number of attempts if another program's request interferes.
const TRIES: u32 = 4;
/// The GUIDs of the VCEK and the VLEK in a table of certificates.
const VCEK: [u8; 16] = [0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd];
const VLEK: [u8; 16] = [0xa8, 0x07, 0x4b, 0xc2, 0xa2, 0x5a, 0x48, 0x3e, 0xaa, 0xe6, 0x39, 0xc0, 0x45, 0xa0, 0xb8, 0xa1];

/// The environment that this program runs in.
#[derive(Clone, Copy, Debug)]
pub struct Tsm;

impl Quoter for Tsm {
    fn name(&self) -> &'static str {
        "tsm"
    }

    fn quote(&mut self, binding: Binding) -> Result<Staple, QuoteError> {
        let report_data = binding.report_data();
        let evidence = quote_at(Path::new(REPORTS), &report_data)?;
        if evidence.report_data() != report_data {
            return Err(QuoteError::Environment("it signed data that was not requested".into()));
        }
        Ok(Staple { evidence, binding })
    }
}

/// An entry in configfs, which is removed when this is dropped.
struct Entry(PathBuf);

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

impl Entry {
    fn read(&self, name: &str) -> Result<Vec<u8>, QuoteError> {
        fs::read(self.0.join(name)).map_err(|error| QuoteError::Environment(format!("cannot read {name}: {error}")))
    }

    fn generation(&self) -> Result<Vec<u8>, QuoteError> {
        self.read("generation")
    }
}

fn quote_at(reports: &Path, report_data: &[u8; 64]) -> Result<Evidence, QuoteError> {
    let entry = Entry(reports.join(format!("openrelay-{}", std::process::id())));
    let _ = fs::remove_dir(&entry.0);
    fs::create_dir(&entry.0).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            return QuoteError::NoEnvironment;
        }
        QuoteError::Environment(format!("cannot create an entry below {}: {error}", reports.display()))
    })?;
    for _ in 0..TRIES {
        fs::write(entry.0.join("inblob"), report_data)
            .map_err(|error| QuoteError::Environment(format!("cannot write inblob: {error}")))?;
        let before = entry.generation()?;
        let (raw, auxiliary) = (entry.read("outblob")?, entry.read("auxblob").unwrap_or_default());
        if entry.generation()? == before {
            return evidence(&raw, &auxiliary);
        }
    }
    Err(QuoteError::Environment("other programs kept asking at the same time".into()))
}

/// Returns the evidence in the environment's output. An AMD report is checked with the certificate that came with it,
/// and one that does not fit is refused.
fn evidence(raw: &[u8], auxiliary: &[u8]) -> Result<Evidence, QuoteError> {
    let refused = |refusal: openrelay_attest::Refusal| QuoteError::Environment(refusal.to_string());
    let mut evidence = convert(raw).map_err(refused)?.evidence;
    if let Evidence::Amd(report) = &mut evidence {
        report.certificate = certificate(auxiliary).ok_or_else(|| {
            QuoteError::Environment(
                "the machine's owner has not given the guest the chip's certificate (VCEK, VLEK)".into(),
            )
        })?;
        examine(&evidence, None, &Roots::genuine(), unix_seconds()).map_err(refused)?;
    }
    Ok(evidence)
}

/// Returns the VCEK or VLEK in a table of certificates. Each entry has a GUID, an offset and a length; a GUID of
/// zeros ends the table.
fn certificate(table: &[u8]) -> Option<Vec<u8>> {
    let number = |bytes: &[u8]| usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok();
    // The first three parts of a GUID are little-endian.
    let mixed = |guid: [u8; 16]| {
        let mut guid = guid;
        guid[..4].reverse();
        guid[4..6].reverse();
        guid[6..8].reverse();
        guid
    };
    for entry in table.chunks_exact(24) {
        let (guid, place) = entry.split_at_checked(16)?;
        if guid == [0; 16] {
            return None;
        }
        if [VCEK, VLEK].iter().any(|wanted| guid == mixed(*wanted)) {
            let (begin, length) = (number(place)?, number(place.get(4..)?)?);
            return Some(table.get(begin..begin.checked_add(length)?)?.to_vec());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    #[test]
    fn missing_environment_is_reported() {
        let nowhere = std::env::temp_dir().join(format!("openrelay-test-{}/tsm/report", std::process::id()));
        assert_eq!(quote_at(&nowhere, &[0; 64]), Err(QuoteError::NoEnvironment));
    }

    #[test]
    fn evidence_that_no_chip_signed_is_refused() {
        // A folder that keeps what is written, but makes no report from it.
        let reports = std::env::temp_dir().join(format!("openrelay-test-{}-reports", std::process::id()));
        fs::create_dir_all(&reports).unwrap();
        let said = quote_at(&reports, &[7; 64]).unwrap_err().to_string();
        assert!(said.contains("generation"), "{said}");
        fs::remove_dir_all(&reports).unwrap();
        assert!(evidence(&[0; 1_184], &[]).is_err());
    }

    #[test]
    fn certificate_is_found_in_the_table_and_never_read_past_its_end() {
        let vcek = [0x8d, 0x75, 0xda, 0x63, 0x64, 0xe6, 0x64, 0x45, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd];
        let entry =
            |guid: [u8; 16], at: u32, length: u32| [&guid[..], &at.to_le_bytes(), &length.to_le_bytes()].concat();
        let table = [entry([9; 16], 0, 1), entry(vcek, 72, 5), entry([0; 16], 0, 0), b"chips".to_vec()].concat();
        assert_eq!(certificate(&table).as_deref(), Some(&b"chips"[..]));
        for (at, length) in [(73, 5), (72, 6), (u32::MAX, 5), (72, u32::MAX)] {
            let table = [entry(vcek, at, length), entry([0; 16], 0, 0)].concat();
            assert_eq!(certificate(&table), None);
        }
        let ended = [entry([0; 16], 0, 0), entry(vcek, 0, 1)].concat();
        assert_eq!((certificate(&ended), certificate(&[])), (None, None));
    }
}
