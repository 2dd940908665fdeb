//! Inspection of firmware: the names of its modules, and traces of loaders for unmeasured code.
//!
//! Owns the list of names that known loaders leave in firmware, and the walk through firmware volumes. Never says
//! that firmware is good: firmware without these traces is only as good as its source.
//!
//! Source: UEFI Platform Initialization Specification 1.8, volume 3, sections 3.2 (firmware volumes) and 2.2 (files and
//! their sections).

use std::io::Read as _;

use lzma_rust2::LzmaReader;

use crate::{ImageError, index};

/// Limit on firmware, in bytes.
pub const MAX_FIRMWARE: usize = 4 << 20;
/// Limit on an unpacked section, in bytes.
const MAX_UNPACKED: u64 = 64 << 20;
/// Limit on the memory that unpacking takes, in KiB.
const MAX_MEMORY: u32 = 64 << 10;

/// GUID of LZMA-compressed sections: EE4E5898-3914-4259-9D6E-DC7BD79403CF.
const LZMA: [u8; 16] = [0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf];
const VOLUME: &[u8] = b"_FVH";
/// Offset of the signature in a volume's header.
const VOLUME_MARK: usize = 40;
const FILE_HEADER: usize = 24;
const SECTION_HEADER: usize = 4;
/// File types of code, from the security core to applications.
const CODE: std::ops::RangeInclusive<u8> = 0x03..=0x09;
/// Section type of a file's name, in UCS-2.
const NAME: u8 = 0x15;

/// File names that a loader in firmware uses, on the host's side or on a disk; each appears in ASCII or UCS-2.
const LOADERS: [(&str, &str); 8] = [
    ("etc/boot/shim", "it starts a program from the host instead of the measured kernel"),
    ("etc/acpi/tables", "it takes ACPI tables from the host"),
    ("etc/table-loader", "it takes ACPI tables from the host"),
    ("etc/smbios/", "it takes SMBIOS tables from the host"),
    ("bootorder", "it takes the boot order from the host"),
    ("\\EFI\\BOOT\\", "it starts programs from disks"),
    ("BootOrder", "it starts programs from disks"),
    ("etc/system-states", "it resumes a machine that the host claims is suspended"),
];
/// Prefix of named blobs, of which only the three parts below are allowed.
const NAMED: &str = "etc/boot/";
const PARTS: [&str; 3] = ["kernel", "initrd", "cmdline"];

/// Refuses firmware that contains traces of a loader, compressed or not.
///
/// # Errors
/// [`ImageError::Firmware`] names the loader; also for firmware that is too large or cannot be decompressed.
pub fn check(firmware: &[u8]) -> Result<(), ImageError> {
    if firmware.len() > MAX_FIRMWARE {
        return Err(ImageError::Firmware("it is larger than 4 MiB"));
    }
    let unpacked = unpacked(firmware)?;
    for content in std::iter::once(firmware).chain(unpacked.iter().map(Vec::as_slice)) {
        for (name, why) in LOADERS {
            if places(content, name.as_bytes()).next().is_some() || places(content, &wide(name)).next().is_some() {
                return Err(ImageError::Firmware(why));
            }
        }
        let is_part = |at: usize| {
            let rest = content.get(at + NAMED.len()..).unwrap_or_default();
            PARTS.iter().any(|part| rest.strip_prefix(part.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)))
        };
        if !places(content, NAMED.as_bytes()).all(is_part) || places(content, &wide(NAMED)).next().is_some() {
            return Err(ImageError::Firmware("it loads named blobs from the host besides the three measured parts"));
        }
    }
    Ok(())
}

/// Returns the sorted names of all code modules in the volumes of the firmware, including its compressed sections.
///
/// # Errors
/// [`ImageError::Firmware`] if a volume is malformed or a module has no name.
pub fn modules(firmware: &[u8]) -> Result<Vec<String>, ImageError> {
    let unpacked = unpacked(firmware)?;
    let mut found = Vec::new();
    for content in std::iter::once(firmware).chain(unpacked.iter().map(Vec::as_slice)) {
        for mark in places(content, VOLUME) {
            let Some(begin) = mark.checked_sub(VOLUME_MARK) else { continue };
            // Code that searches for volumes also contains the signature.
            if !is_header(&content[begin..]) {
                continue;
            }
            found.extend(files(&content[begin..]).ok_or(ImageError::Firmware("a volume in it is malformed"))?);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Returns the content of the firmware's LZMA sections.
fn unpacked(firmware: &[u8]) -> Result<Vec<Vec<u8>>, ImageError> {
    const FAULT: ImageError = ImageError::Firmware("a compressed section in it cannot be decompressed");
    let mut all = Vec::new();
    for at in places(firmware, &LZMA) {
        // Section header: size and type, this GUID, offset of the content, attributes.
        let Some(begin) = at.checked_sub(SECTION_HEADER) else { continue };
        if firmware.get(begin + 3) != Some(&0x02) {
            continue;
        }
        let size = index::<3>(firmware, begin).ok_or(FAULT)?;
        let offset = index::<2>(firmware, at + LZMA.len()).ok_or(FAULT)?;
        let packed = firmware.get(begin..).and_then(|rest| rest.get(..size)?.get(offset..)).ok_or(FAULT)?;
        let reader = LzmaReader::new_mem_limit(packed, MAX_MEMORY, None).map_err(|_| FAULT)?;
        let mut content = Vec::new();
        reader.take(MAX_UNPACKED + 1).read_to_end(&mut content).map_err(|_| FAULT)?;
        if content.len() as u64 > MAX_UNPACKED {
            return Err(FAULT);
        }
        all.push(content);
    }
    Ok(all)
}

/// Reports whether a volume begins here: the 16-bit words of its header sum to zero.
fn is_header(bytes: &[u8]) -> bool {
    let header = index::<2>(bytes, 48).and_then(|length| bytes.get(..length));
    header.is_some_and(|header| {
        let words = header.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        header.len() > VOLUME_MARK && words.fold(0, u16::wrapping_add) == 0
    })
}

/// Returns the names of a volume's code files; `None` if the volume is malformed or a file has no name.
fn files(volume: &[u8]) -> Option<Vec<String>> {
    let volume = volume.get(..index::<8>(volume, 32)?)?;
    let (mut at, extension) = (index::<2>(volume, 48)?, index::<2>(volume, 52)?);
    if extension != 0 {
        at = (extension + index::<4>(volume, extension + 16)?).next_multiple_of(8);
    }
    let mut found = Vec::new();
    while let Some(header) = volume.get(at..at + FILE_HEADER) {
        // Erased flash follows the last file.
        if header.iter().all(|byte| *byte == 0xff) {
            break;
        }
        let size = index::<3>(header, 20)?;
        let content = volume.get(at..at.checked_add(size)?)?.get(FILE_HEADER..)?;
        if CODE.contains(&header[18]) {
            found.push(name(content)?);
        }
        at = (at + size).next_multiple_of(8);
    }
    Some(found)
}

/// Returns the name in a file's sections.
fn name(mut sections: &[u8]) -> Option<String> {
    loop {
        let size = index::<3>(sections, 0).filter(|size| *size >= SECTION_HEADER)?;
        let section = sections.get(..size)?;
        if section[3] == NAME {
            let letters = section[SECTION_HEADER..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            return char::decode_utf16(letters.take_while(|letter| *letter != 0)).collect::<Result<_, _>>().ok();
        }
        sections = sections.get(size.next_multiple_of(4)..)?;
    }
}

fn places<'a>(content: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    content.windows(wanted.len()).enumerate().filter(move |(_, window)| *window == wanted).map(|(at, _)| at)
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use std::io::Write as _;

    use lzma_rust2::{LzmaOptions, LzmaWriter};

    use super::*;

    /// Returns a compressed section with this content.
    fn packed(content: &[u8]) -> Vec<u8> {
        let size = Some(content.len() as u64);
        let mut packer = LzmaWriter::new_use_header(Vec::new(), &LzmaOptions::with_preset(0), size).unwrap();
        packer.write_all(content).unwrap();
        let inside = packer.finish().unwrap();
        let size = u32::try_from(24 + inside.len()).unwrap().to_le_bytes();
        [&size[..3], &[0x02], &LZMA, &[24, 0, 1, 0], &inside].concat()
    }

    /// Returns a volume with one code file for each name.
    fn volume_of(names: &[&str]) -> Vec<u8> {
        let mut volume = vec![0; 72];
        volume[40..44].copy_from_slice(VOLUME);
        volume[48] = 72;
        for name in names {
            let name = [wide(name), vec![0, 0]].concat();
            let section = [&u32::try_from(4 + name.len()).unwrap().to_le_bytes()[..3], &[NAME], &name].concat();
            let mut file = vec![0; FILE_HEADER];
            file[18] = 0x07;
            file[20..23].copy_from_slice(&u32::try_from(FILE_HEADER + section.len()).unwrap().to_le_bytes()[..3]);
            volume.extend(file.into_iter().chain(section));
            volume.resize(volume.len().next_multiple_of(8), 0xff);
        }
        volume.resize(256, 0xff);
        volume[32..40].copy_from_slice(&256u64.to_le_bytes());
        let words = volume[..72].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let sum = words.fold(0, u16::wrapping_add);
        volume[50..52].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
        volume
    }

    fn volume(name: &str) -> Vec<u8> {
        volume_of(&[name])
    }

    /// Returns a volume whose header has an extension, after which the file begins.
    fn extended(name: &str) -> Vec<u8> {
        let mut volume = volume(name);
        let mut extension = vec![0xff; 24];
        extension[16..20].copy_from_slice(&20u32.to_le_bytes());
        volume.splice(72..72, extension);
        volume.truncate(256);
        volume[52] = 72;
        let sum = u16::from_le_bytes([volume[50], volume[51]]).wrapping_sub(72);
        volume[50..52].copy_from_slice(&sum.to_le_bytes());
        volume
    }

    #[test]
    fn modules_are_listed_by_name() {
        assert_eq!(modules(&[volume("Fat"), extended("Boot")].concat()).unwrap(), ["Boot", "Fat"]);
        assert_eq!(modules(&volume_of(&["Fat", "Boot", "Core"])).unwrap(), ["Boot", "Core", "Fat"]);
        assert_eq!(modules(&[vec![0; 100], volume("Fat"), volume("Boot")].concat()).unwrap(), ["Boot", "Fat"]);
        assert!(modules(&[0; 500]).unwrap().is_empty());
    }

    #[test]
    fn compressed_sections_are_inspected() {
        let firmware = [volume("Pei"), vec![0; 7], packed(&volume("Dxe")), packed(&volume("Boot"))].concat();
        assert_eq!(modules(&firmware).unwrap(), ["Boot", "Dxe", "Pei"]);
        assert_eq!(check(&firmware), Ok(()));
        let loads = [volume("Pei"), packed(&[&volume("Dxe")[..], b"etc/table-loader"].concat())].concat();
        assert!(check(&loads).is_err());
        // The GUID alone, where no section begins, is ignored.
        assert_eq!(modules(&[&[0; 2][..], &LZMA, &volume("Pei")].concat()).unwrap(), ["Pei"]);
        let section = packed(&volume("Dxe"));
        let edit = |at: usize, byte: u8| {
            let mut edited = section.clone();
            edited[at] = byte;
            modules(&edited)
        };
        assert_eq!(edit(3, 0x19).unwrap(), [""; 0], "another kind of section");
        for (at, byte, what) in [(2, 0xff, "longer than the firmware"), (21, 0xff, "content begins after its end")] {
            let why = edit(at, byte).unwrap_err();
            assert_eq!(why, ImageError::Firmware("a compressed section in it cannot be decompressed"), "{what}");
        }
    }

    #[test]
    fn section_over_the_unpacked_limit_is_refused() {
        let most = usize::try_from(MAX_UNPACKED).unwrap();
        assert_eq!(modules(&packed(&vec![0; most])).unwrap(), [""; 0]);
        assert!(modules(&packed(&vec![0; most + 1])).is_err());
    }

    #[test]
    fn volume_signature_without_a_valid_header_is_ignored() {
        for around in [&[1; 400][..], &[0; 400]] {
            let firmware = [around, VOLUME, around].concat();
            assert_eq!(modules(&firmware).unwrap(), [""; 0]);
        }
        // A header that would end before its signature.
        let short = [&[0; VOLUME_MARK][..], VOLUME, &[0; 4], &[40, 0], &[0; 300]].concat();
        assert_eq!(modules(&short).unwrap(), [""; 0]);
        // Control: with a header, its length counts.
        let mut cut = volume("Boot");
        cut.truncate(200);
        assert_eq!(modules(&cut), Err(ImageError::Firmware("a volume in it is malformed")));
    }

    #[test]
    fn each_known_loader_is_refused_in_both_encodings() {
        for (name, why) in LOADERS {
            for mark in [name.as_bytes().to_vec(), wide(name)] {
                let firmware = [&[0xff; 64][..], &mark, &[0; 64]].concat();
                assert_eq!(check(&firmware), Err(ImageError::Firmware(why)), "{name}");
            }
        }
        assert_eq!(check(&[0xff; 4096]), Ok(()));
    }

    #[test]
    fn named_blobs_other_than_the_three_parts_are_refused() {
        let with = |name: &str| check(&[&[0; 8][..], name.as_bytes(), &[0; 8]].concat());
        for part in PARTS {
            assert_eq!(with(&format!("etc/boot/{part}")), Ok(()));
            assert!(with(&format!("etc/boot/{part}2")).is_err());
        }
        assert!(with("etc/boot/").is_err());
        assert!(with("etc/boot/anything").is_err());
    }

    #[test]
    fn truncated_or_changed_firmware_never_panics() {
        let whole = [volume("Boot"), [&[0, 1, 0, 2][..], &LZMA, &[24, 0, 1, 0], &[0x5d; 200]].concat()].concat();
        for length in 0..whole.len() {
            let _ = (check(&whole[..length]), modules(&whole[..length]));
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            let _ = (check(&changed), modules(&changed));
        }
        assert_eq!(check(&vec![0; MAX_FIRMWARE]), Ok(()));
        assert_eq!(check(&vec![0; MAX_FIRMWARE + 1]), Err(ImageError::Firmware("it is larger than 4 MiB")));
    }
}
