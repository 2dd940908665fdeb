//! `inputs.lock`: the inputs of an image, each with its hash.
//!
//! Owns the format. An input that is not listed here never becomes part of an image.

use serde::Deserialize;

use crate::{ImageError, hex, sha256};

/// The inputs of an image.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The kernel's command line, which is measured with the kernel.
    pub cmdline: String,
    /// The kernel's release.
    pub kernel_release: String,
    /// Kernel modules below `usr/lib/modules/RELEASE`, in load order.
    pub modules: Vec<String>,
    /// Packages from Debian's archive.
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
    /// Tools that compile the relay.
    #[serde(rename = "tool", default)]
    pub tools: Vec<Tool>,
    /// Machine shapes for which launch digests are computed.
    #[serde(rename = "shape")]
    pub shapes: Vec<ShapeOf>,
}

/// A package.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name in the lock file.
    pub name: String,
    /// Path in the archive.
    pub path: String,
    /// SHA-256 of the package, in hexadecimal digits.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
    /// Purpose: `kernel`, `stub`, `firmware`, or `files` for the initrd.
    pub role: Role,
    /// Path of the kernel or stub in the package.
    #[serde(default)]
    pub file: Option<String>,
    /// Generation of firmware, which no other package has. 0 means third-party firmware.
    #[serde(default)]
    pub generation: Option<u32>,
    /// Files for the initrd: path in the package, path in the initrd.
    #[serde(default)]
    pub files: Vec<(String, String)>,
}

/// The purpose of a package.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The kernel and its modules.
    Kernel,
    /// The program that the firmware starts and that measures the rest.
    Stub,
    /// Source code of the firmware: edk2 as a tar.xz archive. The source tree's `image/firmware` builds firmware from
    /// it.
    Firmware,
    /// Files for the initrd.
    Files,
}

/// A tool, identified by one of its files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Name.
    pub name: String,
    /// Command that prints the tool's location.
    pub ask: Vec<String>,
    /// Path below the printed folder, if the location is not the file itself.
    #[serde(default)]
    pub below: Option<String>,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
}

/// A machine shape.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapeOf {
    /// Processor model, as a virtual machine's command line names it.
    pub processor: String,
    /// Family, model and stepping, as the processor reports them.
    pub signature: u32,
    /// Numbers of virtual processors.
    pub counts: Vec<u32>,
}

impl Lock {
    /// Parses a lock file.
    ///
    /// # Errors
    /// [`ImageError::Lock`] with line and key.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let lock: Self = toml::from_str(text).map_err(|error| ImageError::Lock(error.to_string().trim().to_owned()))?;
        let faulty = |package: &&Package| package.sha256.len() != 64 || package.path.contains("..");
        if let Some(package) = lock.packages.iter().find(faulty) {
            return Err(ImageError::Lock(format!(
                "package {} has no SHA-256, or its path leaves the archive",
                package.name
            )));
        }
        if let Some(package) =
            lock.packages.iter().find(|package| package.generation.is_some() != (package.role == Role::Firmware))
        {
            return Err(ImageError::Lock(format!(
                "package {}: a firmware package must have a generation (generation = NUMBER), and no other package may",
                package.name
            )));
        }
        for role in [Role::Kernel, Role::Stub, Role::Firmware] {
            if lock.packages.iter().filter(|package| package.role == role).count() != 1 {
                return Err(ImageError::Lock(format!("there must be exactly one package with the role {role:?}")));
            }
        }
        Ok(lock)
    }

    /// Returns the generation of the firmware.
    ///
    /// # Errors
    /// [`ImageError::Lock`] if the lock file has no firmware with a generation.
    pub fn firmware_generation(&self) -> Result<u32, ImageError> {
        let firmware = self.packages.iter().find(|package| package.role == Role::Firmware);
        let generation = firmware.and_then(|package| package.generation);
        generation.ok_or_else(|| ImageError::Lock("no firmware package has a generation".into()))
    }
}

impl Package {
    /// Checks that these bytes are the package.
    ///
    /// # Errors
    /// [`ImageError::OtherInput`] if the hash differs.
    pub fn check(&self, bytes: &[u8]) -> Result<(), ImageError> {
        let found = hex(&sha256(bytes));
        if found == self.sha256 {
            return Ok(());
        }
        Err(ImageError::OtherInput { name: self.name.clone(), found, wanted: self.sha256.clone() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    /// Parses a lock file with these packages, each given by role, path, SHA-256 and further lines.
    fn lock(packages: &[(&str, &str, &str, &str)]) -> Result<Lock, ImageError> {
        let package = |(role, path, sha256, more): &(&str, &str, &str, &str)| {
            format!(
                "[[package]]\nname = \"the {role}\"\nrole = \"{role}\"\npath = \"{path}\"\nsha256 = \"{sha256}\"\n\
                 size = 5\nfile = \"f\"\n{more}"
            )
        };
        let packages: String = packages.iter().map(package).collect();
        Lock::parse(&format!("cmdline = \"\"\nkernel_release = \"\"\nmodules = []\nshape = []\n{packages}"))
    }

    #[test]
    fn lock_file_needs_one_of_each_part_and_one_firmware_generation() {
        let hash = "ab".repeat(32);
        let kernel = ("kernel", "a.deb", hash.as_str(), "");
        let stub = ("stub", "b.deb", hash.as_str(), "");
        let firmware = ("firmware", "c.tar.xz", hash.as_str(), "generation = 7\n");
        let good = lock(&[kernel, stub, firmware]).unwrap();
        assert_eq!(good.firmware_generation().unwrap(), 7);
        let refused = |packages: &[(&str, &str, &str, &str)], what: &str| {
            let why = lock(packages).unwrap_err().to_string();
            assert!(why.contains(what), "{why}");
        };
        refused(&[kernel, stub, (firmware.0, firmware.1, &hash, "")], "the firmware: a firmware package must have a");
        refused(&[kernel, (stub.0, stub.1, &hash, "generation = 7\n"), firmware], "and no other package may");
        refused(&[kernel, stub], "exactly one package with the role Firmware");
        refused(&[kernel, kernel, stub, firmware], "exactly one package with the role Kernel");
        refused(&[kernel, (stub.0, "../b.deb", &hash, ""), firmware], "its path leaves the archive");
        refused(&[kernel, (stub.0, stub.1, "ab", ""), firmware], "has no SHA-256");
    }
}
