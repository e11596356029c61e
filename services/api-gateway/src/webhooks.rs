//! `/webhooks`: the caller's webhooks, and the deliveries of events to them.
//!
//! * I1. A change begins after the audit trail's stream has stored its entry.

use agentbox_api::user::PageQuery;
use agentbox_api::webhook::{
    CreateWebhook, CreatedWebhook, DeliveriesQuery, DeliveryBody, DeliveryList, WebhookBody,
    WebhookList,
};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::{DeliveryId, WebhookId};
use agentbox_contracts::webhook::rpc;
use axum::extract::{RawPathParams, State};
use axum::http::StatusCode;
use utoipa::IntoParams;

use crate::audit;
use crate::edge::query::page;
use crate::edge::{Answer, Caller, Json, Path, Query};
use crate::state::{Gateway, WEBHOOKS_DEADLINE};

/// The parameter of a path that names a webhook.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct WebhookParameter {
    /// The webhook's id.
    #[param(inline, example = "webhook-0123456789abcdef")]
    webhook: WebhookId,
}

/// The second parameter of a path that names a delivery.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct DeliveryParameter {
    /// The delivery's id.
    #[param(inline, example = "delivery-0123456789abcdef")]
    delivery: DeliveryId,
}

/// Create a webhook
///
/// Events of the caller's environments are sent to `url` as they happen, as a POST with the headers of
/// the [Standard Webhooks](https://www.standardwebhooks.com) specification: `webhook-id`,
/// `webhook-timestamp` and `webhook-signature`, an HMAC-SHA256 with `secret`. Any 2xx acknowledges an
/// event. Otherwise it is sent again with growing pauses, 10 times in all by default
/// (`AGENTBOX_WEBHOOK_ATTEMPTS`). An event may arrive twice, and after a later one. One user has at most
/// 16 webhooks.
#[utoipa::path(post, operation_id = "createWebhook", path = "/webhooks", tag = "webhooks", request_body = CreateWebhook,
    responses((status = 201, description = "The new webhook, with the key of its signatures.", body = CreatedWebhook)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<CreateWebhook>,
) -> Answer<(StatusCode, axum::Json<CreatedWebhook>)> {
    audit::accept_target(&gateway, AuditAction::CreateWebhook, None, &[]).await?;
    let request = rpc::CreateWebhookRequest {
        owner: principal.user,
        url: body.url,
        kinds: body.kinds,
        description: body.description,
    };
    let reply = gateway
        .bus
        .call::<rpc::CreateWebhook>(&request, WEBHOOKS_DEADLINE)
        .await?;
    let WebhookBody {
        id,
        url,
        kinds,
        description,
        created_at,
    } = reply.webhook.into();
    let created = CreatedWebhook {
        id,
        url,
        kinds,
        description,
        created_at,
        secret: reply.secret.0,
    };
    Ok((StatusCode::CREATED, axum::Json(created)))
}

/// List webhooks
///
/// Returns one page of the caller's webhooks, newest first.
#[utoipa::path(get, operation_id = "listWebhooks", path = "/webhooks", tag = "webhooks", params(PageQuery),
    responses((status = 200, description = "One page of webhooks.", body = WebhookList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<WebhookList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = rpc::ListWebhooksRequest {
        owner: principal.user,
        limit,
        offset,
    };
    let reply = gateway
        .bus
        .call::<rpc::ListWebhooks>(&request, WEBHOOKS_DEADLINE)
        .await?;
    Ok(axum::Json(WebhookList {
        webhooks: reply.webhooks.into_iter().map(WebhookBody::from).collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

/// Get a webhook
///
/// Returns one of the caller's webhooks.
#[utoipa::path(get, operation_id = "getWebhook", path = "/webhooks/{webhook}", tag = "webhooks",
    params(WebhookParameter),
    responses((status = 200, description = "The webhook.", body = WebhookBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<WebhookId>,
) -> Answer<axum::Json<WebhookBody>> {
    let request = rpc::WebhookRequest {
        owner: principal.user,
        id,
    };
    let webhook = gateway
        .bus
        .call::<rpc::GetWebhook>(&request, WEBHOOKS_DEADLINE)
        .await?;
    Ok(axum::Json(webhook.into()))
}

/// Delete a webhook
///
/// Ends its deliveries, also those that wait for another attempt, and deletes their history.
#[utoipa::path(delete, operation_id = "deleteWebhook", path = "/webhooks/{webhook}", tag = "webhooks",
    params(WebhookParameter),
    responses((status = 204, description = "The webhook is deleted.")))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<WebhookId>,
) -> Answer<StatusCode> {
    audit::accept_target(&gateway, AuditAction::DeleteWebhook, Some(id.as_str()), &[]).await?;
    let request = rpc::WebhookRequest {
        owner: principal.user,
        id,
    };
    gateway
        .bus
        .call::<rpc::DeleteWebhook>(&request, WEBHOOKS_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the deliveries of a webhook
///
/// Returns one page of the events that were or will be sent to the webhook, newest first, each with its
/// last outcome. Ended deliveries are kept for 8 days by default (`AGENTBOX_WEBHOOK_RETENTION`).
#[utoipa::path(get, operation_id = "listWebhookDeliveries", path = "/webhooks/{webhook}/deliveries", tag = "webhooks",
    params(WebhookParameter, DeliveriesQuery),
    responses((status = 200, description = "One page of deliveries.", body = DeliveryList)))]
pub(crate) async fn deliveries(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<WebhookId>,
    Query(query): Query<DeliveriesQuery>,
) -> Answer<axum::Json<DeliveryList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = rpc::ListDeliveriesRequest {
        owner: principal.user,
        id,
        state: query.state,
        limit,
        offset,
    };
    let reply = gateway
        .bus
        .call::<rpc::ListDeliveries>(&request, WEBHOOKS_DEADLINE)
        .await?;
    Ok(axum::Json(DeliveryList {
        deliveries: reply
            .deliveries
            .into_iter()
            .map(DeliveryBody::from)
            .collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

/// Send a delivery again
///
/// The event is sent at once, with the same `webhook-id`, whether it was delivered, is dead or waits for
/// another attempt. Its attempts are counted from the beginning.
#[utoipa::path(post, operation_id = "redeliver", path = "/webhooks/{webhook}/deliveries/{delivery}/redeliver", tag = "webhooks",
    params(WebhookParameter, DeliveryParameter),
    responses((status = 202, description = "The delivery, which is sent again.", body = DeliveryBody)))]
pub(crate) async fn redeliver(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<WebhookId>,
    parameters: RawPathParams,
) -> Answer<(StatusCode, axum::Json<DeliveryBody>)> {
    let named = parameters.iter().find(|(name, _)| *name == "delivery");
    let delivery: DeliveryId = named
        .and_then(|(_, text)| text.parse().ok())
        .ok_or_else(|| Error::not_found("delivery"))?;
    audit::accept_target(
        &gateway,
        AuditAction::RedeliverWebhook,
        Some(id.as_str()),
        &[],
    )
    .await?;
    let request = rpc::RedeliverRequest {
        owner: principal.user,
        id,
        delivery,
    };
    let again = gateway
        .bus
        .call::<rpc::Redeliver>(&request, WEBHOOKS_DEADLINE)
        .await?;
    Ok((StatusCode::ACCEPTED, axum::Json(again.into())))
}
