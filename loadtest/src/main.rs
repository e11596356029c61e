//! `make bench`.

use clap::Parser as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    agentbox_loadtest::run(agentbox_loadtest::Options::parse()).await
}
