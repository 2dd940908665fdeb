//! A source tree, and what runs when it is built, reaches nothing of the machine that builds it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot continue must stop, and reports what it skipped"
)]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A folder with a tree and a secret beside it, which is removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let this = Self(std::env::temp_dir().join(format!("openrelay-{name}-{}", std::process::id())));
        fs::create_dir_all(this.0.join("tree/src")).unwrap();
        fs::write(this.0.join("secret"), "a secret").unwrap();
        this
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Runs `openrelay` in the folder.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
        command.current_dir(&self.0).args(arguments).env("OPENRELAY_PASSWORD", "a secret").output().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns whether this kernel confines programs; prints a note if not.
fn confines(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    let without = output.status.code() == Some(77) && said.contains("Landlock");
    if without {
        eprintln!("skipped: {said}");
    }
    !without
}

#[test]
fn confined_program_reads_writes_and_reaches_only_what_it_was_given() {
    let place = Place::new("confined");
    let (tree, out) = (place.path("tree"), place.path("out"));
    fs::create_dir(&out).unwrap();
    fs::write(format!("{tree}/file"), "of the tree").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sh = |line: &str| {
        let line = format!("{line} 2>&1");
        place.run(&["confined", "--read", &tree, "--write", &out, "--", "/bin/sh", "-c", &line])
    };
    let allowed = sh(&format!("cat {tree}/file && echo >{out}/file && cat {out}/file && echo >/dev/null"));
    if !confines(&allowed) {
        return;
    }
    assert!(allowed.status.success(), "{allowed:?}");
    let secret = place.path("secret");
    for line in [
        format!("cat {secret}"),
        format!("ls {} | grep secret", place.0.display()),
        format!("echo >{tree}/file"),
        format!("echo >{tree}/other"),
        format!("cat /proc/{}/environ", std::process::id()),
        format!("bash -c 'echo >/dev/tcp/127.0.0.1/{port}'"),
        format!("bash -c 'echo >/dev/udp/127.0.0.1/{port}'"),
        format!("touch {out}/mark && chmod 4755 {out}/mark"),
        "cat /etc/passwd".to_owned(),
    ] {
        let output = sh(&line);
        assert!(!output.status.success(), "{line}: {output:?}");
    }
    // Before Linux 6.12 signals are not confined, and a warning reports that.
    if !String::from_utf8_lossy(&allowed.stderr).contains("signals") {
        let reached = sh(&format!("kill -0 {}", std::process::id()));
        assert!(!reached.status.success(), "{reached:?}");
    }
    assert_eq!(fs::read(secret).unwrap(), b"a secret");
}

/// A package whose build script reads the secret, and whose lock runs its own command to find a tool.
#[test]
fn source_tree_under_build_cannot_read_the_builders_files() {
    let place = Place::new("hostile-tree");
    let (tree, secret) = (place.0.join("tree"), place.path("secret"));
    let write = |name: &str, text: &str| fs::write(tree.join(name), text).unwrap();
    write("Cargo.toml", "[package]\nname = \"openrelay\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n");
    write("Cargo.lock", "version = 4\n\n[[package]]\nname = \"openrelay\"\nversion = \"0.1.0\"\n");
    write("src/main.rs", "fn main() { println!(\"{}\", env!(\"FOUND\")); }");
    write(
        "build.rs",
        &format!(
            "fn main() {{ println!(\"cargo::rustc-env=FOUND={{:?}}\", \
             (std::fs::read(\"{secret}\").is_ok(), std::env::var(\"OPENRELAY_PASSWORD\").is_ok())); }}"
        ),
    );
    // Packages, of which the client's program contains nothing.
    let package = |role: &str| {
        let hash = "00".repeat(32);
        let generation = if role == "firmware" { "generation = 1\n" } else { "" };
        format!(
            "[[package]]\nname = \"{role}\"\nrole = \"{role}\"\npath = \"p\"\nsha256 = \"{hash}\"\nsize = 1\n\
             file = \"f\"\n{generation}"
        )
    };
    let packages = ["kernel", "stub", "firmware"].map(package).concat();
    let lock =
        |tools: &str| format!("cmdline = \"\"\nkernel_release = \"\"\nmodules = []\nshape = []\n{packages}{tools}");
    fs::create_dir(tree.join("image")).unwrap();
    write("image/inputs.lock", &lock(""));
    let build = || {
        let (tree, out, target) = (place.path("tree"), place.path("out"), place.path("target"));
        place.run(&["image", "build", "--kind", "client", "--source", &tree, "--out", &out, "--target", &target])
    };
    let output = build();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if String::from_utf8_lossy(&output.stderr).contains("confines nothing") {
        eprintln!("skipped: this kernel confines nothing");
        return;
    }
    let program = fs::read(place.0.join("out/openrelay")).unwrap();
    let found = program.windows(14).any(|bytes| bytes == b"(false, false)");
    assert!(found, "a build script has read a secret");
    // The tree's settings for cargo run nothing outside the sandbox.
    fs::create_dir(tree.join(".cargo")).unwrap();
    let evil = format!("#!/bin/sh\ncp {secret} {}/stolen\nexec rustc \"$@\"\n", place.0.display());
    write("evil", &evil);
    assert!(Command::new("chmod").arg("+x").arg(tree.join("evil")).status().unwrap().success());
    write(".cargo/config.toml", "[build]\nrustc-wrapper = \"./evil\"\nrustc = \"./evil\"\n");
    let tool = "[[tool]]\nname = \"a tool\"\nask = [\"sh\", \"-c\", \"cp SECRET STOLEN\"]\nsha256 = \"00\"\n";
    let said = |output: Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = said(build());
    assert!(refused.contains("the build of openrelay failed"), "{refused}");
    write("image/inputs.lock", &lock(&tool.replace("SECRET", &secret).replace("STOLEN", &place.path("stolen"))));
    let refused = said(build());
    assert!(refused.contains("sh does not say where a tool is"), "{refused}");
    assert!(!place.0.join("stolen").exists(), "the tree has read the secret");
    // A compiler wrapper replaces the program with a link to the secret.
    write("image/inputs.lock", &lock(""));
    let linking = format!(
        "#!/bin/sh\nfor last; do :; done\n\"$@\" || exit\n\
         for file in ../target/x86_64-unknown-linux-gnu/release/deps/openrelay-*; do \
         case $file in *.d) ;; *) ln -sf {secret} \"$file\" ;; esac; done\nexit 0\n"
    );
    write("evil", &linking);
    // Cargo would keep the program of an earlier build.
    fs::remove_dir_all(place.0.join("target")).unwrap();
    write(".cargo/config.toml", "[build]\nrustc-wrapper = \"./evil\"\n");
    fs::write(tree.join("src/main.rs"), "fn main() {}").unwrap();
    let refused = said(build());
    assert!(refused.contains("it is not a file of the build"), "{refused}");
    // A lock that makes cargo read elsewhere.
    let git = "\n[[package]]\nname = \"evil\"\nversion = \"0.1.0\"\nsource = \"git+file:///evil#00\"\n";
    fs::write(tree.join("Cargo.lock"), fs::read_to_string(tree.join("Cargo.lock")).unwrap() + git).unwrap();
    let refused = said(build());
    assert!(refused.contains("another source of crates"), "{refused}");
    // A target folder that leads out of the tree.
    std::os::unix::fs::symlink(&place.0, tree.join("target")).unwrap();
    fs::write(tree.join("Cargo.lock"), fs::read_to_string(tree.join("Cargo.lock")).unwrap().replace(git, "")).unwrap();
    let (tree, out) = (place.path("tree"), place.path("out"));
    let refused = said(place.run(&["image", "build", "--kind", "client", "--source", &tree, "--out", &out]));
    assert!(refused.contains("leads out of the source tree"), "{refused}");
}

#[test]
fn tree_settings_run_nothing_while_git_lists_its_files() {
    let place = Place::new("listed");
    let (tree, trace) = (place.path("tree"), place.path("trace"));
    fs::create_dir_all(format!("{tree}/image")).unwrap();
    fs::write(format!("{tree}/image/inputs.lock"), "lock").unwrap();
    fs::write(format!("{tree}/left-out"), "not added").unwrap();
    let git = |arguments: &[&str]| {
        assert!(Command::new("git").arg("-C").arg(&tree).args(arguments).status().unwrap().success());
    };
    git(&["init", "-q"]);
    git(&["add", "image/inputs.lock"]);
    let hook = place.path("tree/hook");
    fs::write(&hook, format!("#!/bin/sh\necho ran >{trace}\n")).unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    git(&["config", "core.fsmonitor", &hook]);
    git(&["update-index", "--fsmonitor"]);
    git(&["ls-files"]);
    assert!(fs::exists(&trace).unwrap(), "git runs it");
    fs::remove_file(&trace).unwrap();
    let output = place.run(&["validator", "source", &tree]);
    if !confines(&output) {
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!fs::exists(&trace).unwrap(), "the tree's program ran with the rights of the user who listed the tree");
    // The list has the one file that git knows, in the format of sha256sum.
    let line = "0c030586945fe504b604ecc2e875c38ede400cd5cd73da9730302162e6b02c6f  image/inputs.lock\n";
    let expected = openrelay_image::hex(&openrelay_image::sha256(line.as_bytes()));
    assert!(said.contains(&format!("source tree   0x{expected}")), "{said}");
}
