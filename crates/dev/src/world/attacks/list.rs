//! The attacks, each with the machine on which it is tried.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use openrelay_image::snp;

use super::outcome::Outcome;
use super::programs;
use super::{aml, flash};
use crate::world::boot::{Parts, in_memory, in_option, item};

/// Path of the host's boot-entry program on a disk.
const PROGRAM: &str = "HOST/HOST.EFI";
/// The card with an option ROM: its device name, vendor ID and device ID.
const CARD: (&str, u16, u16) = ("e1000", 0x8086, 0x100e);
/// Items that other firmware reads, with contents that it would use. With [`OTHER`] the list is complete.
const ITEMS: [(&str, &[u8]); 13] = [
    ("bootorder", b"/pci@i0cf8/scsi@3/disk@0,0\nHALT\n\0"),
    ("etc/boot-menu-wait", &[0xff; 2]),
    ("etc/boot/ucode", &[0xff; 4]),
    ("etc/extra-pci-roots", &[0xff; 8]),
    ("etc/reserved-memory-end", &[0xff; 8]),
    ("etc/igd-opregion", &[0xff; 64]),
    ("etc/tpm/config", &[0xff; 8]),
    ("etc/edk2/https/cacerts", &[0xff; 4_096]),
    ("etc/edk2/https/ciphers", &[0xff; 64]),
    ("opt/ovmf/X-PciMmio64Mb", b"18446744073709551615"),
    ("opt/ovmf/PcdSetNxForStack", b"N"),
    ("opt/org.tianocore/FirmwareSetupSupport", b"yes"),
    ("opt/org.tianocore/EFIShellSupport", b"yes"),
];

/// An item with a program of the host, besides those that the firmware reads.
const OTHER: &str = "etc/boot/other";

/// The clock of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Clock {
    Right,
    Nonsense,
}

/// A machine, as a host configures it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Setup {
    pub(super) kernel: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    pub(super) cmdline: Option<PathBuf>,
    /// The hash table.
    pub(super) hashes: Option<PathBuf>,
    /// A flash unit with variables. The firmware is then in another unit.
    pub(super) variables: Option<PathBuf>,
    pub(super) clock: Clock,
    /// Whether the machine claims to resume.
    pub(super) resumes: bool,
    /// Further arguments of the emulator.
    pub(super) more: Vec<OsString>,
}

impl Setup {
    fn with(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.more.extend(arguments.into_iter().map(Into::into));
        self
    }

    fn without_parts(self) -> Self {
        Self { kernel: None, initrd: None, cmdline: None, ..self }
    }
}

/// An attack: the machine in which the approved image must boot, and what the host changes.
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// Whether only a halt counts as refusal.
    must_halt: bool,
    pub(super) control: fn(&Host) -> Setup,
    pub(super) attack: fn(&Host, Setup) -> Setup,
}

impl Attack {
    /// Returns whether an outcome counts as refusal.
    pub(super) fn refused(&self, outcome: &Outcome) -> bool {
        *outcome == Outcome::Halted || !self.must_halt && *outcome == Outcome::Unharmed
    }

    /// Returns whether the firmware started something that it must not start.
    pub(super) fn succeeds(&self, outcome: &Outcome) -> bool {
        *outcome == Outcome::HostCode || self.must_halt && *outcome == Outcome::Unharmed
    }
}

/// The files of a hostile host: the approved parts and its own.
pub(super) struct Host {
    pub(super) parts: Parts,
    pub(super) dir: PathBuf,
}

impl Host {
    /// Writes the host's files into the folder `dir`.
    pub(super) fn new(parts: Parts, image: &Path, dir: &Path) -> Result<Self> {
        let this = Self { parts, dir: dir.to_owned() };
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let (kernel, initrd) = (read(&this.parts.kernel)?, read(&this.parts.initrd)?);
        let cmdline = read(&this.parts.cmdline)?;
        let cmdline = cmdline.strip_suffix(&[0]).unwrap_or(&cmdline);
        let cmdline = std::str::from_utf8(cmdline)?;
        let application = programs::application();
        let begin = *initrd.first_chunk().context("the image's initrd is empty")?;
        let other = programs::initrd();
        let half = |bytes: &[u8]| bytes.get(..bytes.len() / 2).unwrap_or_default().to_vec();
        let longer = |bytes: &[u8]| [bytes, &[0; 4_096]].concat();
        let page = |kernel: &[u8], initrd: &[u8], cmdline| snp::hash_table(kernel, initrd, cmdline);
        let right = page(&kernel, &initrd, cmdline);
        let mut endless = right.clone();
        endless.splice(16..18, [0xff, 0xff]);
        let files = [
            ("host.efi", application.clone()),
            ("host-image.efi", programs::unified(&read(image)?)?),
            ("host-initrd", other.clone()),
            ("host-cmdline", (programs::cmdline() + "\0").into_bytes()),
            ("print.aml", aml::printing()),
            ("rewrite.aml", aml::rewriting(begin, &other)),
            ("harmless.aml", aml::harmless()),
            ("rom", programs::option_rom(CARD.1, CARD.2)),
            ("erased", flash::erased()),
            ("variables", flash::with_entries(&format!("\\{}", PROGRAM.replace('/', "\\")))),
            ("page-kernel", page(&application, &initrd, cmdline)),
            ("page-initrd", page(&kernel, &other, cmdline)),
            ("page-cmdline", page(&kernel, &initrd, "quiet")),
            ("page-empty", vec![0; right.len()]),
            ("page-endless", endless),
            ("page-short", right.get(..118).unwrap_or_default().to_vec()),
            ("kernel-half", half(&kernel)),
            ("kernel-longer", longer(&kernel)),
            ("initrd-half", half(&initrd)),
            ("initrd-longer", longer(&initrd)),
            ("cmdline-open", cmdline.as_bytes().to_vec()),
            ("nothing", Vec::new()),
        ];
        for (name, bytes) in files {
            fs::write(this.file(name), bytes)?;
        }
        for (number, (_, bytes)) in ITEMS.iter().enumerate() {
            fs::write(this.file(&format!("item-{number}")), bytes)?;
        }
        // Larger than the machine's memory. The file is sparse, so it uses no disk space.
        fs::File::create(this.file("huge"))?.set_len(300 << 20)?;
        for (disk, program) in [("disk", "EFI/BOOT/BOOTX64.EFI"), ("entry-disk", PROGRAM), ("empty-disk", "README")] {
            let program = this.file(disk).join(program);
            fs::create_dir_all(program.parent().context("the program's path has no parent folder")?)?;
            fs::write(program, &application)?;
        }
        Ok(this)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the approved machine.
    fn approved(&self) -> Setup {
        let parts = &self.parts;
        Setup {
            kernel: Some(parts.kernel.clone()),
            initrd: Some(parts.initrd.clone()),
            cmdline: Some(parts.cmdline.clone()),
            hashes: Some(parts.hashes.clone()),
            variables: None,
            clock: Clock::Right,
            resumes: false,
            more: Vec::new(),
        }
    }

    /// Returns arguments that attach a folder as the same disk on three controllers.
    fn disks(&self, folder: &str) -> Vec<String> {
        let folder = in_option(&self.file(folder));
        let drive = |name: &str| format!("if=none,id={name},format=raw,snapshot=on,file=fat:{folder}");
        let drives = ["d0", "d1", "d2"].into_iter().flat_map(|name| ["-drive".into(), drive(name)]);
        let devices =
            ["virtio-blk-pci,drive=d0,romfile=", "ide-hd,drive=d1", "qemu-xhci,id=usb", "usb-storage,drive=d2"];
        drives.chain(devices.into_iter().flat_map(|device| ["-device".into(), device.into()])).collect()
    }

    fn acpi(&self, table: &str) -> [String; 2] {
        ["-acpitable".into(), format!("file={}", in_option(&self.file(table)))]
    }

    fn card(&self, rom: Option<&str>) -> [String; 2] {
        let rom = rom.map(|rom| in_option(&self.file(rom))).unwrap_or_default();
        ["-device".into(), format!("{},romfile={rom}", CARD.0)]
    }

    fn with_disk(&self) -> Setup {
        self.approved().with(self.disks("disk"))
    }

    fn items(&self) -> Vec<OsString> {
        let other = item(OTHER, &self.file("host.efi"));
        let all = ITEMS.iter().enumerate();
        let all = all.flat_map(|(number, (name, _))| item(name, &self.file(&format!("item-{number}"))));
        all.chain(other).collect()
    }

    /// Returns the machine with these files in place of approved parts.
    fn sized(&self, setup: Setup, kernel: Option<&str>, initrd: Option<&str>, cmdline: Option<&str>) -> Setup {
        let or = |file: Option<&str>, approved| file.map(|file| self.file(file)).or(approved);
        Setup {
            kernel: or(kernel, setup.kernel.clone()),
            initrd: or(initrd, setup.initrd.clone()),
            cmdline: or(cmdline, setup.cmdline.clone()),
            ..setup
        }
    }

    fn page(&self, setup: Setup, page: &str) -> Setup {
        Setup { hashes: Some(self.file(page)), ..setup }
    }
}

const fn attack(
    name: &'static str,
    about: &'static str,
    control: fn(&Host) -> Setup,
    attack: fn(&Host, Setup) -> Setup,
) -> Attack {
    Attack { name, about, must_halt: false, control, attack }
}

/// An attack after which no image may run, because an approved part is missing, replaced or out of bounds.
const fn wrong(name: &'static str, about: &'static str, attack: fn(&Host, Setup) -> Setup) -> Attack {
    Attack { name, about, must_halt: true, control: Host::approved, attack }
}

/// All attacks.
pub(super) static ATTACKS: &[Attack] = &[
    attack("shim", "a program as etc/boot/shim", Host::approved, |host, setup| {
        setup.with(item("etc/boot/shim", &host.file("host.efi")))
    }),
    attack("shim-image", "a unified kernel image as etc/boot/shim", Host::approved, |host, setup| {
        setup.with(item("etc/boot/shim", &host.file("host-image.efi")))
    }),
    attack("disk", "a bootable disk and no kernel", Host::with_disk, |_, setup| setup.without_parts()),
    attack("clock", "a nonsensical clock and a bootable disk", Host::with_disk, |_, setup| Setup {
        clock: Clock::Nonsense,
        ..setup
    }),
    attack("clock-no-kernel", "a nonsensical clock, a bootable disk and no kernel", Host::with_disk, |_, setup| {
        Setup { clock: Clock::Nonsense, ..setup.without_parts() }
    }),
    attack("clock-kernel", "a nonsensical clock and another kernel", Host::approved, |host, setup| Setup {
        clock: Clock::Nonsense,
        ..host.sized(setup, Some("host.efi"), None, None)
    }),
    attack(
        "acpi-code",
        "an ACPI table whose code writes to a port",
        |host| host.approved().with(host.acpi("harmless.aml")),
        |host, _| host.approved().with(host.acpi("print.aml")),
    ),
    attack(
        "acpi-initrd",
        "an ACPI table whose code rewrites the initrd in memory",
        |host| host.approved().with(host.acpi("harmless.aml")),
        |host, _| host.approved().with(host.acpi("rewrite.aml")),
    ),
    wrong("kernel", "another kernel", |host, setup| host.sized(setup, Some("host.efi"), None, None)),
    wrong("initrd", "another initrd", |host, setup| host.sized(setup, None, Some("host-initrd"), None)),
    wrong("cmdline", "another command line", |host, setup| host.sized(setup, None, None, Some("host-cmdline"))),
    wrong("page-kernel", "a page with another hash of the kernel", |host, setup| host.page(setup, "page-kernel")),
    wrong("page-initrd", "a page with another hash of the initrd", |host, setup| host.page(setup, "page-initrd")),
    wrong("page-cmdline", "a page with another hash of the command line", |host, setup| {
        host.page(setup, "page-cmdline")
    }),
    wrong("page-none", "a kernel and no page of hashes", |_, setup| Setup { hashes: None, ..setup }),
    wrong("page-none-host", "a kernel of the host and no page of hashes", |host, setup| Setup {
        hashes: None,
        ..host.sized(setup, Some("host.efi"), None, None)
    }),
    wrong("page-empty", "an empty page of hashes", |host, setup| host.page(setup, "page-empty")),
    wrong("page-endless", "a table of hashes that is longer than its page", |host, setup| {
        host.page(setup, "page-endless")
    }),
    wrong("page-short", "a table of hashes without the kernel's", |host, setup| host.page(setup, "page-short")),
    attack(
        "option-rom",
        "a card with an option ROM",
        |host| host.approved().with(host.card(None)),
        |host, _| host.approved().with(host.card(Some("rom"))),
    ),
    attack(
        "variables",
        "a flash unit whose boot entries and drivers name a program on a disk",
        |host| {
            let setup = host.approved().with(host.disks("entry-disk"));
            Setup { variables: Some(host.file("erased")), ..setup }
        },
        |host, setup| Setup { variables: Some(host.file("variables")), ..setup },
    ),
    attack(
        "variables-no-kernel",
        "the same flash unit and no kernel",
        |host| {
            let setup = host.approved().with(host.disks("entry-disk"));
            Setup { variables: Some(host.file("erased")), ..setup }
        },
        |host, setup| Setup { variables: Some(host.file("variables")), ..setup.without_parts() },
    ),
    attack("resume", "a machine that claims to resume, with a program in its memory", Host::approved, |host, setup| {
        Setup { resumes: true, ..setup }.with(in_memory(&host.file("host.efi"), 0x0100_0000))
    }),
    attack("items", "every other item that firmware knows, with hostile contents", Host::approved, |host, setup| {
        setup.with(host.items())
    }),
    attack("no-acpi", "a table loader of the host", Host::approved, |host, setup| {
        let loader =
            [("etc/table-loader", "host.efi"), ("etc/acpi/tables", "print.aml"), ("etc/acpi/rsdp", "host.efi")];
        let loader = loader.map(|(name, file)| item(name, &host.file(file)));
        setup.with(["-machine", "acpi=off"]).with(loader.concat())
    }),
    attack("smbios", "tables that describe the machine and extend the command line", Host::approved, |_, setup| {
        let extra = programs::cmdline();
        setup.with(["-smbios", &format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={extra}")])
    }),
    attack("numbered", "another initrd and command line as numbered items", Host::approved, |host, setup| {
        setup
            .with(["-kernel".into(), host.parts.kernel.clone()])
            .with(["-initrd".into(), host.file("host-initrd")])
            .with(["-append", &programs::cmdline()])
    }),
    wrong("processors", "255 processors", |_, setup| setup.with(["-smp", "255"])),
    wrong("kernel-half", "half of the kernel", |host, setup| host.sized(setup, Some("kernel-half"), None, None)),
    wrong("kernel-longer", "the kernel with appended zeros", |host, setup| {
        host.sized(setup, Some("kernel-longer"), None, None)
    }),
    wrong("kernel-empty", "an empty kernel", |host, setup| host.sized(setup, Some("nothing"), None, None)),
    wrong("kernel-huge", "a kernel that is larger than memory", |host, setup| {
        host.sized(setup, Some("huge"), None, None)
    }),
    wrong("initrd-half", "half of the initrd", |host, setup| host.sized(setup, None, Some("initrd-half"), None)),
    wrong("initrd-longer", "the initrd with appended zeros", |host, setup| {
        host.sized(setup, None, Some("initrd-longer"), None)
    }),
    wrong("initrd-none", "no initrd", |_, setup| Setup { initrd: None, ..setup }),
    wrong("initrd-huge", "an initrd that is larger than memory", |host, setup| {
        host.sized(setup, None, Some("huge"), None)
    }),
    wrong("cmdline-open", "a command line without its zero byte", |host, setup| {
        host.sized(setup, None, None, Some("cmdline-open"))
    }),
    wrong("cmdline-none", "no command line", |_, setup| Setup { cmdline: None, ..setup }),
    wrong("cmdline-huge", "a command line that is larger than memory", |host, setup| {
        host.sized(setup, None, None, Some("huge"))
    }),
];
