//! `openrelay image measure`: prints what firmware and chips will report of an image.
//!
//! Owns the output. The measurements are computed by `openrelay-image`.

use std::path::Path;

use openrelay_attest::evidence::Measurement;
use openrelay_image::pack::Image;
use openrelay_image::{hex, pcr, tdx};
use serde_json::{Value, json};

use super::{FIRMWARE, Kind, read, read_lock};
use crate::failure::Failure;
use crate::output::say;

/// Prints what firmware and chips will report of an image.
pub(super) fn measure(image: &Path, lock: &Path, firmware: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let (lock, file) = (read_lock(lock)?, read(image)?);
    let register = |found: Result<pcr::Register, openrelay_image::ImageError>| {
        let no_image = |error| Failure::plain(format!("{} is not a bootable image: {error}", image.display()));
        found.map(|found| hex(&found.0)).map_err(no_image)
    };
    let (eleven, four, nine) =
        (register(pcr::register_11(&file))?, register(pcr::register_4(&file))?, register(pcr::register_9(&file))?);
    let firmware = firmware.map_or_else(|| image.with_file_name(FIRMWARE), Path::to_path_buf);
    let firmware =
        read(&firmware).map_err(|failure| Failure::plain(format!("{failure}; name the firmware with --firmware")))?;
    let image = Image { file, firmware };
    let manifest = image.manifest(&lock, Kind::Relay.number(), 0).map_err(Failure::plain)?;
    let mrtd = tdx::mrtd(&image.firmware).map(|mrtd| hex(&mrtd)).ok();
    let launch = |measurement: &Measurement| match measurement {
        Measurement::Snp(digest) => hex(digest),
        Measurement::Sgx(_) | Measurement::Tdx { .. } => String::new(),
    };
    if as_json {
        let shapes: Vec<Value> = manifest
            .shapes
            .iter()
            .map(|shape| json!({"shape": shape.name, "launch_digest": launch(&shape.measurement)}))
            .collect();
        let said = json!({
            "schema": "openrelay.image-measure/1", "image": hex(&image.hash()), "pcr11": eleven, "pcr4": four,
            "pcr9": nine, "snp": shapes, "mrtd_of_firmware": mrtd, "rtmrs": "not proven",
        });
        say(&said.to_string());
        return Ok(());
    }
    say(&format!("image     {}", hex(&image.hash())));
    say(&format!("PCR 11    {eleven}   the image alone; PCR 12 and 13 must be zeros"));
    say(&format!("PCR 9     {nine}   command line and initrd, measured by the kernel"));
    say(&format!("PCR 4     {four}   if the firmware starts the image directly"));
    for shape in &manifest.shapes {
        say(&format!("SNP       {}   {}", launch(&shape.measurement), shape.name));
    }
    match mrtd {
        Some(mrtd) => say(&format!("MRTD      {mrtd}   this firmware, if it were started as a trust domain")),
        None => say("MRTD      none: this firmware is not made for trust domains"),
    }
    say("RTMRs     not proven: this firmware does not extend them with kernel, initrd or command line");
    Ok(())
}
