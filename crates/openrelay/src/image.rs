//! `openrelay image`: builds, measures, compares, verifies and shows relay images and the client's package.
//!
//! Owns files, downloads and the compiler's settings; `openrelay-image` defines what an image is. Never runs anything
//! out of a package.

mod compile;
mod firmware;
mod inputs;
mod measure;
mod show;
mod vendor;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use openrelay_attest::manifest::Manifest;
use openrelay_image::compare::first_difference;
use openrelay_image::lock::{Lock, Role};
use openrelay_image::pack::{Image, Programs, pack};
use openrelay_image::{hex, sha256};
use openrelay_ledger::chain::voted::{CLIENT_PACKAGE, RELAY_IMAGE};
use serde_json::{Value, json};

use crate::confined::{Confined, Confinement};
use crate::directory::ConfigArgument;
use crate::failure::Failure;
use crate::output::{say, talk};
use crate::program::Program;
use inputs::packages_of;

/// The names of the files that a build writes.
pub(crate) const IMAGE: &str = "image.efi";
pub(crate) const MANIFEST: &str = "manifest.json";
const FIRMWARE: &str = "firmware.fd";
/// The name of the client's package, the program itself.
pub(crate) const CLIENT: &str = "openrelay";
/// The largest file that is read, in bytes; compilers are the largest.
const MAX_READ: u64 = 512 << 20;
/// What a build makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Kind {
    /// The image that relays run.
    Relay,
    /// The client's own program.
    Client,
}

impl Kind {
    /// Returns the kind with the contract's number.
    pub(crate) fn of(number: u8) -> Option<Self> {
        [Self::Relay, Self::Client].into_iter().find(|kind| kind.number() == number)
    }

    const fn number(self) -> u8 {
        match self {
            Self::Relay => RELAY_IMAGE,
            Self::Client => CLIENT_PACKAGE,
        }
    }

    /// Returns the name of the built file.
    pub(crate) const fn file(self) -> &'static str {
        match self {
            Self::Relay => IMAGE,
            Self::Client => CLIENT,
        }
    }
}

#[derive(clap::Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a source tree and its locked inputs
    Build {
        #[command(flatten)]
        build: BuildArguments,
        /// Folder for image, manifest and firmware
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Build the boot firmware from the source in the lock file
    Firmware {
        #[command(flatten)]
        build: BuildArguments,
        /// File to write the firmware to
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Apply an additional patch, for tests only; repeatable
        ///
        /// The result is not the approved firmware.
        #[arg(long = "patch", value_name = "FILE")]
        patches: Vec<PathBuf>,
    },
    /// Compare this machine's tools with the lock file
    Lock {
        /// Write this machine's tools into the lock file
        #[arg(long)]
        update: bool,
        /// Lock file
        #[arg(long, value_name = "FILE", default_value = "image/inputs.lock")]
        lock: PathBuf,
    },
    /// Print what firmware and chips will report of an image
    Measure {
        /// Image file
        image: PathBuf,
        /// Lock file of the image's inputs
        #[arg(long, value_name = "FILE", default_value = "image/inputs.lock")]
        lock: PathBuf,
        /// Firmware; by default the one beside the image
        #[arg(long, value_name = "FILE")]
        firmware: Option<PathBuf>,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Rebuild an image here and compare it with approved ones
    Verify {
        #[command(flatten)]
        build: BuildArguments,
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// List approved images, with rebuilders and votes
    ///
    /// Rebuilders have signed that they rebuilt an image. Votes are listed by validator.
    Show {
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Show where two images differ: section, file and byte
    Diff {
        /// First image
        one: PathBuf,
        /// Second image
        two: PathBuf,
    },
}

pub(crate) fn run(program: &Program, command: &ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Build { build, out, json } => {
            // Before the build, which takes minutes.
            std::fs::create_dir_all(out)
                .map_err(|error| Failure::plain(format!("cannot create {}: {error}", out.display())))?;
            let built = make(build)?;
            write(out, &built, build.kind)?;
            tell(&built, *json);
            Ok(())
        }
        ImageCommand::Firmware { build, out, patches } => {
            let lock = read_lock(&build.lock())?;
            compile::check_tools(build, &lock)?;
            let built =
                firmware::build(build, &lock, &packages_of(build, &lock, |role| role == Role::Firmware)?, patches)?;
            openrelay_node::directory::replace(out, &built)
                .map_err(|error| Failure::plain(format!("cannot write {}: {error}", out.display())))?;
            let modules = openrelay_image::firmware::modules(&built).map_err(Failure::plain)?;
            say(&format!("firmware  {}   {} bytes", hex(&sha256(&built)), built.len()));
            say(&format!("modules   {}: {}", modules.len(), modules.join(" ")));
            Ok(())
        }
        ImageCommand::Lock { update, lock } => lock_tools(lock, *update),
        ImageCommand::Measure { image, lock, firmware, json } => {
            measure::measure(image, lock, firmware.as_deref(), *json)
        }
        ImageCommand::Verify { build, config } => verify::verify(program, build, &config.config),
        ImageCommand::Show { json, config } => show::show(program, &config.config, *json),
        ImageCommand::Diff { one, two } => match first_difference(&read(one)?, &read(two)?) {
            None => {
                say("the same");
                Ok(())
            }
            Some(difference) => {
                say(&difference);
                Err(Failure::new(1, "the images differ"))
            }
        },
    }
}

/// The inputs and settings of a build.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BuildArguments {
    /// Source tree
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) source: PathBuf,
    /// Lock file of inputs; default: the tree's own
    #[arg(long, value_name = "FILE")]
    pub(crate) lock: Option<PathBuf>,
    /// Folder that keeps packages and crates by hash
    #[arg(long, value_name = "DIR", env = "OPENRELAY_INPUTS")]
    pub(crate) inputs: Option<PathBuf>,
    /// Archive or mirror to download from; repeatable
    ///
    /// Packages come from these archives first, then from the archives in apt's sources. A mirror serves packages and
    /// crates by hash.
    #[arg(long, value_name = "URL")]
    pub(crate) from: Vec<String>,
    /// Folder for the compiler's output
    #[arg(long, value_name = "DIR")]
    pub(crate) target: Option<PathBuf>,
    /// What to build: the relay image or the client program
    #[arg(long, value_enum, default_value_t = Kind::Relay)]
    pub(crate) kind: Kind,
    /// Pack these programs instead of compiling them
    ///
    /// For a relay: first init, then relay. For the client: its one program.
    #[arg(long, num_args = 1..=2, value_name = "PROGRAM")]
    pub(crate) programs: Option<Vec<PathBuf>>,
    /// Pack this firmware instead of building it
    #[arg(long, value_name = "FILE")]
    pub(crate) firmware: Option<PathBuf>,
    /// Compile the simulated relay, for development networks
    #[arg(long)]
    pub(crate) simulate: bool,
    /// Version number of the image
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) version: u64,
    /// Whether a build fails if the compiler cannot be confined. `openrelay image build` confines it where possible,
    /// because the user supplies the tree.
    #[arg(skip = Confinement::WherePossible)]
    pub(crate) confinement: Confinement,
    /// Time limit for compilation, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 7_200)]
    pub(crate) time: u64,
    /// Latest end of compilation; by default its start plus the time limit
    #[arg(skip)]
    pub(crate) deadline: Option<Instant>,
}

/// A built image or package.
pub(crate) struct Built {
    pub(crate) image: Image,
    pub(crate) manifest: Manifest,
    /// The seconds that each stage took.
    stages: Vec<(&'static str, f64)>,
}

/// Builds an image or the client's package.
pub(crate) fn make(build: &BuildArguments) -> Result<Built, Failure> {
    let build = &BuildArguments { deadline: Some(build.until()), ..build.clone() };
    let lock = read_lock(&build.lock())?;
    let mut stages = Vec::new();
    let mut stage = |name, started: Instant| {
        let seconds = started.elapsed().as_secs_f64();
        talk(&format!("openrelay: {seconds:>6.1} s  {name}"));
        stages.push((name, seconds));
    };
    let started = Instant::now();
    let packages = match build.kind {
        // Packing needs all packages, except the source of firmware that is built already.
        Kind::Relay => packages_of(build, &lock, |role| role != Role::Firmware || build.firmware.is_none())?,
        // The client contains no Debian package.
        Kind::Client => BTreeMap::new(),
    };
    if !packages.is_empty() {
        stage("packages are complete and match the lock file", started);
    }
    let started = Instant::now();
    if build.programs.is_none() || build.kind == Kind::Relay && build.firmware.is_none() {
        compile::check_tools(build, &lock)?;
    }
    let programs = match build.programs.as_deref() {
        Some(paths) => paths.iter().map(|path| read(path)).collect::<Result<_, _>>()?,
        None => compile::compile(build)?,
    };
    stage("programs are ready", started);
    let started = Instant::now();
    let firmware = match (build.kind, build.firmware.as_deref()) {
        (Kind::Client, _) => Vec::new(),
        (Kind::Relay, Some(path)) => read(path)?,
        (Kind::Relay, None) => {
            let firmware = firmware::build(build, &lock, &packages, &[])?;
            stage("firmware is ready", started);
            firmware
        }
    };
    let started = Instant::now();
    let version = build.version;
    let (image, manifest) = match (build.kind, <[Vec<u8>; 2]>::try_from(programs)) {
        (Kind::Relay, Ok([init, relay])) => {
            let image = pack(&lock, &packages, Programs { init, relay, firmware }).map_err(Failure::of_source)?;
            stage("packed", started);
            let started = Instant::now();
            let manifest = image.manifest(&lock, build.kind.number(), version).map_err(Failure::of_source)?;
            stage("measured", started);
            (image, manifest)
        }
        (Kind::Client, Err(mut programs)) if programs.len() == 1 => {
            // The program alone: no hardware starts or measures it.
            let image = Image { file: programs.remove(0), firmware: Vec::new() };
            let (kind, image_hash) = (build.kind.number(), image.hash());
            let (shapes, advisories) = (Vec::new(), Vec::new());
            let manifest = Manifest { kind, version, firmware_generation: None, image: image_hash, shapes, advisories };
            (image, manifest)
        }
        (Kind::Relay, _) => return Err(Failure::new(2, "--programs needs two files for a relay image")),
        (Kind::Client, _) => return Err(Failure::new(2, "--programs needs one file for the client package")),
    };
    Ok(Built { image, manifest, stages })
}

/// Writes the built files, each completely or not at all. Writes the manifest last, because it stands for all of
/// them.
fn write(out: &Path, built: &Built, kind: Kind) -> Result<(), Failure> {
    let put = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        openrelay_node::directory::replace(&path, bytes)
            .map_err(|error| Failure::plain(format!("cannot write {}: {error}", path.display())))
    };
    // A previous image's manifest would otherwise stand beside another image.
    let _ = std::fs::remove_file(out.join(MANIFEST));
    put(kind.file(), &built.image.file)?;
    if kind == Kind::Relay {
        put(FIRMWARE, &built.image.firmware)?;
    }
    put(MANIFEST, &built.manifest.encode())
}

fn tell(built: &Built, as_json: bool) {
    let manifest = hex(&sha256(&built.manifest.encode()));
    if as_json {
        let stages: Vec<Value> =
            built.stages.iter().map(|(name, seconds)| json!({"stage": name, "seconds": seconds})).collect();
        let said = json!({
            "schema": "openrelay.image-build/1", "image": hex(&built.image.hash()), "manifest": manifest,
            "bytes": built.image.file.len(), "stages": stages,
        });
        return say(&said.to_string());
    }
    say(&format!("image     {}   {} bytes", hex(&built.image.hash()), built.image.file.len()));
    say(&format!("manifest  {manifest}   {} machine shapes", built.manifest.shapes.len()));
}

/// Removes a build folder if it exists, even one with folders that lack permissions, or that are nested deeper than
/// the longest possible path.
pub(crate) fn remove(folder: &Path) -> Result<(), Failure> {
    let missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    match std::fs::remove_dir_all(folder) {
        Ok(()) => return Ok(()),
        Err(error) if missing(&error) => return Ok(()),
        Err(_) => {}
    }
    // Neither program follows a link below the folder, and no built program is running any more.
    for (program, options) in [("chmod", &["-R", "u+rwX", "--"][..]), ("rm", &["-rf", "--"])] {
        let _ = Command::new(program).args(options).arg(folder).stderr(std::process::Stdio::null()).status();
    }
    match std::fs::symlink_metadata(folder) {
        Err(error) if missing(&error) => Ok(()),
        _ => Err(Failure::new(77, format!("cannot remove {}; remove it by hand", folder.display()))),
    }
}

/// Reads a regular file whose size fits images, programs and tools.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let fault = |why: &dyn std::fmt::Display| Failure::plain(format!("cannot read {}: {why}", path.display()));
    let about = std::fs::metadata(path).map_err(|error| fault(&error))?;
    if !about.is_file() {
        return Err(fault(&"it is not a regular file"));
    }
    if about.len() > MAX_READ {
        return Err(fault(&format!("it has {} bytes; at most {MAX_READ} are allowed", about.len())));
    }
    std::fs::read(path).map_err(|error| fault(&error))
}

fn read_lock(path: &Path) -> Result<Lock, Failure> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    Lock::parse(&text).map_err(|error| Failure::of_source(format!("{}: {error}", path.display())))
}

impl BuildArguments {
    /// Returns the latest end of a build that begins now.
    fn until(&self) -> Instant {
        self.deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(self.time))
    }

    /// Returns the lock's path: in the source tree unless it is given.
    fn lock(&self) -> PathBuf {
        self.lock.clone().unwrap_or_else(|| self.source.join("image/inputs.lock"))
    }
}

/// Compares this machine's tools with the lock's, or writes them into the lock.
fn lock_tools(path: &Path, update: bool) -> Result<(), Failure> {
    let lock = read_lock(path)?;
    let mut text = String::from_utf8_lossy(&read(path)?).into_owned();
    let mut others = 0;
    for tool in &lock.tools {
        let (place, found) = compile::find_tool(tool, |program| Confined::new(program, Confinement::WherePossible))?;
        if found == tool.sha256 {
            continue;
        }
        others += 1;
        say(&format!("{}   {found}   {}   the lock file requires {}", tool.name, place.display(), tool.sha256));
        // Replace the hash after this name only: two tools can have been the same file.
        let name = format!("name = \"{}\"\n", tool.name);
        let at =
            text.find(&name).ok_or_else(|| Failure::plain(format!("the lock file has no line {}", name.trim())))?;
        let (before, after) = text.split_at(at);
        text = format!("{before}{}", after.replacen(&tool.sha256, &found, 1));
    }
    if others == 0 {
        say("all tools match the lock file");
        return Ok(());
    }
    if !update {
        let why = format!("{others} tools differ from the lock file; --update writes these into it");
        return Err(Failure::new(1, why));
    }
    openrelay_node::directory::replace(path, text.as_bytes())
        .map_err(|error| Failure::plain(format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_lock_is_the_source_trees_fault() {
        let path = std::env::temp_dir().join(format!("openrelay-lock-{}", std::process::id()));
        std::fs::write(&path, "no lock").unwrap();
        let failure = read_lock(&path).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((failure.code(), failure.is_of_source()), (1, true), "{failure}");
    }

    #[test]
    fn folder_that_a_build_made_hard_to_remove_is_removed() {
        let folder = std::env::temp_dir().join(format!("openrelay-remove-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("locked/inside")).unwrap();
        // Deeper than a path can be long.
        let script = "cd \"$0\" && n=$(printf %0200d 0) && for i in $(seq 30); do mkdir $n && cd -P $n || exit 1; done";
        assert!(Command::new("sh").args(["-c", script]).arg(&folder).status().unwrap().success());
        assert!(Command::new("chmod").arg("000").arg(folder.join("locked")).status().unwrap().success());
        remove(&folder).unwrap();
        assert!(!folder.exists());
        remove(&folder).unwrap();
    }
}
