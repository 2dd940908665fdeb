//! A flash unit with a variable store: boot entries and drivers that name a host's program.
//!
//! Source: PI specification, volume 3, section 3.2.1; UEFI specification, sections 3.1.3 and 3.3; edk2,
//! MdeModulePkg/Include/Guid/VariableFormat.h.

/// Sizes of OVMF's variable unit, of its store, and of a block, in bytes.
const UNIT: usize = 0x8_4000;
const STORE: usize = 0x4_0000;
const BLOCK: usize = 0x1000;
const HEADER: usize = 0x48;
/// Non-volatile, for boot services and at run time.
const ATTRIBUTES: u32 = 7;

const SYSTEM_STORE: [u8; 16] =
    [0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50];
const AUTHENTICATED: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];

/// Returns a unit that was never written.
pub(super) fn erased() -> Vec<u8> {
    vec![0xff; UNIT]
}

/// Returns a unit whose entries load the program at this path from any file system.
///
/// They load it as a driver, as the next boot, and as the first boot entry.
pub(super) fn with_entries(path: &str) -> Vec<u8> {
    let entry = entry(path);
    let first = [0, 0];
    let variables = [("Driver0000", &entry[..]), ("DriverOrder", &first), ("Boot0000", &entry)];
    let mut store = AUTHENTICATED.to_vec();
    store.extend(u32::try_from(STORE - HEADER).unwrap_or(0).to_le_bytes());
    // Formatted and healthy.
    store.extend([0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
    for (name, data) in variables.into_iter().chain([("BootOrder", &first[..]), ("BootNext", &first)]) {
        store.resize(store.len().next_multiple_of(4), 0xff);
        store.extend(variable(name, data));
    }
    let mut out = volume();
    out.extend(store);
    out.resize(UNIT, 0xff);
    out
}

fn volume() -> Vec<u8> {
    let mut out = vec![0; 16];
    out.extend(SYSTEM_STORE);
    out.extend(u64::try_from(UNIT).unwrap_or(0).to_le_bytes());
    out.extend(b"_FVH");
    // Attributes; length of this header; its checksum; no further header; revision 2.
    out.extend(0x4_feffu32.to_le_bytes());
    out.extend(u16::try_from(HEADER).unwrap_or(0).to_le_bytes());
    out.extend([0, 0, 0, 0, 0, 2]);
    for number in [UNIT / BLOCK, BLOCK, 0, 0] {
        out.extend(u32::try_from(number).unwrap_or(0).to_le_bytes());
    }
    let sum = out.chunks_exact(2).fold(0u16, |sum, word| {
        let word: [u8; 2] = word.try_into().unwrap_or_default();
        sum.wrapping_add(u16::from_le_bytes(word))
    });
    for (place, byte) in out.iter_mut().skip(50).zip(sum.wrapping_neg().to_le_bytes()) {
        *place = byte;
    }
    out
}

fn variable(name: &str, data: &[u8]) -> Vec<u8> {
    let name = text(name);
    let mut out = vec![0xaa, 0x55, 0x3f, 0];
    out.extend(ATTRIBUTES.to_le_bytes());
    // Count, time and key of signed variables.
    out.extend([0; 8 + 16 + 4]);
    for length in [name.len(), data.len()] {
        out.extend(u32::try_from(length).unwrap_or(0).to_le_bytes());
    }
    out.extend(GLOBAL);
    out.extend(name);
    out.extend(data);
    out
}

/// Returns an active load option that contains only a file path.
fn entry(path: &str) -> Vec<u8> {
    let path = text(path);
    let length = u16::try_from(path.len() + 4).unwrap_or(u16::MAX).to_le_bytes();
    let mut list = vec![4, 4];
    list.extend(length);
    list.extend(path);
    list.extend([0x7f, 0xff, 4, 0]);
    let mut out = vec![1, 0, 0, 0];
    out.extend(u16::try_from(list.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(text("host"));
    out.extend(list);
    out
}

/// Returns UTF-16 words with a terminating zero.
fn text(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_header_has_checksum_zero() {
        let unit = with_entries("\\HOST.EFI");
        assert_eq!(unit.len(), UNIT);
        let words = unit[..HEADER].chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
        assert_eq!(words.fold(0u16, u16::wrapping_add), 0);
    }
}
