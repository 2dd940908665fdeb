//! What a TPM will hold after an image was started: registers that firmware, boot stub and kernel extend.
//!
//! Source: TCG PC Client Platform Firmware Profile; systemd-stub(7), section "TPM PCR Notes"; linux, drivers/firmware/efi/libstub/efi-stub-helper.c.

use crate::pe::{authenticode, section};
use crate::{ImageError, sha256};

/// Sections in the order in which the stub measures them. Source: systemd, src/fundamental/uki.c.
const MEASURED: [&str; 5] = [".linux", ".cmdline", ".initrd", ".uname", ".sbat"];

/// A register: what it holds follows from what it was extended by, in order.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Register(pub [u8; 32]);

impl Register {
    fn extend(&mut self, hash: [u8; 32]) {
        self.0 = sha256(&[self.0, hash].concat());
    }
}

/// Register 11: the parts of the image, as the stub measures them before it starts the kernel. It depends on nothing else.
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

/// Register 4, where a machine starts the image at once: the image, that the firmware goes on to what it starts, the kernel. Firmware that tries others before has more in it.
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

/// Register 9: command line and initrd, as the kernel measures what it was started with.
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
