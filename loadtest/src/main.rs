//! `make bench`, and the canary.

use clap::Parser as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    agentbox_loadtest::Program::parse().run().await
}
