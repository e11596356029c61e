//! The origin of the API request that is being answered.
//!
//! Like the trace context, it travels in a header of every request, so that the service that
//! changes something can record who asked for it.

use std::future::Future;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::audit::Origin;
use agentbox_contracts::subjects::HEADER_ORIGIN;
use async_nats::HeaderMap;

tokio::task_local! {
    static ORIGIN: Origin;
}

/// Runs `work` on behalf of `origin`: [`current_origin`] returns it, also in the services that
/// `work` calls.
pub async fn with_origin<F: Future>(origin: Origin, work: F) -> F::Output {
    ORIGIN.scope(origin, work).await
}

/// The origin of the API request that this task answers; `None` in background work.
#[must_use]
pub fn current_origin() -> Option<Origin> {
    ORIGIN.try_with(Clone::clone).ok()
}

/// Runs the handler of a request whose headers name an origin, or none.
pub(crate) async fn serve<F: Future>(origin: Option<Origin>, handler: F) -> F::Output {
    match origin {
        Some(origin) => with_origin(origin, handler).await,
        None => handler.await,
    }
}

pub(crate) fn inject(headers: &mut HeaderMap) {
    let Some(origin) = current_origin() else {
        return;
    };
    match serde_json::to_string(&origin) {
        Ok(text) => headers.insert(HEADER_ORIGIN, text),
        Err(error) => tracing::error!(error = %ErrorChain(&error), "origin not encoded"),
    }
}

pub(crate) fn extract(headers: Option<&HeaderMap>) -> Option<Origin> {
    let text = headers?.get(HEADER_ORIGIN)?.as_str();
    serde_json::from_str(text)
        .inspect_err(|error| tracing::error!(error = %ErrorChain(error), "origin not decoded"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn origin_travels_in_the_headers() {
        let origin = Origin {
            address: "192.0.2.1".parse().ok(),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
            ..Origin::default()
        };
        let mut headers = HeaderMap::new();
        inject(&mut headers);
        assert!(headers.is_empty());
        with_origin(origin.clone(), async { inject(&mut headers) }).await;
        let received = extract(Some(&headers));
        assert_eq!(received, Some(origin.clone()));
        assert_eq!(
            serve(received, async { current_origin() }).await,
            Some(origin)
        );
        assert_eq!(current_origin(), None);
    }
}
