//! Predicted TPM registers (PCRs) of a started image, as firmware, boot stub and kernel extend them.
//!
//! Owns PCRs 4, 9 and 11. Never predicts registers that depend on the machine. Source: TCG PC Client Platform
//! Firmware Profile; systemd-stub(7), section "TPM PCR Notes"; linux, drivers/firmware/efi/libstub/efi-stub-helper.c.

use crate::pe::{authenticode, section};
use crate::{ImageError, sha256};

/// Sections in the order in which the stub measures them. Source: systemd, src/fundamental/uki.c.
const MEASURED: [&str; 5] = [".linux", ".cmdline", ".initrd", ".uname", ".sbat"];

/// A register; its value depends on the hashes it was extended with and on their order.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Register(pub [u8; 32]);

impl Register {
    fn extend(&mut self, hash: [u8; 32]) {
        self.0 = sha256(&[self.0, hash].concat());
    }
}

/// Returns PCR 11: the image's sections, as the stub measures them before it starts the kernel. Nothing else affects
/// it.
///
/// # Errors
/// [`ImageError::Executable`].
pub fn register_11(image: &[u8]) -> Result<Register, ImageError> {
    let mut register = Register::default();
    for name in MEASURED {
        register.extend(sha256(&[name.as_bytes(), &[0]].concat()));
        register.extend(sha256(section(image, name)?));
    }
    Ok(register)
}

/// Returns PCR 4 for a machine that boots the image first: the image, the call of the boot option, the separator, the
/// kernel. Firmware that tries other boot options first extends it further.
///
/// # Errors
/// [`ImageError::Executable`].
pub fn register_4(image: &[u8]) -> Result<Register, ImageError> {
    let mut register = Register::default();
    register.extend(authenticode(image)?);
    register.extend(sha256(b"Calling EFI Application from Boot Option"));
    register.extend(sha256(&[0; 4]));
    register.extend(authenticode(section(image, ".linux")?)?);
    Ok(register)
}

/// Returns PCR 9: command line and initrd, as the kernel measures them.
///
/// # Errors
/// [`ImageError::Executable`].
pub fn register_9(image: &[u8]) -> Result<Register, ImageError> {
    let mut register = Register::default();
    let cmdline = String::from_utf8_lossy(section(image, ".cmdline")?).into_owned();
    let wide: Vec<u8> = cmdline.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    register.extend(sha256(&wide));
    register.extend(sha256(section(image, ".initrd")?));
    Ok(register)
}
