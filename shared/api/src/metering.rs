//! The metered use of one user's environments.

use agentbox_contracts::ids::UserId;
use agentbox_contracts::metering::{MeteredGroup, MeteredUsage};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Seconds of an hour.
const HOUR_S: f64 = 3_600.0;
/// Bytes of a gibibyte.
const GIB: f64 = 1_073_741_824.0;

/// What the environments of a user used in a period.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "environments": 12,
    "running_hours": 30.5,
    "cpu_seconds": 5400.25,
    "reserved_cpu_seconds": 54900.0,
    "memory_gib_hours": 15.25,
    "storage_gib_hours": 30.5,
    "egress_bytes": 1048576
}))]
pub struct MeteredUsageBody {
    /// The number of environments that ran in the period.
    #[schema(example = 12)]
    pub environments: u64,
    /// The hours that they ran, together.
    #[schema(example = 30.5)]
    pub running_hours: f64,
    /// The CPU time that they used, in seconds of one core.
    #[schema(example = 5400.25)]
    pub cpu_seconds: f64,
    /// The CPU that was reserved for them, in cores times seconds.
    #[schema(example = 54900.0)]
    pub reserved_cpu_seconds: f64,
    /// The memory that was reserved for them, in gibibytes times hours.
    #[schema(example = 15.25)]
    pub memory_gib_hours: f64,
    /// The storage that was reserved for them, in gibibytes times hours.
    #[schema(example = 30.5)]
    pub storage_gib_hours: f64,
    /// The bytes that left their network interfaces, output that clients read included.
    #[schema(example = 1048576)]
    pub egress_bytes: u64,
}

impl From<MeteredUsage> for MeteredUsageBody {
    fn from(usage: MeteredUsage) -> Self {
        Self {
            environments: usage.environments,
            running_hours: usage.running_seconds / HOUR_S,
            cpu_seconds: usage.cpu_seconds,
            reserved_cpu_seconds: usage.reserved_cpu_seconds,
            memory_gib_hours: usage.memory_byte_seconds / GIB / HOUR_S,
            storage_gib_hours: usage.storage_byte_seconds / GIB / HOUR_S,
            egress_bytes: usage.egress_bytes,
        }
    }
}

/// What the environments with one value of a label used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "value": "team-a",
    "environments": 12,
    "running_hours": 30.5,
    "cpu_seconds": 5400.25,
    "reserved_cpu_seconds": 54900.0,
    "memory_gib_hours": 15.25,
    "storage_gib_hours": 30.5,
    "egress_bytes": 1048576
}))]
pub struct MeteredGroupBody {
    /// The value of the label. Absent for the environments without the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "team-a")]
    pub value: Option<String>,
    #[serde(flatten)]
    pub usage: MeteredUsageBody,
}

impl From<MeteredGroup> for MeteredGroupBody {
    fn from(group: MeteredGroup) -> Self {
        Self {
            value: group.value,
            usage: group.usage.into(),
        }
    }
}

/// The metered use of one user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "user_id": "user-0123456789abcdef",
    "since": "2026-01-01T00:00:00Z",
    "until": "2026-01-22T10:00:00Z",
    "total": {
        "environments": 12,
        "running_hours": 30.5,
        "cpu_seconds": 5400.25,
        "reserved_cpu_seconds": 54900.0,
        "memory_gib_hours": 15.25,
        "storage_gib_hours": 30.5,
        "egress_bytes": 1048576
    }
}))]
pub struct UsageReport {
    /// The user whose environments were metered.
    pub user_id: UserId,
    /// The begin of the period (RFC 3339, UTC). Its whole hour is included.
    #[schema(example = "2026-01-01T00:00:00Z")]
    pub since: DateTime<Utc>,
    /// The end of the period (RFC 3339, UTC). The hour that it is in is included.
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub until: DateTime<Utc>,
    /// The use of all environments of the user.
    pub total: MeteredUsageBody,
    /// The use by the values of the label `group_by`, most CPU time first, at most 1000. Absent without
    /// `group_by`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<MeteredGroupBody>>,
}

/// The period of a report, and the label that divides it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// The begin of the period (RFC 3339). Default: 30 days before its end. Hours are kept for 400
    /// days.
    #[serde(default)]
    #[param(example = "2026-01-01T00:00:00Z")]
    pub since: Option<DateTime<Utc>>,
    /// The end of the period (RFC 3339). Default: now.
    #[serde(default)]
    #[param(example = "2026-01-22T10:00:00Z")]
    pub until: Option<DateTime<Utc>>,
    /// The key of a label: the answer also has the use by the values of this label.
    #[serde(default)]
    #[param(example = "team", max_length = 317)]
    pub group_by: Option<String>,
}
