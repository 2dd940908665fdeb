//! `openrelay update`: replaces this program with the newest one that validators have rebuilt and approved.
//!
//! Owns the program's file, and the note of the version installed last. It never installs an older version after a
//! newer one. The previous program is kept beside the new one.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use openrelay_chain::attestation::Approved;
use openrelay_chain::package::{PackageError, fetch, newest, packages};
use openrelay_client::{Options, standard_for};
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::Origin;
use openrelay_node::directory::replace;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::control::folders;
use crate::directory::origin;
use crate::failure::Failure;
use crate::findings;
use crate::output::say;
use crate::program::Program;

/// The version that was installed last.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Installed {
    version: u64,
    /// SHA-256 of the program in hexadecimal digits.
    hash: String,
}

/// Looks for a newer program, and installs it unless `check` is set.
pub(crate) fn update(
    program: &Program,
    config: &Path,
    into: Option<&Path>,
    check: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let Origin::Chain(chain) = origin(config)? else {
        return Err(Failure::plain("packages are approved on a chain, but this configuration uses a signed directory"));
    };
    let options = Options { one_hop: false, folders: folders(), standard: program.standard.clone() };
    let policy = standard_for(config, &options)?.policy;
    let place = match into {
        Some(place) => place.to_owned(),
        None => {
            std::env::current_exe().map_err(|error| Failure::plain(format!("cannot find this program: {error}")))?
        }
    };
    let all = packages(&chain, unix_seconds())?;
    let own = fs::read(&place).ok().map(|bytes| openrelay_image::hex(&openrelay_image::sha256(&bytes)));
    let installed = installed(own.as_deref(), &all)?;
    let Some(package) = newest(&all, &policy)? else {
        return Err(Failure::plain("validators have approved no usable client package"));
    };
    let hash = openrelay_image::hex(&package.image.hash);
    let version = package.version;
    if version < installed {
        let why = format!(
            "the newest approved package is version {version}, but version {installed} was installed before; \
             endpoints show an old block, or that version was revoked; nothing was changed"
        );
        return Err(Failure::new(5, why));
    }
    let told = |done: &str| {
        if as_json {
            let said = json!({
                "schema": "openrelay.update/1", "version": version, "package": hash, "round": package.round,
                "done": done, "rebuilt_by": findings::addresses(&package.image.rebuilt_by),
            });
            return say(&said.to_string());
        }
        say(&format!("package   {hash}   version {version}, approved in round {}", package.round));
        say(&format!("rebuilt   {}", findings::rebuilders(&policy, &package.image)));
        say(&format!("          {done}"));
    };
    if own.as_ref() == Some(&hash) {
        note(version, &hash)?;
        told(&format!("{} is up to date", place.display()));
        return Ok(());
    }
    if check {
        told("an update is available; run: openrelay update");
        return Ok(());
    }
    let bytes = fetch(&chain, &package.image)?;
    let before = install(&place, &bytes, |folder| fs::File::open(folder)?.sync_all())?;
    note(version, &hash)?;
    told(&match before {
        Some(before) => format!("installed as {}; the previous program is {}", place.display(), before.display()),
        None => format!("installed as {}", place.display()),
    });
    Ok(())
}

/// Returns the newest version known to be installed: from the note, or from the program in place. A program that
/// nobody approved counts as version 0.
fn installed(own: Option<&str>, all: &[Approved]) -> Result<u64, Failure> {
    let known = all.iter().rev().find(|package| Some(openrelay_image::hex(&package.image.hash).as_str()) == own);
    let known = known.map_or(0, |package| package.version);
    let path = notes();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(known),
        Err(error) => return Err(Failure::plain(format!("cannot read {}: {error}", path.display()))),
    };
    let installed: Installed = serde_json::from_str(&text).map_err(|error| {
        Failure::plain(format!("{} is malformed: {error}; delete it to forget the installed version", path.display()))
    })?;
    Ok(installed.version.max(known))
}

fn notes() -> PathBuf {
    folders().state.join("installed.json")
}

fn note(version: u64, hash: &str) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::plain(format!("cannot write {}: {error}", notes().display()));
    fs::create_dir_all(folders().state).map_err(cannot)?;
    let text = serde_json::to_string(&Installed { version, hash: hash.to_owned() }).map_err(Failure::plain)?;
    replace(&notes(), text.as_bytes()).map_err(cannot)
}

/// Puts a program in its place, completely or not at all, with mode and owner of the previous one. Returns where the
/// previous one is kept. `sync` writes the folder's new entries to the disk.
fn install(place: &Path, bytes: &[u8], sync: impl FnOnce(&Path) -> io::Result<()>) -> Result<Option<PathBuf>, Failure> {
    let beside = |end: &str| {
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(end);
        place.with_file_name(name)
    };
    let cannot = |what: &str, error: io::Error| {
        Failure::plain(format!("cannot {what} {}: {error}; nothing was changed", place.display()))
    };
    let (new, before) = (beside(".new"), beside(".previous"));
    replace(&new, bytes).map_err(|error| cannot("write beside", error))?;
    let old = match fs::metadata(place) {
        Ok(old) => Some(old),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(cannot("inspect", error)),
    };
    if let Some(old) = &old {
        chown(&new, Some(old.uid()), Some(old.gid())).map_err(|error| cannot("keep the owner of", error))?;
    }
    // After the owner, because changing the owner clears mode bits. Set-ID bits are not carried over to other code.
    let mode = old.as_ref().map_or(0o755, |old| old.mode() & 0o777);
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(|error| cannot("keep the mode of", error))?;
    if old.is_some() {
        // A second name for the old program, so that a program is in place at every moment.
        let _ = fs::remove_file(&before);
        fs::hard_link(place, &before).map_err(|error| cannot("keep", error))?;
    }
    fs::rename(&new, place).map_err(|error| cannot("replace", error))?;
    let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(folder).map_err(|error| {
        let why = "the new program is in place, but a power failure could bring the old one back";
        Failure::plain(format!("cannot write {} to the disk: {error}; {why}", folder.display()))
    })?;
    Ok(old.map(|_| before))
}

impl From<PackageError> for Failure {
    fn from(error: PackageError) -> Self {
        let code = match &error {
            PackageError::Chain(error) => Self::from(error.clone()).code(),
            PackageError::Unserved => 3,
            PackageError::Unproven(_) | PackageError::NoManifest(_) | PackageError::Refused { .. } => 5,
            PackageError::NoContracts | PackageError::Missing(_) => 1,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use openrelay_chain::ChainError;

    use super::*;

    #[test]
    fn program_is_replaced_with_mode_and_owner_kept_and_its_folder_synced_last() {
        let folder = std::env::temp_dir().join(format!("openrelay-install-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let place = folder.join("openrelay");
        let mut synced = false;
        let before = install(&place, b"one", |_| {
            synced = true;
            Ok(())
        })
        .unwrap();
        assert_eq!((before, fs::metadata(&place).unwrap().mode() & 0o7777, synced), (None, 0o755, true));
        fs::set_permissions(&place, fs::Permissions::from_mode(0o4750)).unwrap();
        let old = fs::metadata(&place).unwrap();
        let mut seen = None;
        let before = install(&place, b"two", |synced| {
            seen = Some((synced.to_owned(), fs::read(&place)?));
            Ok(())
        });
        assert_eq!(seen, Some((folder.clone(), b"two".to_vec())), "the new name is there when the folder is synced");
        let new = fs::metadata(&place).unwrap();
        assert_eq!((new.mode() & 0o7777, new.uid(), new.gid()), (0o750, old.uid(), old.gid()));
        assert_eq!(fs::read(before.unwrap().unwrap()).unwrap(), b"one");
        // Without a sync that succeeds there is no success.
        let failed = install(&place, b"three", |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert!(failed.to_string().contains("a power failure could bring the old one back"), "{failed}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn unreachable_sources_are_not_a_refusal() {
        let unreached = ChainError::Unreached { what: "no endpoint", faults: Vec::new() };
        let code = |error: PackageError| Failure::from(error).code();
        assert_eq!(code(PackageError::Chain(unreached)), 3);
        assert_eq!(code(PackageError::Chain(ChainError::Unserved(Vec::new()))), 3);
        assert_eq!(code(PackageError::Unserved), 3);
        // A source that answers without a proof, or leaves something out, is refused.
        assert_eq!(code(PackageError::Chain(ChainError::Endpoints(Vec::new()))), 5);
        assert_eq!(code(PackageError::NoManifest(2)), 5);
    }

    /// Only root can give a file to another user; without root the test passes.
    #[test]
    fn owner_of_the_old_program_is_kept() {
        let place = std::env::temp_dir().join(format!("openrelay-owner-{}", std::process::id()));
        fs::write(&place, b"one").unwrap();
        let given = chown(&place, Some(65_534), Some(65_534)).is_ok();
        install(&place, b"two", |_| Ok(())).unwrap();
        let new = fs::metadata(&place).unwrap();
        assert!(!given || (new.uid(), new.gid()) == (65_534, 65_534), "{new:?}");
        for end in ["", ".previous"] {
            fs::remove_file(format!("{}{end}", place.display())).unwrap();
        }
    }
}
