//! Tests of evidence sources, honest and lying.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]
#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use openrelay_attest::Evidence;
use openrelay_attest::pages::{MAX_STAPLE, PAGE};

use super::super::sources::tests::{Circuit, Spread};
use super::*;
use crate::attestation::tests::staple;

/// Starts a mirror whose answers `answer` writes. Returns its URL.
fn mirror_that(answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/attestation", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            std::thread::spawn(move || {
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    asked.push(byte[0]);
                }
                // A reader that has enough hangs up.
                let _ = answer(&mut stream);
            });
        }
    });
    url
}

fn send(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", bytes.len())?;
    stream.write_all(bytes)
}

/// Starts a mirror with this file.
fn mirror(bytes: Vec<u8>) -> String {
    mirror_that(move |stream| send(stream, &bytes))
}

/// Returns the URL of a mirror that is gone.
fn gone() -> String {
    format!("http://{}/", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

fn file(staples: Vec<Staple>, silent: &[u64]) -> Vec<u8> {
    AttestationFile { staples, silent: silent.iter().copied().collect(), ..AttestationFile::default() }.encode()
}

/// Returns the file of an honest source that knows this many relays.
fn honest(relays: u64) -> Vec<u8> {
    file((1..=relays).map(|relay_id| staple(relay_id, 256, 1)).collect(), &[])
}

fn gathered(transport: &dyn Transport, mirrors: &[String], relays: u64, seed: u64) -> Gathered {
    gather(transport, mirrors, 1..=relays, &|_| true, &mut Spread(seed))
}

fn known(found: &Gathered) -> Vec<u64> {
    let relays: BTreeSet<u64> = found.staples.iter().map(|staple| staple.binding.relay_id).collect();
    relays.into_iter().collect()
}

/// Splits a file into its head and its pages, each with its length.
fn cut_up(file: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let number = |at: usize| u32::from_be_bytes(*file[at..].first_chunk().unwrap()) as usize;
    let index = 28 + number(24) + 4;
    let (head, mut rest) = file.split_at(index + number(index - 4) * 8 + number(index - 4).div_ceil(PAGE) * 32);
    let mut pages = Vec::new();
    while !rest.is_empty() {
        let (page, tail) = rest.split_at(4 + u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize);
        pages.push(page.to_vec());
        rest = tail;
    }
    (head.to_vec(), pages)
}

#[test]
fn one_honest_source_suffices_when_others_withhold() {
    let all: Vec<u64> = (1..=100).collect();
    let honest = honest(100);
    // Relay 70 is hidden: not listed, reported as silent, or in a page that is left out.
    let but_one = || (1..=100).filter(|relay_id| *relay_id != 70).map(|relay_id| staple(relay_id, 256, 1)).collect();
    let (head, pages) = cut_up(&honest);
    let lies = [file(but_one(), &[]), file(but_one(), &[70]), [&head[..], &pages[0]].concat()];
    for (kind, lie) in lies.iter().enumerate() {
        for liars in 0..16_u32 {
            let held = |source: u32| if liars >> source & 1 == 1 { lie } else { &honest }.clone();
            let transport = Circuit { ingress: held(0), egress: held(1) };
            let mirrors = [mirror(held(2)), mirror(held(3))];
            for seed in 0..12 {
                let found = gathered(&transport, &mirrors, 100, seed);
                let order = drawn(&transport, &mirrors, &mut Spread(seed));
                let honest_one = |source: &Source| {
                    let number = match source {
                        Source::Relay(Role::Ingress) => 0,
                        Source::Relay(Role::Egress) => 1,
                        Source::Mirror(url) => 2 + u32::from(*url == mirrors[1]),
                    };
                    liars >> number & 1 == 0
                };
                // A false report that a relay is silent cannot be detected, so two sources that are asked first can
                // hide it.
                let asked = if kind == 1 { SOURCES } else { order.len() };
                let honest: Vec<&Source> = order.iter().take(asked).filter(|source| honest_one(source)).collect();
                let spoken = kind == 1 && asked == SOURCES;
                let ingress_alone = !spoken && honest == [&Source::Relay(Role::Ingress)];
                let expected = !honest.is_empty() && !ingress_alone;
                assert_eq!(known(&found).contains(&70), expected, "lie {kind}, liars {liars:04b}, seed {seed}");
                assert!(known(&found).len() >= all.len() - 64, "what they do not hide is found");
                if expected {
                    assert_eq!(known(&found), all);
                }
            }
        }
    }
}

#[test]
fn evidence_from_the_ingress_alone_is_not_used() {
    let transport = Circuit { ingress: honest(3), egress: Vec::new() };
    for mirrors in [vec![], vec![gone()], vec![mirror(b"nonsense".to_vec())]] {
        let found = gathered(&transport, &mirrors, 3, 1);
        assert_eq!((known(&found), found.silent.len()), (Vec::new(), 0));
    }
    // Control: a second source that lists some of the relays, or any other source alone.
    let found = gathered(&transport, &[mirror(file(vec![staple(2, 256, 1)], &[3]))], 3, 1);
    assert_eq!(known(&found), [2, 3], "no other source lists relay 1");
    let transport = Circuit { ingress: Vec::new(), egress: honest(3) };
    assert_eq!(known(&gathered(&transport, &[], 3, 1)), [1, 2, 3]);
    let none = Circuit::default();
    assert_eq!(known(&gathered(&none, &[gone(), gone(), mirror(honest(3))], 3, 1)), [1, 2, 3]);
}

#[test]
fn bad_page_is_read_from_a_third_source() {
    let good = honest(300);
    let (head, pages) = cut_up(&good);
    let other = cut_up(&file((1..=300).map(|relay_id| staple(relay_id, 512, 9)).collect(), &[])).1;
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut pages = pages.clone();
        change(&mut pages);
        [&head[..], &pages.concat()].concat()
    };
    let rows = [
        ("page 2 of the evidence cannot be used: it is not the page", with(&|pages| pages[2][50] ^= 1)),
        ("page 2 of the evidence cannot be used: it belongs to another", with(&|pages| pages[2] = other[2].clone())),
        ("page 3 of the evidence cannot be used: its number 2", with(&|pages| pages[3] = pages[2].clone())),
        ("page 1 of the evidence cannot be used: it has 83886080 bytes", {
            with(&|pages| pages[1] = [&[5, 0, 0, 0][..], &vec![0; 1 << 20]].concat())
        }),
        ("page 4 of the evidence cannot be used: the file ends", good[..good.len() - 9].to_vec()),
        ("the evidence file ends before its first page", head[..head.len() - 1].to_vec()),
        ("this is not an evidence file", b"openrelay-attestation/2\n and what followed".to_vec()),
    ];
    for (words, bad) in rows {
        let bad = [mirror(bad.clone()), mirror(bad)];
        let mirrors = [bad[0].clone(), bad[1].clone(), mirror(good.clone())];
        // With some of these seeds, the two bad sources are asked first.
        for seed in 0..6 {
            let found = gathered(&Direct, &mirrors, 300, seed);
            assert_eq!(known(&found), (1..=300).collect::<Vec<_>>(), "{words}, seed {seed}");
            let told = found.faults.iter().filter(|(url, why)| bad.contains(url) && why.contains(words)).count();
            assert!(told >= 1 && told == found.faults.len(), "{:?}", found.faults);
        }
    }
}

#[test]
fn inconsistent_mirror_displaces_nothing_of_others() {
    let (answers, good) = (Arc::new(AtomicUsize::new(0)), honest(100));
    let counted = answers.clone();
    // Each answer has other false evidence, and another page that is truncated or from another file.
    let fickle = mirror_that(move |stream| {
        let time = counted.fetch_add(1, Ordering::Relaxed);
        let byte = u8::try_from(time % 200).unwrap() + 20;
        let forged = |height| (1..=100).flat_map(move |relay_id| vec![staple(relay_id, height, byte); 3]).collect();
        let (head, mut pages) = cut_up(&file(forged(512), &[]));
        match time % 3 {
            0 => pages[1] = cut_up(&file(forged(768), &[])).1[1].clone(),
            1 => pages[0].truncate(90),
            _ => {}
        }
        send(stream, &[head, pages.concat()].concat())
    });
    let mirrors = [fickle, mirror(good)];
    for seed in 0..9 {
        let found = gathered(&Direct, &mirrors, 100, seed);
        for relay_id in 1..=100 {
            let own: Vec<&Staple> = found.staples.iter().filter(|staple| staple.binding.relay_id == relay_id).collect();
            assert!(own.contains(&&staple(relay_id, 256, 1)), "relay {relay_id}");
            assert!(own.len() <= SOURCES * NEWEST, "{} of relay {relay_id}", own.len());
        }
    }
    assert_eq!(answers.load(Ordering::Relaxed), 9);
}

#[test]
fn newest_fitting_staples_are_taken_and_unlisted_relays_ignored() {
    let heights = [3, 256, 512, 1 << 60];
    let staples = heights.iter().map(|height| staple(1, *height, 1)).chain([staple(9, 256, 1)]).collect();
    let anchors = [256, 512, 768];
    let fits = |staple: &Staple| anchors.contains(&staple.binding.block_height);
    let mirrors = [mirror(file(staples, &[2, 10]))];
    let found = gather(&Direct, &mirrors, [1, 2, 3].into_iter(), &fits, &mut Spread(1));
    let taken: Vec<u64> = found.staples.iter().map(|staple| staple.binding.block_height).collect();
    assert_eq!((known(&found), taken), (vec![1], vec![512, 256]));
    assert_eq!(found.silent, [2].into());
}

#[test]
fn relay_listed_by_two_sources_takes_nothing_from_a_third() {
    let speaks = |signature| file(vec![staple(1, 256, signature), staple(2, 256, signature)], &[]);
    let mirrors = [mirror(speaks(1)), mirror(file(vec![staple(1, 256, 2)], &[])), mirror(speaks(3))];
    let mut third = 0;
    for seed in 0..12 {
        let found = gathered(&Direct, &mirrors, 2, seed);
        let of = |relay_id| found.staples.iter().filter(|staple| staple.binding.relay_id == relay_id).count();
        assert_eq!((of(1), of(2)), (SOURCES, SOURCES), "seed {seed}");
        third += usize::from(found.files.len() == 3);
    }
    assert!((1..12).contains(&third), "in {third} of 12 runs the source without relay 2 was among the first");
}

#[test]
fn pages_that_arrived_before_a_break_are_used() {
    let (head, pages) = cut_up(&honest(300));
    let broken = mirror_that(move |stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\nconnection: close\r\n\r\n")?;
        stream.write_all(&[&head[..], &pages[..2].concat(), &pages[2][..500]].concat())
    });
    let found = gathered(&Direct, std::slice::from_ref(&broken), 300, 1);
    assert_eq!(known(&found), (1..=128).collect::<Vec<_>>());
    let found = gathered(&Direct, &[broken, mirror(honest(300))], 300, 1);
    assert_eq!(known(&found), (1..=300).collect::<Vec<_>>());
}

/// Returns a staple of the largest size that a mirror keeps.
fn large(relay_id: u64, signature: u8) -> Staple {
    let mut one = staple(relay_id, 256, signature);
    let Evidence::Amd(report) = &mut one.evidence else { panic!("not AMD's") };
    let room = MAX_STAPLE - staple(relay_id, 256, 1).encode().len();
    report.certificate.resize(room, 7);
    one
}

/// Returns this process's memory in bytes by this name. Resets the peak if `again` is set.
fn memory(name: &str, again: bool) -> usize {
    if again {
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1_024
}

/// Returns this process's CPU time, in milliseconds.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The fields after the name, which may have spaces: user and system time, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

/// Environment variable with the mirrors for a test that reads them in a process of its own.
const MIRRORS: &str = "OPENRELAY_TEST_MIRRORS";

/// Returns the mirrors of this test, if this is the process that reads them. Otherwise starts such a process with the
/// mirrors that `mirrors` makes, so that its memory and CPU time are those of reading alone.
fn mirrors_of(test: &str, mirrors: impl FnOnce() -> Vec<String>) -> Option<Vec<String>> {
    if let Ok(urls) = std::env::var(MIRRORS) {
        return Some(urls.split(' ').map(str::to_owned).collect());
    }
    let name = format!("staples::tests::{test}");
    let mut reader = std::process::Command::new(std::env::current_exe().unwrap());
    let read = reader.args(["--exact", &name, "--nocapture"]).env(MIRRORS, mirrors().join(" ")).output().unwrap();
    let said = String::from_utf8_lossy(&read.stdout).into_owned();
    print!("{said}");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    assert!(said.contains("1 passed"), "the test was not found by its name");
    None
}

#[test]
fn evidence_of_20000_relays_is_read_from_two_sources_in_bounded_memory() {
    const RELAYS: u64 = 20_000;
    let made = || {
        let bytes = Arc::new(file((1..=RELAYS).map(|relay_id| large(relay_id, 1)).collect(), &[]));
        let one = || {
            let bytes = bytes.clone();
            mirror_that(move |stream| send(stream, &bytes))
        };
        vec![one(), one()]
    };
    let test = "evidence_of_20000_relays_is_read_from_two_sources_in_bounded_memory";
    let Some(mirrors) = mirrors_of(test, made) else { return };
    let held = usize::try_from(RELAYS).unwrap() * MAX_STAPLE;
    let (base, begun, before) = (memory("VmRSS", true), Instant::now(), cpu());
    let found = gathered(&Direct, &mirrors, RELAYS, 1);
    let (peak, spent) = (memory("VmHWM", false).saturating_sub(base), cpu() - before);
    println!(
        "{RELAYS} relays, {} MiB of evidence from each of two sources: {spent} ms of CPU, {} ms, {} MiB at most",
        held >> 20,
        begun.elapsed().as_millis(),
        peak >> 20,
    );
    assert_eq!((found.staples.len() as u64, found.faults.len()), (RELAYS, 0));
    // The held staples, and some pages of each source.
    assert!(peak > held / 2 && peak < held + held / 8 + (24 << 20), "{} MiB", peak >> 20);
    // A limit that debug builds on a busy machine keep too.
    assert!(spent < 20_000, "{spent} ms");
}

#[test]
fn greedy_source_is_limited_and_cut_off() {
    const RELAYS: u64 = 1_000;
    let made = || {
        // Ten staples for each relay, different ones at each mirror, followed by endless pages.
        let greedy = [1, 101].map(|from: u8| {
            let staples = (1..=RELAYS).flat_map(move |relay| (from..from + 10).map(move |byte| large(relay, byte)));
            let bytes = file(staples.collect(), &[]);
            mirror_that(move |stream| {
                write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
                stream.write_all(&bytes)?;
                loop {
                    stream.write_all(&[0xff; 1 << 16])?;
                }
            })
        });
        let endless = mirror_that(|stream| {
            write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            stream.write_all(&cut_up(&honest(100)).0)?;
            loop {
                stream.write_all(&[0xff; 1 << 16])?;
            }
        });
        [greedy.to_vec(), vec![endless, mirror(honest(100))]].concat()
    };
    let test = "greedy_source_is_limited_and_cut_off";
    let Some(mirrors) = mirrors_of(test, made) else { return };
    let places = usize::try_from(RELAYS).unwrap() * MAX_STAPLE * SOURCES * NEWEST;
    // A page that never ends is skipped and not held.
    let base = memory("VmRSS", true);
    assert_eq!(known(&gathered(&Direct, &mirrors[2..], 100, 1)).len(), 100);
    let peak = memory("VmHWM", false).saturating_sub(base);
    assert!(peak < 8 << 20, "{} MiB", peak >> 20);
    let base = memory("VmRSS", true);
    let found = gathered(&Direct, &mirrors[..2], RELAYS, 1);
    let peak = memory("VmHWM", false).saturating_sub(base);
    let most = found.staples.iter().fold(BTreeMap::<u64, usize>::new(), |mut counts, staple| {
        *counts.entry(staple.binding.relay_id).or_default() += 1;
        counts
    });
    assert!(most.values().all(|count| *count == SOURCES * NEWEST) && most.len() > 300, "{} relays", most.len());
    // The limit lets the first 400 relays of each file through, at 40 KiB each.
    assert!(peak < places + (24 << 20), "{} MiB", peak >> 20);
}
