//! Kubernetes' timestamps as chrono's.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub fn from_kubernetes(time: &Time) -> DateTime<Utc> {
    let nanoseconds = u32::try_from(time.0.subsec_nanosecond()).unwrap_or(0);
    DateTime::from_timestamp(time.0.as_second(), nanoseconds).unwrap_or_default()
}
