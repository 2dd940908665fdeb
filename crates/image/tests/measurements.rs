//! The measurement calculators compared with published results, with another implementation, and under changes of
//! each input.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot continue must stop")]

use std::path::{Path, PathBuf};

use openrelay_image::lock::Lock;
use openrelay_image::snp::{FEATURES, Start, hash_table_address, launch_digest};
use openrelay_image::{ImageError, hex};
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};

const FIRMWARE: &[u8] = include_bytes!("../testdata/ovmf-amdsev-suffix.bin");
const LOCK: &str = include_str!("../../../image/inputs.lock");
/// CPUID signature of `EPYC-v4`.
const EPYC: u32 = 0x0080_0f12;

fn start(cmdline: &str) -> Start<'_> {
    Start { firmware: FIRMWARE, kernel: b"", initrd: b"", cmdline }
}

/// Source: crate `sev` 8.0.0, tests/measurement (also used by `sev-snp-measure`).
#[test]
fn launch_digests_match_published_ones() {
    let rows = [
        (
            "console=ttyS0 loglevel=7",
            1,
            0x1,
            "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
        ),
        (
            "console=ttyS0 loglevel=7",
            1,
            0x21,
            "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
        ),
        (
            "",
            4,
            0x1,
            "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
        ),
        (
            "",
            4,
            0x21,
            "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942",
        ),
    ];
    for (cmdline, processors, features, wanted) in rows {
        let found = launch_digest(&start(cmdline), processors, EPYC, features).unwrap();
        assert_eq!(hex(&found), wanted, "{cmdline:?} x {processors}, {features:#x}");
    }
}

/// Emulated machines get the page of hashes at this address.
#[test]
fn hash_table_address_matches_crate_sev() {
    let file = std::env::temp_dir().join(format!("openrelay-suffix-{}.fd", std::process::id()));
    std::fs::write(&file, FIRMWARE).unwrap();
    let others = sev::measurement::ovmf::OVMF::new(file.clone()).unwrap().sev_hashes_table_gpa().unwrap();
    std::fs::remove_file(file).unwrap();
    assert_eq!(hash_table_address(FIRMWARE).unwrap(), others);
}

/// Firmware, kernel and initrd as files, because crate `sev` reads files for its own computation.
struct Files<'a> {
    start: Start<'a>,
    dir: PathBuf,
}

impl<'a> Files<'a> {
    fn new(name: &str, start: Start<'a>) -> Self {
        let dir = std::env::temp_dir().join(format!("openrelay-measurements-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in [("firmware", start.firmware), ("kernel", start.kernel), ("initrd", start.initrd)] {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        Self { start, dir }
    }

    fn other_digest(&self, vcpus: u32, vcpu_type: CpuType, features: u64) -> String {
        let digest = snp_calc_launch_digest(SnpMeasurementArgs {
            vcpus,
            vcpu_type,
            ovmf_file: self.dir.join("firmware"),
            guest_features: GuestFeatures(features),
            kernel_file: Some(self.dir.join("kernel")),
            initrd_file: Some(self.dir.join("initrd")),
            append: Some(self.start.cmdline),
            ovmf_hash_str: None,
            vmm_type: Some(VMMType::QEMU),
        });
        format!("{:x}", digest.unwrap())
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn launch_digests_match_the_sev_crate() {
    let types = [
        (CpuType::EpycV4, EPYC),
        (CpuType::EpycMilan, 0x00a0_0f11),
        (CpuType::EpycGenoa, 0x00a1_0f10),
        (CpuType::EpycTurin, 0x00b0_0f00),
    ];
    for (number, (vcpu_type, signature)) in (1..).zip(types) {
        let (kernel, initrd) = (vec![number; 4_097 * usize::from(number)], vec![!number; 5_000]);
        let cmdline = "a".repeat(usize::from(number) * 11);
        let start = Start { firmware: FIRMWARE, kernel: &kernel, initrd: &initrd, cmdline: &cmdline };
        let files = Files::new(&number.to_string(), start);
        for (processors, features) in [(1, 0x1), (2, 0x21), (u32::from(number) * 8, 0x1)] {
            let own = launch_digest(&start, processors, signature, features).unwrap();
            let other = files.other_digest(processors, vcpu_type, features);
            assert_eq!(hex(&own), other, "{vcpu_type:?} x {processors}, {features:#x}");
        }
    }
}

/// Images are packed with firmware that is built and never committed.
#[test]
fn launch_digests_of_the_built_firmware_match_the_sev_crate() {
    let Some(path) = std::env::var_os("OPENRELAY_FIRMWARE") else {
        eprintln!("skipped: OPENRELAY_FIRMWARE is not set; ./x image attacks builds a firmware and sets it");
        return;
    };
    let read = std::fs::read(&path);
    assert!(read.is_ok(), "OPENRELAY_FIRMWARE: {}: {read:?}", Path::new(&path).display());
    let (firmware, lock) = (read.unwrap(), Lock::parse(LOCK).unwrap());
    assert!(!lock.shapes.is_empty(), "the lock file has machine shapes");
    let start = Start { firmware: &firmware, kernel: &[7; 9_000], initrd: &[9; 5_000], cmdline: &lock.cmdline };
    let files = Files::new("built", start);
    for shape in &lock.shapes {
        let vcpu_type = CpuType::try_from(shape.processor.as_str()).unwrap();
        for processors in &shape.counts {
            let digest = |features| launch_digest(&start, *processors, shape.signature, features).unwrap();
            for features in [FEATURES, FEATURES | 0x20] {
                let (own, other) = (hex(&digest(features)), files.other_digest(*processors, vcpu_type, features));
                assert_eq!(own, other, "{} x {processors}, {features:#x}", shape.processor);
                // Control: a difference would be seen, because both include the processors' initial state.
                assert_ne!(hex(&digest(features | 0x40)), other, "{} x {processors}", shape.processor);
            }
        }
    }
}

#[test]
fn every_started_part_changes_the_launch_digest() {
    let digest = |start: Start<'_>, processors, signature| launch_digest(&start, processors, signature, 1).unwrap();
    let own = start("a");
    let all = [
        digest(own, 1, EPYC),
        digest(start("a "), 1, EPYC),
        digest(Start { kernel: b"k", ..own }, 1, EPYC),
        digest(Start { initrd: b"i", ..own }, 1, EPYC),
        digest(own, 2, EPYC),
        digest(own, 1, EPYC + 1),
    ];
    for (at, one) in all.iter().enumerate() {
        assert!(all[..at].iter().all(|other| other != one), "{at}");
    }
}

#[test]
fn firmware_that_leaves_the_kernel_unmeasured_is_refused() {
    // Changes the type of the hash section to plain memory.
    let place = FIRMWARE.windows(4).position(|bytes| bytes == b"ASEV").unwrap();
    let sections = FIRMWARE[place + 16..].chunks_exact(12);
    let at = sections.clone().position(|section| section[8..] == 0x10u32.to_le_bytes()).unwrap();
    let mut other = FIRMWARE.to_vec();
    other[place + 16 + 12 * at + 8] = 1;
    let refused = launch_digest(&Start { firmware: &other, ..start("") }, 1, EPYC, 1).unwrap_err();
    assert!(refused.to_string().contains("does not measure the kernel"), "{refused}");
    for end in [0, 31, 4_000, 4_095] {
        let short = Start { firmware: &FIRMWARE[..end], ..start("") };
        assert!(matches!(launch_digest(&short, 1, EPYC, 1), Err(ImageError::Firmware(_))), "{end} bytes");
    }
}

/// Nothing is read past the end of firmware, whatever its tables claim.
#[test]
fn flipped_firmware_bits_never_panic() {
    for at in FIRMWARE.len() - 2_048..FIRMWARE.len() {
        for bit in 0..8 {
            let mut other = FIRMWARE.to_vec();
            other[at] ^= 1 << bit;
            let _ = launch_digest(&Start { firmware: &other, ..start("") }, 1, EPYC, 1);
        }
    }
}
