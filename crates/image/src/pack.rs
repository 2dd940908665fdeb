//! Packing an image: from packages and programs to one file, and to what it will be known by.

use std::collections::BTreeMap;

use openrelay_attest::evidence::Measurement;
use openrelay_attest::manifest::{Manifest, Shape};

use crate::lock::{Lock, Package, Role};
use crate::newc::Tree;
use crate::snp::{FEATURES, Start, launch_digest};
use crate::{ImageError, deb, firmware, pe, sha256};

/// How hard the first file system is packed: the library's highest level but one that needs no more memory. One thread, so that the bytes are the same everywhere.
const LEVEL: i32 = 19;
/// Folders that are mounted over, or that programs write to.
const FOLDERS: [&str; 6] = ["dev", "proc", "sys", "run", "tmp", "root"];

/// What is compiled from the project's source tree.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The first process.
    pub init: Vec<u8>,
    /// The relay.
    pub relay: Vec<u8>,
    /// The firmware that starts the image under SEV-SNP.
    pub firmware: Vec<u8>,
}

/// An image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The unified kernel image: the file that is voted for.
    pub file: Vec<u8>,
    /// The firmware that starts it under SEV-SNP.
    pub firmware: Vec<u8>,
}

/// Packs an image of packages, by their names, and programs.
///
/// # Errors
/// [`ImageError`]: a package that is another one than the lock names is refused, whatever is in it, and so is firmware
/// that can load anything but the measured parts.
pub fn pack(lock: &Lock, packages: &BTreeMap<String, Vec<u8>>, programs: Programs) -> Result<Image, ImageError> {
    firmware::check(&programs.firmware)?;
    let mut tree = Tree::default();
    FOLDERS.iter().for_each(|folder| tree.folder(folder));
    // Without it the first process would have no output before it has mounted anything.
    tree.device("dev/console", 5, 1);
    tree.file("init", true, programs.init);
    tree.file("relay", true, programs.relay);
    let (mut kernel, mut stub) = (None, None);
    for package in lock.packages.iter().filter(|package| package.role != Role::Firmware) {
        let bytes = packages.get(&package.name).ok_or_else(|| missing(package))?;
        package.check(bytes)?;
        match package.role {
            Role::Kernel => kernel = Some(unpack_kernel(lock, package, bytes, &mut tree)?),
            Role::Stub => stub = Some(one_file(package, bytes)?),
            // Built already.
            Role::Firmware => {}
            Role::Files => {
                let wanted: Vec<&str> = package.files.iter().map(|(from, _)| from.as_str()).collect();
                let mut found = deb::files(&package.name, bytes, &wanted)?;
                for (from, to) in &package.files {
                    tree.file(to, true, found.remove(from).unwrap_or_default());
                }
            }
        }
    }
    // A lock without one of them is refused when it is read.
    let none = || ImageError::Lock("kernel and stub must be there".into());
    let (kernel, stub) = (kernel.ok_or_else(none)?, stub.ok_or_else(none)?);
    let initrd = zstd::bulk::compress(&tree.encode(), LEVEL).map_err(|error| ImageError::Packing(error.to_string()))?;
    let sections = [
        (".cmdline", lock.cmdline.as_bytes()),
        (".uname", lock.kernel_release.as_bytes()),
        (".initrd", &initrd),
        (".linux", &kernel),
    ];
    Ok(Image { file: pe::unify(&stub, &sections)?, firmware: programs.firmware })
}

fn missing(package: &Package) -> ImageError {
    ImageError::Package { package: package.name.clone(), why: "it was not given".into() }
}

fn one_file(package: &Package, bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let path =
        package.file.as_deref().ok_or_else(|| ImageError::Lock(format!("package {} names no file", package.name)))?;
    let mut found = deb::files(&package.name, bytes, &[path])?;
    found.remove(path).ok_or_else(|| missing(package))
}

/// The kernel; its modules go into the first file system, numbered in the order in which they are loaded.
fn unpack_kernel(lock: &Lock, package: &Package, bytes: &[u8], tree: &mut Tree) -> Result<Vec<u8>, ImageError> {
    let path =
        package.file.as_deref().ok_or_else(|| ImageError::Lock(format!("package {} names no file", package.name)))?;
    let modules: Vec<String> =
        lock.modules.iter().map(|module| format!("usr/lib/modules/{}/{module}", lock.kernel_release)).collect();
    let wanted: Vec<&str> = modules.iter().map(String::as_str).chain([path]).collect();
    let mut found = deb::files(&package.name, bytes, &wanted)?;
    for (number, module) in modules.iter().enumerate() {
        let name = module.rsplit('/').next().unwrap_or(module);
        tree.file(&format!("modules/{number:02}-{name}"), false, found.remove(module).unwrap_or_default());
    }
    found.remove(path).ok_or_else(|| missing(package))
}

impl Image {
    /// SHA-256 of it.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.file)
    }

    /// What a relay image will be known by: launch digests for all machines of the lock, and the generation of the
    /// firmware.
    ///
    /// # Errors
    /// [`ImageError`] when the firmware is not made for it.
    pub fn manifest(&self, lock: &Lock, kind: u8, version: u64) -> Result<Manifest, ImageError> {
        let start = Start {
            firmware: &self.firmware,
            kernel: pe::section(&self.file, ".linux")?,
            initrd: pe::section(&self.file, ".initrd")?,
            cmdline: &lock.cmdline,
        };
        let mut shapes = Vec::new();
        for shape in &lock.shapes {
            for count in &shape.counts {
                let digest = launch_digest(&start, *count, shape.signature, FEATURES)?;
                let name = format!("{} x {count}", shape.processor);
                shapes.push(Shape { name, measurement: Measurement::Snp(digest) });
            }
        }
        let firmware_generation = Some(lock.firmware_generation()?);
        Ok(Manifest { kind, version, firmware_generation, image: self.hash(), shapes, advisories: Vec::new() })
    }
}
