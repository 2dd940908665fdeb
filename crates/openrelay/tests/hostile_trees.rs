//! Source trees that attack their builder have no effect outside of their build, and end within its limits.
//!
//! Each attack has a control: the same program has the effect when it runs without the sandbox or with wide limits.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot continue must stop")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const ATTACK: &str = include_str!("hostile/attack.c");
/// The user ID of an ordinary user, which owns no files.
const NOBODY: u32 = 65_534;

/// Who can carry out an attack without the sandbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Control {
    /// Any user.
    Always,
    /// Only root.
    Root,
}
use Control::{Always, Root};

/// Attacks that reach for something outside, and who can carry them out.
const REACHING: &[(&str, Control)] = &[
    ("read", Always),
    ("read-by-root-link", Always),
    ("read-by-link", Always),
    ("list", Always),
    ("hard-link", Always),
    ("write", Always),
    ("create", Always),
    ("rename", Always),
    ("truncate", Always),
    ("modes", Always),
    ("times", Always),
    ("owner", Always),
    ("attributes", Always),
    ("cargo-settings", Always),
    ("cargo-git", Always),
    ("environment-of-others", Always),
    ("root-of-others", Always),
    ("memory-of-others", Always),
    ("processes-of-others", Always),
    ("tcp", Always),
    ("udp", Always),
    ("unix-stream", Always),
    ("socketpair-datagram", Always),
    ("socketpair-stream", Always),
    ("abstract", Always),
    ("netlink", Always),
    ("packets", Root),
    ("vsock", Always),
    ("shared-memory", Always),
    ("message-queue", Always),
    ("semaphores", Always),
    ("posix-queue", Always),
    ("posix-shared-memory", Always),
    ("ptrace", Always),
    ("process_vm_readv", Always),
    ("signal", Always),
    ("pidfd_getfd", Always),
    ("io_uring", Always),
    ("bpf", Root),
    ("userfaultfd", Always),
    ("perf_event_open", Root),
    ("keyctl", Always),
    ("open_by_handle_at", Root),
    ("setns", Root),
    ("user-namespace", Always),
    ("user-namespace-clone", Always),
    ("mount", Always),
    ("chroot", Root),
    ("set-user-id", Always),
    ("set-user-id-created", Always),
    ("device", Root),
    ("core-pattern", Root),
    ("kernel-memory", Root),
    ("kernel-settings", Always),
    ("machine", Always),
    ("reserve-disk", Always),
    ("x32", Always),
];

/// Attacks that use too much, with the limit that ends them.
const USING: &[(&str, &str)] = &[
    ("forks", "processes"),
    ("memory", "memory"),
    ("memory-shared", "memory"),
    ("memory-together", "memory"),
    ("disk", "disk space"),
    ("disk-removed", "disk space"),
    ("disk-files", "disk space"),
    ("hang", "time"),
];

/// A folder with the targets of attacks in `outside`, what attacks may write in `out`, and the program.
struct Place {
    root: PathBuf,
    user: u32,
    victim: Option<Child>,
    streams: Vec<UnixListener>,
    datagrams: UnixDatagram,
    tcp: TcpListener,
}

impl Place {
    fn new(name: &str, user: u32) -> Self {
        let root = std::env::temp_dir().join(format!("openrelay-{name}-{user}-{}", std::process::id()));
        for folder in ["outside/cargo/git", "out", "bin"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for name in ["secret", "other", "cargo/config.toml", "cargo/git/db"] {
            fs::write(root.join("outside").join(name), "a secret").unwrap();
        }
        fs::write(root.join("attack.c"), ATTACK).unwrap();
        let cc = Command::new("cc").current_dir(&root).args(["-O1", "-o", "bin/attack", "attack.c"]).output().unwrap();
        assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
        // Another user may not be able to read the folder in which the tests were built.
        fs::copy(env!("CARGO_BIN_EXE_openrelay"), root.join("bin/openrelay")).unwrap();
        let streams = vec![UnixListener::bind(root.join("outside/stream")).unwrap()];
        let datagrams = UnixDatagram::bind(root.join("outside/datagram")).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        datagrams.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        for path in walk(&root) {
            if user != 0 || effective() == 0 {
                std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap_or_default();
            }
        }
        let mut this = Self { root, user, victim: None, streams, datagrams, tcp };
        this.victim = Some(this.attack("victim").spawn().unwrap());
        fs::write(this.shared(), "").unwrap();
        fs::set_permissions(this.shared(), fs::Permissions::from_mode(0o666)).unwrap();
        this
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.root.join("bin").join(program));
        command.current_dir("/").env("CARGO_HOME", self.path("outside/cargo"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if effective() == 0 && self.user != 0 {
            command.uid(self.user).gid(self.user);
        }
        command
    }

    fn arguments(&self, name: &str) -> [String; 5] {
        let victim = self.victim.as_ref().map_or(1, Child::id).to_string();
        let port = self.tcp.local_addr().unwrap().port().to_string();
        [name.to_owned(), self.path("outside"), self.path("out"), victim, port]
    }

    /// Returns an attack without the sandbox.
    fn attack(&self, name: &str) -> Command {
        let mut command = self.command("attack");
        command.args(self.arguments(name));
        command
    }

    /// Runs an attack in the sandbox.
    fn confined(&self, name: &str, limits: &[&str]) -> Output {
        let mut command = self.command("openrelay");
        command.arg("confined").args(["--read", &self.path("bin"), "--write", &self.path("out")]).args(limits);
        command.arg("--").arg(self.path("bin/attack")).args(self.arguments(name)).output().unwrap()
    }

    /// Returns everything outside: content, mode, owner and times.
    fn outside(&self) -> Vec<String> {
        let mut all: Vec<String> = walk(&self.root.join("outside"))
            .into_iter()
            .map(|path| {
                let about = fs::symlink_metadata(&path).unwrap();
                let content = if about.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                let (mode, owner, time) =
                    (about.mode(), about.uid(), (about.mtime(), about.ctime(), about.ctime_nsec()));
                format!("{path:?} {mode:o} {owner} {time:?} {} {content:?}", about.nlink())
            })
            .collect();
        all.sort();
        all
    }

    /// Returns whether anything was sent to the servers outside.
    fn reached(&self) -> bool {
        let mut datagram = [0; 8];
        let datagram = self.datagrams.recv(&mut datagram).is_ok();
        let stream = self.streams.iter().any(|stream| {
            stream.set_nonblocking(true).unwrap();
            stream.accept().is_ok()
        });
        self.tcp.accept().is_ok() || datagram || stream
    }

    /// Returns the path of the victim's shared memory.
    fn shared(&self) -> PathBuf {
        Path::new("/dev/shm").join(format!("openrelay-test-{}", self.victim.as_ref().map_or(1, Child::id)))
    }

    /// Returns the IDs of processes that run an attack of this place, except the victim.
    fn left_behind(&self) -> Vec<u32> {
        let victim = self.victim.as_ref().map(Child::id);
        let numbers =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let runs = |id: &u32| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&self.path("out"))
        };
        numbers.filter(|id| Some(*id) != victim && runs(id)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.shared());
        if let Some(victim) = self.victim.as_mut() {
            let _ = victim.kill();
            let _ = victim.wait();
        }
        // The folders may be nested deeper than a path can be long.
        let _ = Command::new("rm").args(["-rf", "--"]).arg(&self.root).status();
    }
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        if path.symlink_metadata().is_ok_and(|about| about.is_dir()) {
            found.extend(fs::read_dir(path).unwrap().flatten().map(|entry| entry.path()));
        }
        at += 1;
    }
    found
}

fn effective() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

/// Returns the users whose builds are tried: also an ordinary one if the tests run as root.
fn users() -> Vec<u32> {
    if effective() == 0 { vec![0, NOBODY] } else { vec![effective()] }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns whether this machine offers namespaces; prints a note if not.
fn isolates(place: &Place) -> bool {
    let output = place.confined("list", &[]);
    let weak = said(&output).contains("warning") || output.status.code() == Some(77);
    if weak {
        assert!(std::env::var_os("OPENRELAY_NO_SKIP").is_none(), "nothing may be skipped: {}", said(&output));
        eprintln!("skipped: {}", said(&output));
    }
    !weak
}

#[test]
fn attack_on_the_outside_works_only_without_the_sandbox() {
    for user in users() {
        let place = Place::new("reaching", user);
        if !isolates(&place) {
            return;
        }
        let before = place.outside();
        for (name, _) in REACHING {
            let output = place.confined(name, &[]);
            // A call of the x32 interface ends the process.
            let refused = output.status.code() == Some(if *name == "x32" { 128 + 31 } else { 1 });
            assert!(refused && !said(&output).contains("EFFECT"), "user {user}: {name}: {}", said(&output));
            assert!(!place.reached(), "user {user}: {name} has reached a server");
        }
        assert_eq!(place.outside(), before, "user {user}: something outside has changed");
        for (name, control) in REACHING {
            let output = place.attack(name).output().unwrap();
            let expected = *control == Always || *control == Root && user == 0;
            // Some machines forbid it without the sandbox too, like io_uring, or lack x32. Then the row shows less.
            let effect = has_effect(&output);
            if expected && !effect {
                eprintln!("not judged: user {user}: the control of {name} has no effect here: {}", said(&output));
            }
            // The sandbox kills on x32 calls; without it the program ends by itself.
            assert_eq!(output.status.signal(), None, "user {user}: the control of {name}");
            let files = ["read", "write", "modes", "times", "list", "create", "tcp", "unix-stream"];
            assert!(effect || !files.contains(name), "user {user}: the control of {name}: {}", said(&output));
            if *name == "socketpair-datagram" {
                assert!(place.reached(), "user {user}: the control of {name} reaches no server");
            }
            let _ = [place.path("out/link"), place.path("out/hard"), place.path("out/created")].map(fs::remove_file);
        }
        assert_ne!(place.outside(), before, "user {user}: the controls change something");
    }
}

#[test]
fn attack_by_use_ends_within_its_limit_and_by_itself_where_limits_are_wide() {
    for user in users() {
        let place = Place::new("using", user);
        if !isolates(&place) {
            return;
        }
        let before = place.outside();
        let narrow = ["--memory", "167772160", "--disk", "67108864", "--processes", "100"];
        for (name, limit) in USING {
            let limits = [&narrow[..], &["--time", if *limit == "time" { "0.5" } else { "120" }]].concat();
            let output = place.confined(name, &limits);
            let told = said(&output);
            assert!(
                output.status.code() == Some(124) && told.contains(&format!("its limit of {limit}")),
                "{name}: {told}"
            );
            assert_eq!(place.left_behind(), [0; 0], "user {user}: {name}");
            clear(&place);
            let output = place.confined(name, &["--memory", "1073741824", "--disk", "1073741824", "--time", "600"]);
            assert!(output.status.success(), "user {user}: the control of {name}: {}", said(&output));
            clear(&place);
        }
        // A folder that cannot be measured counts as too large, so no limit is wide enough for it.
        let output = place.confined("disk-deep", &[]);
        assert!(output.status.code() == Some(124) && said(&output).contains("disk space"), "{}", said(&output));
        clear(&place);
        let output = place.attack("disk-deep").output().unwrap();
        if has_effect(&output) {
            assert!(too_deep(&place.root.join("out")), "user {user}: the control of disk-deep makes deep folders");
        } else {
            eprintln!("not judged: user {user}: the control of disk-deep has no effect here: {}", said(&output));
        }
        assert_eq!(place.outside(), before, "user {user}: something outside has changed");
    }
}

/// Returns whether an attack reports that it had its effect.
fn has_effect(output: &Output) -> bool {
    output.status.success() && said(output).contains("EFFECT")
}

/// Returns whether there are folders below that no path can name.
fn too_deep(folder: &Path) -> bool {
    let mut deepest = folder.to_owned();
    loop {
        match fs::read_dir(&deepest) {
            Ok(mut entries) => match entries.next() {
                Some(entry) => deepest = entry.unwrap().path(),
                None => return false,
            },
            Err(error) => return error.kind() == std::io::ErrorKind::InvalidFilename,
        }
    }
}

fn clear(place: &Place) {
    let _ = Command::new("rm").args(["-rf", "--"]).arg(place.path("out")).status();
    fs::create_dir(place.path("out")).unwrap();
    if effective() == 0 {
        std::os::unix::fs::chown(place.path("out"), Some(place.user), Some(place.user)).unwrap();
    }
}

#[test]
fn process_in_the_background_ends_with_its_build_and_with_the_builder() {
    for user in users() {
        let place = Place::new("background", user);
        if !isolates(&place) {
            return;
        }
        let output = place.confined("daemon", &[]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(place.left_behind(), [0; 0], "user {user}");
        let control = place.attack("daemon").output().unwrap();
        assert!(control.status.success(), "{}", said(&control));
        let left = place.left_behind();
        assert_eq!(left.len(), 1, "user {user}: the control leaves one process");
        for id in left {
            assert!(Command::new("kill").args(["-9", &id.to_string()]).status().unwrap().success());
        }
        // A killed builder ends its build too. The program holds the other end of this pipe.
        let mut command = place.command("openrelay");
        command.args(["confined", "--", "sh", "-c", "echo started; exec sleep 1000"]);
        let mut child = command.spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut started = [0; 8];
        out.read_exact(&mut started).unwrap();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "nobody holds it any more");
    }
}

/// A tree with one package, as `image build --kind client` takes it.
struct Tree {
    place: PathBuf,
    asked: TcpListener,
}

impl Tree {
    fn new(name: &str) -> Self {
        let place = std::env::temp_dir().join(format!("openrelay-tree-{name}-{}", std::process::id()));
        for folder in ["tree/src", "tree/image", "tree/.cargo", "bin", "cargo", "private"] {
            fs::create_dir_all(place.join(folder)).unwrap();
        }
        let asked = TcpListener::bind("127.0.0.1:0").unwrap();
        asked.set_nonblocking(true).unwrap();
        let this = Self { place, asked };
        this.write("Cargo.toml", &this.manifest(""));
        this.write("Cargo.lock", LOCK);
        this.write("src/main.rs", "fn main() {}");
        this.write("image/inputs.lock", &inputs(""));
        fs::write(this.place.join("cargo/credentials.toml"), "a secret").unwrap();
        // Programs that cargo may start.
        for program in ["ssh", "git"] {
            let path = this.place.join("bin").join(program);
            fs::write(&path, format!("#!/bin/sh\necho {program} >>{}/ran\nexit 1\n", this.place.display())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        this
    }

    fn manifest(&self, more: &str) -> String {
        format!("[package]\nname = \"openrelay\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n{more}")
    }

    fn url(&self) -> String {
        format!("http://{}", self.asked.local_addr().unwrap())
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.place.join("tree").join(name), text).unwrap();
    }

    fn build(&self, seconds: &str) -> Output {
        let path = |name: &str| self.place.join(name).display().to_string();
        let programs = format!("{}:{}", path("bin"), std::env::var("PATH").unwrap());
        let rustup =
            std::env::var("RUSTUP_HOME").unwrap_or_else(|_| format!("{}/.rustup", std::env::var("HOME").unwrap()));
        Command::new(env!("CARGO_BIN_EXE_openrelay"))
            .current_dir(&self.place)
            .args(["image", "build", "--kind", "client", "--source", &path("tree"), "--out", &path("out")])
            .args(["--target", &path("target"), "--inputs", &path("inputs"), "--time", seconds])
            .env("CARGO_HOME", path("cargo"))
            .env("RUSTUP_HOME", rustup)
            .env("PATH", programs)
            .output()
            .unwrap()
    }

    /// Returns the tree's effects outside: a request to a server, a program that ran, a change of cargo's folder.
    fn effects(&self) -> Vec<String> {
        let mut effects = Vec::new();
        if let Ok((mut peer, _)) = self.asked.accept() {
            let mut question = [0; 64];
            let length = peer.read(&mut question).unwrap_or(0);
            let _ = peer.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
            effects.push(String::from_utf8_lossy(question.get(..length).unwrap_or_default()).into_owned());
        }
        effects.extend(fs::read_to_string(self.place.join("ran")));
        effects.extend(
            ["git", "registry", "stolen"]
                .map(|name| self.place.join("cargo").join(name))
                .into_iter()
                .filter_map(|path| path.exists().then(|| path.display().to_string())),
        );
        effects
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.place);
    }
}

const LOCK: &str = "version = 4\n\n[[package]]\nname = \"openrelay\"\nversion = \"0.1.0\"\n";

/// Returns a lock of inputs, of which the client's program contains none.
fn inputs(tools: &str) -> String {
    let hash = "00".repeat(32);
    let package = |role: &str| {
        let generation = if role == "firmware" { "generation = 1\n" } else { "" };
        format!(
            "[[package]]\nname = \"{role}\"\nrole = \"{role}\"\npath = \"p\"\nsha256 = \"{hash}\"\nsize = 1\n\
             file = \"f\"\n{generation}"
        )
    };
    let packages = ["kernel", "stub", "firmware"].map(package).concat();
    format!("cmdline = \"\"\nkernel_release = \"\"\nmodules = []\nshape = []\n{packages}{tools}")
}

fn locked(name: &str, version: &str, source: &str) -> String {
    let hash = "00".repeat(32);
    format!(
        "{LOCK}\n[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"{source}\"\n\
         checksum = \"{hash}\"\n"
    )
}

/// Edits a tree; the last field is part of the message that its build prints.
type Case = (&'static str, fn(&Tree), &'static str);

#[test]
fn tree_that_names_sources_of_its_own_sends_no_requests() {
    const FAILED: &str = "the build of openrelay failed";
    let cases: &[Case] = &[
        (
            "git",
            |tree| {
                tree.write(
                    "Cargo.toml",
                    &tree.manifest(&format!("[dependencies]\nevil = {{ git = \"{}/evil.git\" }}\n", tree.url())),
                )
            },
            FAILED,
        ),
        (
            "git-file",
            |tree| {
                tree.write(
                    "Cargo.toml",
                    &tree.manifest(&format!(
                        "[dependencies]\nevil = {{ git = \"file://{}/private\" }}\n",
                        tree.place.display()
                    )),
                )
            },
            FAILED,
        ),
        (
            "git-ssh",
            |tree| {
                tree.write(
                    "Cargo.toml",
                    &tree.manifest("[dependencies]\nevil = { git = \"ssh://git@127.0.0.1/evil.git\" }\n"),
                )
            },
            FAILED,
        ),
        (
            "index",
            |tree| {
                tree.write(
                    "Cargo.toml",
                    &tree.manifest(&format!(
                        "[dependencies]\nevil = {{ version = \"1\", registry-index = \"sparse+{}/\" }}\n",
                        tree.url()
                    )),
                )
            },
            FAILED,
        ),
        (
            "path",
            |tree| {
                tree.write(
                    "Cargo.toml",
                    &tree.manifest(&format!(
                        "[dependencies]\nevil = {{ path = \"{}/private\" }}\n",
                        tree.place.display()
                    )),
                )
            },
            FAILED,
        ),
        (
            "patch",
            |tree| {
                tree.write(
                    "Cargo.toml",
                    &tree.manifest(&format!(
                        "[dependencies]\nevil = \"1\"\n[patch.crates-io]\nevil = {{ git = \"{}/evil.git\" }}\n",
                        tree.url()
                    )),
                )
            },
            FAILED,
        ),
        (
            "replaced",
            |tree| {
                tree.write("Cargo.toml", &tree.manifest("[dependencies]\nevil = \"1\"\n"));
                tree.write(
                    ".cargo/config.toml",
                    &format!(
                        "[source.crates-io]\nreplace-with = \"evil\"\n[source.evil]\nregistry = \"sparse+{}/\"\n",
                        tree.url()
                    ),
                );
            },
            FAILED,
        ),
        (
            "online",
            |tree| {
                tree.write(
                    "Cargo.toml",
                    &tree.manifest(&format!("[dependencies]\nevil = {{ git = \"{}/evil.git\" }}\n", tree.url())),
                );
                tree.write(".cargo/config.toml", "[net]\noffline = false\ngit-fetch-with-cli = true\n");
            },
            FAILED,
        ),
        (
            "wrapper",
            |tree| {
                tree.write(".cargo/config.toml", &format!("[build]\nrustc = \"{}/bin/git\"\n", tree.place.display()));
            },
            FAILED,
        ),
        (
            "lock-git",
            |tree| tree.write("Cargo.lock", &locked("evil", "1.0.0", &format!("git+{}/evil.git#00", tree.url()))),
            "another source of crates",
        ),
        (
            "lock-registry",
            |tree| tree.write("Cargo.lock", &locked("evil", "1.0.0", &format!("sparse+{}/", tree.url()))),
            "another source of crates",
        ),
        (
            "lock-climbs",
            |tree| tree.write("Cargo.lock", &locked("../../evil", "1.0.0", openrelay_image::crates::SOURCE)),
            "not a crate and its version",
        ),
        (
            "lock-climbs-by-version",
            |tree| tree.write("Cargo.lock", &locked("evil", "1.0.0/../../evil", openrelay_image::crates::SOURCE)),
            "not a crate and its version",
        ),
        (
            "lock-is-a-device",
            |tree| {
                fs::remove_file(tree.place.join("tree/Cargo.lock")).unwrap();
                std::os::unix::fs::symlink("/dev/zero", tree.place.join("tree/Cargo.lock")).unwrap();
            },
            "not a regular file",
        ),
    ];
    for (name, edit, expected) in cases {
        let tree = Tree::new(name);
        edit(&tree);
        let output = tree.build("600");
        assert!(!output.status.success() && said(&output).contains(expected), "{name}: {}", said(&output));
        assert_eq!(tree.effects(), [""; 0], "{name}");
    }
    // Control: cargo alone asks the sources that a manifest names.
    let (name, edit, _) = cases.first().unwrap();
    let tree = Tree::new(name);
    edit(&tree);
    let mut cargo = Command::new("cargo");
    cargo.current_dir(tree.place.join("tree")).arg("fetch").env("CARGO_HOME", tree.place.join("cargo"));
    let mut child = cargo.env("CARGO_NET_RETRY", "0").stderr(Stdio::null()).spawn().unwrap();
    tree.asked.set_nonblocking(false).unwrap();
    let effects = tree.effects();
    child.wait().unwrap();
    assert!(effects.first().is_some_and(|question| question.contains("evil.git")), "{effects:?}");
}

#[test]
fn tree_that_does_not_end_is_stopped_and_reports_its_time_limit() {
    type Case = (&'static str, fn(&Tree));
    let cases: &[Case] = &[
        ("build-script", |tree| {
            tree.write("build.rs", "fn main() { std::thread::sleep(std::time::Duration::from_secs(100_000)); }");
        }),
        ("question", |tree| {
            tree.write(
                "image/inputs.lock",
                &inputs("[[tool]]\nname = \"a tool\"\nask = [\"sleep\", \"100000\"]\nsha256 = \"00\"\n"),
            );
        }),
        ("pipe-as-program", |tree| {
            let wrapper = "#!/bin/sh\n\"$@\" || exit\n\
                for file in ../target/x86_64-unknown-linux-gnu/release/deps/openrelay-*; do \
                case $file in *.d) ;; *) rm -f \"$file\"; mkfifo \"$file\" ;; esac; done\nexit 0\n";
            tree.write("evil", wrapper);
            fs::set_permissions(tree.place.join("tree/evil"), fs::Permissions::from_mode(0o755)).unwrap();
            tree.write(".cargo/config.toml", "[build]\nrustc-wrapper = \"./evil\"\n");
        }),
    ];
    for (name, edit) in cases {
        let tree = Tree::new(name);
        edit(&tree);
        let output = tree.build("8");
        // The exit code by which a validator distinguishes a limit from a failed build.
        assert_eq!(output.status.code(), Some(7), "{name}: {}", said(&output));
        assert!(said(&output).contains("limit of time"), "{name}: {}", said(&output));
    }
}
