//! Reads what the kernel reports of processes in `/proc`. A process that has ended uses nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// The unit of processor times in `/proc`: USER_HZ, which is 100 on every architecture of Linux that
/// AgentBox runs on.
const TICKS_PER_SECOND: f64 = 100.0;
const MIB_OF_KIB: f64 = 1024.0;

/// The resident memory of a process.
pub fn resident_mib(pid: u32) -> f64 {
    kib(&read(pid, "status"), "VmRSS:") / MIB_OF_KIB
}

/// The proportional set size of a process: its memory, with its part of shared pages.
pub fn proportional_mib(pid: u32) -> f64 {
    kib(&read(pid, "smaps_rollup"), "Pss:") / MIB_OF_KIB
}

/// The memory that the machine can still give.
pub fn available_mib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib(&text, "MemAvailable:") / MIB_OF_KIB
}

/// The number of open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The number of mounts that a process sees.
pub fn mounts(pid: u32) -> usize {
    read(pid, "mountinfo").lines().count()
}

/// The processor time that a process has used, without its children's.
pub fn processor_time(pid: u32) -> Duration {
    ticks(&read(pid, "stat")).map_or(Duration::ZERO, |ticks| {
        Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
    })
}

/// The processes of boxd in the boxes of a deployment.
pub fn boxds(deployment: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| is_boxd(*pid, deployment)).collect()
}

fn is_boxd(pid: u32, deployment: &str) -> bool {
    let group = format!("/agentbox-{deployment}/");
    let command = read(pid, "cmdline");
    let program = command.split('\0').next().unwrap_or_default();
    Path::new(program).ends_with("boxd") && read(pid, "cgroup").contains(&group)
}

/// A file of a process; empty when it has ended.
fn read(pid: u32, file: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The value of a line `name value kB`; 0 without such a line.
fn kib(text: &str, name: &str) -> f64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .sum()
}

/// The user and system time of `/proc/PID/stat`, in ticks.
fn ticks(stat: &str) -> Option<f64> {
    // The name in parentheses may have spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    // The 14th and 15th field; the rest begins with the third.
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_named_line() {
        let status = "VmPeak:\t  900 kB\nVmRSS:\t    2048 kB\nRssAnon:\t  100 kB\n";
        assert_eq!(kib(status, "VmRSS:"), 2048.0);
        assert_eq!(kib("Pss:  10 kB\nPss_Dirty:  5 kB\n", "Pss:"), 10.0);
        assert_eq!(kib("", "Pss:"), 0.0);
    }

    #[test]
    fn processor_time_is_user_and_system_also_with_an_odd_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 25 17 0 0 20 0 3 0 99 1000 50";
        assert_eq!(ticks(stat), Some(42.0));
        assert_eq!(ticks("broken"), None);
    }

    #[test]
    fn own_process_has_memory_descriptors_and_mounts() {
        let own = std::process::id();
        assert!(resident_mib(own) > 0.0);
        assert!(descriptors(own) > 0);
        assert!(mounts(own) > 0);
        assert!(available_mib() > 0.0);
        assert!(!is_boxd(own, "d"));
    }
}
