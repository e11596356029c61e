//! Connections as each service, sessions between two of them, and waiting with a deadline.

use std::future::Future;
use std::time::Duration;

use agentbox_bus::{Acceptor, Bus, BusConfig, Session};
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::permissions::PROVISIONER;
use agentbox_contracts::rpc::SessionRpc;
use agentbox_contracts::subjects;
use agentbox_testing::{NatsEndpoint, TestNats};
use bytes::Bytes;

pub mod process;

pub const DEADLINE: Duration = Duration::from_secs(10);

/// A session that is opened with one of its own messages.
pub struct TestSession;

impl SessionRpc for TestSession {
    const METHOD: &'static str = "open";
    type Open = ToBox;
    type ToServer = ToBox;
    type ToOpener = FromBox;
}

/// What most sessions are opened with.
pub fn request() -> ToBox {
    ToBox::Signal("open".into())
}

pub type ToServer = Session<ToBox, FromBox>;
pub type ToOpener = Session<FromBox, ToBox>;

pub async fn connect(nats: &NatsEndpoint, service: &'static str) -> Bus {
    Bus::connect(BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: service.to_owned(),
        password: nats.passwords[service].clone(),
        service,
        instance: InstanceId::random(),
    })
    .await
    .unwrap()
}

/// A connection with all permissions.
pub async fn connect_with_all_access(nats: &NatsEndpoint) -> Bus {
    let (user, password) = nats.all_access();
    Bus::connect(BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: user.to_owned(),
        password: password.to_owned(),
        service: PROVISIONER,
        instance: InstanceId::random(),
    })
    .await
    .unwrap()
}

/// The name of a cluster that no other test uses.
pub fn cluster() -> String {
    InstanceId::random().to_string()
}

/// The two ends of sessions: a gateway, and an exec-proxy that serves a cluster of its own.
pub struct Ends {
    pub gateway: Bus,
    pub proxy: Bus,
    pub acceptor: Acceptor<TestSession>,
    pub cluster: String,
}

impl Ends {
    pub async fn shared() -> Self {
        Self::on(&TestNats::shared().await.unwrap()).await
    }

    pub async fn on(nats: &NatsEndpoint) -> Self {
        let (gateway, proxy) = (
            connect(nats, "api-gateway").await,
            connect(nats, "exec-proxy").await,
        );
        let cluster = cluster();
        let acceptor = proxy.accept_sessions(&cluster, "exec-proxy").await.unwrap();
        Self {
            gateway,
            proxy,
            acceptor,
            cluster,
        }
    }

    pub async fn open(&self) -> ToServer {
        self.gateway
            .open_session::<TestSession>(&self.cluster, &request(), DEADLINE)
            .await
            .unwrap()
    }

    /// The subject on which sessions are opened.
    pub fn subject(&self) -> String {
        subjects::exec_rpc(&self.cluster, TestSession::METHOD)
    }

    /// An open session, both ends.
    pub async fn session(&mut self) -> (ToServer, ToOpener) {
        let opened = self.open().await;
        let mut incoming = within(DEADLINE, self.acceptor.next()).await.unwrap();
        assert_eq!(incoming.open().await.unwrap(), request());
        (opened, incoming.accept())
    }
}

pub async fn within<F: Future>(deadline: Duration, future: F) -> F::Output {
    tokio::time::timeout(deadline, future)
        .await
        .unwrap_or_else(|_| panic!("not within {deadline:?}"))
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    eventually_async(what, async || holds()).await;
}

pub async fn eventually_async(what: &str, holds: impl AsyncFnMut() -> bool) {
    agentbox_testing::eventually(what, 3 * DEADLINE, holds).await;
}

/// `size` bytes that depend on `number`.
pub fn chunk(number: u64, size: usize) -> Bytes {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

/// The messages and bytes that the server has received from its clients since its start.
pub async fn received_by(nats: &NatsEndpoint) -> (u64, u64) {
    let text = reqwest::get(format!("{}/varz", nats.monitor_url))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let varz: serde_json::Value = serde_json::from_str(&text).unwrap();
    (
        varz["in_msgs"].as_u64().unwrap(),
        varz["in_bytes"].as_u64().unwrap(),
    )
}
