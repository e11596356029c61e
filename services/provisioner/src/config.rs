//! The configuration of the provisioner.

use agentbox_service::CommonConfig;

#[derive(Clone, clap::Parser)]
#[command(
    name = "agentbox-provisioner",
    version,
    about = "Creates the streams and buckets of NATS"
)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonConfig,
}

impl AsRef<CommonConfig> for Config {
    fn as_ref(&self) -> &CommonConfig {
        &self.common
    }
}
