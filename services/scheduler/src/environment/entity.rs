//! The table `environments` for sea-orm: its reads, and the columns of its writes.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "environments")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub owner: String,
    pub owner_username: String,
    pub cluster: String,
    pub name: String,
    #[sea_orm(column_type = "JsonBinary")]
    pub labels: Json,
    pub timeout_s: i64,
    /// Seconds without activity after which it ends. `None`: it may be idle.
    pub idle_timeout_s: Option<i64>,
    /// The network policy of the last PATCH that had one. `None`: that of `request`.
    #[sea_orm(column_type = "JsonBinary")]
    pub network_policy: Option<Json>,
    /// Its box may not have `network_policy` yet.
    pub network_policy_pending: bool,
    /// The request of the create, without its variables. A PATCH changes the columns `name`,
    /// `labels`, `timeout_s`, `idle_timeout_s` and `network_policy` above, and not this one.
    #[sea_orm(column_type = "JsonBinary")]
    pub request: Json,
    /// The variables, encrypted. `None`: there are none, or an older version wrote the row, and
    /// they are in `request`.
    pub sealed_variables: Option<Vec<u8>>,
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    pub status: String,
    pub status_reason: Option<String>,
    pub status_message: Option<String>,
    pub exit_code: Option<i32>,
    pub created_at: DateTimeUtc,
    pub started_at: Option<DateTimeUtc>,
    pub ended_at: Option<DateTimeUtc>,
    pub expires_at: DateTimeUtc,
    /// The last activity that was reported, by the clock of Postgres.
    pub last_active_at: Option<DateTimeUtc>,
    pub endpoint: String,
    pub namespace: String,
    pub address: Option<String>,
    pub generation: i64,
    pub start_deadline: DateTimeUtc,
    pub capacity_reserved: bool,
    pub terminating_at: Option<DateTimeUtc>,
    pub grace_ms: i64,
    pub box_removed: bool,
    /// Whether it got a box of a pool. `None`: no pool has its image.
    #[sea_orm(column_type = "JsonBinary")]
    pub pool: Option<Json>,
    /// `pending`: the warm box at `claim_address` must be configured. `unrecorded`: the cluster must
    /// record the claim. `None`: nothing of a claim is left to do.
    pub claim: Option<String>,
    pub claim_address: Option<String>,
    /// Numbers the environments in the order of their creation; Postgres assigns it.
    pub number: i64,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
