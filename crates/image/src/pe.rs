//! The unified kernel image: a boot stub with command line, initrd and kernel as further sections; and the hash with
//! which firmware measures a program.
//!
//! Owns the reading and writing of PE headers. Never executes or relocates code. Source: PE format (Microsoft),
//! sections "COFF File Header", "Section Table"; UAPI group specification 5, Unified Kernel Image; Windows
//! Authenticode PE signature format.

use std::ops::Range;

use crate::{ImageError, index, sha256};

const SECTION: usize = 40;
/// Characteristics of a section with readable, initialised data.
const DATA: u32 = 0x4000_0040;
const STAMP: usize = 8;
const CHECKSUM: usize = 64;
const SECURITY: usize = 112 + 4 * 8;

/// Offsets and sizes in a 64-bit program.
struct Layout {
    /// Offset of the PE signature.
    signature: usize,
    /// Offset of the optional header.
    optional: usize,
    headers: usize,
    section_alignment: usize,
    file_alignment: usize,
    table: usize,
    count: usize,
}

/// A section: its name, its place in memory, its place in the file.
struct Section {
    name: [u8; 8],
    virtual_size: usize,
    address: usize,
    raw: Range<usize>,
}

fn layout(bytes: &[u8]) -> Option<Layout> {
    let signature = index::<4>(bytes, 0x3c)?;
    let optional = signature.checked_add(24)?;
    if bytes.get(signature..)?.first_chunk()? != b"PE\0\0" || index::<2>(bytes, optional)? != 0x20b {
        return None;
    }
    let layout = Layout {
        signature,
        optional,
        headers: index::<4>(bytes, optional + 60)?,
        section_alignment: index::<4>(bytes, optional + 32)?,
        file_alignment: index::<4>(bytes, optional + 36)?,
        table: optional + index::<2>(bytes, signature + 20)?,
        count: index::<2>(bytes, signature + 6)?,
    };
    let good = layout.section_alignment.is_power_of_two() && layout.file_alignment.is_power_of_two();
    good.then_some(layout)
}

fn sections(bytes: &[u8], layout: &Layout) -> Option<Vec<Section>> {
    let section = |number: usize| {
        let at = layout.table + SECTION * number;
        let begin = index::<4>(bytes, at + 20)?;
        Some(Section {
            name: *bytes.get(at..)?.first_chunk()?,
            virtual_size: index::<4>(bytes, at + 8)?,
            address: index::<4>(bytes, at + 12)?,
            raw: begin..begin.checked_add(index::<4>(bytes, at + 16)?)?,
        })
    };
    (0..layout.count).map(section).collect()
}

/// Returns the stub with these sections appended in order, and with time stamp, checksum and signature cleared.
///
/// # Errors
/// [`ImageError::Executable`] if the stub is malformed or has no room for more sections.
pub fn unify(stub: &[u8], added: &[(&str, &[u8])]) -> Result<Vec<u8>, ImageError> {
    const NONE: ImageError = ImageError::Executable("not a 64-bit boot stub");
    let layout = layout(stub).ok_or(NONE)?;
    let present = sections(stub, &layout).ok_or(NONE)?;
    if layout.table + SECTION * (layout.count + added.len()) > layout.headers {
        return Err(ImageError::Executable("no room for more sections in the stub"));
    }
    let end = present.iter().map(|section| section.raw.end).max().ok_or(NONE)?;
    let mut address = present.iter().map(|section| section.address + section.virtual_size.max(1)).max().ok_or(NONE)?;
    address = address.next_multiple_of(layout.section_alignment);
    let mut out = stub.get(..end).ok_or(NONE)?.to_vec();
    let mut data = index::<4>(&out, layout.optional + 8).ok_or(NONE)?;
    for (number, (name, content)) in added.iter().enumerate() {
        out.resize(out.len().next_multiple_of(layout.file_alignment), 0);
        let raw = content.len().next_multiple_of(layout.file_alignment);
        let mut entry = name.as_bytes().to_vec();
        entry.resize(8, 0);
        for field in [content.len(), address, raw, out.len(), 0, 0, 0] {
            entry.extend(little(field)?);
        }
        entry.extend(DATA.to_le_bytes());
        write(&mut out, layout.table + SECTION * (layout.count + number), &entry)?;
        let begin = out.len();
        out.extend_from_slice(content);
        out.resize(begin + raw, 0);
        data += raw;
        address = (address + content.len().max(1)).next_multiple_of(layout.section_alignment);
    }
    let count = u16::try_from(layout.count + added.len()).map_err(|_| NONE)?;
    write(&mut out, layout.signature + 6, &count.to_le_bytes())?;
    write(&mut out, layout.signature + STAMP, &[0; 4])?;
    write(&mut out, layout.optional + 8, &little(data)?)?;
    write(&mut out, layout.optional + 56, &little(address)?)?;
    write(&mut out, layout.optional + CHECKSUM, &[0; 4])?;
    write(&mut out, layout.optional + SECURITY, &[0; 8])?;
    Ok(out)
}

fn little(number: usize) -> Result<[u8; 4], ImageError> {
    let number = u32::try_from(number).map_err(|_| ImageError::Executable("the result would exceed 4 GiB"))?;
    Ok(number.to_le_bytes())
}

fn write(out: &mut [u8], at: usize, bytes: &[u8]) -> Result<(), ImageError> {
    let place = out.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
    place.ok_or(ImageError::Executable("the headers end too early"))?.copy_from_slice(bytes);
    Ok(())
}

/// Returns the content of a section, in its length in memory.
///
/// # Errors
/// [`ImageError::Executable`] if there is no section of this name.
pub fn section<'a>(bytes: &'a [u8], name: &str) -> Result<&'a [u8], ImageError> {
    let found = || {
        let layout = layout(bytes)?;
        let sections = sections(bytes, &layout)?;
        let section =
            sections.iter().find(|section| section.name.split(|byte| *byte == 0).next() == Some(name.as_bytes()))?;
        bytes.get(section.raw.clone())?.get(..section.virtual_size)
    };
    found().ok_or(ImageError::Executable("a section that every image needs is missing"))
}

/// Returns the hash with which firmware measures a program (Authenticode, SHA-256). It covers everything but the
/// checksum, the signature's directory entry and the signature.
///
/// # Errors
/// [`ImageError::Executable`].
pub fn authenticode(bytes: &[u8]) -> Result<[u8; 32], ImageError> {
    let hashed = || {
        let layout = layout(bytes)?;
        let mut sections = sections(bytes, &layout)?;
        sections.sort_by_key(|section| section.raw.start);
        let (checksum, security) = (layout.optional + CHECKSUM, layout.optional + SECURITY);
        let mut hashed = bytes.get(..checksum)?.to_vec();
        hashed.extend_from_slice(bytes.get(checksum + 4..security)?);
        hashed.extend_from_slice(bytes.get(security + 8..layout.headers)?);
        let mut end = layout.headers;
        for section in sections.iter().filter(|section| !section.raw.is_empty()) {
            hashed.extend_from_slice(bytes.get(section.raw.clone())?);
            end += section.raw.len();
        }
        let signature = index::<4>(bytes, security + 4)?;
        hashed.extend_from_slice(bytes.get(end..bytes.len().checked_sub(signature)?).unwrap_or(&[]));
        Some(sha256(&hashed))
    };
    hashed().ok_or(ImageError::Executable("malformed headers, so no Authenticode hash"))
}
