//! Programs that a hostile host wants to run: a few bytes each that print a line on the serial port.

use anyhow::{Context as _, Result};
use openrelay_image::newc::Tree;
use openrelay_image::pe;

/// The line that shows that code of the host runs.
pub(super) const MARKER: &str = "attack: code of the host runs";

/// Alignment of sections and of option ROMs, in bytes.
const ALIGNMENT: usize = 0x200;
/// Size of an option ROM, in bytes.
const ROM: usize = 0x1_0000;

/// The kind of an EFI program, as firmware sees it.
#[derive(Clone, Copy)]
enum Kind {
    Application = 10,
    Driver = 11,
}

/// Returns machine code that prints the marker on the first serial port and then spins. It runs at any address.
fn printing() -> Vec<u8> {
    const LOOP: [u8; 29] = [
        0xac, // lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x14, // jz spin
        0x88, 0xc4, // mov ah, al
        0x66, 0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x20, // test al, 0x20
        0x74, 0xfb, // jz wait + 4
        0x88, 0xe0, // mov al, ah
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xe7, // jmp to lodsb
        0xf3, 0x90, // spin: pause
        0xeb, 0xfc, // jmp spin
    ];
    // cld; lea rsi, [rip + LOOP's length]
    let mut code = vec![0xfc, 0x48, 0x8d, 0x35, 29, 0, 0, 0];
    code.extend(LOOP);
    code.extend(format!("\r\n{MARKER}\r\n\0").bytes());
    code
}

/// Returns an EFI application that prints the marker.
pub(super) fn application() -> Vec<u8> {
    executable(Kind::Application)
}

/// Returns an EFI program that prints the marker.
///
/// Source: PE format (Microsoft), "COFF File Header", "Optional Header", "Section Table".
fn executable(kind: Kind) -> Vec<u8> {
    let code = printing();
    let raw = padded(code.len());
    let mut out = b"MZ".to_vec();
    out.resize(0x3c, 0);
    out.extend(0x40u32.to_le_bytes());
    out.extend(b"PE\0\0");
    // x86-64; one section; optional header of 240 bytes; an executable image.
    out.extend(words16(&[0x8664, 1]));
    out.extend(words32(&[0, 0, 0]));
    out.extend(words16(&[0xf0, 0x22e]));
    out.extend(words16(&[0x20b, 0]));
    // Sizes of code and data, entry point, base of code; image base.
    out.extend(words32(&[raw, 0, 0, 0x1000, 0x1000, 0, 0, 0x1000, 0x200]));
    // Versions, then sizes of image and headers, checksum.
    out.extend(words32(&[0, 0, 0, 0, 0x2000, 0x200, 0]));
    out.extend(words16(&[kind as u16, 0]));
    // Stack and heap, flags, sixteen empty directories.
    out.extend(words32(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 16]));
    out.extend([0; 16 * 8]);
    out.extend(b".text\0\0\0");
    out.extend(words32(&[raw, 0x1000, raw, 0x200, 0, 0, 0, 0x6000_0020]));
    out.resize(ALIGNMENT, 0);
    out.extend(code);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// Returns an option ROM for a card of this vendor and device: an EFI driver that prints the marker.
///
/// Source: UEFI specification, section 14.4.2 "PCI Option ROMs".
pub(super) fn option_rom(vendor: u16, device: u16) -> Vec<u8> {
    const DRIVER_AT: usize = 0x40;
    let driver = executable(Kind::Driver);
    let blocks = u16::try_from((DRIVER_AT + driver.len()).div_ceil(ALIGNMENT)).unwrap_or(u16::MAX);
    let mut out = words16(&[0xaa55, blocks, 0x0ef1, 0, Kind::Driver as u16, 0x8664, 0, 0, 0, 0, 0, 0x40, 0x1c, 0]);
    out.extend(b"PCIR");
    out.extend(words16(&[vendor, device, 0, 0x1c]));
    // Revision 3 and the class of a network card; length; code for EFI, the last image.
    out.extend([3, 0, 0, 2]);
    out.extend(words16(&[blocks, 0, 0x8003, 0, 0]));
    out.resize(DRIVER_AT, 0);
    out.extend(driver);
    // Firmware ignores a ROM that is smaller than a memory page.
    out.resize(ROM, 0xff);
    out
}

/// Returns an initrd whose first process prints the marker and then sleeps.
pub(super) fn initrd() -> Vec<u8> {
    let mut tree = Tree::default();
    tree.device("dev/console", 5, 1);
    tree.file("init", true, elf());
    tree.encode()
}

/// Returns a program that prints the marker and then sleeps.
///
/// Source: System V ABI, "ELF Header" and "Program Header".
fn elf() -> Vec<u8> {
    const CODE_AT: u32 = 0x78;
    const BASE: u32 = 0x40_0000;
    let message = format!("\n{MARKER}\n");
    // write(1, message, length), then pause() forever.
    let mut code = vec![0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0x48, 0x8d, 0x35, 16, 0, 0, 0, 0xba];
    code.extend(words32(&[u32::try_from(message.len()).unwrap_or(0)]));
    code.extend([0x0f, 0x05, 0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]);
    code.extend(message.bytes());
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend(words16(&[2, 62]));
    out.extend(words32(&[1, BASE + CODE_AT, 0, 0x40, 0, 0, 0, 0]));
    out.extend(words16(&[0x40, 0x38, 1, 0, 0, 0]));
    let size = CODE_AT + u32::try_from(code.len()).unwrap_or(0);
    // One readable and executable segment, which is the whole file.
    out.extend(words32(&[1, 5, 0, 0, BASE, 0, BASE, 0, size, 0, size, 0, 0x1000, 0]));
    out.extend(code);
    out
}

/// Returns a command line with which a kernel prints the marker.
pub(super) fn cmdline() -> String {
    format!("console=ttyS0 loglevel=7 {MARKER}")
}

/// Returns an image with the same parts whose stub prints the marker, wherever it is entered.
pub(super) fn unified(image: &[u8]) -> Result<Vec<u8>> {
    const NOTHING: u8 = 0x90;
    let stub = pe::section(image, ".text")?;
    let begin = stub.as_ptr().addr().checked_sub(image.as_ptr().addr()).context("the section is outside the image")?;
    let code = printing();
    let padding = stub.len().checked_sub(code.len()).context("the image's stub has no room for a program")?;
    let mut out = image.to_vec();
    let place = out.get_mut(begin..begin + stub.len()).context("the section is outside the image")?;
    place.iter_mut().zip(std::iter::repeat_n(NOTHING, padding).chain(code)).for_each(|(byte, new)| *byte = new);
    Ok(out)
}

fn padded(length: usize) -> u32 {
    u32::try_from(length.next_multiple_of(ALIGNMENT)).unwrap_or(u32::MAX)
}

fn words16(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn first_process_prints_the_marker() {
        let path = std::env::temp_dir().join(format!("openrelay-attack-init-{}", std::process::id()));
        std::fs::write(&path, elf()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut child = Command::new(&path).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = vec![0; MARKER.len() + 2];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(String::from_utf8(said).unwrap(), format!("\n{MARKER}\n"));
    }

    #[test]
    fn programs_have_the_subsystem_that_firmware_loads() {
        for (bytes, subsystem) in [(executable(Kind::Application), 10), (executable(Kind::Driver), 11)] {
            assert_eq!(bytes.len() % ALIGNMENT, 0);
            assert_eq!(bytes[0x40 + 24 + 68], subsystem);
            assert!(pe::section(&bytes, ".text").unwrap().starts_with(&printing()));
        }
        let rom = option_rom(0x8086, 0x100e);
        assert!(rom.len() == ROM && usize::from(rom[2]) * ALIGNMENT < ROM);
        assert_eq!(&rom[0x1c..0x24], b"PCIR\x86\x80\x0e\x10");
    }
}
