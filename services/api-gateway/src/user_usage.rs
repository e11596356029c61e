//! `/users/{user}/usage`: the metered use of a user's environments. For administrators.

use agentbox_api::metering::{MeteredGroupBody, UsageQuery, UsageReport};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::metering::rpc;
use axum::extract::State;
use chrono::{DateTime, Days, Utc};

use crate::edge::path::UserParameter;
use crate::edge::{Answer, Path, Query};
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// The length of a period whose begin is not given.
const DEFAULT_PERIOD: Days = Days::new(30);

/// Get the use of a user
///
/// Returns what the environments of a user used in a period, by whole hours: running time, reserved CPU,
/// memory and storage, and sampled CPU time and egress. A user without environments, also a deleted one,
/// used nothing. Every minute the use is added; what a box uses between its last sample and an end of its
/// own, at most a minute of CPU time and egress, is missing.
#[utoipa::path(get, operation_id = "getUserUsage", path = "/users/{user}/usage", tag = "users",
    params(UserParameter, UsageQuery),
    responses((status = 200, description = "The use of the user.", body = UsageReport)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Path(id): Path<UserId>,
    Query(query): Query<UsageQuery>,
) -> Answer<axum::Json<UsageReport>> {
    let until = query.until.unwrap_or_else(Utc::now);
    let since = query.since.unwrap_or_else(|| {
        let since = until.checked_sub_days(DEFAULT_PERIOD);
        since.unwrap_or(DateTime::<Utc>::MIN_UTC)
    });
    let is_grouped = query.group_by.is_some();
    let request = rpc::ReadUsageRequest {
        owner: id.clone(),
        since,
        until,
        group_by: query.group_by,
    };
    let reply = gateway
        .bus
        .call::<rpc::ReadUsage>(&request, SCHEDULER_DEADLINE)
        .await?;
    let groups = reply.groups.into_iter().map(MeteredGroupBody::from);
    Ok(axum::Json(UsageReport {
        user_id: id,
        since,
        until,
        total: reply.total.into(),
        groups: is_grouped.then(|| groups.collect()),
    }))
}
