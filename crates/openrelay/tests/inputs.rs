//! What an image is made of has the hash that the lock names, wherever it comes from.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;

#[test]
fn an_input_with_another_hash_is_taken_from_nobody() {
    let dir = std::env::temp_dir().join(format!("openrelay-inputs-{}", std::process::id()));
    fs::create_dir_all(dir.join("inputs")).unwrap();
    let hash = "ab".repeat(32);
    let package = |role: &str| {
        let generation = if role == "firmware" { "generation = 1\n" } else { "" };
        format!(
            "[[package]]\nname = \"{role}\"\nrole = \"{role}\"\npath = \"{role}.deb\"\nsha256 = \"{hash}\"\nsize = 5\nfile = \"f\"\n{generation}"
        )
    };
    let packages = ["kernel", "stub", "firmware"].map(package).concat();
    let lock = format!("cmdline = \"\"\nkernel_release = \"\"\nmodules = []\nshape = []\n{packages}");
    fs::write(dir.join("lock"), lock).unwrap();
    // One lies in the folder by the right name, and an archive has another of the right length.
    fs::write(dir.join("inputs").join(&hash), "wrong").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let archive = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let asked = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            assert!(asked.count() > 0, "it asks for something");
            (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother").unwrap();
        }
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
    // No archives but that one: apt is not in the path.
    command.env("PATH", "/nonexistent").current_dir(&dir).args(["image", "build", "--lock", "lock", "--out", "out"]);
    command.args(["--inputs", "inputs", "--programs", "lock", "lock", "--from", &archive]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && fs::read_dir(dir.join("out")).unwrap().next().is_none(), "{said}");
    // SHA-256 of "other".
    let found = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";
    assert!(said.contains(found) && said.contains(&format!("the lock names {hash}")), "{said}");
    assert_eq!(fs::read(dir.join("inputs").join(&hash)).unwrap(), b"wrong", "what is wrong is not kept");
    fs::remove_dir_all(dir).unwrap();
}
