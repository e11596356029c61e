//! Unmet requirements of `up`: it fails at once, with one line, and leaves nothing.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_agentbox-local");

/// Runs `up` through `wrapper`, with a directory and a port of its own.
fn up(wrapper: &[&str], directory: &Path, port: u16) -> String {
    let begun = Instant::now();
    let mut words = wrapper.iter().copied().chain([PROGRAM, "up"]);
    let output = Command::new(words.next().unwrap())
        .args(words)
        .env("AGENTBOX_DIR", directory)
        .env("AGENTBOX_IMAGES", "build")
        .env("AGENTBOX_PORT", port.to_string())
        .env("AGENTBOX_BIN_DIR", agentbox_testing::bin_dir())
        .env("AGENTBOX_BOXD", agentbox_testing::boxd())
        .output()
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{output:?}");
    one_line(&output)
}

fn one_line(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn port_in_use_is_reported_with_its_program() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = up(&["env"], dir.path(), port);
    let own = format!("(pid {})", std::process::id());
    for expected in [&format!("port {port} is in use by"), &own, "AGENTBOX_PORT"] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn missing_root_rights_are_reported_with_the_command() {
    let dir = tempfile::tempdir().unwrap();
    // Another user with the right to read all files, so that it finds the program.
    let error = up(
        &[
            "setpriv",
            "--ambient-caps=+dac_read_search",
            "--inh-caps=+dac_read_search",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ],
        dir.path(),
        free_port(),
    );
    assert!(error.contains("sudo make up"), "{error}");
}

#[test]
fn full_disk_is_reported_with_free_and_required_space() {
    let dir = tempfile::tempdir().unwrap();
    let within = format!(
        "mount -t tmpfs -o size=100m none {0} && exec \"$@\"",
        dir.path().display()
    );
    // In a mount namespace, so that the mount ends with the command.
    let wrapper = ["unshare", "--mount", "sh", "-c", &within, "sh"];
    let error = up(&wrapper, &dir.path().join("data"), free_port());
    for expected in ["the disk is full: 100 MiB free in", "3072 MiB are needed"] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn missing_packages_are_reported_with_the_command() {
    let (dir, nothing) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hidden = ["/usr/lib/postgresql", "/usr/lib/cni"];
    let within = hidden
        .map(|path| format!("mount --bind {} {path} && ", nothing.path().display()))
        .concat()
        + "exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", &within, "sh"];
    let error = up(&wrapper, dir.path(), free_port());
    for expected in ["postgresql containernetworking-plugins", "make packages"] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn kubeconfig_alone_does_not_select_a_cluster() {
    let (dir, file) = (
        tempfile::tempdir().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    let kubeconfig = format!("KUBECONFIG={}", file.path().display());
    let given = ["env", "RUNTIME=kubernetes", &kubeconfig];
    let error = up(&given, dir.path(), free_port());
    assert!(error.contains("set BOXD_IMAGE"), "{error}");
    let given = [&given[..], &["BOXD_IMAGE=registry.example/boxd:1"]].concat();
    let error = up(&given, dir.path(), free_port());
    assert!(error.contains("set CLUSTER_CIDRS"), "{error}");
    let given = ["env", "RUNTIME=kubernetes", "KUBECONFIG=/no/such:/file"];
    let error = up(&given, dir.path(), free_port());
    assert!(error.contains("not one file"), "{error}");
}
