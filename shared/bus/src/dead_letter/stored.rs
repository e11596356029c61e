//! The stored dead letters: reading, replaying and discarding them.
//!
//! * I1. A letter is removed after its command is stored in the work queue, never before. Replayed
//!   twice within two minutes, it is queued once: the number of the letter is the message id.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::time::Duration;

use agentbox_contracts::dead_letter::{DeadLetter, DeadLetterContent};
use agentbox_contracts::subjects::{DEAD_LETTERS_STREAM, HEADER_REASON, Subject};
use async_nats::HeaderMap;
use async_nats::header;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::client::Client;
use crate::error::BusError;
use crate::message::set_expiry;

const READING: &str = "reading a dead letter";
const REPLAYING: &str = "replaying a dead letter";
/// How long one operation may take.
const DEADLINE: Duration = Duration::from_secs(4);
/// Letters that are read at a time.
const CONCURRENT_READS: usize = 16;

async fn bounded<T>(work: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or(Err(BusError::Deadline(DEADLINE)))
}

async fn open(client: &Client) -> Result<Stream<()>, BusError> {
    client
        .jetstream()
        .get_stream_no_info(DEAD_LETTERS_STREAM)
        .await
        .map_err(BusError::nats(READING))
}

/// The numbers of one page, newest first, of a stream with the letters `first` to `last` except those
/// that are `deleted`.
fn page(first: u64, last: u64, deleted: &[u64], limit: u32, offset: u64) -> Vec<u64> {
    let deleted: HashSet<u64> = deleted.iter().copied().collect();
    (first.max(1)..=last)
        .rev()
        .filter(|number| !deleted.contains(number))
        .skip(usize::try_from(offset).unwrap_or(usize::MAX))
        .take(limit as usize)
        .collect()
}

/// One page, newest first, and the number of all letters.
pub(crate) async fn list(
    client: &Client,
    limit: u32,
    offset: u64,
) -> Result<(Vec<DeadLetter>, u64), BusError> {
    bounded(async {
        let stream = open(client).await?;
        let info = stream.info_builder().with_deleted(true).fetch().await;
        let state = info.map_err(BusError::nats(READING))?.info.state;
        let deleted = state.deleted.unwrap_or_default();
        let numbers = page(
            state.first_sequence,
            state.last_sequence,
            &deleted,
            limit,
            offset,
        );
        let letters: Vec<Option<StreamMessage>> = futures::stream::iter(numbers)
            .map(|number| read(&stream, number))
            .buffered(CONCURRENT_READS)
            .try_collect()
            .await?;
        // One that has expired meanwhile is missing.
        let letters = letters.iter().flatten().map(letter).collect();
        Ok((letters, state.messages))
    })
    .await
}

/// One letter; `None` when there is none with this number.
pub(crate) async fn get(
    client: &Client,
    number: u64,
) -> Result<Option<DeadLetterContent>, BusError> {
    bounded(async {
        let stream = open(client).await?;
        let message = read(&stream, number).await?;
        Ok(message.map(|message| DeadLetterContent {
            letter: letter(&message),
            headers: texts(&message.headers),
            body: message.payload.to_vec(),
        }))
    })
    .await
}

/// Queues the command of a letter again, to be processed within `expires_in`.
pub(crate) async fn replay(
    client: &Client,
    content: &DeadLetterContent,
    expires_in: Duration,
) -> Result<(), BusError> {
    bounded(async {
        let mut headers = HeaderMap::new();
        let id = format!("replay-{}", content.letter.number);
        headers.insert(header::NATS_MESSAGE_ID, id.as_str());
        set_expiry(&mut headers, expires_in);
        client
            .jetstream()
            .publish_with_headers(
                content.letter.subject.clone(),
                headers,
                content.body.clone().into(),
            )
            .await
            .map_err(BusError::nats(REPLAYING))?
            .await
            .map(|_| ())
            .map_err(BusError::nats(REPLAYING))
    })
    .await
}

/// Removes a letter. Succeeds for one that is gone.
pub(crate) async fn discard(client: &Client, number: u64) -> Result<(), BusError> {
    bounded(async {
        let stream = open(client).await?;
        if read(&stream, number).await?.is_none() {
            return Ok(());
        }
        stream
            .delete_message(number)
            .await
            .map(|_| ())
            .map_err(BusError::nats("discarding a dead letter"))
    })
    .await
}

async fn read(stream: &Stream<()>, number: u64) -> Result<Option<StreamMessage>, BusError> {
    // JetStream refuses the number 0, which no message has.
    if number == 0 {
        return Ok(None);
    }
    match stream.get_raw_message(number).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(BusError::nats(READING)(error)),
    }
}

fn letter(message: &StreamMessage) -> DeadLetter {
    let subject = match Subject::parse(message.subject.as_str()) {
        Some(Subject::DeadLetter { subject }) => subject,
        _ => message.subject.to_string(),
    };
    let reason = message.headers.get(HEADER_REASON);
    let nanos = i64::try_from(message.time.unix_timestamp_nanos()).unwrap_or(i64::MAX);
    DeadLetter::new(
        message.sequence,
        &subject,
        reason.map_or_else(String::new, |reason| reason.as_str().to_owned()),
        DateTime::<Utc>::from_timestamp_nanos(nanos),
        message.payload.len() as u64,
    )
}

fn texts(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    headers
        .iter()
        .map(|(name, values)| {
            let values = values.iter().map(|value| value.as_str().to_owned());
            (name.to_string(), values.collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_the_newest_letters_that_are_not_deleted() {
        for (first, last, deleted, limit, offset, expected) in [
            (0, 0, vec![], 10, 0, vec![]),
            (4, 3, vec![], 10, 0, vec![]),
            (1, 3, vec![], 10, 0, vec![3, 2, 1]),
            (1, 5, vec![2, 4], 10, 0, vec![5, 3, 1]),
            (1, 5, vec![2, 4], 1, 1, vec![3]),
            (1, 5, vec![], 2, 4, vec![1]),
            (1, 5, vec![], 2, u64::MAX, vec![]),
        ] {
            let numbers = page(first, last, &deleted, limit, offset);
            assert_eq!(numbers, expected, "{first} to {last}");
        }
    }
}
