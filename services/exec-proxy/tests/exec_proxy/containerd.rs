//! The exec-proxy program with the containerd driver and real boxes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::environment::Status;
use agentbox_contracts::exec::{ExecRequest, LogsRequest, Open, OpenKind};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::{BoxPhase, BoxSpec, Isolation, Resources, Runtime as _};
use agentbox_runtime_containerd::Driver;
use agentbox_testing::{
    NatsEndpoint, TestContainerd, TestNats, assert_fastest_below, eventually_some,
};

use crate::support::gateway::{Logs, command, result, shell};
use crate::support::{Gateway, eventually, proxy};

const CLUSTER: &str = "containerd-test";

/// The exec-proxy process; killed on drop.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_program(nats: &NatsEndpoint, clusters: &std::path::Path) -> Program {
    let secret = proxy::secret_bytes();
    let process = Command::new(env!("CARGO_BIN_EXE_agentbox-exec-proxy"))
        .env("AGENTBOX_NATS_URL", &nats.url)
        .env("AGENTBOX_NATS_USER", "exec-proxy")
        .env("AGENTBOX_NATS_PASSWORD", &nats.passwords["exec-proxy"])
        .env("AGENTBOX_ADMIN_LISTEN", "127.0.0.1:0")
        .env("AGENTBOX_BOX_SECRET", hex::encode(secret))
        .env("AGENTBOX_CLUSTERS", clusters)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Program(process)
}

struct RealBox {
    id: EnvironmentId,
    address: SocketAddr,
}

async fn start_box(driver: &Driver, command: Option<&str>) -> RealBox {
    let id = EnvironmentId::random();
    let token = BoxToken::derive(&proxy::secret_bytes(), &id).unwrap();
    let spec = BoxSpec {
        id: id.clone(),
        warm: false,
        owner: UserId::random(),
        image: "busybox".into(),
        command: command.map(|script| vec!["sh".into(), "-c".into(), script.into()]),
        use_entrypoint: false,
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        resources: Resources {
            cpu: MilliCpu(1000),
            memory: Bytes(64 << 20),
            storage: Bytes(1 << 30),
            pids: 256,
        },
        isolation: Isolation::default(),
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        boxd_token: token.expose().to_owned(),
        image_credential: None,
    };
    match driver.ensure(&spec, 1).await.unwrap().phase {
        BoxPhase::Running { address, .. } => RealBox { id, address },
        other => panic!("the box does not run: {other:?}"),
    }
}

impl RealBox {
    fn open(&self, kind: OpenKind) -> Open {
        Open {
            environment: self.id.clone(),
            owner: None,
            address: Some(self.address),
            status: Status::Running,
            kind,
        }
    }

    async fn exec(
        &self,
        gateway: &Gateway,
        request: ExecRequest,
    ) -> agentbox_contracts::exec::ExecResult {
        let session = gateway
            .open_as(&self.open(OpenKind::Exec(request)))
            .await
            .unwrap();
        result(session).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn program_serves_real_boxes_from_first_command_to_archive() {
    let containerd = TestContainerd::start().await.unwrap();
    let nats = TestNats::shared().await.unwrap();
    let config = serde_json::to_value(&containerd.endpoint).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let clusters = scratch.path().join("clusters.json");
    let file = serde_json::json!({ "clusters": [{
        "name": CLUSTER, "driver": "containerd", "labels": {}, "containerd": config,
    }]});
    std::fs::write(&clusters, file.to_string()).unwrap();
    let driver = Driver::connect(serde_json::from_value(config).unwrap()).unwrap();
    let _program = start_program(&nats, &clusters);
    let gateway = Gateway::connect(&nats, CLUSTER).await;

    let idle = start_box(&driver, None).await;
    check_exits(&gateway, &idle).await;
    check_latency(&gateway, &idle).await;
    driver.remove(&idle.id).await.unwrap();

    check_followed_logs(&gateway, &driver).await;
}

async fn check_exits(gateway: &Gateway, inside: &RealBox) {
    let answer = inside
        .exec(gateway, shell("echo out; echo err >&2; exit 3"))
        .await;
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(answer.exit.exit_code, 3);
    let answer = inside.exec(gateway, command(&["no-such-program"])).await;
    assert_eq!(answer.exit.exit_code, 127);
    // Allocates memory without end.
    let answer = inside.exec(gateway, shell("tail /dev/zero")).await;
    assert_eq!(
        (answer.exit.exit_code, answer.exit.oom_killed),
        (137, true),
        "{answer:?}"
    );
    let within = Duration::from_secs(20);
    let usage = eventually_some("the usage is read", within, async || {
        gateway.usage_at(&inside.id, inside.address).await.ok()
    })
    .await;
    assert!(usage.memory_bytes > 0, "{usage:?}");
}

async fn check_latency(gateway: &Gateway, inside: &RealBox) {
    let mut times = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        assert_eq!(
            inside
                .exec(gateway, command(&["true"]))
                .await
                .exit
                .exit_code,
            0
        );
        times.push(began.elapsed());
    }
    assert_fastest_below(times, Duration::from_millis(50));
}

async fn check_followed_logs(gateway: &Gateway, driver: &Driver) {
    // It runs until the follower has the lines so far.
    let script = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done; \
                  until [ -e /tmp/go ]; do sleep 0.05; done; echo last; exit 3";
    let inside = start_box(driver, Some(script)).await;
    let request = LogsRequest {
        follow: true,
        ..LogsRequest::default()
    };
    let mut session = gateway
        .open_as(&inside.open(OpenKind::Logs(request)))
        .await
        .unwrap();
    let follow = async {
        let mut logs = Logs::default();
        while logs.entries.len() < 500 {
            assert!(!logs.take(session.recv().await.unwrap()));
        }
        let go = inside.open(OpenKind::Exec(command(&["touch", "/tmp/go"])));
        // The box may end before the result.
        let _ = result(gateway.open_as(&go).await.unwrap()).await;
        while !logs.take(session.recv().await.unwrap()) {}
        logs
    };
    // Archives and removes the box, as the scheduler does.
    let settle = async {
        eventually("the box has exited", Duration::from_secs(60), async || {
            let seen = driver.get(&inside.id).await.unwrap();
            seen.is_some_and(|seen| matches!(seen.phase, BoxPhase::Exited { exit_code: 3, .. }))
        })
        .await;
        let stored = gateway
            .archive_of(&inside.id, Some(inside.address))
            .await
            .unwrap();
        driver.remove(&inside.id).await.unwrap();
        stored
    };
    let (logs, stored) = tokio::join!(follow, settle);
    assert_eq!(
        (logs.entries.len(), logs.lost, logs.ended),
        (501, 0, Some(true))
    );
    assert_eq!(logs.lines().last().map(String::as_str), Some("last"));
    assert_eq!(stored.entries, 501);

    let mut open = inside.open(OpenKind::Logs(LogsRequest::default()));
    open.status = Status::Failed;
    open.address = None;
    let archived = gateway.logs(&open).await.unwrap();
    assert_eq!(archived.entries, logs.entries);
}
