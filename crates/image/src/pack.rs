//! Packing of an image from packages and programs into one file, and its manifest.
//!
//! Owns the layout of the initrd. Never packs a package whose hash differs from the lock file, nor firmware that can
//! load unmeasured code.

use std::collections::BTreeMap;

use openrelay_attest::evidence::Measurement;
use openrelay_attest::manifest::{Manifest, Shape};

use crate::lock::{Lock, Package, Role};
use crate::newc::Tree;
use crate::snp::{FEATURES, Start, launch_digest};
use crate::{ImageError, deb, firmware, pe, sha256};

/// Compression level of the initrd: the highest that needs no additional memory. Compression is single-threaded, so
/// that the bytes are equal everywhere.
const LEVEL: i32 = 19;
/// Mount points and writable folders.
const FOLDERS: [&str; 6] = ["dev", "proc", "sys", "run", "tmp", "root"];

/// Programs compiled from the project's source tree.
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
    /// The unified kernel image: the file that validators vote for.
    pub file: Vec<u8>,
    /// The firmware that starts the image under SEV-SNP.
    pub firmware: Vec<u8>,
}

/// Packs an image from packages, given by name, and programs.
///
/// # Errors
/// [`ImageError`] if a package's hash differs from the lock file, or if the firmware can load anything but the
/// measured parts.
pub fn pack(lock: &Lock, packages: &BTreeMap<String, Vec<u8>>, programs: Programs) -> Result<Image, ImageError> {
    firmware::check(&programs.firmware)?;
    let mut tree = Tree::default();
    FOLDERS.iter().for_each(|folder| tree.folder(folder));
    // Without a console device, the first process has no output until it has mounted /dev.
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
            // Already built into `programs`.
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
    // `Lock::parse` refuses a lock file without either.
    let none = || ImageError::Lock("kernel or stub is missing".into());
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
    ImageError::Package { package: package.name.clone(), why: "not provided".into() }
}

fn one_file(package: &Package, bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let path =
        package.file.as_deref().ok_or_else(|| ImageError::Lock(format!("package {} lacks `file`", package.name)))?;
    let mut found = deb::files(&package.name, bytes, &[path])?;
    found.remove(path).ok_or_else(|| missing(package))
}

/// Returns the kernel, and adds its modules to the initrd, numbered in load order.
fn unpack_kernel(lock: &Lock, package: &Package, bytes: &[u8], tree: &mut Tree) -> Result<Vec<u8>, ImageError> {
    let path =
        package.file.as_deref().ok_or_else(|| ImageError::Lock(format!("package {} lacks `file`", package.name)))?;
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
    /// Returns the SHA-256 of the file.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.file)
    }

    /// Returns the manifest of a relay image: launch digests for all machine shapes of the lock file, and the
    /// generation of the firmware.
    ///
    /// # Errors
    /// [`ImageError`] if the firmware does not fit the image.
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
