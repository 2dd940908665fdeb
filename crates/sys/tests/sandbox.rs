//! What a confined process may do, tried in a process of its own.

use std::process::Command;

use openrelay_sys::sandbox;

const CHILD: &str = "OPENRELAY_TEST_CONFINED";

/// Whether `behave` lives through its confinement: it runs in a copy of this test program.
fn lives(test: &str, behave: fn()) -> std::io::Result<bool> {
    if std::env::var_os(CHILD).is_some() {
        behave();
        std::process::exit(0);
    }
    let me = std::env::current_exe()?;
    let status = Command::new(me).args(["--exact", test, "--nocapture"]).env(CHILD, "1").status()?;
    Ok(status.success())
}

/// The allocator of glibc opens a file when a heap of a thread shrinks: that must be refused, not end the relay.
#[test]
fn opening_a_file_is_refused_and_ends_nothing() {
    assert!(
        lives("opening_a_file_is_refused_and_ends_nothing", || {
            sandbox::forbid_system_calls().unwrap();
            let refused = std::fs::File::open("/proc/sys/vm/overcommit_memory").unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        })
        .unwrap()
    );
}

#[test]
fn a_call_that_no_relay_makes_ends_the_process() {
    assert!(
        !lives("a_call_that_no_relay_makes_ends_the_process", || {
            sandbox::forbid_system_calls().unwrap();
            let _ = std::fs::create_dir("/nowhere/at/all");
        })
        .unwrap()
    );
}
