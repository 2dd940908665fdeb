//! `inputs.lock`: what an image is made of, each by its hash.
//!
//! Owns its form. What is not in it does not go into an image.

use serde::Deserialize;

use crate::{ImageError, hex, sha256};

/// What an image is made of.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The kernel's command line, measured with it.
    pub cmdline: String,
    /// The kernel's release.
    pub kernel_release: String,
    /// Modules of the kernel, in the order in which they are loaded, below `usr/lib/modules/RELEASE`.
    pub modules: Vec<String>,
    /// Packages of Debian's archive.
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
    /// Tools that compile the relay.
    #[serde(rename = "tool", default)]
    pub tools: Vec<Tool>,
    /// Machines that launch digests are made for.
    #[serde(rename = "shape")]
    pub shapes: Vec<ShapeOf>,
}

/// A package.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// What it is called here.
    pub name: String,
    /// Where it stands in the archive.
    pub path: String,
    /// Of the file.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// What it is for: `kernel`, `stub`, `firmware`, or files of the first file system.
    pub role: Role,
    /// The file in it, for a kernel or a stub.
    #[serde(default)]
    pub file: Option<String>,
    /// The generation of a firmware; only a firmware has one. 0 stands for firmware that is not the project's own.
    #[serde(default)]
    pub generation: Option<u32>,
    /// Files of the first file system: from the package's path to the path there.
    #[serde(default)]
    pub files: Vec<(String, String)>,
}

/// What a package is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The kernel and its modules.
    Kernel,
    /// What the firmware starts, and which measures the rest.
    Stub,
    /// Source of the firmware: edk2, an archive as tar.xz. The source tree's `image/firmware` makes firmware of it.
    Firmware,
    /// Files of the first file system.
    Files,
}

/// A tool, by a file of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// What it is called.
    pub name: String,
    /// The command that says where it is.
    pub ask: Vec<String>,
    /// What of the answer's folder is meant, if not the answer itself.
    #[serde(default)]
    pub below: Option<String>,
    /// Of the file.
    pub sha256: String,
}

/// A shape of machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapeOf {
    /// The processor, as it is called on the command line of a virtual machine.
    pub processor: String,
    /// Family, model and stepping, as the processor says them.
    pub signature: u32,
    /// Numbers of virtual processors.
    pub counts: Vec<u32>,
}

impl Lock {
    /// Reads it.
    ///
    /// # Errors
    /// [`ImageError::Lock`] with line and key.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let lock: Self = toml::from_str(text).map_err(|error| ImageError::Lock(error.to_string().trim().to_owned()))?;
        let faulty = |package: &&Package| package.sha256.len() != 64 || package.path.contains("..");
        if let Some(package) = lock.packages.iter().find(faulty) {
            return Err(ImageError::Lock(format!(
                "package {} has no SHA-256, or a path that leaves the archive",
                package.name
            )));
        }
        if let Some(package) =
            lock.packages.iter().find(|package| package.generation.is_some() != (package.role == Role::Firmware))
        {
            return Err(ImageError::Lock(format!(
                "package {}: a firmware names its generation (generation = NUMBER), and nothing else does",
                package.name
            )));
        }
        for role in [Role::Kernel, Role::Stub, Role::Firmware] {
            if lock.packages.iter().filter(|package| package.role == role).count() != 1 {
                return Err(ImageError::Lock(format!("there must be just one package with the role {role:?}")));
            }
        }
        Ok(lock)
    }

    /// The generation of the firmware.
    ///
    /// # Errors
    /// [`ImageError::Lock`] where the lock names no firmware with a generation.
    pub fn firmware_generation(&self) -> Result<u32, ImageError> {
        let firmware = self.packages.iter().find(|package| package.role == Role::Firmware);
        let generation = firmware.and_then(|package| package.generation);
        generation.ok_or_else(|| ImageError::Lock("no firmware names its generation".into()))
    }
}

impl Package {
    /// Whether these bytes are the package.
    ///
    /// # Errors
    /// [`ImageError::OtherInput`].
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
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use super::*;

    /// A lock of these packages, each with its role, path, SHA-256 and further lines.
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
    fn lock_names_one_of_each_part_and_the_generation_of_its_firmware_alone() {
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
        refused(&[kernel, stub, (firmware.0, firmware.1, &hash, "")], "the firmware: a firmware names its generation");
        refused(&[kernel, (stub.0, stub.1, &hash, "generation = 7\n"), firmware], "and nothing else does");
        refused(&[kernel, stub], "just one package with the role Firmware");
        refused(&[kernel, kernel, stub, firmware], "just one package with the role Kernel");
        refused(&[kernel, (stub.0, "../b.deb", &hash, ""), firmware], "a path that leaves the archive");
        refused(&[kernel, (stub.0, stub.1, "ab", ""), firmware], "has no SHA-256");
    }
}
