//! The build-time measurement of a trust domain (MRTD): the TDX module's measurement of firmware.
//!
//! Owns only the MRTD. Never predicts the RTMRs, which hold what the firmware starts: their content also depends on
//! the host's tables, which nobody can compute in advance. The MRTD therefore does not prove that part.
//!
//! Source: Intel TDX Module ABI, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND; Intel TDX Virtual Firmware Design Guide, section
//! "TDVF descriptor".

use aws_lc_rs::digest::{Context, SHA384};

use crate::{ImageError, index, le};

const PAGE: u64 = 4_096;
const CHUNK: usize = 256;
const EXTEND: u64 = 1;
const AUGMENT: u64 = 2;
/// GUID of the entry in the firmware's table that has the descriptor's offset from the end.
const METADATA: [u8; 16] =
    [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
/// Limit on a section's size in memory, in bytes.
const MAX_SIZE: u64 = 1 << 30;

/// Returns the MRTD of firmware.
///
/// # Errors
/// [`ImageError::Firmware`] if the firmware is not made for trust domains.
pub fn mrtd(firmware: &[u8]) -> Result<[u8; 48], ImageError> {
    let sections = sections(firmware).ok_or(ImageError::Firmware("it has no TDX descriptor"))?;
    let mut context = Context::new(&SHA384);
    for (data, at, size, attributes) in sections {
        for page in 0..size / PAGE {
            let address = at + page * PAGE;
            if attributes & AUGMENT == 0 {
                context.update(&record(b"MEM.PAGE.ADD", address));
            }
            if attributes & EXTEND == 0 {
                continue;
            }
            let begin = usize::try_from(page * PAGE).unwrap_or(usize::MAX);
            let content = data.get(begin..).and_then(|rest| rest.get(..4_096));
            let content = content.ok_or(ImageError::Firmware("a measured section is longer than its content"))?;
            for (number, chunk) in content.chunks_exact(CHUNK).enumerate() {
                context.update(&record(b"MR.EXTEND", address + (number * CHUNK) as u64));
                context.update(chunk);
            }
        }
    }
    let mut out = [0; 48];
    out.copy_from_slice(context.finish().as_ref());
    Ok(out)
}

fn record(name: &[u8], address: u64) -> [u8; 128] {
    let mut out = [0; 128];
    for (place, byte) in out.iter_mut().zip(name) {
        *place = *byte;
    }
    out[16..24].copy_from_slice(&address.to_le_bytes());
    out
}

type Section<'a> = (&'a [u8], u64, u64, u64);

/// Returns content, address, size in memory and attributes of each section.
fn sections(firmware: &[u8]) -> Option<Vec<Section<'_>>> {
    let name = firmware.windows(16).rposition(|bytes| bytes == METADATA)?;
    // The entry's length precedes the GUID; the offset precedes the length.
    let back = index::<4>(firmware, name.checked_sub(6)?)?;
    let table = firmware.get(firmware.len().checked_sub(back)?..)?;
    if table.get(..4)? != b"TDVF" || le::<4>(table, 8)? != 1 {
        return None;
    }
    let section = |number: usize| {
        let at = 16 + 32 * number;
        let (begin, raw) = (index::<4>(table, at)?, index::<4>(table, at + 4)?);
        let content = firmware.get(begin..begin.checked_add(raw)?)?;
        let size = le::<8>(table, at + 16).filter(|size| *size <= MAX_SIZE)?;
        Some((content, le::<8>(table, at + 8)?, size, le::<4>(table, at + 28)?))
    };
    (0..index::<4>(table, 12)?.min(64)).map(section).collect()
}
