//! What of an instance exists on this machine: found from outside, not from its own word.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agentbox_local::{ContainerdEndpoint, ProcessIdentity};
use serde_json::{Value, json};

/// A supervisor started as the library starts it, bound to a process that can be killed
/// in the place of a test program.
pub struct Supervised {
    pub directory: PathBuf,
    pub supervisor: Child,
    pub test_program: Child,
}

impl Supervised {
    pub fn start(directory: &Path, cache: Option<&Path>) -> Self {
        Self::start_plan(
            directory,
            cache,
            json!({
                "deployment": null,
                "parts": { "postgres": true, "nats": true, "containerd": true, "services": false },
                "replicas": 1, "bin_dir": "/", "boxd": "/", "host": "127.0.0.1", "port": null,
                "environment": {},
            }),
        )
    }

    /// As `up` starts one: with a name, and with data that stay.
    pub fn start_lasting(directory: &Path, deployment: &str) -> Self {
        Self::start_plan(
            directory,
            None,
            json!({
                "deployment": deployment,
                "parts": { "postgres": true, "nats": true, "containerd": true, "services": false },
                "replicas": 1, "bin_dir": "/", "boxd": "/", "host": "127.0.0.1", "port": null,
                "environment": {},
            }),
        )
    }

    fn start_plan(directory: &Path, cache: Option<&Path>, plan: Value) -> Self {
        let _ = std::fs::remove_file(directory.join("state.json"));
        std::fs::write(directory.join("plan.json"), plan.to_string()).unwrap();
        let mut test_program = Command::new("sleep")
            .arg("600")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentbox-local"));
        command
            .arg("--dir")
            .arg(directory)
            .args(["supervise", "--until-stdin-ends"])
            .stdin(test_program.stdout.take().unwrap());
        if let Some(cache) = cache {
            command.env("XDG_CACHE_HOME", cache);
        }
        let supervisor = command.spawn().unwrap();
        let supervised = Self {
            directory: directory.to_owned(),
            supervisor,
            test_program,
        };
        supervised.until("ready", |state| state["phase"] == "ready");
        supervised
    }

    pub fn state(&self) -> Value {
        let text = std::fs::read(self.directory.join("state.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !condition(&self.state()) {
            assert!(Instant::now() < deadline, "not {what}: {}", self.state());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn containerd(&self) -> ContainerdEndpoint {
        serde_json::from_value(self.state()["containerd"].clone()).unwrap()
    }

    pub fn processes(&self) -> Vec<ProcessIdentity> {
        let state = self.state();
        let processes = state["processes"].as_object().unwrap();
        processes
            .values()
            .map(|process| serde_json::from_value(process["identity"].clone()).unwrap())
            .collect()
    }

    pub fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.supervisor.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the supervisor did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.test_program.kill();
        let _ = self.test_program.wait();
        let _ = self.supervisor.wait();
    }
}

fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything of a containerd instance that this machine still has.
pub fn remains(containerd: &ContainerdEndpoint) -> Vec<String> {
    let run = format!("/run/agentbox/{}", containerd.deployment);
    let state_dir = containerd.state_dir.parent().unwrap().display().to_string();
    let mut found = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&run) || line.contains(&state_dir))
            .map(|line| format!("mount {line}")),
    );
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&run) {
            found.push(format!("process {} {line}", entry.file_name().display()));
        }
    }
    if tool("ip", &["-br", "link"]).contains(&containerd.bridge) {
        found.push(format!("bridge {}", containerd.bridge));
    }
    let firewall = tool("nft", &["list", "ruleset"]);
    found.extend(
        firewall
            .lines()
            .filter(|line| {
                line.contains(&containerd.deployment) || line.contains(&containerd.bridge)
            })
            .map(|line| format!("firewall {line}")),
    );
    for path in [Path::new(&run), &containerd.state_dir] {
        if path.exists() {
            found.push(format!("directory {}", path.display()));
        }
    }
    for entry in std::fs::read_dir("/var/lib/cni/results")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains(&containerd.deployment) {
            found.push(format!("network result {name}"));
        }
    }
    found
}

/// Processes whose network namespace has an address of the instance's subnet: those in
/// its boxes, whoever their parent is.
pub fn processes_in_boxes(containerd: &ContainerdEndpoint) -> Vec<ProcessIdentity> {
    let network = u32::from(containerd.subnet.gateway()) >> 12;
    let is_inside = |word: &str| {
        word.parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| u32::from(address) >> 12 == network)
    };
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let elsewhere = std::fs::read_link(path.join("ns/net")).is_ok_and(|ns| ns != own);
        let addresses = std::fs::read_to_string(path.join("net/fib_trie")).unwrap_or_default();
        if elsewhere && addresses.split_ascii_whitespace().any(is_inside) {
            let pid = entry.file_name().to_string_lossy().parse().unwrap_or(0);
            found.extend(ProcessIdentity::of(pid));
        }
    }
    found
}
