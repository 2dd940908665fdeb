//! Tests of what a confined process may do, in a process of its own.

use std::io::{Read as _, Write as _};
use std::process::Command;

use openrelay_sys::sandbox;

const CHILD: &str = "OPENRELAY_TEST_CONFINED";

/// Returns whether `behave` survives its confinement. It runs in a copy of this test program.
fn lives(test: &str, behave: fn()) -> std::io::Result<bool> {
    if std::env::var_os(CHILD).is_some() {
        behave();
        std::process::exit(0);
    }
    let me = std::env::current_exe()?;
    let status = Command::new(me).args(["--exact", test, "--nocapture"]).env(CHILD, "1").status()?;
    Ok(status.success())
}

/// glibc's allocator opens a file when a thread's heap shrinks. That must be refused, but must not end the relay.
#[test]
fn opening_a_file_is_refused_without_ending_the_process() {
    assert!(
        lives("opening_a_file_is_refused_without_ending_the_process", || {
            sandbox::forbid_system_calls().unwrap();
            let refused = std::fs::File::open("/proc/sys/vm/overcommit_memory").unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        })
        .unwrap()
    );
}

#[test]
fn unlisted_system_call_ends_the_process() {
    assert!(
        !lives("unlisted_system_call_ends_the_process", || {
            sandbox::forbid_system_calls().unwrap();
            let _ = std::fs::create_dir("/nowhere/at/all");
        })
        .unwrap()
    );
}

#[test]
fn process_that_answers_messages_reads_and_writes_and_opens_nothing() {
    let name = "process_that_answers_messages_reads_and_writes_and_opens_nothing";
    assert!(
        lives(name, || {
            let (mut one, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
            sandbox::only_messages().unwrap();
            one.write_all(b"message").unwrap();
            other.read_exact(&mut [0; 7]).unwrap();
        })
        .unwrap()
    );
}

#[test]
fn process_that_answers_messages_ends_when_it_opens_a_socket() {
    assert!(
        !lives("process_that_answers_messages_ends_when_it_opens_a_socket", || {
            sandbox::only_messages().unwrap();
            let _ = std::os::unix::net::UnixStream::pair();
        })
        .unwrap()
    );
}
