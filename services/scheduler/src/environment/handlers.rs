//! The RPCs of other services. Each decides, writes, and publishes.

mod claim;
mod clusters;
mod create;
mod credentials;
mod get_many;
mod patch;
mod policy_changes;
mod usage;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::environment::rpc::{
    ClusterHealth, DeleteOwnedRequest, DeleteRequest, GetRequest, HealthReply, ListReply,
    ListRequest, MAX_REPORTED, MAX_RESOLVED, RecordActivityRequest, ResolveReply, ResolveRequest,
};
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::rpc::Empty;
use agentbox_contracts::selector::Selector;
use chrono::Utc;
use tokio::sync::Mutex;

use crate::cluster::registry::Clusters;
use crate::config::Settings;
use crate::environment::outbox::Outbox;
use crate::environment::reconcile::Reconciler;
use crate::environment::record::Record;
use crate::environment::state::{EndReason, LifecycleEvent, transition};
use crate::environment::store::{Change, Listing, Store, StoreError};
use crate::metrics;
use policy_changes::PolicyChanges;

/// Attempts of a write while other writers change the same row.
const MAX_ATTEMPTS: usize = 16;
/// The most environments of one page.
const MAX_PAGE: u32 = 1000;
/// Below NATS' default limit of 1 MiB for a message.
const MAX_REPLY_BYTES: usize = 1000 * 1000;
/// How long the database may take to answer `health`.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How many environments of a deleted user are read at once.
const OWNED_BATCH: u32 = 100;

/// The handlers. Clones share everything.
#[derive(Clone)]
pub struct Environments(Arc<Inner>);

pub(super) struct Inner {
    pub(super) store: Store,
    pub(super) clusters: Clusters,
    pub(super) outbox: Outbox,
    /// Configures claimed boxes.
    pub(super) reconciler: Arc<Reconciler>,
    pub(super) settings: Settings,
    /// Bounds the changes that wait until their network policy is applied.
    policy_changes: PolicyChanges,
    /// Held while the states of clusters are read and set, so that an older read does not replace a
    /// newer one.
    pub(super) scheduling: Mutex<()>,
}

fn not_found() -> Error {
    Error::not_found("environment")
}

/// The error when other writers changed the row before every attempt.
fn contended() -> Error {
    Error::from(StoreError::Fenced)
}

impl Environments {
    #[must_use]
    pub fn new(
        store: Store,
        clusters: Clusters,
        outbox: Outbox,
        reconciler: Arc<Reconciler>,
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            clusters,
            outbox,
            reconciler,
            settings,
            policy_changes: PolicyChanges::new(),
            scheduling: Mutex::new(()),
        }))
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    async fn find(&self, id: &EnvironmentId) -> Result<Record, Error> {
        self.0.store.get(id).await?.ok_or_else(not_found)
    }

    /// The reply about one environment: with `env`, without `secret_env`.
    fn reply(&self, record: &Record) -> Result<Environment, Error> {
        let mut environment = self.0.store.open(record)?;
        environment.request.secret_env.clear();
        Ok(environment)
    }

    /// Returns one environment.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` without a database.
    pub async fn get(&self, request: GetRequest) -> Result<Environment, Error> {
        self.reply(&self.find(&request.id).await?)
    }

    /// Finds the owners of the environments that exist.
    ///
    /// # Errors
    /// `Validation` for too many ids; `Unavailable` without a database.
    pub async fn resolve(&self, request: ResolveRequest) -> Result<ResolveReply, Error> {
        if request.ids.len() > MAX_RESOLVED {
            return Err(Error::field(
                "ids",
                format_args!("must be at most {MAX_RESOLVED}, got {}", request.ids.len()),
            ));
        }
        Ok(ResolveReply {
            owners: self.0.store.owners(&request.ids).await?,
        })
    }

    /// Returns a page, or the first part of it that fits in a message.
    ///
    /// # Errors
    /// `Validation` for the selector or the limit.
    pub async fn list(&self, request: ListRequest) -> Result<ListReply, Error> {
        if !(1..=MAX_PAGE).contains(&request.limit) {
            return Err(Error::field(
                "limit",
                format_args!("must be between 1 and {MAX_PAGE}, got {}", request.limit),
            ));
        }
        let selector: Selector = request.label_selector.as_deref().unwrap_or("").parse()?;
        let listing = Listing::new(request.visibility, request.status, &selector);
        let store = &self.0.store;
        let count = async {
            match request.known_total {
                Some(total) => Ok(total),
                None => store.count(&listing).await,
            }
        };
        let page = store.list(&listing, request.limit, request.offset);
        let (total, page) = tokio::try_join!(count, page)?;
        let mut environments: Vec<_> = page.into_iter().map(|record| record.environment).collect();
        let fitting = count_fitting(&environments, MAX_REPLY_BYTES)?;
        let has_more = fitting < environments.len();
        environments.truncate(fitting);
        Ok(ListReply {
            environments,
            total,
            has_more,
        })
    }

    /// Records the environments that are in use.
    ///
    /// # Errors
    /// `Validation` for too many; `Unavailable` without a database.
    pub async fn record_activity(&self, request: RecordActivityRequest) -> Result<Empty, Error> {
        let reported = request.environments.len();
        if reported > MAX_REPORTED {
            return Err(Error::field(
                "environments",
                format_args!("must be at most {MAX_REPORTED}, got {reported}"),
            ));
        }
        self.0.store.record_activity(&request.environments).await?;
        Ok(Empty {})
    }

    /// Requests the end of an environment. Succeeds for one that has ended.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` without a database.
    pub async fn delete(&self, request: DeleteRequest) -> Result<Empty, Error> {
        let before = self.find(&request.id).await?;
        self.end(before, EndReason::Deleted, request.force).await?;
        Ok(Empty {})
    }

    /// Deletes the registry credentials of a deleted user, and requests the end of every environment.
    ///
    /// # Errors
    /// `Unavailable` without a database. The requests that succeeded before stay in effect.
    pub async fn delete_owned(&self, request: DeleteOwnedRequest) -> Result<Empty, Error> {
        self.0.store.delete_credentials_of(&request.owner).await?;
        loop {
            let active = self
                .0
                .store
                .active_owned_by(&request.owner, OWNED_BATCH)
                .await?;
            if active.is_empty() {
                return Ok(Empty {});
            }
            for record in active {
                self.end(record, EndReason::Deleted, false).await?;
            }
        }
    }

    /// Requests the end of `record`, and returns the environment as it is then. `force` ends the grace
    /// period, also of an environment that is terminating already.
    ///
    /// Nothing is requested for one that has ended, for one whose timeout was extended before it expired,
    /// and for an idle one that another writer has changed: the next check for idle environments decides.
    ///
    /// # Errors
    /// `Conflict` when other writers changed it at every attempt; `Unavailable` without a database.
    pub async fn end(
        &self,
        record: Record,
        reason: EndReason,
        force: bool,
    ) -> Result<Record, Error> {
        let grace = if force {
            Duration::ZERO
        } else {
            self.0.settings.stop_grace
        };
        let mut before = record;
        for _ in 0..MAX_ATTEMPTS {
            // A PATCH may have extended its timeout meanwhile.
            if reason == EndReason::Expired && before.environment.expires_at > Utc::now() {
                return Ok(before);
            }
            let now = Utc::now();
            let state = transition(now, &before.state(), &LifecycleEvent::EndRequested(reason));
            let skips_grace = before.environment.status == Status::Terminating
                && force
                && !before.grace.is_zero();
            let state = match state {
                Some(state) => state,
                None if skips_grace => before.state(),
                None => return Ok(before),
            };
            let change = Change::requested(&before, state, grace, now);
            match self.0.store.change(&before, &change, now).await {
                Ok(after) => {
                    self.0.outbox.wake(&after.environment.id);
                    if before.environment.status != after.environment.status {
                        metrics::transitioned(
                            after.environment.status,
                            after.environment.status_reason,
                        );
                    }
                    return Ok(after);
                }
                Err(StoreError::Fenced) => {
                    before = self.find(&before.environment.id).await?;
                    if reason == EndReason::Idle {
                        return Ok(before);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(contended())
    }

    /// Reports whether the database and each cluster answer. Never fails.
    pub async fn health(&self) -> HealthReply {
        let clusters = self.0.clusters.iter().map(|cluster| {
            let capacity = cluster.capacity.current();
            ClusterHealth {
                name: cluster.name.clone(),
                driver: cluster.driver.to_string(),
                connected: capacity.is_some(),
                version: capacity
                    .as_ref()
                    .map(|c| c.version.clone())
                    .unwrap_or_default(),
                nodes: capacity.as_ref().map_or(0, |c| c.nodes),
                available_cpu_milli: capacity.as_ref().map_or(0, |c| c.available_cpu.0),
                available_memory_bytes: capacity.as_ref().map_or(0, |c| c.available_memory.0),
                enforcement: capacity.as_ref().map(|c| c.enforcement),
            }
        });
        HealthReply {
            clusters: clusters.collect(),
            database: self.0.store.ping(PING_TIMEOUT).await,
        }
    }
}

/// Counts the environments, from the first, whose JSON fits in `max_bytes` together. Returns at
/// least one: the limits of a request bound a single environment.
fn count_fitting(environments: &[Environment], max_bytes: usize) -> Result<usize, Error> {
    let mut bytes = 0;
    for (index, environment) in environments.iter().enumerate() {
        // One byte is for the comma.
        bytes += json_length(environment)? + 1;
        if bytes > max_bytes && index > 0 {
            return Ok(index);
        }
    }
    Ok(environments.len())
}

fn json_length(environment: &Environment) -> Result<usize, Error> {
    let mut length = Length(0);
    serde_json::to_writer(&mut length, environment).map_err(StoreError::from)?;
    Ok(length.0)
}

/// Counts the bytes that are written, and keeps none.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
