//! The RPCs about pools.

use agentbox_contracts::error::Error;
use agentbox_contracts::labels::is_dns_label;
use agentbox_contracts::pool::rpc::{
    DeletePoolRequest, GetPoolRequest, ListPoolsReply, ListPoolsRequest, SetPoolReply,
    SetPoolRequest,
};
use agentbox_contracts::pool::{Pool, PoolSource, PoolSpec};
use agentbox_contracts::rpc::Empty;

use crate::cluster::registry::Clusters;
use crate::config::Settings;
use crate::environment::outbox::Outbox;
use crate::environment::request::storage;
use crate::environment::store::Store;
use crate::pool::request::{canonical_resources, validate};

const MAX_PAGE: u32 = 1000;

/// The handlers.
#[derive(Clone)]
pub struct Pools {
    store: Store,
    clusters: Clusters,
    outbox: Outbox,
    settings: Settings,
}

fn not_found() -> Error {
    Error::not_found("pool")
}

/// Checks that a cluster of the deployment may run the boxes of `pool`.
fn check_clusters(pool: &PoolSpec, clusters: &Clusters) -> Result<(), Error> {
    let named = |name: &str| pool.cluster.as_deref().is_none_or(|only| only == name);
    let mut candidates = clusters
        .iter()
        .filter(|cluster| named(&cluster.name))
        .peekable();
    let Some(first) = candidates.peek().map(|cluster| cluster.registries.clone()) else {
        let names: Vec<&str> = clusters
            .iter()
            .map(|cluster| cluster.name.as_str())
            .collect();
        return Err(Error::value(
            "cluster",
            format_args!("must be a cluster of the deployment ({})", names.join(", ")),
            pool.cluster.as_deref().unwrap_or_default(),
        ));
    };
    if candidates.any(|cluster| cluster.registries.allow(&pool.image)) {
        Ok(())
    } else {
        Err(first.refusal(&pool.image))
    }
}

impl Pools {
    #[must_use]
    pub fn new(store: Store, clusters: Clusters, outbox: Outbox, settings: Settings) -> Self {
        Self {
            store,
            clusters,
            outbox,
            settings,
        }
    }

    /// Defines a pool, or replaces its definition.
    ///
    /// # Errors
    /// `Validation`; `Conflict` for a pool of the configuration; `QuotaExceeded` for too many pools;
    /// `Unavailable` without a database.
    pub async fn set(&self, request: SetPoolRequest) -> Result<SetPoolReply, Error> {
        let SetPoolRequest { name, spec } = request;
        let quantities = validate(&name, &spec)?;
        storage(quantities, self.settings.max_storage)?;
        check_clusters(&spec, &self.clusters)?;
        let resources = canonical_resources(quantities);
        let (is_new, id) = self
            .store
            .set_pool(&name, &spec, resources, PoolSource::Api)
            .await?;
        self.outbox.wake(&id);
        Ok(SetPoolReply {
            pool: self.store.pool(&name).await?.ok_or_else(not_found)?,
            is_new,
        })
    }

    /// Returns one pool.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` without a database.
    pub async fn get(&self, request: GetPoolRequest) -> Result<Pool, Error> {
        if !is_dns_label(&request.name) {
            return Err(not_found());
        }
        self.store.pool(&request.name).await?.ok_or_else(not_found)
    }

    /// Returns one page of pools.
    ///
    /// # Errors
    /// `Validation` for the limit; `Unavailable` without a database.
    pub async fn list(&self, request: ListPoolsRequest) -> Result<ListPoolsReply, Error> {
        if !(1..=MAX_PAGE).contains(&request.limit) {
            return Err(Error::field(
                "limit",
                format_args!("must be between 1 and {MAX_PAGE}, got {}", request.limit),
            ));
        }
        let (pools, total) = self.store.list_pools(request.limit, request.offset).await?;
        Ok(ListPoolsReply { pools, total })
    }

    /// Deletes a pool. Its boxes are removed afterwards; environments that have claimed one are not
    /// affected.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` for a pool of the configuration; `Unavailable` without a database.
    pub async fn delete(&self, request: DeletePoolRequest) -> Result<Empty, Error> {
        if !is_dns_label(&request.name) {
            return Err(not_found());
        }
        let deleted = self
            .store
            .delete_pool(&request.name, PoolSource::Api)
            .await?;
        let id = deleted.ok_or_else(not_found)?;
        self.outbox.wake(&id);
        Ok(Empty {})
    }
}
