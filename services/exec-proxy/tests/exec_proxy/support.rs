//! The processes that a test starts, and clients of them.

pub mod boxes;
pub mod fake_box;
pub mod gateway;
pub mod proxy;
pub mod relay;

pub use agentbox_testing::eventually;
pub use boxes::TestBox;
pub use gateway::Gateway;
pub use proxy::Proxy;

/// An exec-proxy on the shared NATS server, and a client of it that acts as the gateway.
pub struct System {
    pub proxy: Proxy,
    pub gateway: Gateway,
}

impl System {
    /// Starts an exec-proxy for a new cluster on the NATS server that all tests share.
    pub async fn start() -> Self {
        let nats = agentbox_testing::TestNats::shared().await.unwrap();
        let cluster = format!("test-{}", agentbox_contracts::ids::EnvironmentId::random());
        let proxy = Proxy::start(&nats, &cluster).await;
        let gateway = Gateway::connect(&nats, &cluster).await;
        Self { proxy, gateway }
    }
}

/// Pseudorandom bytes, so that a reordering is visible.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Whether the process runs and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z')
    })
}
