//! A receiver of webhooks that counts what it gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How long the receiver takes to answer, in seconds.
pub const ANSWER_S: f64 = 0.05;

pub struct Receiver {
    pub url: String,
    received: Arc<AtomicU64>,
    server: JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let received = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&received);
        let receive = move || {
            let counted = Arc::clone(&counted);
            async move {
                tokio::time::sleep(Duration::from_secs_f64(ANSWER_S)).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        };
        let router = Router::new().route("/", post(receive));
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            url,
            received,
            server,
        }
    }

    /// The deliveries so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}
