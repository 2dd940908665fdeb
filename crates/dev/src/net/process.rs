//! What the kernel reports about a process. Source: proc(5).

use anyhow::{Context as _, Result};

use super::host::checked;

/// Returns the CPU time of a process, in seconds. Source: /proc/PID/stat, fields 14 and 15.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("the process has no name")?.1;
    let ticks: Vec<u64> = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
    let hertz: f64 =
        checked(&std::process::Command::new("getconf").arg("CLK_TCK").output()?, "getconf")?.trim().parse()?;
    Ok(ticks.iter().sum::<u64>() as f64 / hertz)
}

/// Returns the resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).context("the process has no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("VmRSS has no value")?.parse()?)
}

/// Sends a signal to a process.
pub(crate) fn signal(name: &str, pid: u32) -> Result<()> {
    let output = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).output()?;
    checked(&output, &format!("kill -s {name}")).map(drop)
}
