//! The calculators against what others have computed, and against changes of each input.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use openrelay_image::snp::{Start, launch_digest};
use openrelay_image::{ImageError, hex};
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};

const FIRMWARE: &[u8] = include_bytes!("../testdata/ovmf-amdsev-suffix.bin");
/// What `EPYC-v4` says of itself.
const EPYC: u32 = 0x0080_0f12;

fn start(cmdline: &str) -> Start<'_> {
    Start { firmware: FIRMWARE, kernel: b"", initrd: b"", cmdline }
}

/// Source: crate `sev` 8.0.0, tests/measurement (also of `sev-snp-measure`).
#[test]
fn launch_digests_are_those_of_others() {
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

/// Crate `sev` reads the same files and computes by itself.
#[test]
fn another_calculator_gets_the_same_digests() {
    let dir = std::env::temp_dir().join(format!("openrelay-measurements-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.join(name), bytes).unwrap();
        dir.join(name)
    };
    let firmware = file("firmware", FIRMWARE);
    let types = [
        (CpuType::EpycV4, EPYC),
        (CpuType::EpycMilan, 0x00a0_0f11),
        (CpuType::EpycGenoa, 0x00a1_0f10),
        (CpuType::EpycTurin, 0x00b0_0f00),
    ];
    for (number, (vcpu_type, signature)) in (1..).zip(types) {
        let (kernel, initrd) = (vec![number; 4_097 * usize::from(number)], vec![!number; 5_000]);
        let cmdline = "a".repeat(usize::from(number) * 11);
        for (processors, features) in [(1, 0x1), (2, 0x21), (u32::from(number) * 8, 0x1)] {
            let own = Start { firmware: FIRMWARE, kernel: &kernel, initrd: &initrd, cmdline: &cmdline };
            let own = launch_digest(&own, processors, signature, features).unwrap();
            let other = snp_calc_launch_digest(SnpMeasurementArgs {
                vcpus: processors,
                vcpu_type,
                ovmf_file: firmware.clone(),
                guest_features: GuestFeatures(features),
                kernel_file: Some(file("kernel", &kernel)),
                initrd_file: Some(file("initrd", &initrd)),
                append: Some(&cmdline),
                ovmf_hash_str: None,
                vmm_type: Some(VMMType::QEMU),
            });
            assert_eq!(hex(&own), format!("{:x}", other.unwrap()), "{vcpu_type:?} x {processors}");
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn everything_that_is_started_is_in_the_digest() {
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
fn firmware_that_does_not_measure_the_kernel_is_refused() {
    // The kind of the section that holds the hashes becomes that of plain memory.
    let place = FIRMWARE.windows(4).position(|bytes| bytes == b"ASEV").unwrap();
    let sections = FIRMWARE[place + 16..].chunks_exact(12);
    let at = sections.clone().position(|section| section[8..] == 0x10u32.to_le_bytes()).unwrap();
    let mut other = FIRMWARE.to_vec();
    other[place + 16 + 12 * at + 8] = 1;
    let refused = launch_digest(&Start { firmware: &other, ..start("") }, 1, EPYC, 1).unwrap_err();
    assert!(refused.to_string().contains("unmeasured"), "{refused}");
    for end in [0, 31, 4_000, 4_095] {
        let short = Start { firmware: &FIRMWARE[..end], ..start("") };
        assert!(matches!(launch_digest(&short, 1, EPYC, 1), Err(ImageError::Firmware(_))), "{end} bytes");
    }
}

/// Whatever firmware says of itself, nothing is read past its end.
#[test]
fn no_changed_byte_of_firmware_makes_it_panic() {
    for at in FIRMWARE.len() - 2_048..FIRMWARE.len() {
        for bit in 0..8 {
            let mut other = FIRMWARE.to_vec();
            other[at] ^= 1 << bit;
            let _ = launch_digest(&Start { firmware: &other, ..start("") }, 1, EPYC, 1);
        }
    }
}
