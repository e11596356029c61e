//! Webhooks of users: their rules, and the answers to the gateway.
//!
//! * I1. An owner sees its own webhooks and their deliveries, and no others.

use std::sync::Arc;

use agentbox_contracts::environment::EventKind;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::webhook::rpc::{
    CreateWebhookReply, CreateWebhookRequest, ListDeliveriesReply, ListDeliveriesRequest,
    ListWebhooksReply, ListWebhooksRequest, RedeliverRequest, WebhookRequest,
};
use agentbox_contracts::webhook::{Delivery, MAX_WEBHOOK_DESCRIPTION, MAX_WEBHOOK_URL, Webhook};
use tokio::sync::Notify;

use crate::delivery::signature::{KEY_LEN, key_text};
use crate::store::{NewWebhook, Store};
use crate::target::Guard;

/// The most rows of one page.
const MAX_PAGE: u32 = 1_000;

pub struct Webhooks {
    pub store: Store,
    pub guard: Arc<Guard>,
    /// Wakes the worker that attempts deliveries.
    pub due: Arc<Notify>,
}

impl Webhooks {
    /// Creates a webhook, and returns the key of its signatures once.
    ///
    /// # Errors
    /// `Validation`, naming the field; `QuotaExceeded` when the owner has too many.
    pub async fn create(&self, request: CreateWebhookRequest) -> Result<CreateWebhookReply, Error> {
        let new = validate(&self.guard, request)?;
        let key: [u8; KEY_LEN] = rand::random();
        let webhook = self.store.insert_webhook(new, &key).await?;
        Ok(CreateWebhookReply {
            webhook,
            secret: Secret(key_text(&key)),
        })
    }

    /// Returns one page of an owner's webhooks.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn list(&self, request: ListWebhooksRequest) -> Result<ListWebhooksReply, Error> {
        let limit = request.limit.min(MAX_PAGE);
        let (webhooks, total) = self
            .store
            .list_webhooks(&request.owner, limit, request.offset)
            .await?;
        Ok(ListWebhooksReply { webhooks, total })
    }

    /// Returns one webhook.
    ///
    /// # Errors
    /// `NotFound` when the owner has no such webhook.
    pub async fn get(&self, request: WebhookRequest) -> Result<Webhook, Error> {
        let WebhookRequest { owner, id } = request;
        let found = self.store.find_webhook(&owner, &id).await?;
        found.ok_or_else(|| Error::not_found("webhook"))
    }

    /// Deletes a webhook, and its deliveries.
    ///
    /// # Errors
    /// `NotFound` when the owner has no such webhook.
    pub async fn delete(&self, request: WebhookRequest) -> Result<(), Error> {
        match self
            .store
            .delete_webhook(&request.owner, &request.id)
            .await?
        {
            true => Ok(()),
            false => Err(Error::not_found("webhook")),
        }
    }

    /// Returns one page of the deliveries of a webhook.
    ///
    /// # Errors
    /// `NotFound` when the owner has no such webhook.
    pub async fn deliveries(
        &self,
        request: ListDeliveriesRequest,
    ) -> Result<ListDeliveriesReply, Error> {
        let ListDeliveriesRequest {
            owner,
            id,
            state,
            limit,
            offset,
        } = request;
        let webhook = self.get(WebhookRequest { owner, id }).await?;
        let (deliveries, total) = self
            .store
            .list_deliveries(&webhook.id, state, limit.min(MAX_PAGE), offset)
            .await?;
        Ok(ListDeliveriesReply { deliveries, total })
    }

    /// Makes a delivery due again, from its first attempt on.
    ///
    /// # Errors
    /// `NotFound` when the owner has no such webhook, or it has no such delivery.
    pub async fn redeliver(&self, request: RedeliverRequest) -> Result<Delivery, Error> {
        let RedeliverRequest {
            owner,
            id,
            delivery,
        } = request;
        let again = self.store.redeliver(&owner, &id, &delivery).await?;
        let again = again.ok_or_else(|| Error::not_found("delivery"))?;
        self.due.notify_one();
        Ok(again)
    }
}

/// Checks the fields of a new webhook.
fn validate(guard: &Guard, request: CreateWebhookRequest) -> Result<NewWebhook, Error> {
    let CreateWebhookRequest {
        owner,
        url,
        mut kinds,
        description,
    } = request;
    if url.len() > MAX_WEBHOOK_URL {
        return Err(Error::value(
            "url",
            format_args!("must have at most {MAX_WEBHOOK_URL} bytes"),
            url.len(),
        ));
    }
    let parsed = guard
        .check(&url)
        .map_err(|rule| Error::value("url", rule, &url))?;
    let is_invalid = |text: &String| {
        text.chars().count() > MAX_WEBHOOK_DESCRIPTION || text.chars().any(char::is_control)
    };
    if description.as_ref().is_some_and(is_invalid) {
        return Err(Error::new(
            ErrorCode::Validation,
            format!(
                "description: must have at most {MAX_WEBHOOK_DESCRIPTION} characters, none of them \
                 a control character"
            ),
        ));
    }
    kinds.sort_unstable_by_key(|kind: &EventKind| kind.as_str());
    kinds.dedup();
    Ok(NewWebhook {
        owner,
        url: parsed.to_string(),
        kinds,
        description,
    })
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::ids::UserId;

    use super::*;

    fn request(url: &str) -> CreateWebhookRequest {
        CreateWebhookRequest {
            owner: UserId::random(),
            url: url.to_owned(),
            kinds: vec![EventKind::Running, EventKind::Created, EventKind::Running],
            description: Some("billing".to_owned()),
        }
    }

    #[test]
    fn kind_that_is_given_twice_is_stored_once() {
        let new = validate(&Guard::new(Vec::new()), request("https://example.com")).unwrap();
        assert_eq!(new.kinds, [EventKind::Created, EventKind::Running]);
        assert_eq!(new.url, "https://example.com/");
    }

    #[test]
    fn invalid_field_is_named() {
        let guard = Guard::new(Vec::new());
        let long = format!("https://example.com/{}", "a".repeat(MAX_WEBHOOK_URL));
        for url in ["http://example.com", "https://10.0.0.1/", &long] {
            let refused = validate(&guard, request(url)).map(|_| ()).unwrap_err();
            assert!(refused.message.starts_with("url: must "), "{refused:?}");
        }
        for description in ["a".repeat(MAX_WEBHOOK_DESCRIPTION + 1), "a\nb".to_owned()] {
            let request = CreateWebhookRequest {
                description: Some(description),
                ..request("https://example.com")
            };
            let refused = validate(&guard, request).map(|_| ()).unwrap_err();
            assert!(refused.message.starts_with("description: "), "{refused:?}");
        }
    }
}
