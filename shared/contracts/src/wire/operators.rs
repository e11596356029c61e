//! The messages of what operators do: clusters, dead letters, limits and metered use.

use super::*;
use crate::cluster::rpc::{CordonCluster, DrainCluster, ListClusters, UncordonCluster};
use crate::dead_letter::rpc::{
    DiscardDeadLetter, GetDeadLetter, ListDeadLetters, ReplayDeadLetter,
};
use crate::exec::rpc::MeterUsage;
use crate::limits::UserLimits;
use crate::metering::rpc::ReadUsage;

fn cluster() -> Value {
    json!({"name": "local", "driver": "containerd", "labels": {"region": "eu"},
        "state": "draining", "drain_deadline": AT,
        "environments": {"pending": 1, "running": 2, "terminating": 3},
        "capacity": {"nodes": 1, "total_cpu_milli": 4000, "total_memory_bytes": 2048,
            "available_cpu_milli": 3000, "available_memory_bytes": 1024},
        "version": "containerd 2.4.2"})
}

fn dead_letter() -> Value {
    json!({"number": 17, "kind": "command",
        "subject": "abx.v1.cmd.env.local.reconcile.env-0123456789abcdef", "environment": ENV,
        "reason": "the database failed", "at": AT, "bytes": 4})
}

fn metered() -> Value {
    json!({"environments": 2, "running_seconds": 60.5, "cpu_seconds": 1.5,
        "reserved_cpu_seconds": 30.25, "memory_byte_seconds": 1024.5,
        "storage_byte_seconds": 2048.5, "egress_bytes": 7})
}

#[test]
fn operator_rpcs_match_snapshot() {
    let mut m = Messages::new();
    rpc::<ListClusters>(&mut m, json!({}), json!({"clusters": [cluster()]}));
    rpc::<CordonCluster>(&mut m, json!({"cluster": "local"}), cluster());
    rpc::<UncordonCluster>(&mut m, json!({"cluster": "local"}), cluster());
    let drain = json!({"cluster": "local", "timeout_s": 600});
    rpc::<DrainCluster>(&mut m, drain, cluster());
    let page = json!({"letters": [dead_letter()], "total": 21});
    rpc::<ListDeadLetters>(&mut m, json!({"limit": 10, "offset": 20}), page);
    let mut content = dead_letter();
    content["headers"] = json!({"Abx-Reason": ["the database failed"]});
    content["body"] = json!("bnVsbA==");
    rpc::<GetDeadLetter>(&mut m, json!({"number": 17}), content);
    rpc::<ReplayDeadLetter>(&mut m, json!({"number": 17}), json!({}));
    rpc::<DiscardDeadLetter>(&mut m, json!({"number": 17}), json!({}));
    let read = json!({"owner": USER, "since": AT, "until": AT, "group_by": "team"});
    let mut group = metered();
    group["value"] = json!("a");
    rpc::<ReadUsage>(&mut m, read, json!({"total": metered(), "groups": [group]}));
    let counters = json!({"cpu_usage_ns": 5, "egress_bytes": 6});
    let asked = json!({"environment": ENV, "address": "10.0.0.2:10777"});
    cluster_rpc::<MeterUsage>(&mut m, asked, counters);
    let limits = json!({"environments": 20, "cpu": 8000, "memory": 1024, "storage": 2048,
        "sessions": 50, "rates": {"create": 1, "exec": 2, "files": 3, "other": 4}});
    message::<UserLimits>(&mut m, "user limits", limits);
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(m) });
}
