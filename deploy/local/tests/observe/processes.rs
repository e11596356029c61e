//! Signals to the processes of an instance and to those of a box.

use agentbox_testing::System;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The ids of all processes of the machine.
fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Sends a signal to the process `name` and to its children: each connection to Postgres has one.
pub fn signal_with_children(system: &System, name: &str, signal: Signal) {
    let process = system.pids(name)[&0].cast_signed();
    for pid in pids()
        .filter(|pid| parent(*pid) == Some(process))
        .chain([process])
    {
        // A child may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain spaces and brackets; the state and the parent follow it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// The first process of the box that runs a process with `text` in its command line.
pub fn first_process_of_box(text: &str) -> Option<i32> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let inside = pids().find(|pid| command_line(*pid).contains(text))?;
    let wanted = namespace(inside)?;
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_ne!(wanted, own, "no box");
    pids()
        .filter(|pid| namespace(*pid).as_ref() == Some(&wanted))
        .find(|pid| is_first(*pid))
}

fn command_line(pid: i32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).into_owned()
}

/// Whether the process has the id 1 in its own namespace.
fn is_first(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // The last number is the process id inside the box.
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().last() == Some("1"))
}
