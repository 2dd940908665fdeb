//! Measures what confined processes use, often enough to end them in time.
//!
//! Owns the counting of processes, memory and disk space. Never ends a process: the caller does.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Limit, Limits, Room};

/// Interval at which processes and memory are checked.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// Interval at which the disk is checked.
const DISK: Duration = Duration::from_millis(200);
/// Counting the content of folders takes at most a twentieth of the time. It takes up to a quarter where the free
/// space of the disk has shrunk by what was left of the limit.
const PART: u32 = 20;
const PART_WHERE_FULL: u32 = 4;
/// Bytes that a file or folder without content counts.
const ENTRY: u64 = 4_096;
/// Bytes that the disk must keep free.
const RESERVE: u64 = 512 << 20;

/// Which processes are confined.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scope {
    /// All processes of the namespace except the first, which watches.
    Namespace,
    /// All descendants of this process.
    Below(u32),
}

/// The last count of the folders, with the free space of their file systems at that time.
struct Counted {
    /// Bytes that may still be written.
    left: u64,
    rooms: Vec<Option<Room>>,
}

/// Checks processes, memory and disk.
pub(super) struct Watch<'a> {
    scope: Scope,
    limits: Limits,
    folders: &'a [PathBuf],
    counted: Option<Counted>,
    next_disk: Instant,
    /// When the folders are counted again: with a reason, and without one.
    next_counts: [Instant; 2],
}

impl<'a> Watch<'a> {
    pub(super) fn new(scope: Scope, limits: Limits, folders: &'a [PathBuf]) -> Self {
        let now = Instant::now();
        Self { scope, limits, folders, counted: None, next_disk: now + DISK, next_counts: [now; 2] }
    }

    /// Returns the limit that is exceeded, if one is.
    pub(super) fn exceeded(&mut self) -> Option<Limit> {
        let processes = numbers(self.scope);
        if processes.iter().map(|id| threads(*id)).sum::<u64>() > self.limits.processes {
            return Some(Limit::Processes);
        }
        // Resident memory includes the counted memory and more, and is cheaper to read.
        if processes.iter().map(|id| resident(*id)).sum::<u64>() > self.limits.memory
            && processes.iter().map(|id| memory(*id)).sum::<u64>() > self.limits.memory
        {
            return Some(Limit::Memory);
        }
        let now = Instant::now();
        if now >= self.next_disk {
            self.next_disk = now + DISK;
            return self.disk_is_full(&processes, now).then_some(Limit::Disk);
        }
        None
    }

    /// Returns whether too much was written, or the disk has too little space left for others. A large folder is
    /// counted less often, unless the free space has shrunk by what was left of the limit.
    fn disk_is_full(&mut self, processes: &[u32], now: Instant) -> bool {
        let rooms: Vec<Option<Room>> = self.folders.iter().map(|folder| super::room(folder).ok()).collect();
        if rooms.iter().flatten().any(|room| room.bytes < RESERVE) {
            return true;
        }
        let may_be_full = self.counted.as_ref().is_none_or(|counted| taken(&counted.rooms, &rooms) > counted.left);
        if now < self.next_counts[usize::from(!may_be_full)] {
            return false;
        }
        let left = self.left(processes);
        let took = now.elapsed();
        // Also without a reason: something outside may have freed as much as was written.
        self.next_counts = [PART_WHERE_FULL, PART].map(|part| now + took * part);
        self.counted = left.map(|left| Counted { left, rooms });
        left.is_none()
    }

    /// Returns how many bytes may still be written; removed files that are still open count too. Returns `None` when
    /// the limit is exceeded, or when something cannot be measured.
    fn left(&self, processes: &[u32]) -> Option<u64> {
        let mut left = self.limits.disk;
        let mut seen = BTreeSet::new();
        let mut take = |about: &fs::Metadata| {
            // A file with several names counts once.
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
                    Err(_) => return None,
                };
                for entry in entries.flatten() {
                    match entry.metadata() {
                        Ok(about) => {
                            take(&about)?;
                            if about.is_dir() {
                                open.push(entry.path());
                            }
                        }
                        Err(error) if gone(&error) => {}
                        Err(_) => return None,
                    }
                }
            }
        }
        let removed = processes.iter().filter_map(|id| fs::read_dir(format!("/proc/{id}/fd")).ok());
        let removed = removed.flat_map(|files| files.flatten().filter_map(|file| fs::metadata(file.path()).ok()));
        let mut seen = BTreeSet::new();
        for about in removed.filter(|about| about.is_file() && about.nlink() == 0) {
            if seen.insert((about.dev(), about.ino())) {
                take(&about)?;
            }
        }
        Some(left)
    }
}

/// Returns by how much the free space has shrunk since then. The folders took at most that much: others may have
/// written too.
fn taken(then: &[Option<Room>], now: &[Option<Room>]) -> u64 {
    let taken = then.iter().zip(now).map(|(then, now)| match (then, now) {
        (Some(then), Some(now)) => {
            let entries = then.entries.saturating_sub(now.entries).saturating_mul(ENTRY);
            then.bytes.saturating_sub(now.bytes).saturating_add(entries)
        }
        _ => u64::MAX,
    });
    taken.fold(0, u64::saturating_add)
}

/// Returns whether the error means that a file was removed while folders were read.
fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Returns the process IDs of the confined processes.
pub(super) fn numbers(scope: Scope) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    match scope {
        Scope::Namespace => all.filter(|id| *id != 1).collect(),
        Scope::Below(root) => {
            let parents: Vec<(u32, u32)> = all.filter_map(|id| Some((id, parent(id)?))).collect();
            let mut found = BTreeSet::from([root]);
            loop {
                let more: Vec<u32> = parents
                    .iter()
                    .filter(|(id, parent)| !found.contains(id) && found.contains(parent))
                    .map(|(id, _)| *id)
                    .collect();
                if more.is_empty() {
                    break;
                }
                found.extend(more);
            }
            found.remove(&root);
            found.into_iter().collect()
        }
    }
}

/// Returns the number of threads of a process. Source: Linux, fs/proc/base.c, `proc_task_getattr`: this folder has
/// two more links than there are threads.
fn threads(id: u32) -> u64 {
    fs::metadata(format!("/proc/{id}/task")).map_or(0, |about| about.nlink().saturating_sub(2))
}

/// Returns the resident memory of a process in bytes, including files that it has mapped.
fn resident(id: u32) -> u64 {
    // Page size of the processors on which images are built.
    const PAGE: u64 = 4_096;
    let read = || fs::read_to_string(format!("/proc/{id}/statm")).ok()?.split(' ').nth(1)?.parse::<u64>().ok();
    read().unwrap_or(0) * PAGE
}

/// Returns the part of the resident memory that no file backs, in bytes.
fn memory(id: u32) -> u64 {
    let kilobytes = |name| status(id, name).unwrap_or(0);
    (kilobytes("RssAnon:") + kilobytes("RssShmem:")) * 1_024
}

fn parent(id: u32) -> Option<u32> {
    status(id, "PPid:").and_then(|number| u32::try_from(number).ok())
}

/// Reads a number from `/proc/ID/status`.
fn status(id: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn taken_space_sums_bytes_and_entries_and_is_unlimited_when_unknown() {
        let room = |bytes, entries| Some(Room { bytes, entries });
        assert_eq!(taken(&[room(100, 7), room(50, 0)], &[room(60, 5), room(49, 0)]), 40 + 2 * ENTRY + 1);
        // Space that others have freed does not count.
        assert_eq!(taken(&[room(100, 7), room(50, 0)], &[room(900, 9), room(49, 0)]), 1);
        assert_eq!(taken(&[room(100, 7)], &[None]), u64::MAX);
        assert_eq!(taken(&[None, room(1, 1)], &[room(1, 1), room(1, 1)]), u64::MAX);
        assert_eq!(taken(&[], &[]), 0);
    }

    #[test]
    fn folder_is_counted_at_once_and_again_when_due() {
        let folders = [std::env::temp_dir().join(format!("openrelay-watch-{}", std::process::id()))];
        fs::create_dir_all(folders[0].join("below")).unwrap();
        let limits = Limits { time: DISK, memory: 0, disk: 1 << 20, processes: 0 };
        let mut watch = Watch::new(Scope::Namespace, limits, &folders);
        assert!(!watch.disk_is_full(&[], Instant::now()));
        assert_eq!(watch.counted.as_ref().unwrap().left, (1 << 20) - ENTRY, "a folder counts as one entry");
        fs::write(folders[0].join("below/file"), vec![1; 2 << 20]).unwrap();
        assert!(watch.disk_is_full(&[], watch.next_counts[1]));
        let mut watch = Watch::new(Scope::Namespace, limits, &folders);
        assert!(watch.disk_is_full(&[], Instant::now()), "at once");
        fs::remove_dir_all(&folders[0]).unwrap();
    }

    #[test]
    fn processes_are_counted_with_their_threads_and_memory() {
        // The child waits for input that nobody writes.
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let id = child.id();
        assert!(numbers(Scope::Below(std::process::id())).contains(&id));
        let own = std::process::id();
        assert_eq!((threads(id), parent(id)), (1, Some(own)));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        assert!(threads(own) >= 2, "the test's thread and the new one");
        drop(stop);
        assert!(thread.join().unwrap().is_err());
        let used = memory(own);
        assert!(used > 0 && resident(own) + (1 << 20) >= used, "{used} of {}", resident(own));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!((threads(id), resident(id), memory(id)), (0, 0, 0), "the process is gone");
    }
}
