//! Reports of the environments in use, and the question whether a box is.

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::environment::rpc::RecordActivity;
use agentbox_contracts::exec::ActivityRequest;
use agentbox_contracts::exec::rpc::GetActivity;
use agentbox_contracts::ids::{EnvironmentId, InstanceId};
use agentbox_contracts::rpc::Empty;
use agentbox_testing::{NatsEndpoint, TestNats, eventually_some};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::gateway::command;
use crate::support::{Gateway, Proxy, TestBox, eventually};

/// Several intervals of reports.
const SOON: Duration = Duration::from_secs(60);

/// The environments of each report.
type Reports = Arc<Mutex<Vec<Vec<EnvironmentId>>>>;

/// A scheduler that collects reports.
struct Scheduler {
    reports: Reports,
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
        let reports = Reports::default();
        let requests = bus
            .serve("scheduler")
            .on_shared::<RecordActivity, _, _, _>(&reports, async |reports: Reports, request| {
                reports.lock().push(request.environments);
                Ok(Empty {})
            })
            .listen()
            .await
            .unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(requests.run(stop.clone()));
        Self {
            reports,
            _bus: bus,
            _stop: stop.drop_guard(),
        }
    }

    async fn wait_for_report(&self, id: &EnvironmentId) {
        eventually("the environment is reported", SOON, async || {
            self.reports.lock().iter().any(|report| report.contains(id))
        })
        .await;
    }
}

async fn idle_ms(gateway: &Gateway, of: &TestBox) -> u64 {
    let request = ActivityRequest {
        environment: of.id.clone(),
        address: of.address,
    };
    eventually_some("the box reports its activity", SOON, async || {
        let within = Duration::from_secs(5);
        let bus = &gateway.bus;
        let asked = bus.call_cluster::<GetActivity>(&gateway.cluster, &request, within);
        Some(asked.await.ok()?.idle_ms)
    })
    .await
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
        // A report whose answer was late is repeated with both.
        scheduler.reports.lock().clear();
        eventually("the open one is reported alone", SOON, async || {
            let reports = scheduler.reports.lock();
            reports.iter().any(|report| *report == [open.id.clone()])
        })
        .await;
    };
    tokio::select! {
        _ = gateway.exec(&open, long) => panic!("the command ended"),
        () = reports => {}
    }
}
