//! A command whose output is sent as it comes, as server-sent events.
//!
//! * I1. The gateway holds one message: a client that does not read stops the command.
//! * I2. The answer begins when the box has reported that the command was started, or why it cannot be.
//!   Until then an error is an HTTP answer.
//! * I3. The last event is `exit`, which comes from the box, or `error`.

use std::pin::Pin;
use std::time::Duration;

use agentbox_api::exec::{ExecExitEvent, ExecOutputEvent, OutputEncoding};
use agentbox_bus::SessionReceiver;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ExecRequest, Exit, FromBox};
use agentbox_contracts::ids::EnvironmentId;
use axum::response::sse::Event;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::time::{Instant, timeout, timeout_at};

use super::input::Input;
use super::{ANSWER_GRACE, overdue, run};
use crate::box_loss;
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;
use crate::stream::sse::{self, EventQueue, Source};
use crate::text::Decoder;

/// How long the box may take to report that the command was started. Longer than an exec-proxy waits for
/// boxd, whose error has the reason.
const START_DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Events {
    gateway: Gateway,
    environment: EnvironmentId,
    from_box: SessionReceiver<FromBox>,
    /// Sends stdin, and holds its half of the session open.
    feed: Pin<Box<dyn Future<Output = Error> + Send>>,
    deadline: Instant,
    encoder: Encoder,
    ready: EventQueue,
}

impl Events {
    /// Starts a command, which must end `within` this time. Returns when the box has reported its start, or
    /// the first output.
    ///
    /// # Errors
    /// When the command is refused, or the box does not answer.
    pub(super) async fn start(
        gateway: &Gateway,
        location: &EnvironmentLocation,
        request: ExecRequest,
        input: Input,
        encoding: OutputEncoding,
        within: Duration,
    ) -> Result<Self, Error> {
        let deadline = Instant::now() + within;
        let session = run::open(gateway, location, request).await?;
        let (to_box, from_box) = session.split();
        let mut events = Self {
            gateway: gateway.clone(),
            environment: location.id.clone(),
            from_box,
            feed: Box::pin(input.feed(to_box)),
            deadline,
            encoder: Encoder::new(encoding),
            ready: EventQueue::default(),
        };
        let first = timeout(START_DEADLINE, events.receive())
            .await
            .unwrap_or_else(|_| Err(not_started()));
        match first {
            Ok(message) => {
                events.accept(message);
                Ok(events)
            }
            Err(error) => Err(box_loss::with_reason(gateway, &location.id, error).await),
        }
    }

    async fn receive(&mut self) -> Result<FromBox, Error> {
        let message = tokio::select! {
            message = self.from_box.recv() => message?,
            refused = &mut self.feed => return Err(refused),
        };
        message.ok_or_else(run::lost)
    }

    fn accept(&mut self, message: FromBox) {
        match message {
            FromBox::CommandStarted => {}
            FromBox::Stdout(bytes) => self.ready.extend(self.encoder.output(false, &bytes)),
            FromBox::Stderr(bytes) => self.ready.extend(self.encoder.output(true, &bytes)),
            FromBox::Exit(exit) => {
                self.ready.extend(self.encoder.finish());
                self.ready.push_back(exited(&exit));
                self.ready.end();
            }
            _ => self.ready.fail(&Error::internal()),
        }
    }
}

impl Source for Events {
    fn queue(&mut self) -> &mut EventQueue {
        &mut self.ready
    }

    async fn fill(&mut self) {
        match timeout_at(self.deadline, self.receive()).await {
            Ok(Ok(message)) => {
                // The client may have read slowly, and delayed the end.
                self.deadline = self.deadline.max(Instant::now() + ANSWER_GRACE);
                self.accept(message);
            }
            Ok(Err(error)) => {
                let error = box_loss::with_reason(&self.gateway, &self.environment, error).await;
                self.ready.fail(&error);
            }
            Err(_) => self.ready.fail(&overdue()),
        }
    }
}

fn not_started() -> Error {
    Error::new(
        ErrorCode::Timeout,
        "the environment did not report in time that the command was started; the command is killed",
    )
}

fn exited(exit: &Exit) -> Event {
    let event = ExecExitEvent {
        exit_code: exit.exit_code,
        duration_ms: exit.duration_ms,
        timed_out: exit.timed_out,
        oom_killed: exit.oom_killed,
    };
    sse::named("exit", &event)
}

/// Makes events of output.
struct Encoder {
    /// `None`: base64.
    decoders: Option<[Decoder; 2]>,
}

const fn name(stderr: bool) -> &'static str {
    match stderr {
        true => "stderr",
        false => "stdout",
    }
}

fn text_event(stderr: bool, text: String) -> Option<Event> {
    if text.is_empty() {
        return None;
    }
    let event = ExecOutputEvent {
        data: Some(text),
        base64: None,
    };
    Some(sse::named(name(stderr), &event))
}

impl Encoder {
    fn new(encoding: OutputEncoding) -> Self {
        Self {
            decoders: (encoding == OutputEncoding::Utf8).then(Default::default),
        }
    }

    fn output(&mut self, stderr: bool, bytes: &[u8]) -> Option<Event> {
        match &mut self.decoders {
            Some([stdout, _]) if !stderr => text_event(false, stdout.push(bytes)),
            Some([_, decoder]) => text_event(true, decoder.push(bytes)),
            None => {
                let event = ExecOutputEvent {
                    data: None,
                    base64: Some(STANDARD.encode(bytes)),
                };
                (!bytes.is_empty()).then(|| sse::named(name(stderr), &event))
            }
        }
    }

    /// The incomplete characters that were held back.
    fn finish(&mut self) -> Vec<Event> {
        let Some([stdout, stderr]) = &mut self.decoders else {
            return Vec::new();
        };
        let stdout = text_event(false, stdout.finish());
        let stderr = text_event(true, stderr.finish());
        stdout.into_iter().chain(stderr).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::sse::testing::on_the_wire;

    #[tokio::test]
    async fn output_is_whole_characters_or_base64() {
        let mut encoder = Encoder::new(OutputEncoding::Utf8);
        let mut events = Vec::new();
        events.extend(encoder.output(false, b"a\xe2\x82"));
        events.extend(encoder.output(true, b"e\xe2"));
        events.extend(encoder.output(false, b"\xac"));
        events.extend(encoder.output(false, b""));
        events.extend(encoder.finish());
        assert_eq!(
            on_the_wire(events).await,
            "event: stdout\ndata: {\"data\":\"a\"}\n\nevent: stderr\ndata: {\"data\":\"e\"}\n\n\
             event: stdout\ndata: {\"data\":\"€\"}\n\n\
             event: stderr\ndata: {\"data\":\"\u{fffd}\"}\n\n"
        );
        let mut encoder = Encoder::new(OutputEncoding::Base64);
        let mut events: Vec<Event> = encoder.output(false, b"\xff\0").into_iter().collect();
        events.extend(encoder.finish());
        events.push(exited(&Exit {
            exit_code: 124,
            timed_out: true,
            duration_ms: 1000,
            ..Exit::default()
        }));
        assert_eq!(
            on_the_wire(events).await,
            "event: stdout\ndata: {\"base64\":\"/wA=\"}\n\n\
             event: exit\ndata: {\"exit_code\":124,\"duration_ms\":1000,\"timed_out\":true}\n\n"
        );
    }
}
