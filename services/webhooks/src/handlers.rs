//! The RPCs of webhooks: each method of the contract and the part that answers it.

use std::sync::Arc;

use agentbox_bus::Server;
use agentbox_contracts::rpc::Empty;
use agentbox_contracts::webhook::rpc::{
    CreateWebhook, DeleteWebhook, GetWebhook, ListDeliveries, ListWebhooks, Redeliver,
};

use crate::webhook::Webhooks;

/// Adds the methods of webhooks to `server`.
pub fn register(server: Server, webhooks: &Arc<Webhooks>) -> Server {
    server
        .on_shared::<CreateWebhook, _, _, _>(webhooks, async |w, r| w.create(r).await)
        .on_shared::<ListWebhooks, _, _, _>(webhooks, async |w, r| w.list(r).await)
        .on_shared::<GetWebhook, _, _, _>(webhooks, async |w, r| w.get(r).await)
        .on_shared::<DeleteWebhook, _, _, _>(webhooks, async |w, r| {
            w.delete(r).await.map(|()| Empty {})
        })
        .on_shared::<ListDeliveries, _, _, _>(webhooks, async |w, r| w.deliveries(r).await)
        .on_shared::<Redeliver, _, _, _>(webhooks, async |w, r| w.redeliver(r).await)
}
