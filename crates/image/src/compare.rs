//! Comparison of two images: the section, the file and the byte at which they first differ.
//!
//! Owns the walk through sections and the initrd. Never trusts lengths in its input: malformed input has no entries.

use std::collections::BTreeMap;

use crate::pe::section;

/// Describes the first difference of two images; `None` if they are equal.
pub fn first_difference(one: &[u8], two: &[u8]) -> Option<String> {
    if one == two {
        return None;
    }
    for name in [".cmdline", ".uname", ".linux", ".sbat"] {
        if let (Ok(left), Ok(right)) = (section(one, name), section(two, name))
            && let Some(at) = first_byte(left, right)
        {
            return Some(format!("section {name}, byte {at} ({} and {} bytes)", left.len(), right.len()));
        }
    }
    if let (Ok(left), Ok(right)) = (section(one, ".initrd"), section(two, ".initrd"))
        && left != right
    {
        return Some(in_initrd(left, right));
    }
    let sizes = format!("{} and {} bytes", one.len(), two.len());
    first_byte(one, two).map(|at| format!("byte {at}, outside the sections that both images have ({sizes})"))
}

fn first_byte(one: &[u8], two: &[u8]) -> Option<usize> {
    let shorter = one.len().min(two.len());
    let differs = one.iter().zip(two).position(|(left, right)| left != right);
    differs.or((one.len() != two.len()).then_some(shorter))
}

fn in_initrd(one: &[u8], two: &[u8]) -> String {
    let unpacked = |bytes| zstd::bulk::decompress(bytes, 256 << 20).ok().and_then(|bytes| entries(&bytes));
    let (Some(left), Some(right)) = (unpacked(one), unpacked(two)) else {
        return format!("section .initrd, compressed byte {}", first_byte(one, two).unwrap_or(0));
    };
    for (path, content) in &left {
        match right.get(path) {
            None => return format!("section .initrd: {path} is only in the first image"),
            Some(other) => {
                if let Some(at) = first_byte(content, other) {
                    let sizes = format!("{} and {} bytes", content.len(), other.len());
                    return format!("section .initrd: {path}, byte {at} ({sizes})");
                }
            }
        }
    }
    match right.keys().find(|path| !left.contains_key(*path)) {
        Some(path) => format!("section .initrd: {path} is only in the second image"),
        None => "section .initrd: same files, compressed differently".into(),
    }
}

/// Returns the files of an initrd by path.
fn entries(bytes: &[u8]) -> Option<BTreeMap<String, Vec<u8>>> {
    let (mut at, mut found) = (0usize, BTreeMap::new());
    loop {
        let head = bytes.get(at..at.checked_add(110)?)?;
        let field = |number: usize| {
            let text = std::str::from_utf8(head.get(6 + 8 * number..14 + 8 * number)?).ok()?;
            usize::from_str_radix(text, 16).ok()
        };
        let (size, name) = (field(6)?, field(11)?);
        let path = bytes.get(at + 110..(at + 110).checked_add(name)?)?;
        let path = String::from_utf8_lossy(path).trim_end_matches('\0').to_owned();
        if path == "TRAILER!!!" {
            return Some(found);
        }
        let begin = (at + 110 + name).next_multiple_of(4);
        found.insert(path, bytes.get(begin..begin.checked_add(size)?)?.to_vec());
        at = (begin + size).next_multiple_of(4);
    }
}
