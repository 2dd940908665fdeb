//! Starting images in virtual machines, emulated: to see what firmware measures, and to let a relay in one carry circuits.
//!
//! Owns QEMU's arguments and its processes. There is no chip here that would measure or encrypt anything: what is shown is the builder and the boot.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use openrelay_image::{hex, pcr, pe};
use serde_json::{Value, json};

use crate::host::Missing;
use crate::say;

/// Memory of a machine, in MiB.
const MEMORY: &str = "256";
/// What a boot may take: by the kernel directly, and through firmware with a TPM.
const DIRECT: Duration = Duration::from_secs(10);
const FIRMWARE: Duration = Duration::from_secs(30);
/// Firmware that measures into a TPM, of Debian's package `ovmf`.
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const TOOLS: [(&str, &str); 2] = [("qemu-system-x86_64", "qemu-system-x86"), ("swtpm", "swtpm")];

/// Checks that everything that machines are made with is there.
pub(crate) fn check_tools() -> Result<()> {
    let mut missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| crate::host::find(tool).is_none()).map(|(_, package)| *package).collect();
    if !Path::new(CODE).exists() {
        missing.push("ovmf");
    }
    if !missing.is_empty() {
        let line = format!("missing tools; install them with: apt-get install -y {}", missing.join(" "));
        return Err(Missing::new(line).into());
    }
    Ok(())
}

/// QEMU's arguments that all machines have in common: no disk, no display, nothing by default. A processor with all that can be emulated, so that random numbers are there at once,
/// but for VAES: QEMU 7.2 gets it wrong, and packets of AEGIS do not open.
fn qemu(command: &mut Command) {
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-machine", "q35,accel=tcg", "-cpu", "max,-vaes"]);
    command.args(["-m", MEMORY, "-smp", "1", "-display", "none", "-serial", "stdio", "-monitor", "none"]);
}

/// A process that ends with its owner.
pub(crate) struct Machine {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
        let console = child.stdout.take().context("no console")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || read_console(console, &sender));
        Ok(Self { child, lines })
    }

    /// The line of the console in which `word` stands, once it comes.
    pub(crate) fn await_line(&self, word: &str, patience: Duration) -> Result<String> {
        let until = Instant::now() + patience;
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(word) => return Ok(line),
                Ok(line) => said.push(line),
                Err(_) => bail!("the machine does not say {word} within {patience:?}; it said: {}", said.join(" | ")),
            }
        }
    }

    /// Ends it at once, as when somebody pulls the plug.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

fn read_console(console: ChildStdout, lines: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(console);
    let mut line = Vec::new();
    // Firmware writes what is no text, too.
    while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        if lines.send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
            return;
        }
        line.clear();
    }
}

/// Starts the kernel of an image directly, with a card if there is one to connect it to, and two ports.
pub(crate) struct Parts {
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
}

impl Parts {
    /// Takes an image apart, into files of this folder.
    pub(crate) fn of(image: &[u8], dir: &Path) -> Result<Self> {
        let part = |name: &str| pe::section(image, name).with_context(|| format!("the image has no {name}"));
        let this = Self {
            kernel: dir.join("linux"),
            initrd: dir.join("initrd"),
            cmdline: String::from_utf8_lossy(part(".cmdline")?).into_owned(),
        };
        fs::write(&this.kernel, part(".linux")?)?;
        fs::write(&this.initrd, part(".initrd")?)?;
        Ok(this)
    }

    /// A machine of these parts; `command` runs QEMU where its network is, `ports` is the folder for the sockets of its ports.
    pub(crate) fn start(&self, mut command: Command, network: &[&str], ports: Option<&Path>) -> Result<Machine> {
        qemu(&mut command);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd).args(["-append", &self.cmdline]);
        command.args(network);
        if let Some(ports) = ports {
            command.args(["-device", "virtio-serial-pci"]);
            for name in ["config", "feed"] {
                let socket = ports.join(name);
                command.args(["-chardev", &format!("socket,id={name},path={},server=on,wait=off", socket.display())]);
                command.args(["-device", &format!("virtserialport,chardev={name},name=org.openrelay.{name}")]);
            }
        }
        Machine::start(command)
    }
}

/// Tells a machine its configuration.
pub(crate) fn configure(ports: &Path, config: &[u8]) -> Result<()> {
    let until = Instant::now() + DIRECT;
    let mut stream = loop {
        match UnixStream::connect(ports.join("config")) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > until => {
                return Err(error).context("the machine has no port for its configuration");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.write_all(config).context("cannot tell the machine its configuration")?;
    // Open until the other side has read it all: it ends when the machine does.
    std::thread::spawn(move || stream.read(&mut [0; 1]));
    Ok(())
}

/// Boots an image with firmware and a TPM; the line that its first process says.
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
    let tpm = Machine { child: tpm, lines: mpsc::channel().1 };
    let until = Instant::now() + DIRECT;
    while !socket.exists() {
        ensure!(Instant::now() < until, "swtpm does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut command = Command::new("qemu-system-x86_64");
    qemu(&mut command);
    command.arg("-drive").arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={CODE}"));
    command.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={}", variables.display()));
    command.arg("-chardev").arg(format!("socket,id=tpm,path={}", socket.display()));
    command.args(["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]);
    command.arg("-kernel").arg(image);
    let started = Instant::now();
    let machine = Machine::start(command)?;
    let line = machine.await_line("ready kernel=", FIRMWARE)?;
    let seconds = started.elapsed().as_secs_f64();
    machine.kill();
    drop(tpm);
    Ok((line, seconds))
}

/// A register in the line that the first process of an image says.
fn register(line: &str, number: u32) -> Result<String> {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(&format!("pcr{number}=")));
    word.map(str::to_owned).with_context(|| format!("the machine has no register {number}: {line}"))
}

/// The image with one character more in its command line.
fn with_another_cmdline(image: &[u8]) -> Result<Vec<u8>> {
    let mut other = image.to_vec();
    let header = image.windows(8).position(|bytes| bytes == b".cmdline").context("no command line")?;
    let number = |at: usize| -> Result<u32> {
        Ok(u32::from_le_bytes(*image.get(at..).and_then(<[u8]>::first_chunk).context("no header")?))
    };
    let (size, begin) = (number(header + 8)?, number(header + 20)?);
    other[header + 8..header + 12].copy_from_slice(&(size + 1).to_le_bytes());
    // Not a space, which the stub takes off the end.
    other[usize::try_from(begin + size)?] = b'x';
    Ok(other)
}

/// `openrelay-dev boot IMAGE`: what was predicted of an image, against what a machine measures.
pub(crate) fn check(image: &Path, as_json: bool) -> Result<()> {
    check_tools()?;
    let (found, ok) = crate::scenario::in_a_folder(|dir| boots(image, dir))?;
    if as_json {
        say(&found.to_string());
    } else {
        for (name, value) in found.as_object().into_iter().flatten() {
            say(&format!("{name:<24} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
    }
    ensure!(ok, "not everything is as predicted");
    Ok(())
}

fn boots(path: &Path, dir: &Path) -> Result<(Value, bool)> {
    let image = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let started = Instant::now();
    let command = Command::new("qemu-system-x86_64");
    let machine = Parts::of(&image, dir)?.start(command, &[], None)?;
    machine.await_line("ready kernel=", DIRECT)?;
    let direct = started.elapsed().as_secs_f64();
    machine.kill();
    let (line, firmware) = measured_boot(path, dir)?;
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
        "direct_boot_s": direct,
        "firmware_boot_s": firmware,
        "pcr11_predicted": own[0], "pcr11_booted": found[0],
        "pcr4_predicted": own[1], "pcr4_booted": found[1],
        "pcr9_predicted": own[2], "pcr9_booted": found[2],
        "pcr12_empty": nothing_added,
        "pcr11_with_another_command_line": found_other[0],
        "other_command_line_as_predicted": others == found_other,
    });
    Ok((said, ok))
}
