//! The system-call filter of boxes: containerd's own default, without what no box needs.
//!
//! containerd tells which filter it gave the sandbox when it was asked for its default;
//! the box gets that one, narrowed. So it follows containerd's versions, and is never
//! wider than theirs.
//!
//! * I1. Sockets are local, IPv4, IPv6 and netlink ones. Others (first of all `AF_VSOCK`,
//!   to the machine beneath a virtual one, which no network namespace holds back) are
//!   refused, and so is the old call that hides which it opens.
//! * I2. No io_uring: what it does passes no filter.
//! * I3. Without a filter there is no box.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// `AF_UNIX`, `AF_INET`, `AF_INET6`, `AF_NETLINK`.
const FAMILIES: [u64; 4] = [1, 2, 10, 16];

const REFUSED: [&str; 5] = [
    "socket",
    "socketcall",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
];

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("containerd's answer about the sandbox is not JSON")]
    Json(#[from] serde_json::Error),
    #[error("containerd gives containers no system-call filter")]
    Missing,
}

/// The narrowed filter, as the OCI runtime specification writes it; from the `info` that
/// containerd adds to a verbose sandbox status.
///
/// # Errors
/// When the sandbox has no filter that refuses by default.
pub fn narrowed(info: &str) -> Result<String, SeccompError> {
    let mut info: Value = serde_json::from_str(info)?;
    let mut filter = info["runtimeSpec"]["linux"]["seccomp"].take();
    let refuses = filter["defaultAction"]
        .as_str()
        .is_some_and(|action| action != "SCMP_ACT_ALLOW");
    let Some(rules) = filter["syscalls"].as_array_mut().filter(|_| refuses) else {
        return Err(SeccompError::Missing);
    };
    for rule in rules.iter_mut() {
        if let Some(names) = rule["names"].as_array_mut() {
            names.retain(|name| name.as_str().is_none_or(|name| !REFUSED.contains(&name)));
        }
    }
    rules.retain(|rule| {
        rule["names"]
            .as_array()
            .is_some_and(|names| !names.is_empty())
    });
    rules.extend(FAMILIES.map(|family| {
        json!({
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": family, "op": "SCMP_CMP_EQ" }],
        })
    }));
    Ok(filter.to_string())
}

/// Keeps it where containerd reads it. Replicas write the same.
///
/// # Errors
/// When the directory cannot be written.
pub fn keep(state_dir: &Path, filter: &str) -> io::Result<PathBuf> {
    let path = state_dir.join("seccomp.json");
    if std::fs::read_to_string(&path).is_ok_and(|kept| kept == filter) {
        return Ok(path);
    }
    // Whole or not at all, also when two write at a time.
    let unique = format!(
        "seccomp.json.{}",
        agentbox_contracts::ids::InstanceId::random()
    );
    let new = state_dir.join(unique);
    std::fs::write(&new, filter)?;
    std::fs::rename(&new, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(filter: &Value) -> String {
        json!({ "runtimeSpec": { "linux": { "seccomp": filter } } }).to_string()
    }

    #[test]
    fn the_default_is_narrowed_and_nothing_else_is_changed() {
        let default = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                { "names": ["read", "socket", "io_uring_setup"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["socketcall"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
                  "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }] },
            ],
        });
        let filter: Value = serde_json::from_str(&narrowed(&info(&default)).unwrap()).unwrap();
        assert_eq!(filter["defaultAction"], default["defaultAction"]);
        assert_eq!(filter["architectures"], default["architectures"]);
        let rules = filter["syscalls"].as_array().unwrap();
        assert_eq!(rules[0]["names"], json!(["read"]));
        let families: Vec<_> = rules[1..]
            .iter()
            .map(|rule| {
                assert_eq!(rule["names"], json!(["socket"]));
                assert_eq!(rule["args"][0]["op"], "SCMP_CMP_EQ");
                rule["args"][0]["value"].as_u64().unwrap()
            })
            .collect();
        assert_eq!(families, FAMILIES);
    }

    #[test]
    fn without_a_filter_that_refuses_there_is_none() {
        let allows = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [] });
        for filter in [Value::Null, json!({}), allows] {
            let outcome = narrowed(&info(&filter));
            assert!(matches!(outcome, Err(SeccompError::Missing)), "{outcome:?}");
        }
        assert!(matches!(narrowed("no"), Err(SeccompError::Json(_))));
    }

    #[test]
    fn it_is_kept_once_and_replaced_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        for filter in ["{}", "{}", "{\"a\":1}"] {
            let path = keep(dir.path(), filter).unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), filter);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
