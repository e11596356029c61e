//! The systems under test.

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::ids::InstanceId;
use agentbox_testing::{Options, Runtime, System};
use tokio::sync::OnceCell;

/// How long a request's head or body may take on the shared system, in seconds.
pub const ARRIVAL_S: u64 = 3;

static SHARED: OnceCell<System> = OnceCell::const_new();

/// The system shared by tests that break nothing: two replicas of each service.
pub async fn shared() -> &'static System {
    SHARED
        .get_or_init(async || {
            let options = unlimited(options())
                .replicas(2)
                .env(
                    "api-gateway",
                    "AGENTBOX_HEADER_TIMEOUT",
                    ARRIVAL_S.to_string(),
                )
                .env(
                    "api-gateway",
                    "AGENTBOX_BODY_TIMEOUT",
                    ARRIVAL_S.to_string(),
                );
            System::start(options).await.unwrap()
        })
        .await
}

static DEFAULTS: OnceCell<System> = OnceCell::const_new();

/// One replica of each service, with the default limits, and with CORS.
pub async fn with_default_limits() -> &'static System {
    DEFAULTS
        .get_or_init(async || {
            let options = options().env("api-gateway", "AGENTBOX_CORS_ORIGINS", ORIGIN);
            System::start(options).await.unwrap()
        })
        .await
}

/// The lifetime of a login on [`short_lived`], in seconds.
pub const TOKEN_S: u64 = 20;
/// The lifetime of a ticket on [`short_lived`], in seconds.
pub const TICKET_S: u64 = 8;
/// The ping interval on [`short_lived`], in seconds.
pub const PING_S: u64 = 4;

/// The origin whose pages may use [`short_lived`] and [`with_default_limits`].
pub const ORIGIN: &str = "https://app.example";

static SHORT_LIVED: OnceCell<System> = OnceCell::const_new();

/// Two replicas of each service, with short lifetimes of logins and tickets, and with CORS.
pub async fn short_lived() -> &'static System {
    SHORT_LIVED
        .get_or_init(async || {
            let options = unlimited(options())
                .replicas(2)
                .env("auth", "AGENTBOX_TOKEN_TTL", TOKEN_S.to_string())
                .env("auth", "AGENTBOX_TICKET_TTL", TICKET_S.to_string())
                .env("api-gateway", "AGENTBOX_PING_INTERVAL", PING_S.to_string())
                .env("api-gateway", "AGENTBOX_CORS_ORIGINS", ORIGIN);
            System::start(options).await.unwrap()
        })
        .await
}

/// The variable that selects the runtime: `kubernetes` or `containerd`.
const RUNTIME: &str = "AGENTBOX_TEST_RUNTIME";

/// The runtime of the tests' systems.
pub fn runtime() -> Runtime {
    match std::env::var(RUNTIME).as_deref() {
        Ok("kubernetes") => Runtime::Kubernetes,
        Ok("containerd") | Err(_) => Runtime::Containerd,
        Ok(other) => panic!("{RUNTIME} is `{other}`: containerd or kubernetes"),
    }
}

/// A connection to the system's bus as one of its services.
pub async fn bus_as(system: &System, service: &'static str) -> Bus {
    let nats = system.nats.as_ref().unwrap();
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

/// The tests are a trusted proxy: they send the address of each client in `X-Forwarded-For`. They also
/// receive webhooks, whose deliveries are dead after two attempts.
pub fn options() -> Options {
    Options::components(runtime().components())
        .env("api-gateway", "AGENTBOX_TRUSTED_PROXIES", "127.0.0.0/8")
        .env(
            "webhooks",
            "AGENTBOX_WEBHOOK_ALLOWED_NETWORKS",
            "127.0.0.0/8",
        )
        .env("webhooks", "AGENTBOX_WEBHOOK_ATTEMPTS", "2")
        .env("webhooks", "AGENTBOX_WEBHOOK_FIRST_RETRY", "0")
}

/// Raises the limits that tests do not test.
pub fn unlimited(options: Options) -> Options {
    options
        .without_rate_limits()
        .env("api-gateway", "AGENTBOX_FLOOD_PER_SECOND", "100000")
        .env("api-gateway", "AGENTBOX_FLOOD_BURST", "100000")
        .env("scheduler", "AGENTBOX_QUOTA_ENVIRONMENTS", "10000")
        .env("scheduler", "AGENTBOX_QUOTA_CPU", "0")
        .env("scheduler", "AGENTBOX_QUOTA_MEMORY", "0")
        .env("scheduler", "AGENTBOX_QUOTA_STORAGE", "0")
}

/// Resident memory of one replica, in bytes.
pub fn resident_bytes(system: &System, service: &str, index: usize) -> u64 {
    let pid = system.pids(service)[&index];
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}
