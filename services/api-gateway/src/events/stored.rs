//! Reading the event stream, each step within a deadline.

use std::future::Future;

use agentbox_bus::{BusError, EventStream, StoredEvent};
use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::subjects::EVENTS_STREAM;
use futures::StreamExt;

use super::{DEADLINE, sees, unavailable};
use crate::state::Gateway;

async fn in_time<T>(reading: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(DEADLINE, reading)
        .await
        .map_err(|_| Error::new(ErrorCode::Timeout, "reading the events took too long"))?
}

fn connected(gateway: &Gateway) -> Result<(), Error> {
    // JetStream is not asked in vain: its answer would take the whole deadline.
    if gateway.bus.is_connected() {
        Ok(())
    } else {
        Err(unavailable(&BusError::Disconnected))
    }
}

/// All that is kept of what `filter` matches and `seen` shows, oldest first.
pub(super) async fn matching(
    gateway: &Gateway,
    filter: &str,
    seen: &Visibility,
) -> Result<Vec<StoredEvent>, Error> {
    connected(gateway)?;
    in_time(async {
        let has_some = gateway.bus.has_events(filter).await;
        if !has_some.map_err(|error| unavailable(&error))? {
            return Ok(Vec::new());
        }
        let stream = gateway.bus.events(filter.to_owned(), 0).await;
        let mut stream = stream.map_err(|error| unavailable(&error))?;
        let mut all = Vec::new();
        while let Some(next) = stream.next().await {
            let stored = next.map_err(|error| unavailable(&error))?;
            let is_last = stored.pending == 0;
            if sees(seen, &stored.event) {
                all.push(stored);
            }
            if is_last {
                break;
            }
        }
        Ok(all)
    })
    .await
}

/// The events from `sequence` on, and those to come.
pub(super) async fn from(
    gateway: &Gateway,
    filter: String,
    sequence: u64,
) -> Result<EventStream, Error> {
    connected(gateway)?;
    in_time(async {
        let stream = gateway.bus.events(filter, sequence).await;
        stream.map_err(|error| unavailable(&error))
    })
    .await
}

/// The first and the last that the stream has.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamBounds {
    pub first: u64,
    pub last: u64,
}

impl StreamBounds {
    /// How many places before the first are gone; not all of them were the caller's.
    pub(super) const fn gap_before(self, from: u64) -> Option<u64> {
        match self.first.checked_sub(from) {
            Some(gone) if gone > 0 => Some(gone),
            _ => None,
        }
    }
}

pub(super) async fn bounds(gateway: &Gateway) -> Result<StreamBounds, Error> {
    connected(gateway)?;
    in_time(async {
        let stream = gateway.bus.jetstream().get_stream(EVENTS_STREAM).await;
        let stream = stream.map_err(|error| {
            tracing::warn!(%error, "the event stream cannot be read");
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
    fn what_was_forgotten_before_the_resumed_place_is_a_gap() {
        let bounds = StreamBounds {
            first: 10,
            last: 20,
        };
        assert_eq!(bounds.gap_before(21), None);
        assert_eq!(bounds.gap_before(10), None);
        assert_eq!(bounds.gap_before(7), Some(3));
    }
}
