//! A warm pool for a measurement, if the system has pools.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::http::status;
use crate::target::Api;

const PATH: &str = "/api/v1/pools/bench";
/// For the starts or the ends of all boxes.
const DEADLINE: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

pub struct Pool {
    /// Its definition.
    body: Value,
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
            Ok(_) => Ok(Some(Self { body, size })),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(error.context("creating a pool")),
        }
    }

    /// Waits until the pool has all of its boxes.
    ///
    /// # Errors
    /// When it does not have them within ten minutes.
    pub async fn wait_full(&self, api: &Api) -> anyhow::Result<()> {
        let size = self.size as u64;
        wait(api, &format!("{size} ready boxes"), |pool| {
            boxes(pool, "ready") >= size
        })
        .await
    }

    /// Deletes the pool, after its boxes: their ends would slow what is measured next. Prints a failure.
    pub async fn delete(self, api: &Api) {
        let deleted = async {
            let emptied = self.empty(api).await;
            api.http.delete(PATH).await?;
            emptied
        };
        if let Err(error) = deleted.await {
            println!("the pool was not deleted after its boxes: {error:#}");
        }
    }

    /// Lets the pool keep no box, and waits until it has none.
    async fn empty(&self, api: &Api) -> anyhow::Result<()> {
        let mut body = self.body.clone();
        for bound in ["min_ready", "max_ready"] {
            body[bound] = json!(0);
        }
        api.http.put(PATH, &body).await?;
        let states = ["ready", "starting", "draining"];
        wait(api, "no box", |pool| {
            states.iter().all(|state| boxes(pool, state) == 0)
        })
        .await
    }
}

/// Asks for the pool until it is as wanted; `wanted` names what it has then.
async fn wait(api: &Api, wanted: &str, is_reached: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let pool: Value = api.http.get_json(PATH).await?;
        if is_reached(&pool) {
            return Ok(());
        }
        ensure!(
            started.elapsed() < DEADLINE,
            "the pool does not have {wanted} after {DEADLINE:?}: {pool}"
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The number of boxes in this state, in the answer about a pool.
fn boxes(pool: &Value, state: &str) -> u64 {
    let status = pool.get("status").unwrap_or(pool);
    status.get(state).and_then(Value::as_u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_read_from_the_status_or_beside_it() {
        let pool = json!({ "status": { "ready": 3, "draining": 1 } });
        assert_eq!((boxes(&pool, "ready"), boxes(&pool, "draining")), (3, 1));
        assert_eq!(boxes(&json!({ "ready": 4 }), "ready"), 4);
        assert_eq!(boxes(&json!({}), "ready"), 0);
    }
}
