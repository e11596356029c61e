//! Reads the event stream; each step has a deadline.

use std::future::Future;

use agentbox_bus::{BusError, EventStream, StoredEvent};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::subjects::EVENTS_STREAM;
use futures::StreamExt;

use super::{DEADLINE, is_visible, report_unavailable};
use crate::shares::{Exceeded, Resource, Share};
use crate::state::Gateway;

async fn with_deadline<T>(reading: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(DEADLINE, reading)
        .await
        .map_err(|_| Error::new(ErrorCode::Timeout, "reading the events took too long"))?
}

fn require_connection(gateway: &Gateway) -> Result<(), Error> {
    // Without a connection a JetStream request would take its whole deadline.
    if gateway.bus.is_connected() {
        Ok(())
    } else {
        Err(report_unavailable(&BusError::Disconnected))
    }
}

/// The most stored events that one call reads.
const MAX_STORED: u64 = 10_000;

/// Stored events, and the share of their reader.
pub(super) struct Stored {
    pub events: Vec<StoredEvent>,
    pub share: Share<UserId>,
}

const STORED_EVENTS: Resource = Resource {
    labels: ["stored_events_per_user", "stored_events"],
    before: "the events that",
    holders: ["your requests", "all requests"],
    after: "read at once take all memory that they may have; read them, then try again",
};

fn too_many(exceeded: Exceeded) -> Error {
    STORED_EVENTS.unavailable(exceeded)
}

/// The newest [`MAX_STORED`] events that match `filter`, without those that are not visible, oldest
/// first. They are in memory, so `user` has a share of the number of them.
pub(super) async fn read_matching(
    gateway: &Gateway,
    user: &UserId,
    filter: &str,
    visible: &Visibility,
) -> Result<Stored, Error> {
    require_connection(gateway)?;
    let mut share = gateway.stored_events.take(user, 0).map_err(too_many)?;
    let events = with_deadline(async {
        let stream = gateway.bus.newest_events(filter.to_owned(), MAX_STORED);
        let stream = stream.await.map_err(|error| report_unavailable(&error))?;
        let Some(mut stream) = stream else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        while let Some(next) = stream.next().await {
            let stored = next.map_err(|error| report_unavailable(&error))?;
            let is_last = stored.pending == 0;
            if is_visible(visible, &stored.event) {
                share.grow(1).map_err(too_many)?;
                all.push(stored);
            }
            if is_last {
                break;
            }
        }
        Ok(all)
    })
    .await?;
    Ok(Stored { events, share })
}

/// Opens a stream of the events from `sequence` on, the stored ones and those that follow.
pub(super) async fn open_from(
    gateway: &Gateway,
    filter: String,
    sequence: u64,
) -> Result<EventStream, Error> {
    require_connection(gateway)?;
    with_deadline(async {
        let stream = gateway.bus.events(filter, sequence).await;
        stream.map_err(|error| report_unavailable(&error))
    })
    .await
}

/// The first and the last sequence of the stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamBounds {
    pub first: u64,
    pub last: u64,
}

impl StreamBounds {
    /// Whether sequences from `from` on are no longer stored. The events may have been visible to
    /// the caller or not.
    pub(super) const fn has_gap_from(self, from: u64) -> bool {
        from < self.first
    }
}

pub(super) async fn bounds(gateway: &Gateway) -> Result<StreamBounds, Error> {
    require_connection(gateway)?;
    with_deadline(async {
        let stream = gateway.bus.jetstream().get_stream(EVENTS_STREAM).await;
        let stream = stream.map_err(|error| {
            tracing::warn!(error = %ErrorChain(&error), "the event stream could not be read");
            Error::new(
                ErrorCode::Unavailable,
                "the events cannot be read now; try again",
            )
        })?;
        let state = &stream.cached_info().state;
        Ok(StreamBounds {
            first: state.first_sequence,
            last: state.last_sequence,
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_purged_before_the_resumed_sequence_are_a_gap() {
        let bounds = StreamBounds {
            first: 10,
            last: 20,
        };
        assert!(!bounds.has_gap_from(21));
        assert!(!bounds.has_gap_from(10));
        assert!(bounds.has_gap_from(9));
    }
}
