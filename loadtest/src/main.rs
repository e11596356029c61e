//! `make bench`.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    agentbox_loadtest::run().await
}
