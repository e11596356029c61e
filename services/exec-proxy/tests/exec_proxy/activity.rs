//! Reports of the environments in use, and the question whether a box is.

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::environment::rpc::RecordActivity;
use agentbox_contracts::exec::ActivityRequest;
use agentbox_contracts::exec::rpc::GetActivity;
use agentbox_contracts::ids::{EnvironmentId, InstanceId};
use agentbox_contracts::rpc::Empty;
use agentbox_testing::{NatsEndpoint, TestNats};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::gateway::command;
use crate::support::{Gateway, Proxy, TestBox, eventually};

/// Two intervals of reports, and some more.
const SOON: Duration = Duration::from_secs(30);

/// A scheduler that collects reports.
struct Scheduler {
    reported: Arc<Mutex<Vec<EnvironmentId>>>,
    _bus: Bus,
    _stop: DropGuard,
}

impl Scheduler {
    async fn start(nats: &NatsEndpoint) -> Self {
        let bus = Bus::connect(BusConfig {
            url: nats.url.clone(),
            tls_ca: nats.tls_ca.clone(),
            user: "scheduler".to_owned(),
            password: nats.passwords["scheduler"].clone(),
            service: "scheduler",
            instance: InstanceId::random(),
        })
        .await
        .unwrap();
        let reported: Arc<Mutex<Vec<EnvironmentId>>> = Arc::default();
        let requests = bus
            .serve("scheduler")
            .on_shared::<RecordActivity, _, _, _>(
                &reported,
                async |reported: Arc<Mutex<Vec<EnvironmentId>>>, request| {
                    reported.lock().extend(request.environments);
                    Ok(Empty {})
                },
            )
            .listen()
            .await
            .unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(requests.run(stop.clone()));
        Self {
            reported,
            _bus: bus,
            _stop: stop.drop_guard(),
        }
    }

    async fn wait_for_report(&self, id: &EnvironmentId) {
        eventually("the environment is reported", SOON, async || {
            self.reported.lock().contains(id)
        })
        .await;
    }
}

async fn idle_ms(gateway: &Gateway, of: &TestBox) -> u64 {
    let request = ActivityRequest {
        environment: of.id.clone(),
        address: of.address,
    };
    let asked =
        gateway
            .bus
            .call_cluster::<GetActivity>(&gateway.cluster, &request, Duration::from_secs(5));
    asked.await.unwrap().idle_ms
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_is_reported_while_a_session_is_open_and_after_a_short_one() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let cluster = format!("test-{}", EnvironmentId::random());
    let _proxy = Proxy::start(&nats, &cluster).await;
    let gateway = Gateway::connect(&nats, &cluster).await;
    let (open, short) = (TestBox::idle().await, TestBox::idle().await);
    assert!(idle_ms(&gateway, &short).await > 0);
    // No scheduler receives the first reports: they are repeated.
    gateway.exec(&short, command(&["true"])).await.unwrap();
    let mut long = command(&["sleep", "1000"]);
    long.timeout_ms = 120_000;
    let reports = async {
        eventually("the box is in use", SOON, async || {
            idle_ms(&gateway, &open).await == 0
        })
        .await;
        let scheduler = Scheduler::start(&nats).await;
        scheduler.wait_for_report(&short.id).await;
        scheduler.wait_for_report(&open.id).await;
        // The open session is reported again, the short one is not.
        scheduler.reported.lock().clear();
        scheduler.wait_for_report(&open.id).await;
        assert!(!scheduler.reported.lock().contains(&short.id));
    };
    tokio::select! {
        _ = gateway.exec(&open, long) => panic!("the command ended"),
        () = reports => {}
    }
}
