//! Webhooks: a user's URLs that receive the events of its environments, and the webhooks service's RPCs.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::environment::EventKind;
use crate::ids::{DeliveryId, EnvironmentId, WebhookId};

/// The most webhooks of one user.
pub const MAX_WEBHOOKS: u64 = 16;
/// The longest URL of a webhook, in bytes.
pub const MAX_WEBHOOK_URL: usize = 2_048;
/// The longest description of a webhook, in characters.
pub const MAX_WEBHOOK_DESCRIPTION: usize = 256;

/// A webhook, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    pub id: WebhookId,
    pub url: String,
    /// The kinds of events that it receives. Empty: all.
    #[serde(default)]
    pub kinds: Vec<EventKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub created_at: DateTime<Utc>,
}

/// The state of a delivery: `pending` is attempted or retried, `delivered` was acknowledged by the
/// receiver, `dead` is not attempted again unless the user asks for it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "delivered"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum DeliveryState {
    Pending,
    Delivered,
    Dead,
}

impl DeliveryState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// One event on its way to one webhook, or at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The `webhook-id` of every attempt.
    pub id: DeliveryId,
    /// The event's number in the event stream.
    pub event: u64,
    pub environment: EnvironmentId,
    pub kind: EventKind,
    pub state: DeliveryState,
    /// The attempts since the event happened, or since the user asked for the last redelivery.
    pub attempts: u32,
    pub created_at: DateTime<Utc>,
    /// Only of a pending delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<DateTime<Utc>>,
    /// The HTTP status of the last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status: Option<u16>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

pub mod rpc {
    //! The gateway decides who may use them.

    use super::{
        Delivery, DeliveryId, DeliveryState, Deserialize, EventKind, Serialize, Webhook, WebhookId,
    };
    use crate::identity::rpc::Secret;
    use crate::ids::UserId;
    use crate::rpc::{Empty, rpc};

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct CreateWebhookRequest {
        pub owner: UserId,
        pub url: String,
        #[serde(default)]
        pub kinds: Vec<EventKind>,
        #[serde(default)]
        pub description: Option<String>,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct CreateWebhookReply {
        pub webhook: Webhook,
        /// The key of the signatures. It cannot be read again later.
        pub secret: Secret,
    }

    /// One page, newest first.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListWebhooksRequest {
        pub owner: UserId,
        pub limit: u32,
        pub offset: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListWebhooksReply {
        pub webhooks: Vec<Webhook>,
        pub total: u64,
    }

    /// One webhook of this owner. A webhook of another owner is not found.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct WebhookRequest {
        pub owner: UserId,
        pub id: WebhookId,
    }

    /// One page of the deliveries of a webhook, newest first.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListDeliveriesRequest {
        pub owner: UserId,
        pub id: WebhookId,
        #[serde(default)]
        pub state: Option<DeliveryState>,
        pub limit: u32,
        pub offset: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListDeliveriesReply {
        pub deliveries: Vec<Delivery>,
        pub total: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct RedeliverRequest {
        pub owner: UserId,
        pub id: WebhookId,
        pub delivery: DeliveryId,
    }

    rpc!(
        /// `QuotaExceeded` beyond [`super::MAX_WEBHOOKS`].
        CreateWebhook: "webhooks", "create", CreateWebhookRequest => CreateWebhookReply
    );
    rpc!(ListWebhooks: "webhooks", "list", ListWebhooksRequest => ListWebhooksReply);
    rpc!(GetWebhook: "webhooks", "get", WebhookRequest => Webhook);
    rpc!(DeleteWebhook: "webhooks", "delete", WebhookRequest => Empty);
    rpc!(ListDeliveries: "webhooks", "list-deliveries",
        ListDeliveriesRequest => ListDeliveriesReply);
    rpc!(
        /// Attempts a delivery again from the beginning, also one that was delivered.
        Redeliver: "webhooks", "redeliver", RedeliverRequest => Delivery
    );
}
