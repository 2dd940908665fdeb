//! The crates that a source tree's `Cargo.lock` names, and the files in their archives.
//!
//! Owns the checks of both, since neither is trusted. Names become parts of paths, so a name that could leave a
//! folder is refused. An archive is refused whole if it exceeds the limits of a crate, or holds anything but files
//! and folders below its own folder.
//! Source: cargo, `Cargo.lock` versions 3 and 4; cargo, `ops/cargo_package.rs`.

use std::collections::BTreeSet;
use std::io::Read as _;

use flate2::read::GzDecoder;

use crate::{ImageError, hex, sha256};

/// The only accepted source of crates: cargo's name for its public registry.
pub const SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// Limit on an archive, in bytes.
pub const MAX_ARCHIVE: u64 = 64 << 20;
/// Limit on the content of one archive, in bytes.
const MAX_UNPACKED: u64 = 512 << 20;
/// Limit on files and folders in one archive.
const MAX_ENTRIES: usize = 50_000;
/// Limit on packages in a lock file.
const MAX_PACKAGES: usize = 5_000;
/// Limit on the length of a name and of a version, in bytes.
const MAX_NAME: usize = 64;
/// Limit on a path below a crate's folder, in bytes.
const MAX_PATH: usize = 512;

/// A crate of the public registry, as a lock file names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Crate {
    /// Name: letters, digits, `-` and `_`.
    pub name: String,
    /// Version, in the form of Semantic Versioning.
    pub version: String,
    /// SHA-256 of the archive, in hexadecimal digits.
    pub sha256: String,
}

/// A file in a crate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Path below the crate's folder, separated by `/`.
    pub path: String,
    /// Whether the file is executable.
    pub executable: bool,
    /// Content.
    pub content: Vec<u8>,
}

impl Crate {
    /// Returns the name of the crate's folder; its archive has the suffix `.crate`.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Checks that these bytes are the crate's archive.
    ///
    /// # Errors
    /// [`ImageError::OtherInput`] if the hash differs.
    pub fn check(&self, archive: &[u8]) -> Result<(), ImageError> {
        let found = hex(&sha256(archive));
        if found == self.sha256 {
            return Ok(());
        }
        Err(ImageError::OtherInput { name: self.folder(), found, wanted: self.sha256.clone() })
    }

    /// Returns the files in the archive, which must have the hash of the lock file.
    ///
    /// # Errors
    /// [`ImageError`] if the hash differs, or the archive holds anything but files and folders below its own folder.
    pub fn unpack(&self, archive: &[u8]) -> Result<Vec<File>, ImageError> {
        self.check(archive)?;
        let folder = self.folder();
        let fault = |why: String| ImageError::Package { package: folder.clone(), why };
        let broken = |error: std::io::Error| fault(format!("its archive cannot be read: {error}"));
        let too_much = || fault(format!("it holds more than {MAX_UNPACKED} bytes or {MAX_ENTRIES} files"));
        // Reads beyond the limit, so that truncation at the limit is noticed.
        let mut left = MAX_UNPACKED;
        let mut archive = tar::Archive::new(GzDecoder::new(archive).take(MAX_UNPACKED * 2));
        let (mut files, mut paths, mut entries) = (Vec::new(), BTreeSet::new(), 0);
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(too_much());
            }
            let bytes = entry.path_bytes().into_owned();
            let path = String::from_utf8(bytes).map_err(|_| fault("the name of an entry is not UTF-8".into()))?;
            let kind = entry.header().entry_type();
            let below = below(&path, &folder).ok_or_else(|| fault(format!("{path:?} is outside its folder")))?;
            if kind.is_dir() {
                continue;
            }
            if !kind.is_file() {
                return Err(fault(format!("{path:?} is a link or device; a crate holds only files and folders")));
            }
            left = left.checked_sub(entry.size()).ok_or_else(too_much)?;
            let executable = entry.header().mode().map_err(broken)? & 0o100 != 0;
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(broken)?;
            if below.is_empty() || !paths.insert(below.to_owned()) {
                return Err(fault(format!("{path:?} occurs twice")));
            }
            files.push(File { path: below.to_owned(), executable, content });
        }
        // Reads to the end, where gzip's own checksum is.
        std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(broken)?;
        Ok(files)
    }
}

/// Returns the part of an entry's path below the crate's folder; `None` if the entry is outside.
fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(folder)?;
    if rest.is_empty() || rest == "/" {
        return Some("");
    }
    let rest = rest.strip_prefix('/')?.trim_end_matches('/');
    let plain = |name: &str| !matches!(name, "" | "." | "..") && !name.chars().any(char::is_control);
    (rest.len() <= MAX_PATH && rest.split('/').all(plain)).then_some(rest)
}

/// Returns the crates in a lock file, in ascending order.
///
/// # Errors
/// [`ImageError::Lock`] if the lock file is malformed, names another source, or has an invalid name or version.
pub fn locked(lock: &str) -> Result<Vec<Crate>, ImageError> {
    let fault = |why: String| ImageError::Lock(why);
    let table: toml::Table = lock.parse().map_err(|_| fault("Cargo.lock is malformed".into()))?;
    let form = table.get("version").and_then(toml::Value::as_integer);
    if !matches!(form, Some(3 | 4)) {
        return Err(fault("Cargo.lock must have version 3 or 4; run: cargo update --workspace".into()));
    }
    let empty = Vec::new();
    let packages = match table.get("package") {
        None => &empty,
        Some(packages) => packages.as_array().ok_or_else(|| fault("Cargo.lock is malformed".into()))?,
    };
    if packages.len() > MAX_PACKAGES {
        return Err(fault(format!("Cargo.lock names {} packages; at most {MAX_PACKAGES} are built", packages.len())));
    }
    let mut crates = BTreeSet::new();
    for package in packages {
        let text = |key: &str| match package.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| fault("Cargo.lock is malformed".into())),
        };
        let (name, version) = (text("name")?.unwrap_or_default(), text("version")?.unwrap_or_default());
        if !is_name(name) || !is_version(version) {
            return Err(fault(format!("Cargo.lock names {name:?} {version:?}, which is not a crate and its version")));
        }
        match text("source")? {
            // A package of the source tree itself.
            None => {}
            Some(SOURCE) => {
                let checksum = text("checksum")?.unwrap_or_default();
                if checksum.len() != 64 || !checksum.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(fault(format!("Cargo.lock has no SHA-256 for {name} {version}")));
                }
                let (name, version, sha256) = (name.to_owned(), version.to_owned(), checksum.to_owned());
                let one = Crate { name, version, sha256 };
                if crates.iter().any(|other: &Crate| other.folder() == one.folder()) {
                    return Err(fault(format!("Cargo.lock names {} twice", one.folder())));
                }
                crates.insert(one);
            }
            Some(other) => {
                let name = one_line(name);
                return Err(fault(format!(
                    "Cargo.lock has {name} from another source of crates than {SOURCE}: {}",
                    one_line(other)
                )));
            }
        }
    }
    Ok(crates.into_iter().collect())
}

fn one_line(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(100).collect()
}

/// Reports whether the registry allows this name. Source: cargo, `restricted_names.rs`; crates.io allows only ASCII.
fn is_name(name: &str) -> bool {
    let letters = name.bytes().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_'));
    letters && name.len() <= MAX_NAME && name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
}

/// Reports whether this is a version in the form of Semantic Versioning 2.0.
fn is_version(version: &str) -> bool {
    let identifiers = |text: &str| {
        text.split('.')
            .all(|part| !part.is_empty() && part.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'-'))
    };
    let (rest, build) = version.split_once('+').unwrap_or((version, "0"));
    let (numbers, before) = rest.split_once('-').unwrap_or((rest, "0"));
    let three = numbers.split('.').count() == 3
        && numbers.split('.').all(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()));
    version.len() <= MAX_NAME && three && identifiers(before) && identifiers(build)
}

/// Returns a generated manifest and lock file that name exactly these crates, so that cargo downloads them as
/// configured. Both contain only checked names, versions and hashes; `wanted` are the crates of `all` that are
/// missing.
pub fn manifest(wanted: &[Crate], all: &[Crate]) -> (String, String) {
    let mut manifest =
        "[package]\nname = \"inputs\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[lib]\npath = \"lib.rs\"\n\
         [workspace]\n[dependencies]\n"
            .to_owned();
    for (index, one) in wanted.iter().enumerate() {
        // Each gets its own name, since several versions of one crate may be wanted.
        manifest += &format!(
            "input{index} = {{ package = \"{}\", version = \"={}\", default-features = false }}\n",
            one.name, one.version
        );
    }
    let mut lock = "version = 3\n".to_owned();
    for one in all {
        lock += &format!(
            "\n[[package]]\nname = \"{}\"\nversion = \"{}\"\nsource = \"{SOURCE}\"\nchecksum = \"{}\"\n",
            one.name, one.version, one.sha256
        );
    }
    (manifest, lock)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn lock(packages: &str) -> String {
        format!("version = 4\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n{packages}")
    }

    fn package(name: &str, version: &str, source: &str, checksum: &str) -> String {
        format!(
            "[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"{source}\"\n\
             checksum = \"{checksum}\"\n"
        )
    }

    #[test]
    fn only_registry_crates_are_read_from_a_lock_file() {
        let hash = "ab".repeat(32);
        let text = lock(&(package("b_c", "1.2.3-rc.1+x.y", SOURCE, &hash) + &package("a", "0.0.1", SOURCE, &hash)));
        let crates = locked(&text).unwrap();
        let folders: Vec<String> = crates.iter().map(Crate::folder).collect();
        assert_eq!(folders, ["a-0.0.1", "b_c-1.2.3-rc.1+x.y"]);
        let (manifest, again) = manifest(&crates[..1], &crates);
        assert!(manifest.contains("package = \"a\", version = \"=0.0.1\""), "{manifest}");
        assert!(!manifest.contains("b_c"), "{manifest}");
        assert_eq!(locked(&again).unwrap(), crates);
    }

    #[test]
    fn lock_file_with_an_invalid_name_version_or_source_is_refused() {
        let hash = "00".repeat(32);
        let names =
            ["../a", "a/b", "..", ".", "", "a\\\\b", "-a", "1a", "a b", "ä", "a\\n[dependencies]", &"a".repeat(65)];
        for name in names {
            assert!(locked(&lock(&package(name, "1.0.0", SOURCE, &hash))).is_err(), "{name}");
        }
        let versions = [
            "",
            "1",
            "1.0",
            "1.0.0/..",
            "1.0.0-/../../x",
            "../1.0.0",
            "1.0.0-",
            "1.0.0-a..b",
            "1.0.0+",
            "v1.0.0",
            "1.0.0\\\"x",
        ];
        for version in versions {
            assert!(locked(&lock(&package("a", version, SOURCE, &hash))).is_err(), "{version}");
        }
        for source in ["git+file:///a#00", "registry+file:///a", "sparse+file:///a/", "", "path+file:///a"] {
            let error = locked(&lock(&package("a", "1.0.0", source, &hash))).unwrap_err().to_string();
            assert!(error.contains("another source of crates"), "{error}");
        }
        for checksum in ["", "00", &"0g".repeat(32), &"AB".repeat(32)] {
            assert!(locked(&lock(&package("a", "1.0.0", SOURCE, checksum))).is_err(), "{checksum}");
        }
        let one = package("a", "1.0.0", SOURCE, &hash);
        assert!(locked(&lock(&(one.clone() + &package("a", "1.0.0", SOURCE, &"11".repeat(32))))).is_err());
        assert!(locked(&lock(&one).replace("version = 4", "version = 5")).is_err());
        assert!(locked(&lock(&one).replacen("version = 4\n", "", 1)).is_err());
        for text in [
            "version = 4\npackage = 1",
            "version = 4\n[[package]]\nname = 1\n",
            "version",
            "version = 4\npackage = [1]",
        ] {
            assert!(locked(text).is_err(), "{text}");
        }
        // Control: the lock file without the fault is accepted.
        assert_eq!(locked(&lock(&one)).unwrap().len(), 1);
    }

    #[test]
    fn lock_file_over_the_package_limit_is_refused() {
        let hash = "ab".repeat(32);
        let names = |count: usize| {
            let packages = (1..count).map(|number| package(&format!("a{number}"), "1.0.0", SOURCE, &hash));
            locked(&lock(&packages.collect::<String>()))
        };
        // The tree's own package counts towards the limit but is not a crate.
        assert_eq!(names(MAX_PACKAGES).unwrap().len(), MAX_PACKAGES - 1);
        let why = names(MAX_PACKAGES + 1).unwrap_err().to_string();
        assert!(why.contains("names 5001 packages; at most 5000"), "{why}");
    }

    #[test]
    fn refusal_of_a_source_is_one_short_printable_line() {
        let source = format!("git+https://example.org/\\u001b[2J\\n{}", "x".repeat(500));
        let why = locked(&lock(&package("a", "1.0.0", &source, ""))).unwrap_err().to_string();
        assert!(why.contains("has a from another source") && why.contains("git+https://example.org/[2Jxx"), "{why}");
        assert!(!why.chars().any(char::is_control) && why.len() < 300, "{why}");
    }

    /// Returns an archive with one more entry after a valid file, and the crate that names it.
    fn archive(edit: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (Crate, Vec<u8>) {
        let mut builder = tar::Builder::new(Vec::new());
        add(&mut builder, b"a-1.0.0/Cargo.toml", tar::EntryType::Regular, b"[package]");
        edit(&mut builder);
        let tar = builder.into_inner().unwrap();
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&tar).unwrap();
        let bytes = packer.finish().unwrap();
        (Crate { name: "a".into(), version: "1.0.0".into(), sha256: hex(&sha256(&bytes)) }, bytes)
    }

    /// Writes the name unchecked, since the builder's functions refuse invalid names.
    fn add(builder: &mut tar::Builder<Vec<u8>>, name: &[u8], kind: tar::EntryType, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
            header.as_mut_bytes()[157..168].copy_from_slice(b"/etc/passwd");
        }
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    #[test]
    fn crate_archive_yields_its_files() {
        let (one, bytes) = archive(|builder| {
            add(builder, b"a-1.0.0/", tar::EntryType::Directory, b"");
            add(builder, b"a-1.0.0/src/", tar::EntryType::Directory, b"");
            add(builder, b"a-1.0.0/src/..lib.rs", tar::EntryType::Regular, b"fn");
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            let long = format!("a-1.0.0/{}/x", "long/".repeat(40));
            builder.append_data(&mut header, long.replace("//", "/"), &b"x"[..]).unwrap();
        });
        let files = one.unpack(&bytes).unwrap();
        let paths: Vec<(&str, bool)> = files.iter().map(|file| (file.path.as_str(), file.executable)).collect();
        let long = format!("{}x", "long/".repeat(40));
        assert_eq!(paths, [("Cargo.toml", true), ("src/..lib.rs", true), (&long, false)]);
        let mut other = bytes.clone();
        other[20] ^= 1;
        assert!(matches!(one.unpack(&other), Err(ImageError::OtherInput { .. })));
    }

    #[test]
    fn archive_with_foreign_paths_links_or_duplicates_is_refused() {
        use tar::EntryType as Kind;
        let refused = |what: &str, name: &[u8], kind: Kind| {
            let (one, bytes) = archive(|builder| add(builder, name, kind, b""));
            let error = one.unpack(&bytes).expect_err(what).to_string();
            assert!(error.contains(what), "{}: {error}", String::from_utf8_lossy(name));
        };
        for name in [
            &b"../a-1.0.0/x"[..],
            b"/etc/passwd",
            b"a-1.0.0/../../x",
            b"a-1.0.0/..",
            b"a-1.0.0/./x",
            b"a-1.0.0//x",
            b"a-1.0.0x/y",
            b"b-1.0.0/x",
            b"a-1.0.0/a\nb",
        ] {
            refused("is outside its folder", name, Kind::Regular);
        }
        for kind in [Kind::Symlink, Kind::Link, Kind::Char, Kind::Block, Kind::Fifo, Kind::Continuous] {
            refused("is a link or device", b"a-1.0.0/x", kind);
        }
        refused("twice", b"a-1.0.0/Cargo.toml", Kind::Regular);
        refused("not UTF-8", b"a-1.0.0/\xff", Kind::Regular);
    }

    #[test]
    fn archive_over_the_limits_is_refused() {
        // The header claims ten GiB; the archive ends earlier.
        let (one, bytes) = archive(|builder| {
            let mut header = tar::Header::new_gnu();
            header.set_path("a-1.0.0/big").unwrap();
            header.set_size(10 << 30);
            header.set_mode(0o644);
            header.set_cksum();
            builder.get_mut().extend_from_slice(header.as_bytes());
        });
        assert!(one.unpack(&bytes).unwrap_err().to_string().contains("holds more than"));
        // One file more than the limit is refused, each file being empty; exactly the limit is accepted.
        for (others, taken) in [(MAX_ENTRIES, false), (MAX_ENTRIES - 1, true)] {
            let (one, bytes) = archive(|builder| {
                for index in 0..others {
                    add(builder, format!("a-1.0.0/{index}").as_bytes(), tar::EntryType::Regular, b"");
                }
            });
            match one.unpack(&bytes) {
                Ok(files) => assert!(taken && files.len() == MAX_ENTRIES),
                Err(error) => assert!(!taken && error.to_string().contains("holds more than"), "{error}"),
            }
        }
    }

    #[test]
    fn version_with_hyphens_in_its_identifiers_is_accepted() {
        for version in ["1.0.0-rc-1.a", "1.0.0+build-7"] {
            assert!(is_version(version), "{version}");
        }
        for version in ["1.0.0-rc_1", "1.0.0+build_7"] {
            assert!(!is_version(version), "{version}");
        }
    }

    #[test]
    fn truncated_archive_is_refused() {
        let (_, bytes) = archive(|builder| add(builder, b"a-1.0.0/x", tar::EntryType::Regular, &[7; 5_000]));
        for length in [0, 5, bytes.len() / 2, bytes.len() - 9] {
            let cut = &bytes[..length];
            let one = Crate { name: "a".into(), version: "1.0.0".into(), sha256: hex(&sha256(cut)) };
            assert!(one.unpack(cut).is_err(), "{length} bytes");
        }
    }
}
