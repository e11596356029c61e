//! The system-call filter of boxes: containerd's default, without the calls that no box needs.
//!
//! The sandbox gets containerd's default filter, and its status contains it. The box gets that
//! filter, restricted further, so that it follows containerd's versions and is never wider.
//!
//! * I1. Only local, IPv4, IPv6 and routing netlink sockets are allowed. `AF_VSOCK`, for example,
//!   leads to the host of a virtual machine and ignores network namespaces. The other protocols of
//!   netlink lead to parts of the kernel that no box needs. `socketcall` is refused, because it hides
//!   the family from the filter.
//! * I2. io_uring is refused: the filter does not see its operations.
//! * I3. A box without a filter is not created.
//! * I4. A process sets its own resource limits only. It could otherwise take those of boxd, which
//!   has the same user: without descriptors boxd serves nothing.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// `AF_UNIX`, `AF_INET`, `AF_INET6`.
const FAMILIES: [u64; 3] = [1, 2, 10];
const AF_NETLINK: u64 = 16;
const NETLINK_ROUTE: u64 = 0;
const NETLINK_AUDIT: u64 = 9;
const EPROTONOSUPPORT: u64 = 93;

/// Calls that containerd's rules no longer name. [`allowed`] has those of their uses that are allowed.
const RESTRICTED: [&str; 6] = [
    "prlimit64",
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

/// Restricts the filter in the `info` of a verbose sandbox status, and returns it in the form of
/// the OCI runtime specification.
///
/// # Errors
/// When the sandbox has no filter that refuses by default.
pub fn restrict(info: &str) -> Result<String, SeccompError> {
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
            names.retain(|name| name.as_str().is_none_or(|name| !RESTRICTED.contains(&name)));
        }
    }
    rules.retain(|rule| {
        rule["names"]
            .as_array()
            .is_some_and(|names| !names.is_empty())
    });
    rules.extend(allowed());
    Ok(filter.to_string())
}

fn argument(index: u32, value: u64) -> Value {
    json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" })
}

fn allow(name: &str, arguments: Vec<Value>) -> Value {
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": arguments })
}

/// The rules for the uses of the restricted calls. A value is compared with all 64 bits of its argument,
/// so bits that the kernel ignores never make a use allowed.
fn allowed() -> Vec<Value> {
    let mut rules: Vec<Value> = FAMILIES
        .iter()
        .map(|family| allow("socket", vec![argument(0, *family)]))
        .collect();
    let netlink = |protocol: u64| vec![argument(0, AF_NETLINK), argument(2, protocol)];
    rules.push(allow("socket", netlink(NETLINK_ROUTE)));
    // useradd, sudo and PAM end at any other error than that of a kernel without audit.
    rules.push(json!({
        "names": ["socket"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": EPROTONOSUPPORT,
        "args": netlink(NETLINK_AUDIT),
    }));
    // The process 0 is the caller. Without new limits the call only reads, of any process.
    rules.push(allow("prlimit64", vec![argument(0, 0)]));
    rules.push(allow("prlimit64", vec![argument(2, 0)]));
    rules
}

/// Stores the filter in a file for containerd. Every replica writes the same file.
///
/// # Errors
/// When the directory cannot be written.
pub fn store(state_dir: &Path, filter: &str) -> io::Result<PathBuf> {
    let path = state_dir.join("seccomp.json");
    if std::fs::read_to_string(&path).is_ok_and(|stored| stored == filter) {
        return Ok(path);
    }
    // A rename, so that a reader never sees a part, also with two writers.
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
    fn default_filter_is_restricted_and_otherwise_unchanged() {
        let default = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                { "names": ["read", "socket", "prlimit64", "io_uring_setup"],
                  "action": "SCMP_ACT_ALLOW" },
                { "names": ["socketcall"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
                  "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }] },
            ],
        });
        let filter: Value = serde_json::from_str(&restrict(&info(&default)).unwrap()).unwrap();
        assert_eq!(filter["defaultAction"], default["defaultAction"]);
        assert_eq!(filter["architectures"], default["architectures"]);
        let rules = filter["syscalls"].as_array().unwrap();
        assert_eq!(rules[0]["names"], json!(["read"]));
        assert_eq!(rules[1..], allowed());
    }

    #[test]
    fn restricted_calls_are_allowed_for_exact_arguments_only() {
        let uses: Vec<_> = allowed()
            .iter()
            .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
            .map(|rule| {
                let arguments = rule["args"].as_array().unwrap();
                let values: Vec<_> = arguments
                    .iter()
                    .map(|argument| {
                        assert_eq!(argument["op"], "SCMP_CMP_EQ");
                        let number = |name: &str| argument[name].as_u64().unwrap();
                        (number("index"), number("value"))
                    })
                    .collect();
                (rule["names"][0].as_str().unwrap().to_owned(), values)
            })
            .collect();
        let expected: [(&str, Vec<(u64, u64)>); 6] = [
            ("socket", vec![(0, 1)]),
            ("socket", vec![(0, 2)]),
            ("socket", vec![(0, 10)]),
            ("socket", vec![(0, 16), (2, 0)]),
            ("prlimit64", vec![(0, 0)]),
            ("prlimit64", vec![(2, 0)]),
        ];
        assert_eq!(
            uses,
            expected.map(|(name, values)| (name.to_owned(), values))
        );
    }

    #[test]
    fn permissive_or_missing_filter_is_refused() {
        let allows = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [] });
        for filter in [Value::Null, json!({}), allows] {
            let outcome = restrict(&info(&filter));
            assert!(matches!(outcome, Err(SeccompError::Missing)), "{outcome:?}");
        }
        assert!(matches!(restrict("no"), Err(SeccompError::Json(_))));
    }

    #[test]
    fn filter_file_is_replaced_only_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        for filter in ["{}", "{}", "{\"a\":1}"] {
            let path = store(dir.path(), filter).unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), filter);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
