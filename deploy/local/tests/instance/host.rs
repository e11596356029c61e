//! What exists of an instance on this machine, found by a search of the machine.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agentbox_testing::{ContainerdEndpoint, KubernetesEndpoint, ProcessIdentity};
use serde_json::{Value, json};

use crate::api::Api;

/// A supervisor, started as agentbox-testing starts it. A process that can be killed takes the
/// place of the test program.
pub struct Supervised {
    pub directory: PathBuf,
    pub supervisor: Child,
    pub test_program: Child,
}

impl Supervised {
    pub fn start(directory: &Path, cache: Option<&Path>) -> Self {
        Self::start_plan(directory, cache, &plan(None, false))
    }

    /// With a Kubernetes beside containerd.
    pub fn start_both(directory: &Path, cache: &Path) -> Self {
        let mut plan = plan(None, false);
        plan["components"]["kubernetes"] = true.into();
        Self::start_plan(directory, Some(cache), &plan)
    }

    /// With the product's services.
    pub fn start_with_services(directory: &Path, cache: Option<&Path>) -> Self {
        Self::start_plan(directory, cache, &plan(None, true))
    }

    /// As `up` starts an instance: with a name, and with data that are kept.
    pub fn start_durable(directory: &Path, deployment: &str) -> Self {
        Self::start_plan(directory, None, &plan(Some(deployment), false))
    }

    /// As `up` starts an instance with services, with its default pool. The gateway lets a test ask often.
    pub fn start_as_up(directory: &Path, deployment: &str) -> Self {
        let mut plan = plan(Some(deployment), true);
        plan["environment"]["api-gateway"]["AGENTBOX_RATE_LIMIT_OTHER"] = "1000000".into();
        Self::start_plan(directory, None, &plan)
    }

    fn start_plan(directory: &Path, cache: Option<&Path>, plan: &Value) -> Self {
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
            // Nothing is asked of, or pulled from, a registry outside.
            .env("AGENTBOX_IMAGES", "build")
            .stdin(test_program.stdout.take().unwrap());
        if let Some(cache) = cache {
            command.env("XDG_CACHE_HOME", cache);
        }
        let supervisor = command.spawn().unwrap();
        let mut supervised = Self {
            directory: directory.to_owned(),
            supervisor,
            test_program,
        };
        supervised.wait_until("ready", |state| state["phase"] == "ready");
        supervised
    }

    pub fn state(&self) -> Value {
        let text = std::fs::read(self.directory.join("state.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn wait_until(&mut self, what: &str, condition: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !condition(&self.state()) {
            let ended = self.supervisor.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "not {what}, and the supervisor ended: {ended:?}"
            );
            assert!(Instant::now() < deadline, "not {what}: {}", self.state());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn containerd(&self) -> ContainerdEndpoint {
        serde_json::from_value(self.cluster("containerd")).unwrap()
    }

    pub fn kubernetes(&self) -> KubernetesEndpoint {
        serde_json::from_value(self.cluster("kubernetes")).unwrap()
    }

    fn cluster(&self, kind: &str) -> Value {
        let state = self.state();
        let mut clusters = state["clusters"].as_array().unwrap().iter();
        clusters.find(|c| c["driver"] == kind).unwrap()[kind].clone()
    }

    pub async fn api(&self) -> Api {
        let secrets = std::fs::read(self.directory.join("secrets.json")).unwrap();
        let secrets: Value = serde_json::from_slice(&secrets).unwrap();
        let word = |name: &str| secrets[name].as_str().unwrap().to_owned();
        let state = self.state();
        let url = state["gateway"]["url"].as_str().unwrap();
        Api::login(url, &word("admin_username"), &word("admin_password")).await
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
        // The sum of the supervisor's own deadlines is shorter.
        let deadline = Instant::now() + Duration::from_secs(100);
        while self.supervisor.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the supervisor did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn plan(deployment: Option<&str>, services: bool) -> Value {
    json!({
        "deployment": deployment,
        "durable": deployment.is_some(),
        "components": { "postgres": true, "nats": true, "containerd": true, "services": services },
        "replicas": 1,
        "bin_dir": agentbox_testing::bin_dir(),
        "boxd": agentbox_testing::boxd(),
        "host": "127.0.0.1",
        "port": null,
        "environment": {},
    })
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.test_program.kill();
        let _ = self.test_program.wait();
        let _ = self.supervisor.wait();
    }
}

pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything of a containerd instance that exists on this machine.
pub fn leftovers(containerd: &ContainerdEndpoint) -> Vec<String> {
    let run = format!("/run/agentbox/{}", containerd.deployment);
    let state_dir = containerd.state_dir.parent().unwrap().display().to_string();
    let mut found = Vec::new();
    // Network namespaces of boxes are mounts below the run directory.
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
    let ours =
        |line: &&str| line.contains(&containerd.deployment) || line.contains(&containerd.bridge);
    for (program, arguments) in [
        ("nft", &["list", "ruleset"][..]),
        ("iptables", &["-w", "5", "-S"]),
    ] {
        let rules = tool(program, arguments);
        found.extend(
            rules
                .lines()
                .filter(ours)
                .map(|line| format!("{program} {line}")),
        );
    }
    for group in control_groups(containerd) {
        found.push(format!("control group {}", group.display()));
    }
    for path in [Path::new(&run), &containerd.state_dir] {
        if path.exists() {
            found.push(format!("directory {}", path.display()));
        }
    }
    let results = std::fs::read_dir("/var/lib/cni/results");
    for entry in results.into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains(&containerd.deployment) {
            found.push(format!("network result {name}"));
        }
    }
    found
}

/// Everything of an ended instance that exists on this machine. The next test that takes its slot
/// uses the same names: then the list is empty, because nothing can be told apart.
pub fn leftovers_of_ended(containerd: &ContainerdEndpoint) -> Vec<String> {
    let slot = containerd.state_dir.parent().unwrap().join("lock");
    let Ok(slot) = std::fs::File::open(slot) else {
        // An instance with a name has no slot.
        return leftovers(containerd);
    };
    // Locked during the search.
    if slot.try_lock().is_ok() {
        leftovers(containerd)
    } else {
        Vec::new()
    }
}

/// The groups of the deployment and of those that share its containerd, in every hierarchy.
fn control_groups(containerd: &ContainerdEndpoint) -> Vec<PathBuf> {
    let name = format!("agentbox-{}", containerd.deployment);
    let below = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let root = PathBuf::from("/sys/fs/cgroup");
    let mut hierarchies = below(&root);
    hierarchies.push(root);
    hierarchies
        .iter()
        .flat_map(|hierarchy| below(hierarchy))
        .filter(|group| {
            group
                .file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&name)
        })
        .collect()
}

/// What exists of boxes in a running instance: sandboxes, groups, directories and rules.
pub async fn leftover_boxes(containerd: &ContainerdEndpoint) -> Vec<String> {
    let mut found = crate::pod::sandboxes(containerd).await;
    let mut directories = control_groups(containerd);
    directories.push(containerd.state_dir.clone());
    for directory in directories {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("env-") {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let table = format!("agentbox-{}", containerd.deployment);
    for family in ["inet", "bridge"] {
        let rules = tool("nft", &["list", "table", family, &table]);
        found.extend(
            rules
                .lines()
                .filter(|line| line.contains("env-"))
                .map(str::to_owned),
        );
    }
    found
}

/// The processes in the instance's boxes: those whose network namespace has an address of the
/// instance's subnet.
pub fn processes_in_boxes(containerd: &ContainerdEndpoint) -> Vec<ProcessIdentity> {
    let is_inside = |word: &str| {
        word.parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| containerd.subnet.contains(&address))
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
