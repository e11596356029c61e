//! Changing an environment, with its outbox rows, in one statement.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::environment::{NetworkPolicy, Status};
use agentbox_database::span;
use agentbox_database::sql::{bigint, seconds};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{ColumnTrait as _, EntityTrait as _, Iterable as _, QueryFilter as _};
use tracing::Instrument as _;

use super::messages::{audit_message, is_deletion, patch_messages, transition_messages};
use super::outbox::insert_outbox_rows;
use super::{Params, Record, Store, StoreError, build, is_unchanged};
use crate::environment::entity::{Column, Entity};
use crate::environment::state::LifecycleState;
use crate::environment::warm_claim::WarmClaim;

/// How soon a requeued environment is reconciled when its command is lost.
const REQUEUE_WITHIN: Duration = Duration::from_secs(2);
/// How soon a changed network policy is applied when the handler that stored it was killed. Longer
/// than that handler takes.
const APPLY_WITHIN: Duration = Duration::from_secs(10);

/// What a change does to the environment's row in the reconcile queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueAction {
    /// Nothing: the holder of the claim continues.
    Keep,
    /// Reconcile it now, by a command, or after this time if the command is lost.
    Requeue(Duration),
    /// Reconcile it after this time, unless a claim is held, whose holder continues.
    Due(Duration),
    /// Remove it: nothing is left to do.
    Remove,
}

/// A transition to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub state: LifecycleState,
    pub generation: i64,
    /// `None`: unchanged.
    pub endpoint: Option<String>,
    pub terminating_at: Option<DateTime<Utc>>,
    pub grace: Duration,
    pub box_removed: bool,
    pub queue: QueueAction,
}

impl Change {
    /// A change that the cluster made: the intent is unchanged.
    #[must_use]
    pub fn observed(before: &Record, state: LifecycleState) -> Self {
        Self {
            state,
            generation: before.environment.generation,
            endpoint: None,
            terminating_at: before.terminating_at,
            grace: before.grace,
            box_removed: before.box_removed,
            queue: QueueAction::Keep,
        }
    }

    /// A change of intent: a new generation, to be reconciled.
    #[must_use]
    pub fn requested(
        before: &Record,
        state: LifecycleState,
        grace: Duration,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            state,
            generation: before.environment.generation + 1,
            endpoint: None,
            terminating_at: before.terminating_at.or(Some(now)),
            grace,
            box_removed: before.box_removed,
            queue: QueueAction::Requeue(REQUEUE_WITHIN),
        }
    }
}

/// A user's PATCH, validated; an absent field is unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    pub name: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub timeout_s: Option<u64>,
    /// `Some(None)` removes it.
    pub idle_timeout_s: Option<Option<u64>>,
    pub network_policy: Option<NetworkPolicy>,
}

impl Store {
    /// Writes a transition of `before`, with its outbox rows.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the row is no longer as `before` has it.
    pub async fn change(
        &self,
        before: &Record,
        change: &Change,
        now: DateTime<Utc>,
    ) -> Result<Record, StoreError> {
        let span = span!(UPDATE environments);
        // In the span, because the outbox rows continue its trace.
        let (text, params) = span.in_scope(|| transition_statement(before, change, now))?;
        self.write(text, params).instrument(span).await
    }

    /// Writes a PATCH of `before`, with its outbox row.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] as in [`Self::change`].
    pub async fn patch(
        &self,
        before: &Record,
        patch: &Patch,
        now: DateTime<Utc>,
    ) -> Result<Record, StoreError> {
        let span = span!(UPDATE environments);
        // In the span, because the outbox rows continue its trace.
        let (text, params) = span.in_scope(|| patch_statement(before, patch, now))?;
        self.write(text, params).instrument(span).await
    }

    /// Records that the box of `before` has its network policy.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] as in [`Self::change`].
    pub async fn mark_network_policy_applied(&self, before: &Record) -> Result<Record, StoreError> {
        let mut update = Query::update();
        update
            .table(Entity)
            .value(Column::NetworkPolicyPending, false)
            .and_where(is_unchanged(before))
            .returning(Query::returning().columns(Column::iter()));
        let (text, params) = build(&update);
        self.write(text, params)
            .instrument(span!(UPDATE environments))
            .await
    }

    /// Sets the message of a pending environment: why it is not running yet. Changes nothing
    /// when the environment was changed meanwhile, because the message is then out of date.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_status_message(
        &self,
        before: &Record,
        message: &str,
    ) -> Result<(), StoreError> {
        if before.environment.status_message.as_deref() == Some(message) {
            return Ok(());
        }
        Entity::update_many()
            .col_expr(Column::StatusMessage, Expr::value(message))
            .filter(is_unchanged(before))
            .filter(Column::Status.eq(Status::Pending.as_str()))
            .exec(&self.database)
            .instrument(span!(UPDATE environments))
            .await?;
        Ok(())
    }

    /// Records that the box of an ended environment is removed: nothing is left to do.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] as in [`Self::change`].
    pub async fn mark_box_removed(&self, before: &Record) -> Result<Record, StoreError> {
        let mut update = Query::update();
        update
            .table(Entity)
            .value(Column::BoxRemoved, true)
            .and_where(is_unchanged(before))
            .returning(Query::returning().columns(Column::iter()));
        let (update, params) = build(&update);
        let text = format!(
            "WITH changed AS ({update}), dequeued AS (
                DELETE FROM reconcile_queue USING changed WHERE environment_id = changed.id
             )
             SELECT * FROM changed"
        );
        self.write(text, params)
            .instrument(span!(UPDATE environments))
            .await
    }
}

/// The UPDATE of a transition, with its outbox rows and its place in the reconcile queue.
fn transition_statement(
    before: &Record,
    change: &Change,
    now: DateTime<Utc>,
) -> Result<(String, Params), StoreError> {
    let state = &change.state;
    let reason = state.reason.map(|reason| reason.as_str().to_owned());
    let address = state.address.map(|address| address.to_string());
    let grace_ms = i64::try_from(change.grace.as_millis()).unwrap_or(i64::MAX);
    // Only a box that runs has a claim to record.
    let claim = (before.claim.is_some() && state.status == Status::Running)
        .then(|| WarmClaim::Unrecorded.as_str().to_owned());
    let mut update = Query::update();
    update
        .table(Entity)
        .value(Column::Status, state.status.as_str())
        .value(Column::StatusReason, reason)
        .value(Column::StatusMessage, state.message.clone())
        .value(Column::ExitCode, state.exit_code)
        .value(Column::StartedAt, state.started_at)
        .value(Column::EndedAt, state.ended_at)
        .value(Column::Address, address)
        .value(Column::Generation, change.generation)
        .value(Column::TerminatingAt, change.terminating_at)
        .value(Column::GraceMs, grace_ms)
        .value(Column::BoxRemoved, change.box_removed)
        .value(Column::Claim, claim)
        .value(Column::ClaimAddress, None::<String>)
        .and_where(is_unchanged(before))
        .returning(Query::returning().columns(Column::iter()));
    if let Some(endpoint) = &change.endpoint {
        update.value(Column::Endpoint, endpoint.as_str());
    }
    let (update, mut params) = build(&update);
    let mut messages = transition_messages(before, change, now);
    if is_deletion(before, change) {
        let id = &before.environment.id;
        messages.extend(audit_message(AuditAction::DeleteEnvironment, id.as_str()));
    }
    let outbox_rows = insert_outbox_rows("changed", &messages, &mut params)?;
    let queue = match change.queue {
        QueueAction::Keep => String::new(),
        QueueAction::Requeue(within) => format!(
            ", requeued AS (
                UPDATE reconcile_queue SET requeue = holder IS NOT NULL,
                    due_at = now() + make_interval(secs => {})
                FROM changed WHERE environment_id = changed.id
            )",
            params.push(seconds(within))
        ),
        QueueAction::Due(within) => format!(
            ", due AS (
                UPDATE reconcile_queue SET due_at = now() + make_interval(secs => {})
                FROM changed WHERE environment_id = changed.id AND holder IS NULL
            )",
            params.push(seconds(within))
        ),
        QueueAction::Remove => ", dequeued AS (
                DELETE FROM reconcile_queue USING changed WHERE environment_id = changed.id
            )"
        .to_owned(),
    };
    let text = format!(
        "WITH changed AS ({update}), outbox_rows AS ({outbox_rows}){queue}
         SELECT * FROM changed"
    );
    Ok((text, params))
}

/// The UPDATE of a PATCH, with its outbox row. A changed network policy makes the environment due in
/// the reconcile queue.
fn patch_statement(
    before: &Record,
    patch: &Patch,
    now: DateTime<Utc>,
) -> Result<(String, Params), StoreError> {
    let environment = &before.environment;
    let name = patch.name.as_ref().unwrap_or(&environment.request.name);
    let labels = patch.labels.as_ref().unwrap_or(&environment.request.labels);
    let timeout_s = patch.timeout_s.unwrap_or(environment.request.timeout_s);
    let lifetime = i64::try_from(timeout_s)
        .ok()
        .and_then(TimeDelta::try_seconds)
        .unwrap_or(TimeDelta::MAX);
    let expires_at = environment
        .created_at
        .checked_add_signed(lifetime)
        .unwrap_or(DateTime::<Utc>::MAX_UTC);
    let mut update = Query::update();
    update
        .table(Entity)
        .value(Column::Name, name.as_str())
        .value(Column::Labels, serde_json::to_value(labels)?)
        .value(Column::TimeoutS, bigint(timeout_s))
        .value(Column::ExpiresAt, expires_at)
        .value(Column::Generation, environment.generation + 1)
        .and_where(is_unchanged(before))
        .returning(Query::returning().columns(Column::iter()));
    if let Some(idle_timeout_s) = patch.idle_timeout_s {
        let seconds = idle_timeout_s.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX));
        update.value(Column::IdleTimeoutS, seconds);
    }
    if let Some(policy) = &patch.network_policy {
        update
            .value(Column::NetworkPolicy, serde_json::to_value(policy)?)
            .value(Column::NetworkPolicyPending, true);
    }
    let (update, mut params) = build(&update);
    let mut messages = patch_messages(before, now);
    messages.extend(audit_message(
        AuditAction::PatchEnvironment,
        environment.id.as_str(),
    ));
    let outbox_rows = insert_outbox_rows("changed", &messages, &mut params)?;
    let queue = match &patch.network_policy {
        None => String::new(),
        Some(_) => format!(
            ", requeued AS (
                UPDATE reconcile_queue SET requeue = holder IS NOT NULL,
                    due_at = least(due_at, now() + make_interval(secs => {}))
                FROM changed WHERE environment_id = changed.id
            )",
            params.push(seconds(APPLY_WITHIN))
        ),
    };
    let text = format!(
        "WITH changed AS ({update}), outbox_rows AS ({outbox_rows}){queue}
         SELECT * FROM changed"
    );
    Ok((text, params))
}
