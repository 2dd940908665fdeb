//! The launch digest of SEV-SNP: the chip's measurement of firmware, kernel, initrd, command line and initial
//! processor state.
//!
//! Owns the page list of a launch. Never accepts firmware that leaves the kernel unmeasured. Source: SEV-SNP firmware
//! ABI (56860), section 8.17.2 "PAGE_INFO"; AMD64 Architecture Programmer's Manual, volume 2, table B-4 (VMSA); OVMF,
//! AmdSev platform; QEMU, target/i386/sev.c.

use crate::{ImageError, index, le, sha256, sha384};

const PAGE: usize = 4_096;
/// End of firmware in a guest's address space.
const TOP: u64 = 1 << 32;
const NORMAL: u8 = 1;
const VMSA: u8 = 2;
const ZERO: u8 = 3;
const SECRETS: u8 = 5;
const CPUID: u8 = 6;
/// Address that the digest records for a processor's state page.
const VMSA_AT: u64 = 0xffff_ffff_f000;
/// Reset vector of the first processor.
const RESET: u64 = 0xffff_fff0;
/// SEV features: SNP is active.
pub const FEATURES: u64 = 1;

// GUIDs in the byte order of firmware.
const FOOTER: [u8; 16] = guid(0x96b5_82de, 0x1fb2, 0x45f7, [0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d]);
const RESET_BLOCK: [u8; 16] = guid(0x00f7_71de, 0x1a7e, 0x4fcb, [0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e]);
const HASH_TABLE: [u8; 16] = guid(0x7255_371f, 0x3a3b, 0x4b04, [0x92, 0x7b, 0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54]);
const METADATA: [u8; 16] = guid(0xdc88_6566, 0x984a, 0x4798, [0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc]);
const HASHES: [u8; 16] = guid(0x9438_d606, 0x4f22, 0x4cc9, [0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21]);
const CMDLINE: [u8; 16] = guid(0x97d0_2dd8, 0xbd20, 0x4c94, [0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a]);
const INITRD: [u8; 16] = guid(0x44ba_f731, 0x3a2f, 0x4bd7, [0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d]);
const KERNEL: [u8; 16] = guid(0x4de7_9437, 0xabd2, 0x427f, [0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b]);

const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

/// The parts with which a machine starts.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The firmware.
    pub firmware: &'a [u8],
    /// The kernel.
    pub kernel: &'a [u8],
    /// The initrd.
    pub initrd: &'a [u8],
    /// The command line.
    pub cmdline: &'a str,
}

/// A growing launch digest.
struct Launch([u8; 48]);

impl Launch {
    fn add(&mut self, kind: u8, at: u64, digest: [u8; 48]) {
        let flags = [kind, 0, 0, 0, 0, 0];
        let whole = [&self.0[..], &digest, &0x70u16.to_le_bytes(), &flags, &at.to_le_bytes()].concat();
        self.0 = sha384(&whole);
    }

    fn pages(&mut self, kind: u8, at: u64, size: u64) {
        for page in 0..size / PAGE as u64 {
            self.add(kind, at + page * PAGE as u64, [0; 48]);
        }
    }
}

/// Returns the launch digest of a machine with this number of processors of this signature.
///
/// # Errors
/// [`ImageError::Firmware`] if the firmware is not made for SEV-SNP or leaves the kernel unmeasured.
pub fn launch_digest(
    start: &Start<'_>,
    processors: u32,
    signature: u32,
    features: u64,
) -> Result<[u8; 48], ImageError> {
    let firmware = start.firmware;
    let footer = Footer::of(firmware)?;
    let mut launch = Launch([0; 48]);
    let size = u64::try_from(firmware.len()).unwrap_or(u64::MAX);
    if !firmware.len().is_multiple_of(PAGE) || size > TOP {
        return Err(ImageError::Firmware("its size is not a multiple of 4 KiB, or exceeds 4 GiB"));
    }
    for (number, page) in firmware.chunks_exact(PAGE).enumerate() {
        launch.add(NORMAL, TOP - size + (number * PAGE) as u64, sha384(page));
    }
    let mut hashed = false;
    for (at, size, kind) in footer.metadata()? {
        match kind {
            // Memory of the firmware, and of a supervisor (SVSM) that is absent.
            1 | 4 => launch.pages(ZERO, at, size),
            2 => launch.add(SECRETS, at, [0; 48]),
            3 => launch.add(CPUID, at, [0; 48]),
            0x10 => {
                hashed = true;
                launch.add(NORMAL, at, sha384(&hash_page(start, footer.hash_table()?)));
            }
            _ => return Err(ImageError::Firmware("it has a section of unknown type")),
        }
    }
    if !hashed {
        return Err(ImageError::Firmware("it does not measure the kernel; OVMF.amdsev.fd does"));
    }
    let others = footer.reset()?;
    for processor in 0..processors {
        let begins = if processor == 0 { RESET } else { others };
        launch.add(VMSA, VMSA_AT, sha384(&first_state(begins, signature, features)));
    }
    Ok(launch.0)
}

/// The GUID table at the end of firmware.
struct Footer<'a> {
    firmware: &'a [u8],
    entries: Vec<([u8; 16], &'a [u8])>,
}

impl<'a> Footer<'a> {
    fn of(firmware: &'a [u8]) -> Result<Self, ImageError> {
        let read = || {
            // The reset vector follows the table. Entries are read backwards: content, length, GUID.
            let end = firmware.len().checked_sub(32)?;
            let table_end = end.checked_sub(18)?;
            if firmware.get(end - 16..end)? != FOOTER {
                return None;
            }
            let size = index::<2>(firmware, table_end)?;
            let begin = end.checked_sub(size)?;
            let (mut rest, mut entries) = (table_end, Vec::new());
            while rest > begin + 18 {
                let name: [u8; 16] = *firmware.get(rest - 16..)?.first_chunk()?;
                let length = index::<2>(firmware, rest - 18)?;
                let from = rest.checked_sub(length).filter(|from| *from >= begin && length >= 18)?;
                entries.push((name, firmware.get(from..rest - 18)?));
                rest = from;
            }
            Some(entries)
        };
        let entries = read().ok_or(ImageError::Firmware("it has no GUID table, which locates the measured parts"))?;
        Ok(Self { firmware, entries })
    }

    fn entry(&self, name: [u8; 16], what: &'static str) -> Result<&'a [u8], ImageError> {
        let found = self.entries.iter().find(|(own, _)| *own == name);
        found.map(|(_, content)| *content).ok_or(ImageError::Firmware(what))
    }

    fn number(&self, name: [u8; 16], what: &'static str) -> Result<u64, ImageError> {
        le::<4>(self.entry(name, what)?, 0).ok_or(ImageError::Firmware(what))
    }

    fn reset(&self) -> Result<u64, ImageError> {
        self.number(RESET_BLOCK, "it has no reset address for further processors")
    }

    fn hash_table(&self) -> Result<u64, ImageError> {
        self.number(HASH_TABLE, "it has no place for the hashes of the kernel")
    }

    /// Returns the sections: address, size, type.
    fn metadata(&self) -> Result<Vec<(u64, u64, u64)>, ImageError> {
        const WHAT: &str = "it has no SEV metadata";
        let back = usize::try_from(self.number(METADATA, WHAT)?).unwrap_or(usize::MAX);
        let read = || {
            let table = self.firmware.get(self.firmware.len().checked_sub(back)?..)?;
            if table.get(..4)? != b"ASEV" || le::<4>(table, 8)? != 1 {
                return None;
            }
            let section = |number: usize| {
                let at = 16 + 12 * number;
                Some((le::<4>(table, at)?, le::<4>(table, at + 4)?, le::<4>(table, at + 8)?))
            };
            // Bounds the number of sections that malformed firmware can claim.
            (0..index::<4>(table, 12)?.min(1_024)).map(section).collect()
        };
        read().ok_or(ImageError::Firmware(WHAT))
    }
}

/// Returns the page in which the firmware finds the hashes of the parts that it may start.
fn hash_page(start: &Start<'_>, at: u64) -> Vec<u8> {
    let begin = usize::try_from(at).unwrap_or(0) % PAGE;
    let mut page = vec![0; PAGE];
    for (place, byte) in page.iter_mut().skip(begin).zip(hash_table(start.kernel, start.initrd, start.cmdline)) {
        *place = byte;
    }
    page
}

/// Returns the hash table that QEMU puts into a guest's memory: 168 bytes.
///
/// Source: QEMU, target/i386/sev.c, `SevHashTable`.
pub fn hash_table(kernel: &[u8], initrd: &[u8], cmdline: &str) -> Vec<u8> {
    let entry = |name: [u8; 16], hash: [u8; 32]| [&name[..], &50u16.to_le_bytes(), &hash].concat();
    let cmdline = sha256(&[cmdline.as_bytes(), &[0]].concat());
    [
        &HASHES[..],
        &168u16.to_le_bytes(),
        &entry(CMDLINE, cmdline),
        &entry(INITRD, sha256(initrd)),
        &entry(KERNEL, sha256(kernel)),
    ]
    .concat()
}

/// Returns the guest address at which this firmware reads the hash table.
///
/// # Errors
/// [`ImageError::Firmware`] if the firmware's GUID table has no such address.
pub fn hash_table_address(firmware: &[u8]) -> Result<u64, ImageError> {
    Footer::of(firmware)?.hash_table()
}

/// Returns the initial state of a processor, as its VMSA page.
fn first_state(begins: u64, signature: u32, features: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| {
        for (place, byte) in page.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    };
    let mut segment = |at: usize, selector: u16, attributes: u16, base: u64| {
        let limit = 0xffffu32.to_le_bytes();
        put(at, &[&selector.to_le_bytes()[..], &attributes.to_le_bytes(), &limit, &base.to_le_bytes()].concat());
    };
    for at in [0x00, 0x20, 0x30, 0x40, 0x50] {
        segment(at, 0, 0x93, 0);
    }
    segment(0x10, 0xf000, 0x9b, begins & 0xffff_0000);
    for (at, attributes) in [(0x60, 0), (0x70, 0x82), (0x80, 0), (0x90, 0x8b)] {
        segment(at, 0, attributes, 0);
    }
    let numbers = [
        (0xd0, 0x1000),
        (0x148, 0x40),
        (0x158, 0x10),
        (0x160, 0x400),
        (0x168, 0xffff_0ff0),
        (0x170, 2),
        (0x178, begins & 0xffff),
        (0x268, 0x0007_0406_0007_0406),
        (0x310, u64::from(signature)),
        (0x3b0, features),
        (0x3e8, 1),
    ];
    for (at, number) in numbers {
        put(at, &u64::to_le_bytes(number));
    }
    put(0x408, &0x1f80u32.to_le_bytes());
    put(0x410, &0x37fu16.to_le_bytes());
    page
}
