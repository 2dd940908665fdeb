//! What confined processes use, as often as it takes to end them in time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Limit, Limits};

/// How often processes and memory are looked at.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// How often the disk is, at most.
const DISK: Duration = Duration::from_millis(200);
/// A file or folder without content counts this much, in bytes.
const ENTRY: u64 = 4_096;
/// The disk keeps this much free, in bytes.
const RESERVE: u64 = 512 << 20;

/// Which processes are confined.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scope {
    /// All that there are but the first, which looks.
    Namespace,
    /// All whose ancestor this one is.
    Below(u32),
}

/// One look at one process.
struct Process {
    parent: u32,
    threads: u64,
    memory: u64,
}

/// Looks at processes, memory and disk.
pub(super) struct Watch<'a> {
    scope: Scope,
    limits: Limits,
    folders: &'a [PathBuf],
    next_disk: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn new(scope: Scope, limits: Limits, folders: &'a [PathBuf]) -> Self {
        Self { scope, limits, folders, next_disk: Instant::now() + DISK }
    }

    /// The limit that is exceeded now, if one is.
    pub(super) fn exceeded(&mut self) -> Option<Limit> {
        let processes = processes(self.scope);
        if processes.values().map(|process| process.threads).sum::<u64>() > self.limits.processes {
            return Some(Limit::Processes);
        }
        if processes.values().map(|process| process.memory).sum::<u64>() > self.limits.memory {
            return Some(Limit::Memory);
        }
        let started = Instant::now();
        if started >= self.next_disk {
            let full = self.disk_is_full(processes.keys());
            // A large folder is looked at less often, so that this never takes more than a quarter of a processor.
            self.next_disk = Instant::now() + DISK.max(started.elapsed() * 3);
            return full.then_some(Limit::Disk);
        }
        None
    }

    /// Whether what is written, removed files that are still open among it, exceeds the limit. What cannot be measured does.
    fn disk_is_full<'p>(&self, processes: impl Iterator<Item = &'p u32>) -> bool {
        let mut left = self.limits.disk;
        let mut seen = BTreeSet::new();
        let mut take = |about: &fs::Metadata| {
            // A file with several names is there once.
            if about.nlink() < 2 || about.is_dir() || seen.insert((about.dev(), about.ino())) {
                left = left.checked_sub((about.blocks() * 512).max(ENTRY))?;
            }
            Some(())
        };
        for folder in self.folders {
            let mut open = vec![folder.clone()];
            while let Some(folder) = open.pop() {
                let entries = match fs::read_dir(&folder) {
                    Ok(entries) => entries,
                    Err(error) if gone(&error) => continue,
                    Err(_) => return true,
                };
                for entry in entries.flatten() {
                    match entry.metadata() {
                        Ok(about) => {
                            if take(&about).is_none() {
                                return true;
                            }
                            if about.is_dir() {
                                open.push(entry.path());
                            }
                        }
                        Err(error) if gone(&error) => {}
                        Err(_) => return true,
                    }
                }
            }
        }
        let removed = processes.filter_map(|id| fs::read_dir(format!("/proc/{id}/fd")).ok());
        let removed = removed.flat_map(|files| files.flatten().filter_map(|file| fs::metadata(file.path()).ok()));
        let mut seen = BTreeSet::new();
        for about in removed.filter(|about| about.is_file() && about.nlink() == 0) {
            if seen.insert((about.dev(), about.ino())) && take(&about).is_none() {
                return true;
            }
        }
        self.folders.iter().any(|folder| super::free(folder).is_ok_and(|free| free < RESERVE))
    }
}

/// Whether a file was removed while folders were read.
fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The confined processes, by number.
pub(super) fn numbers(scope: Scope) -> Vec<u32> {
    processes(scope).into_keys().collect()
}

fn processes(scope: Scope) -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut all: BTreeMap<u32, Process> = numbers.filter_map(|id| Some((id, process(id)?))).collect();
    match scope {
        Scope::Namespace => {
            all.remove(&1);
            all
        }
        Scope::Below(root) => {
            let mut found = BTreeSet::from([root]);
            loop {
                let more: Vec<u32> = all
                    .iter()
                    .filter(|(id, process)| !found.contains(id) && found.contains(&process.parent))
                    .map(|(id, _)| *id)
                    .collect();
                if more.is_empty() {
                    break;
                }
                found.extend(more);
            }
            all.retain(|id, _| *id != root && found.contains(id));
            all
        }
    }
}

/// Reads `/proc/ID/status`. Memory is what no file stands behind, in bytes.
fn process(id: u32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let kilobytes = field("RssAnon:").unwrap_or(0) + field("RssShmem:").unwrap_or(0);
    Some(Process {
        parent: u32::try_from(field("PPid:")?).ok()?,
        threads: field("Threads:").unwrap_or(1),
        memory: kilobytes * 1_024,
    })
}
