//! A warm pool for a measurement, if the system has pools.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::http::status;
use crate::target::Api;

const PATH: &str = "/api/v1/pools/bench";
const FILL_DEADLINE: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

pub struct Pool {
    size: usize,
}

impl Pool {
    /// Creates a pool of `size` ready boxes for creates like `request`. `None`: the system has no
    /// pools.
    ///
    /// # Errors
    /// When the system refuses the pool.
    pub async fn create(api: &Api, request: &Value, size: usize) -> anyhow::Result<Option<Self>> {
        let body = json!({
            "image": request["image"],
            "resources": request["resources"],
            "min_ready": size,
            "max_ready": size,
        });
        match api.http.put(PATH, &body).await {
            Ok(_) => Ok(Some(Self { size })),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(error.context("creating a pool")),
        }
    }

    /// Waits until the pool has all of its boxes.
    ///
    /// # Errors
    /// When it does not have them within ten minutes.
    pub async fn wait_full(&self, api: &Api) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let pool: Value = api.http.get_json(PATH).await?;
            let ready = ready(&pool);
            if ready >= self.size as u64 {
                return Ok(());
            }
            ensure!(
                started.elapsed() < FILL_DEADLINE,
                "the pool has {ready} of {} boxes after {FILL_DEADLINE:?}: {pool}",
                self.size
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Deletes the pool. Prints a failure.
    pub async fn delete(self, api: &Api) {
        if let Err(error) = api.http.delete(PATH).await {
            println!("the pool was not deleted: {error:#}");
        }
    }
}

/// The number of ready boxes in the answer about a pool.
fn ready(pool: &Value) -> u64 {
    let status = pool.get("status").unwrap_or(pool);
    status.get("ready").and_then(Value::as_u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_boxes_are_read_from_the_status_or_beside_it() {
        assert_eq!(ready(&json!({ "status": { "ready": 3 } })), 3);
        assert_eq!(ready(&json!({ "ready": 4 })), 4);
        assert_eq!(ready(&json!({})), 0);
    }
}
