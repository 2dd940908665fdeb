//! Extraction of files from Debian packages.
//!
//! Owns the limits on a package's size. Never runs anything from a package. Source: deb(5), ar(5).

use std::collections::BTreeMap;
use std::io::Read as _;

use lzma_rust2::XzReader;

use crate::ImageError;

/// Limit on the unpacked size of a package, in bytes, against decompression bombs.
const MAX_UNPACKED: u64 = 1 << 30;
/// Limit on the size of one extracted file, in bytes.
const MAX_FILE: u64 = 64 << 20;
const MAGIC: &[u8] = b"!<arch>\n";
const HEAD: usize = 60;

/// Returns the wanted files of a package by path.
///
/// # Errors
/// [`ImageError::Package`] if the package is malformed or lacks a wanted file.
pub fn files(package: &str, bytes: &[u8], wanted: &[&str]) -> Result<BTreeMap<String, Vec<u8>>, ImageError> {
    let fault = |why: String| ImageError::Package { package: package.into(), why };
    let packed = member(bytes, "data.tar.xz").ok_or_else(|| fault("no data.tar.xz".into()))?;
    let unpacked = XzReader::new(packed, true).take(MAX_UNPACKED);
    let mut archive = tar::Archive::new(unpacked);
    let mut found = BTreeMap::new();
    for entry in archive.entries().map_err(|error| fault(error.to_string()))? {
        let mut entry = entry.map_err(|error| fault(error.to_string()))?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        if !wanted.contains(&path.as_str()) {
            continue;
        }
        if !entry.header().entry_type().is_file() || entry.size() > MAX_FILE {
            return Err(fault(format!("{path} is not a regular file of at most {MAX_FILE} bytes")));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|error| fault(format!("{path}: {error}")))?;
        found.insert(path, content);
        if found.len() == wanted.len() {
            break;
        }
    }
    match wanted.iter().find(|path| !found.contains_key(**path)) {
        Some(path) => Err(fault(format!("no file {path}"))),
        None => Ok(found),
    }
}

/// Returns a member of an ar archive.
fn member<'a>(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    while rest.len() >= HEAD {
        let (head, tail) = rest.split_at(HEAD);
        let text = |from: usize, to: usize| std::str::from_utf8(head.get(from..to)?).ok().map(str::trim_end);
        let size: usize = text(48, 58)?.parse().ok()?;
        let content = tail.get(..size)?;
        if text(0, 16)?.trim_end_matches('/') == name {
            return Some(content);
        }
        // Members begin at even offsets.
        rest = tail.get(size + size % 2..).unwrap_or(&[]);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(member: &str, content: &[u8]) -> Vec<u8> {
        let head = format!("{member:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, content.len());
        [MAGIC, head.as_bytes(), content].concat()
    }

    #[test]
    fn malformed_package_is_refused_with_its_reason() {
        for bytes in [&b""[..], b"!<arch>\n", b"not a package", &package("control.tar.xz", b"x")] {
            let said = files("p", bytes, &["a"]).unwrap_err().to_string();
            assert!(said.contains("data.tar.xz"), "{said}");
        }
        for content in [&b""[..], b"\xfd7zXZ\0\0\x04 and then nothing", &[0xff; 100]] {
            assert!(files("p", &package("data.tar.xz", content), &["a"]).is_err());
        }
        // Claims a length of one gigabyte, with no content.
        let claims = [MAGIC, format!("{:<48}{:<10}`\n", "data.tar.xz", 1 << 30).as_bytes()].concat();
        assert!(files("p", &claims, &["a"]).is_err());
    }
}
