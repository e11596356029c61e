//! The audit trail: the origin of requests, the entries of actions in boxes, and `/audit`.
//!
//! * I1. A command, a terminal, a read of logs, an operation on files, or a change of webhooks or dead
//!   letters begins after the trail's stream has stored its entry, whoever the caller is. Without the
//!   entry it is refused with 503.
//! * I2. What changes a database is recorded by the service that owns it, in the transaction of
//!   the change.

use std::time::Duration;

use agentbox_api::audit::{AuditEntryBody, AuditList, AuditQuery};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::audit::rpc::{ChainedEntry, ListAudit, ListAuditRequest};
use agentbox_contracts::audit::{AuditAction, AuditEntry, AuditOutcome};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{Principal, Role};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use axum::extract::State;

use crate::edge::query::page;
use crate::edge::{Answer, Caller, Query};
use crate::state::{AUTH_DEADLINE, Gateway};

/// How long the stream may take to store an entry.
const RECORD_DEADLINE: Duration = Duration::from_secs(2);
const MAX_TARGET: usize = 64;

/// Records an action on an environment, before it begins. `command` is recorded only if the
/// operator says so.
///
/// # Errors
/// [`ErrorCode::Unavailable`]: the entry is not stored, and the action must not begin.
/// [`ErrorCode::Internal`]: it is unknown who acts.
pub(crate) async fn accept(
    gateway: &Gateway,
    action: AuditAction,
    environment: &EnvironmentId,
    command: &[String],
) -> Result<(), Error> {
    accept_target(gateway, action, Some(environment.as_str()), command).await
}

/// [`accept`], for an action on anything: `target` is its id. `None`: it has no id yet.
///
/// # Errors
/// As [`accept`].
pub(crate) async fn accept_target(
    gateway: &Gateway,
    action: AuditAction,
    target: Option<&str>,
    command: &[String],
) -> Result<(), Error> {
    let origin = agentbox_bus::current_origin().filter(|origin| origin.user.is_some());
    let Some(origin) = origin else {
        tracing::error!(%action, "an action without an origin was refused");
        return Err(Error::internal());
    };
    let mut entry = AuditEntry::new(origin, action, target, AuditOutcome::Accepted);
    let has_command = !matches!(
        action,
        AuditAction::ReadLogs
            | AuditAction::DownloadFile
            | AuditAction::UploadFile
            | AuditAction::ChangeFiles
            | AuditAction::WatchFiles
            | AuditAction::CreateWebhook
            | AuditAction::DeleteWebhook
            | AuditAction::RedeliverWebhook
            | AuditAction::ReplayDeadLetter
            | AuditAction::DiscardDeadLetter
    );
    if gateway.config.audit_arguments && has_command {
        entry = entry.with_arguments(command);
    }
    let recorded = gateway.bus.record_audit(&entry, RECORD_DEADLINE).await;
    recorded.map_err(|error| {
        tracing::warn!(error = %ErrorChain(&error), %action, "audit entry not stored");
        Error::new(
            ErrorCode::Unavailable,
            "the audit trail cannot be written; try again",
        )
    })
}

/// The user whose entries are listed; `None`: all users.
fn visible_user(principal: &Principal, asked: Option<UserId>) -> Result<Option<UserId>, Error> {
    if principal.role == Role::Admin {
        return Ok(asked);
    }
    if asked.is_some_and(|user| user != principal.user) {
        return Err(Error::new(
            ErrorCode::Forbidden,
            "only an administrator may read the actions of other users",
        ));
    }
    Ok(Some(principal.user.clone()))
}

fn check_target(target: Option<&str>) -> Result<(), Error> {
    let is_id = |text: &str| {
        (1..=MAX_TARGET).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match target {
        Some(text) if !is_id(text) => Err(Error::field(
            "target",
            format_args!("must be 1 to {MAX_TARGET} printable ASCII characters without blanks"),
        )),
        _ => Ok(()),
    }
}

/// Reads one page. Auth answers with as much as fits in a message of the bus.
async fn read_page(
    gateway: &Gateway,
    mut request: ListAuditRequest,
) -> Result<(Vec<ChainedEntry>, u64), Error> {
    let mut entries: Vec<ChainedEntry> = Vec::new();
    loop {
        let reply = gateway
            .bus
            .call::<ListAudit>(&request, AUTH_DEADLINE)
            .await?;
        let received = u32::try_from(reply.entries.len()).unwrap_or(u32::MAX);
        // New entries since the last part move the next part towards the newest.
        let last = entries.last().map_or(u64::MAX, |entry| entry.sequence);
        let next = reply.entries.into_iter();
        entries.extend(next.filter(|entry| entry.sequence < last));
        request.limit = request.limit.saturating_sub(received);
        if !reply.has_more || received == 0 || request.limit == 0 {
            return Ok((entries, reply.total));
        }
        request.offset = request.offset.saturating_add(u64::from(received));
    }
}

/// List recorded actions
///
/// Returns one page of the audit trail, newest first: the caller's own actions, or those of all
/// users for an administrator. An action is listed within a few seconds. Commands, terminals, reads
/// of logs and operations on files are recorded before they begin.
#[utoipa::path(get, operation_id = "listAudit", path = "/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, description = "One page of recorded actions.", body = AuditList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<AuditQuery>,
) -> Answer<axum::Json<AuditList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    check_target(query.target.as_deref())?;
    let request = ListAuditRequest {
        user: visible_user(&principal, query.user)?,
        action: query.action,
        target: query.target,
        since: query.since,
        until: query.until,
        limit,
        offset,
    };
    let (entries, total) = read_page(&gateway, request).await?;
    Ok(axum::Json(AuditList {
        entries: entries.into_iter().map(AuditEntryBody::from).collect(),
        total,
        limit,
        offset,
    }))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::identity::{Credential, Scope};
    use agentbox_contracts::ids::LoginId;

    use super::*;

    fn principal(role: Role) -> Principal {
        Principal {
            user: UserId::random(),
            username: "someone".into(),
            role,
            credential: Credential::Login {
                id: LoginId::random(),
            },
            scope: Scope::Full,
            management: false,
            expires_at: None,
            limits: Default::default(),
            profile: None,
        }
    }

    #[test]
    fn user_reads_own_entries_and_administrator_all() {
        let (user, admin) = (principal(Role::User), principal(Role::Admin));
        let own = Some(user.user.clone());
        let other = Some(admin.user.clone());
        assert_eq!(visible_user(&user, None), Ok(own.clone()));
        assert_eq!(visible_user(&user, own.clone()), Ok(own.clone()));
        let refused = visible_user(&user, other).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Forbidden);
        assert_eq!(visible_user(&admin, None), Ok(None));
        assert_eq!(visible_user(&admin, own.clone()), Ok(own));
    }

    #[test]
    fn target_that_cannot_be_an_id_is_refused() {
        assert!(check_target(None).is_ok());
        assert!(check_target(Some("env-0123456789abcdef")).is_ok());
        for bad in ["", "a b", "a\0", "é", &"x".repeat(65)] {
            let error = check_target(Some(bad)).unwrap_err();
            assert_eq!(error.code, ErrorCode::Validation, "{bad:?}");
            assert!(error.message.starts_with("target"), "{}", error.message);
        }
    }
}
