//! A source tree whose image builds in a moment, from complete packages of a few bytes.
//!
//! Owns what validators rebuild in scenarios. image/inputs.lock lists the parts of a real image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use openrelay_attest::roots::MIN_FIRMWARE_GENERATION;
use openrelay_image::{hex, sha256};

use crate::net::host::checked;

/// The end of a firmware for SEV. Launch digests cover its sections.
const FIRMWARE: &[u8] = include_bytes!("../../../image/testdata/ovmf-amdsev-suffix.bin");
/// The release of the tree's kernel.
const RELEASE: &str = "6.12-tiny";

/// Files of a package: paths and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

/// The tree, its packages by hash, and its two programs.
pub(crate) struct Tiny {
    pub(crate) tree: PathBuf,
    pub(crate) inputs: PathBuf,
    pub(crate) programs: [PathBuf; 2],
}

impl Tiny {
    /// Creates the tree below `dir`.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let this = Self {
            tree: dir.join("tree"),
            inputs: dir.join("inputs"),
            programs: [dir.join("init"), dir.join("relay")],
        };
        fs::create_dir_all(this.tree.join("image"))?;
        fs::create_dir_all(&this.inputs)?;
        for program in &this.programs {
            fs::write(program, format!("a program called {}", program.display()).split('/').next_back().unwrap_or(""))?;
        }
        let stub = stub();
        let packages: [(&str, &str, Files<'_>); 2] = [
            (
                "linux",
                "kernel",
                &[("boot/vmlinuz", &stub), (&format!("usr/lib/modules/{RELEASE}/kernel/a.ko.xz"), b"a module")],
            ),
            ("stub", "stub", &[("boot/vmlinuz", &stub)]),
        ];
        let mut lock = format!("cmdline = \"quiet\"\nkernel_release = \"{RELEASE}\"\nmodules = [\"kernel/a.ko.xz\"]\n");
        for (name, role, files) in packages {
            let bytes = package(&dir.join(name), files)?;
            let hash = hex(&sha256(&bytes));
            lock += &format!(
                "\n[[package]]\nname = \"{name}\"\nrole = \"{role}\"\npath = \"pool/{name}.deb\"\n\
                 sha256 = \"{hash}\"\nsize = {}\nfile = \"boot/vmlinuz\"\n",
                bytes.len()
            );
            fs::write(this.inputs.join(hash), bytes)?;
        }
        // The firmware's source is the firmware itself, which has no modules.
        let (hash, size) = (hex(&sha256(FIRMWARE)), FIRMWARE.len());
        lock += &format!(
            "\n[[package]]\nname = \"edk2\"\nrole = \"firmware\"\npath = \"pool/edk2\"\n\
             sha256 = \"{hash}\"\nsize = {size}\ngeneration = {MIN_FIRMWARE_GENERATION}\n"
        );
        fs::write(this.inputs.join(hash), FIRMWARE)?;
        let platform = this.tree.join("image/firmware");
        fs::create_dir_all(platform.join("OpenRelayPkg"))?;
        fs::write(platform.join("OpenRelayPkg/Modules.txt"), "")?;
        fs::write(platform.join("build.sh"), "cp \"$2\" firmware.fd\n")?;
        lock += "\n[[shape]]\nprocessor = \"EPYC-v4\"\nsignature = 0x00800f12\ncounts = [1, 2]\n";
        fs::write(this.tree.join("image/inputs.lock"), lock)?;
        fs::write(this.tree.join("README.md"), "A tree.\n")?;
        Ok(this)
    }
}

/// Builds a Debian package with these files and returns its bytes.
fn package(dir: &Path, files: Files<'_>) -> Result<Vec<u8>> {
    let root = dir.join("root");
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("the file's path has no parent folder")?)?;
        fs::write(path, content)?;
    }
    let line = "tar -C root --sort=name --mtime=@0 --owner=0 --group=0 -cf data.tar . && xz -f data.tar && \
                echo 2.0 > debian-binary && rm -f p.deb && ar rcD p.deb debian-binary data.tar.xz";
    checked(&Command::new("sh").current_dir(dir).args(["-ec", line]).output()?, line)?;
    Ok(fs::read(dir.join("p.deb"))?)
}

/// Returns the smallest program that firmware would start, with the one section of the stub that images contain.
fn stub() -> Vec<u8> {
    let mut out = vec![0; 0x600];
    let mut put = |at: usize, bytes: &[u8]| {
        for (place, byte) in out.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    };
    put(0, b"MZ");
    put(0x3c, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    // One section, and an optional header of 240 bytes.
    put(0x46, &1u16.to_le_bytes());
    put(0x54, &240u16.to_le_bytes());
    put(0x58, &0x20bu16.to_le_bytes());
    // Alignments in memory and in the file, and the length of all headers.
    put(0x78, &0x1000u32.to_le_bytes());
    put(0x7c, &0x200u32.to_le_bytes());
    put(0x94, &0x400u32.to_le_bytes());
    put(0x148, b".sbat\0\0\0");
    for (at, number) in [(0x150, 4u32), (0x154, 0x1000), (0x158, 0x200), (0x15c, 0x400)] {
        put(at, &number.to_le_bytes());
    }
    put(0x400, b"sbat");
    out
}
