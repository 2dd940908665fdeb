//! Starts images in emulated machines, to show what firmware measures and to run a relay that carries circuits.
//!
//! Owns QEMU's arguments and processes. No chip measures or encrypts anything here. This tests the builder, the
//! firmware and the boot only.

pub(crate) mod machine;
pub(crate) mod monitor;

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use openrelay_image::{hex, pcr, pe, snp};
use serde_json::{Value, json};

use crate::net::folder::in_a_folder;
use crate::net::host::{self, Missing};
use crate::net::output::say;
use machine::Machine;

/// Memory of a machine, in MiB.
const MEMORY: &str = "256";
/// The longest time until a machine's socket exists.
const SOCKET: Duration = Duration::from_secs(10);
/// The longest time of a boot with the image's own firmware.
pub(crate) const BOOT: Duration = Duration::from_secs(30);
/// The longest time of a boot with Debian's firmware, which measures into a TPM. Only this program waits for it.
const MEASURED_BOOT: Duration = Duration::from_secs(120);
/// Start of the line that an image's first process prints.
pub(crate) const READY: &str = "ready kernel=";
/// Name of the image's firmware, in the folder of the image.
const FIRMWARE: &str = "firmware.fd";
/// Firmware from Debian's package `ovmf` that measures into a TPM.
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const EMULATOR: &str = "qemu-system-x86_64";
/// Runs a program that the kernel ends together with the thread that started it. From Debian's package `util-linux`.
pub(crate) const TIE: &str = "setpriv";
const TOOLS: [(&str, &str); 2] = [(EMULATOR, "qemu-system-x86"), (TIE, "util-linux")];

/// Checks that the tools for machines are installed; for a measured boot also those for a TPM.
pub(crate) fn check_tools(measured: bool) -> Result<()> {
    let tpm = [("swtpm", "swtpm")];
    let tools = TOOLS.iter().chain(if measured { &tpm[..] } else { &[] });
    let mut missing: Vec<&str> =
        tools.filter(|(tool, _)| host::find(tool).is_none()).map(|(_, package)| *package).collect();
    if measured && !Path::new(CODE).exists() {
        missing.push("ovmf");
    }
    if !missing.is_empty() {
        let line = format!("missing tools; install them with: apt-get install -y {}", missing.join(" "));
        return Err(Missing::new(line).into());
    }
    Ok(())
}

/// Makes `command`, which runs [`TIE`], run QEMU with the arguments that all machines have in common.
///
/// The machine has no disk, no display and no default device. The processor has every feature that can be emulated,
/// among them random numbers, except VAES: QEMU 7.2 computes it wrongly, so packets sealed with AEGIS do not open.
pub(crate) fn qemu(command: &mut Command) {
    command.args(["--pdeathsig", "KILL", "--", EMULATOR]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-machine", "q35,accel=tcg", "-cpu", "max,-vaes"]);
    command.args(["-m", MEMORY, "-display", "none", "-serial", "stdio", "-monitor", "none"]);
}

/// Returns a path as part of an option's value, with each comma doubled.
pub(crate) fn in_option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Returns the argument pair that gives firmware a named item.
pub(crate) fn item(name: &str, file: &Path) -> [OsString; 2] {
    ["-fw_cfg".into(), format!("name={name},file={}", in_option(file)).into()]
}

/// Returns the argument pair that puts a file into a guest's memory before the machine starts.
pub(crate) fn in_memory(file: &Path, at: u64) -> [OsString; 2] {
    ["-device".into(), format!("loader,file={},addr={at:#x},force-raw=on", in_option(file)).into()]
}

/// An image split into the parts that a host starts: firmware, what the firmware loads, and the hash table of that.
///
/// Without SEV a host's numbered items contain a kernel whose header QEMU has changed. The parts therefore have
/// names.
pub(crate) struct Parts {
    pub(crate) firmware: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    /// With a terminating zero byte.
    pub(crate) cmdline: PathBuf,
    pub(crate) hashes: PathBuf,
    /// Address of the hash table.
    pub(crate) hashes_at: u64,
}

impl Parts {
    /// Splits an image into files in the folder `dir`. Its firmware is beside the image.
    pub(crate) fn of(image: &Path, dir: &Path) -> Result<Self> {
        Self::with_firmware(image, &image.with_file_name(FIRMWARE), dir)
    }

    /// Splits an image into files in the folder `dir`, to start it with this firmware.
    pub(crate) fn with_firmware(image: &Path, firmware: &Path, dir: &Path) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let (image, firmware_bytes) = (read(image)?, read(firmware)?);
        let part = |name: &str| pe::section(&image, name).with_context(|| format!("the image has no {name}"));
        let (kernel, initrd) = (part(".linux")?, part(".initrd")?);
        let cmdline = std::str::from_utf8(part(".cmdline")?).context("the image's command line is not UTF-8")?;
        let this = Self {
            firmware: std::path::absolute(firmware)?,
            kernel: dir.join("linux"),
            initrd: dir.join("initrd"),
            cmdline: dir.join("cmdline"),
            hashes: dir.join("hashes"),
            hashes_at: snp::hash_table_address(&firmware_bytes)?,
        };
        fs::write(&this.kernel, kernel)?;
        fs::write(&this.initrd, initrd)?;
        fs::write(&this.cmdline, [cmdline.as_bytes(), &[0]].concat())?;
        fs::write(&this.hashes, snp::hash_table(kernel, initrd, cmdline))?;
        Ok(this)
    }

    /// Starts a machine from these parts.
    ///
    /// `command` runs [`TIE`] in the namespace of the machine's network, and `more` are further arguments of QEMU.
    /// `ports` is the folder for the sockets of the machine's ports.
    pub(crate) fn start(&self, mut command: Command, more: &[OsString], ports: Option<&Path>) -> Result<Machine> {
        qemu(&mut command);
        command.arg("-bios").arg(&self.firmware);
        command.args(item("etc/boot/kernel", &self.kernel));
        command.args(item("etc/boot/initrd", &self.initrd));
        command.args(item("etc/boot/cmdline", &self.cmdline));
        command.args(in_memory(&self.hashes, self.hashes_at));
        command.args(more);
        if let Some(ports) = ports {
            command.args(["-device", "virtio-serial-pci"]);
            for name in ["config", "feed"] {
                let socket = in_option(&ports.join(name));
                command.args(["-chardev", &format!("socket,id={name},path={socket},server=on,wait=off")]);
                command.args(["-device", &format!("virtserialport,chardev={name},name=org.openrelay.{name}")]);
            }
        }
        Machine::start(command)
    }
}

/// Sends a machine its configuration.
pub(crate) fn configure(ports: &Path, config: &[u8]) -> Result<()> {
    let until = Instant::now() + SOCKET;
    let mut stream = loop {
        match UnixStream::connect(ports.join("config")) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > until => {
                return Err(error).context("the machine has no configuration port");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.write_all(config).context("cannot send the machine its configuration")?;
    // The stream must stay open until the machine has read everything. The thread ends when the machine does.
    std::thread::spawn(move || stream.read(&mut [0; 1]));
    Ok(())
}

/// Boots an image with firmware and a TPM. Returns the line that its first process prints, and the seconds of the
/// boot.
fn measured_boot(image: &Path, dir: &Path) -> Result<(String, f64)> {
    let state = dir.join("tpm");
    fs::create_dir_all(&state)?;
    let variables = dir.join("variables");
    fs::copy(VARIABLES, &variables)?;
    let socket = dir.join("tpm.sock");
    let mut tpm = Command::new("swtpm");
    tpm.args(["socket", "--tpm2", "--terminate", "--tpmstate"]).arg(format!("dir={}", state.display()));
    tpm.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
    let tpm = tpm.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start swtpm")?;
    let tpm = Machine::silent(tpm);
    let until = Instant::now() + SOCKET;
    while !socket.exists() {
        ensure!(Instant::now() < until, "swtpm did not start within 10 s");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut command = Command::new(TIE);
    qemu(&mut command);
    command.arg("-drive").arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={CODE}"));
    command.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={}", variables.display()));
    command.arg("-chardev").arg(format!("socket,id=tpm,path={}", socket.display()));
    command.args(["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]);
    command.arg("-kernel").arg(image);
    let started = Instant::now();
    let machine = Machine::start(command)?;
    let line = machine.await_line(READY, MEASURED_BOOT)?;
    let seconds = started.elapsed().as_secs_f64();
    machine.kill();
    drop(tpm);
    Ok((line, seconds))
}

/// Returns a register from the line that the first process of an image prints.
fn register(line: &str, number: u32) -> Result<String> {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(&format!("pcr{number}=")));
    word.map(str::to_owned).with_context(|| format!("the machine has no register {number}: {line}"))
}

/// Returns the image with one more character in its command line.
fn with_another_cmdline(image: &[u8]) -> Result<Vec<u8>> {
    let mut other = image.to_vec();
    let header = image.windows(8).position(|bytes| bytes == b".cmdline").context("the image has no command line")?;
    let number = |at: usize| -> Result<u32> {
        Ok(u32::from_le_bytes(
            *image.get(at..).and_then(<[u8]>::first_chunk).context("the image's section header is cut off")?,
        ))
    };
    let (size, begin) = (number(header + 8)?, number(header + 20)?);
    other[header + 8..header + 12].copy_from_slice(&(size + 1).to_le_bytes());
    // Not a space, because the stub strips trailing spaces.
    other[usize::try_from(begin + size)?] = b'x';
    Ok(other)
}

/// `openrelay-dev boot IMAGE`: compares what was predicted for an image with what a machine measures.
pub(crate) fn check(image: &Path, as_json: bool) -> Result<()> {
    check_tools(true)?;
    let (found, ok) = in_a_folder(|dir| boots(image, dir))?;
    if as_json {
        say(&found.to_string());
    } else {
        for (name, value) in found.as_object().into_iter().flatten() {
            say(&format!("{name:<24} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
    }
    ensure!(ok, "the measurements differ from the predictions");
    Ok(())
}

fn boots(path: &Path, dir: &Path) -> Result<(Value, bool)> {
    let image = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let started = Instant::now();
    let machine = Parts::of(path, dir)?.start(Command::new(TIE), &[], None)?;
    machine.await_line(READY, BOOT)?;
    let seconds = started.elapsed().as_secs_f64();
    machine.kill();
    let (line, measured) = measured_boot(path, dir)?;
    let other = with_another_cmdline(&image)?;
    let changed = dir.join("changed.efi");
    fs::write(&changed, &other)?;
    let (other_line, _) = measured_boot(&changed, dir)?;
    let predicted = |image: &[u8]| -> Result<[String; 3]> {
        let all = [pcr::register_11(image)?, pcr::register_4(image)?, pcr::register_9(image)?];
        Ok(all.map(|register| hex(&register.0)))
    };
    let booted =
        |line: &str| -> Result<[String; 3]> { Ok([register(line, 11)?, register(line, 4)?, register(line, 9)?]) };
    let (own, others) = (predicted(&image)?, predicted(&other)?);
    let (found, found_other) = (booted(&line)?, booted(&other_line)?);
    let nothing_added = register(&line, 12)?.bytes().all(|digit| digit == b'0');
    let exact = own == found && others == found_other;
    let ok = exact && nothing_added && own.iter().zip(&others).all(|(one, other)| one != other);
    let said = json!({
        "schema": "openrelay.image-boot/1",
        "ok": ok,
        "boot_s": seconds,
        "measured_boot_s": measured,
        "pcr11_predicted": own[0], "pcr11_booted": found[0],
        "pcr4_predicted": own[1], "pcr4_booted": found[1],
        "pcr9_predicted": own[2], "pcr9_booted": found[2],
        "pcr12_empty": nothing_added,
        "pcr11_with_another_command_line": found_other[0],
        "other_command_line_as_predicted": others == found_other,
    });
    Ok((said, ok))
}
