//! The metered use of users' environments, and the scheduler's RPC that reads it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Seconds between two samples of a running box.
pub const METERING_INTERVAL_S: u64 = 60;
/// Days that metered hours are kept.
pub const METERING_RETENTION_DAYS: u32 = 400;
/// The most groups of one report; the others are in its total alone.
pub const MAX_METERED_GROUPS: u32 = 1_000;

/// What environments used in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MeteredUsage {
    /// Environments that ran in the period.
    pub environments: u64,
    /// The time that they ran, together.
    pub running_seconds: f64,
    /// CPU time that they used.
    pub cpu_seconds: f64,
    /// CPU that was reserved for them, times seconds.
    pub reserved_cpu_seconds: f64,
    /// Memory that was reserved for them, times seconds.
    pub memory_byte_seconds: f64,
    /// Storage that was reserved for them, times seconds.
    pub storage_byte_seconds: f64,
    /// Bytes that left the network interfaces of their boxes.
    pub egress_bytes: u64,
}

/// The use of the environments with one value of a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeteredGroup {
    /// `None`: those without the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(flatten)]
    pub usage: MeteredUsage,
}

pub mod rpc {
    //! The scheduler's RPC about metered use. The gateway's `authorize` decides who may use it.

    use super::{DateTime, Deserialize, MeteredGroup, MeteredUsage, Serialize, Utc};
    use crate::ids::UserId;
    use crate::rpc::rpc;

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ReadUsageRequest {
        pub owner: UserId,
        /// Rounded down to the hour.
        pub since: DateTime<Utc>,
        /// The hour that begins before this time is the last one.
        pub until: DateTime<Utc>,
        /// The key of the label by which the use is divided.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub group_by: Option<String>,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ReadUsageReply {
        pub total: MeteredUsage,
        /// The groups with the most CPU time, at most
        /// [`MAX_METERED_GROUPS`](super::MAX_METERED_GROUPS).
        pub groups: Vec<MeteredGroup>,
    }

    rpc!(ReadUsage: "scheduler", "read-usage", ReadUsageRequest => ReadUsageReply);
}
