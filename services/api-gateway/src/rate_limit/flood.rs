//! The flood limiter: limits the requests of one client address to this replica, before any
//! other service is asked. Its limits are far above the documented rate limits: it bounds the
//! cost of a flood, not the use of the API.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use governor::middleware::NoOpMiddleware;
use tokio_util::sync::CancellationToken;
use tower_governor::governor::{GovernorConfig, GovernorConfigBuilder};
use tower_governor::key_extractor::KeyExtractor;
use tower_governor::{GovernorError, GovernorLayer};

use super::window::write_headers;
use crate::edge::client_address::ClientAddress;
use crate::edge::error::ApiError;
use crate::metrics;
use crate::state::Gateway;

/// How often the counters of idle addresses are dropped.
const PURGE_INTERVAL: Duration = Duration::from_secs(10);

/// Selects the counter of a request: the network of its client.
#[derive(Clone, Debug)]
pub(crate) struct ByClientNetwork;

impl KeyExtractor for ByClientNetwork {
    type Key = IpAddr;

    fn extract<T>(&self, request: &Request<T>) -> Result<IpAddr, GovernorError> {
        Ok(ClientAddress::from_extensions(request.extensions()).network())
    }
}

#[derive(Clone)]
pub(crate) struct FloodLimiter {
    config: Arc<GovernorConfig<ByClientNetwork, NoOpMiddleware>>,
    burst: u32,
}

/// A limit is zero.
#[derive(Debug, thiserror::Error)]
#[error("AGENTBOX_FLOOD_PER_SECOND and AGENTBOX_FLOOD_BURST must be at least 1")]
pub(crate) struct InvalidShield;

impl FloodLimiter {
    /// # Errors
    /// When a limit is zero.
    pub(crate) fn new(per_second: u32, burst: u32) -> Result<Self, InvalidShield> {
        let period = Duration::from_secs(1)
            .checked_div(per_second)
            .ok_or(InvalidShield)?;
        let config = GovernorConfigBuilder::default()
            .period(period)
            .burst_size(burst)
            .key_extractor(ByClientNetwork)
            .finish()
            .ok_or(InvalidShield)?;
        Ok(Self {
            config: Arc::new(config),
            burst,
        })
    }

    /// Adds the limit to every route of `router`.
    pub(crate) fn wrap(&self, router: Router<Gateway>) -> Router<Gateway> {
        let burst = self.burst;
        let layer: GovernorLayer<_, _, Body> = GovernorLayer::new(Arc::clone(&self.config))
            .error_handler(move |error| refuse(&error, burst));
        router.layer(layer)
    }

    /// Drops the counters of idle addresses until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> Result<(), anyhow::Error> {
        let mut tick = tokio::time::interval(PURGE_INTERVAL);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tick.tick() => self.config.limiter().retain_recent(),
            }
        }
    }
}

fn refuse(error: &GovernorError, burst: u32) -> Response {
    let wait = match error {
        GovernorError::TooManyRequests { wait_time, .. } => (*wait_time).max(1),
        _ => 1,
    };
    metrics::rate_limited("flood");
    let mut error = Error::new(
        ErrorCode::RateLimited,
        format!("too many requests from this address; try again in {wait} s"),
    );
    error.retry_after_s = u32::try_from(wait).ok();
    let mut response = ApiError(error).into_response();
    let reset = u64::try_from(Utc::now().timestamp()).unwrap_or(0) + wait;
    write_headers(response.headers_mut(), u64::from(burst), 0, reset);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_zero_is_refused() {
        assert!(FloodLimiter::new(0, 1).is_err());
        assert!(FloodLimiter::new(1, 0).is_err());
        assert!(FloodLimiter::new(1, 1).is_ok());
    }

    #[test]
    fn request_after_a_burst_is_refused_for_its_address_only() {
        let flood_limiter = FloodLimiter::new(1, 3).unwrap();
        let limiter = flood_limiter.config.limiter();
        let address = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..3 {
            assert!(limiter.check_key(&address).is_ok());
        }
        assert!(limiter.check_key(&address).is_err());
        assert!(limiter.check_key(&IpAddr::from([192, 0, 2, 2])).is_ok());
    }

    #[tokio::test]
    async fn refusal_has_the_error_body_and_headers() {
        let headers = axum::http::HeaderMap::new();
        let response = refuse(
            &GovernorError::TooManyRequests {
                wait_time: 0,
                headers: Some(headers),
            },
            9,
        );
        assert_eq!(response.status().as_u16(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["x-ratelimit-limit"], "9");
        let body = axum::body::to_bytes(response.into_body(), 4096)
            .await
            .unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"], "rate_limited");
    }
}
