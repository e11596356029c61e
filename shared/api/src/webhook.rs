//! Webhooks, and the deliveries of events to them.

use agentbox_contracts::environment::EventKind;
use agentbox_contracts::ids::{DeliveryId, EnvironmentId, WebhookId};
use agentbox_contracts::webhook::{Delivery, DeliveryState, Webhook};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A webhook to create.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "url": "https://hooks.example/agentbox",
    "kinds": ["running", "terminated", "failed"],
    "description": "billing"
}))]
#[serde(deny_unknown_fields)]
pub struct CreateWebhook {
    /// The URL that receives the events: `https`, at most 2048 bytes, with a public address. Redirects
    /// are not followed.
    #[schema(example = "https://hooks.example/agentbox", max_length = 2048)]
    pub url: String,
    /// The kinds of events to send. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["running", "terminated", "failed"]), max_items = 32)]
    pub kinds: Vec<EventKind>,
    /// A note for people, at most 256 characters. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        example = "billing",
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f]*$"
    )]
    pub description: Option<String>,
}

/// A webhook, without the key of its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "webhook-0123456789abcdef",
    "url": "https://hooks.example/agentbox",
    "kinds": ["running", "terminated", "failed"],
    "description": "billing",
    "created_at": "2026-01-22T10:00:00Z"
}))]
pub struct WebhookBody {
    /// The id to get or delete the webhook by.
    pub id: WebhookId,
    /// The URL that receives the events.
    #[schema(example = "https://hooks.example/agentbox")]
    pub url: String,
    /// The kinds of events that it receives. Empty: all.
    #[schema(example = json!(["running", "terminated", "failed"]))]
    pub kinds: Vec<EventKind>,
    /// The note that was given at creation. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "billing")]
    pub description: Option<String>,
    /// When the webhook was created (RFC 3339, UTC). It receives the events from then on.
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
}

impl From<Webhook> for WebhookBody {
    fn from(webhook: Webhook) -> Self {
        Self {
            id: webhook.id,
            url: webhook.url,
            kinds: webhook.kinds,
            description: webhook.description,
            created_at: webhook.created_at,
        }
    }
}

/// A new webhook, with the key of its signatures.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "webhook-0123456789abcdef",
    "url": "https://hooks.example/agentbox",
    "kinds": [],
    "created_at": "2026-01-22T10:00:00Z",
    "secret": "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
}))]
pub struct CreatedWebhook {
    /// The id to get or delete the webhook by.
    pub id: WebhookId,
    /// The URL that receives the events.
    #[schema(example = "https://hooks.example/agentbox")]
    pub url: String,
    /// The kinds of events that it receives. Empty: all.
    #[schema(example = json!(["running", "terminated", "failed"]))]
    pub kinds: Vec<EventKind>,
    /// The note that was given. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "billing")]
    pub description: Option<String>,
    /// When the webhook was created (RFC 3339, UTC). It receives the events from then on.
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// The key with which the receiver verifies `webhook-signature`. It cannot be read again.
    #[schema(example = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")]
    pub secret: String,
}

/// One page of the caller's webhooks, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "webhooks": [{
        "id": "webhook-0123456789abcdef",
        "url": "https://hooks.example/agentbox",
        "kinds": [],
        "created_at": "2026-01-22T10:00:00Z"
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct WebhookList {
    /// The webhooks of this page.
    pub webhooks: Vec<WebhookBody>,
    /// The number of webhooks on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of webhooks before this page.
    #[schema(example = 0)]
    pub offset: u64,
}

/// One event on its way to a webhook, or at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "delivery-0123456789abcdef",
    "event_id": 4711,
    "environment_id": "env-0123456789abcdef",
    "kind": "terminated",
    "state": "dead",
    "attempts": 10,
    "created_at": "2026-01-22T10:30:00Z",
    "ended_at": "2026-01-23T02:30:00Z",
    "response_status": 500,
    "error": "the receiver answered 500"
}))]
pub struct DeliveryBody {
    /// The `webhook-id` of every attempt.
    pub id: DeliveryId,
    /// The `id` of the event in `GET /events`.
    #[schema(example = 4711)]
    pub event_id: u64,
    /// The environment that the event is about.
    pub environment_id: EnvironmentId,
    /// The kind of the event.
    pub kind: EventKind,
    /// Whether it is attempted, was delivered, or is dead.
    pub state: DeliveryState,
    /// The attempts since the event happened, or since the last redelivery was requested.
    #[schema(example = 10)]
    pub attempts: u32,
    /// When the event was received (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:30:00Z")]
    pub created_at: DateTime<Utc>,
    /// When it is attempted next at the latest (RFC 3339, UTC). Absent unless it is pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-22T10:30:15Z")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When it was delivered or became dead (RFC 3339, UTC). Absent while it is pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-23T02:30:00Z")]
    pub ended_at: Option<DateTime<Utc>>,
    /// The HTTP status of the last answer. Absent if there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 500)]
    pub response_status: Option<u16>,
    /// Why the last attempt failed. Absent if none has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "the receiver answered 500")]
    pub error: Option<String>,
}

impl From<Delivery> for DeliveryBody {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id,
            event_id: delivery.event,
            environment_id: delivery.environment,
            kind: delivery.kind,
            state: delivery.state,
            attempts: delivery.attempts,
            created_at: delivery.created_at,
            next_attempt_at: delivery.next_attempt_at,
            ended_at: delivery.ended_at,
            response_status: delivery.response_status,
            error: delivery.error,
        }
    }
}

/// One page of the deliveries of a webhook, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "deliveries": [{
        "id": "delivery-0123456789abcdef",
        "event_id": 4711,
        "environment_id": "env-0123456789abcdef",
        "kind": "terminated",
        "state": "delivered",
        "attempts": 1,
        "created_at": "2026-01-22T10:30:00Z",
        "ended_at": "2026-01-22T10:30:00Z",
        "response_status": 204
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct DeliveryList {
    /// The deliveries of this page.
    pub deliveries: Vec<DeliveryBody>,
    /// The number of deliveries on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of deliveries before this page.
    #[schema(example = 0)]
    pub offset: u64,
}

/// Which deliveries to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveriesQuery {
    /// Return only deliveries in this state. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub state: Option<DeliveryState>,
    /// The largest number of deliveries to return, 1 to 1000. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000, default = 100, example = 50)]
    pub limit: Option<u32>,
    /// The number of deliveries to skip, from the newest. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(default = 0, example = 0)]
    pub offset: Option<u64>,
}
