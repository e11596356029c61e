//! The driver's configuration, connections and caches, which every module uses.

use crate::cluster::Cluster;
use crate::config::Config;
use crate::node_watch::NodeWatch;
use crate::pod_watch::PodWatch;
use crate::usage_cache::UsageCache;

/// One driver's configuration and clients. Each module adds the operations of its noun.
#[derive(Debug)]
pub struct Context {
    pub config: Config,
    pub cluster: Cluster,
    pub pod_watch: PodWatch,
    pub node_watch: NodeWatch,
    pub usage_cache: UsageCache,
}

impl Context {
    pub fn new(config: Config) -> Self {
        Self {
            cluster: Cluster::new(&config),
            pod_watch: PodWatch::default(),
            node_watch: NodeWatch::default(),
            usage_cache: UsageCache::default(),
            config,
        }
    }
}
