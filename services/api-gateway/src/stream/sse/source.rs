//! The sources of events: each receives messages, and queues the events that it makes of them.

use std::collections::VecDeque;
use std::future::Future;

use agentbox_contracts::error::Error;
use axum::response::sse::Event;

use super::failure;

/// The events that a source has made and that are not sent yet, in their order.
#[derive(Default)]
pub(crate) struct EventQueue {
    events: VecDeque<Event>,
    is_ended: bool,
}

impl EventQueue {
    pub(crate) fn push_back(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn push_front(&mut self, event: Event) {
        self.events.push_front(event);
    }

    /// Ends the stream when all events in the queue are sent.
    pub(crate) fn end(&mut self) {
        self.is_ended = true;
    }

    /// Ends the stream with `error` as its last event.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.events.push_back(failure(error));
        self.end();
    }
}

impl Extend<Event> for EventQueue {
    fn extend<I: IntoIterator<Item = Event>>(&mut self, events: I) {
        self.events.extend(events);
    }
}

/// A source of events. It receives more when the client has read those in its queue.
pub(crate) trait Source: Send + 'static {
    fn queue(&mut self) -> &mut EventQueue;

    /// Receives the next message, and queues its events, if it has any. Ends the queue when no further
    /// message will come.
    fn fill(&mut self) -> impl Future<Output = ()> + Send;

    /// Called when an event has left the queue.
    fn sent(&mut self) {}
}

/// The next event of `source`; `None`: the stream is over.
pub(crate) async fn next(source: &mut impl Source) -> Option<Event> {
    loop {
        if let Some(event) = source.queue().events.pop_front() {
            source.sent();
            return Some(event);
        }
        if source.queue().is_ended {
            return None;
        }
        source.fill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::on_the_wire;
    use super::*;

    /// Has a number of events in each message, and fails after the last message.
    struct Messages {
        queue: EventQueue,
        messages: VecDeque<usize>,
        sent: usize,
    }

    impl Source for Messages {
        fn queue(&mut self) -> &mut EventQueue {
            &mut self.queue
        }

        async fn fill(&mut self) {
            match self.messages.pop_front() {
                Some(events) => {
                    let event = || Event::default().data("x");
                    self.queue
                        .extend(std::iter::repeat_with(event).take(events));
                }
                None => self.queue.fail(&Error::internal()),
            }
        }

        fn sent(&mut self) {
            self.sent += 1;
        }
    }

    #[tokio::test]
    async fn queue_that_ends_is_sent_to_its_last_event_and_not_filled_again() {
        let mut source = Messages {
            queue: EventQueue::default(),
            messages: VecDeque::from([2, 0, 1]),
            sent: 0,
        };
        source.queue.push_back(Event::default().data("first"));
        let mut events = Vec::new();
        while let Some(event) = next(&mut source).await {
            events.push(event);
        }
        assert_eq!((events.len(), source.sent), (5, 5));
        let text = on_the_wire(events).await;
        let begin = "data: first\n\ndata: x\n\ndata: x\n\ndata: x\n\nevent: error\n";
        assert!(text.starts_with(begin), "{text}");
        source.messages.push_back(1);
        assert!(next(&mut source).await.is_none());
        assert_eq!(source.messages.len(), 1);
    }
}
