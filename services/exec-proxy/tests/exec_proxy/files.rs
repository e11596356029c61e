//! File sessions, with boxes whose boxd is the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentbox_box_protocol::ERROR_CODE_METADATA;
use agentbox_contracts::environment::Status as EnvironmentStatus;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::{FromBox, MAX_CHUNK, Open, OpenKind, ToBox};
use agentbox_contracts::files::{
    Entries, FileFailure, FileInput, FileMetadata, FileOutput, FileRequest, Read, Stat, Stored,
    Write, file_input, file_output, file_request,
};
use bytes::Bytes;
use file_output::Output;
use file_request::Operation;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};

use crate::support::fake_box::{Behaviour, FakeBox, Outputs};
use crate::support::gateway::receive;
use crate::support::relay::Relay;
use crate::support::{System, eventually, pattern};

const DEADLINE: Duration = Duration::from_secs(10);

/// Stores and sends content. The path of a request selects the answer.
#[derive(Clone, Default)]
struct Files {
    /// The requests that arrived.
    calls: Arc<AtomicUsize>,
    /// The bytes of content that were sent.
    sent: Arc<AtomicUsize>,
    /// Whether the last call was cancelled.
    cancelled: Arc<AtomicBool>,
}

fn output(output: Output) -> FileOutput {
    FileOutput {
        output: Some(output),
    }
}

fn failed(code: &str) -> Output {
    Output::Failed(FileFailure {
        code: code.into(),
        message: "the message".into(),
    })
}

fn refused(code: Code, word: Option<&'static str>) -> Status {
    let mut status = Status::new(code, "the message");
    if let Some(word) = word {
        let word = MetadataValue::from_static(word);
        status.metadata_mut().insert(ERROR_CODE_METADATA, word);
    }
    status
}

impl Files {
    async fn store(&self, mut inputs: Streaming<FileInput>, outputs: Outputs<FileOutput>) {
        let _ = outputs.send(Ok(output(Output::Ready(())))).await;
        let (mut content, mut longest) = (Vec::new(), 0);
        while let Ok(Some(FileInput { input: Some(input) })) = inputs.message().await {
            match input {
                file_input::Input::Data(bytes) => {
                    longest = longest.max(bytes.len());
                    content.extend_from_slice(&bytes);
                }
                file_input::Input::End(()) => {
                    let is_exact = content == pattern(content.len());
                    let stored = Stored {
                        created: is_exact && longest <= MAX_CHUNK,
                        etag: format!("\"{}\"", content.len()),
                    };
                    for answer in [Output::Stored(stored), Output::Done(())] {
                        let _ = outputs.send(Ok(output(answer))).await;
                    }
                    return;
                }
                file_input::Input::Request(_) => return,
            }
        }
        // The content has no end.
        self.cancelled.store(true, Ordering::SeqCst);
    }

    async fn send_endless_content(&self, outputs: Outputs<FileOutput>) {
        let chunk = Bytes::from(vec![7; MAX_CHUNK]);
        while outputs
            .send(Ok(output(Output::Data(chunk.clone()))))
            .await
            .is_ok()
        {
            self.sent.fetch_add(MAX_CHUNK, Ordering::SeqCst);
        }
        self.cancelled.store(true, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Behaviour for Files {
    async fn files(&self, mut inputs: Streaming<FileInput>, outputs: Outputs<FileOutput>) {
        let request = match inputs.message().await {
            Ok(Some(FileInput {
                input: Some(file_input::Input::Request(request)),
            })) => request,
            other => panic!("not a request: {other:?}"),
        };
        self.calls.fetch_add(1, Ordering::SeqCst);
        let hostile_entries = Entries {
            entries: vec![FileMetadata::default(); 5000],
            ..Entries::default()
        };
        let answer = match &request.path[..] {
            b"/store" => return self.store(inputs, outputs).await,
            b"/endless" => return self.send_endless_content(outputs).await,
            b"/silent" => {
                outputs.closed().await;
                self.cancelled.store(true, Ordering::SeqCst);
                return;
            }
            b"/missing" => Ok(failed("file_not_found")),
            b"/unknown" => Ok(failed("no_such_code")),
            b"/hostile/chunk" => Ok(Output::Data(Bytes::from(vec![0; MAX_CHUNK + 1]))),
            b"/hostile/entries" => Ok(Output::Entries(hostile_entries)),
            b"/hostile/message" => Ok(Output::Data(Bytes::from(vec![0; 1024 * 1024]))),
            b"/busy" => Err(refused(Code::ResourceExhausted, None)),
            b"/user" => Err(refused(Code::InvalidArgument, Some("user_not_found"))),
            _ => Ok(Output::Metadata(FileMetadata {
                path: request.path.clone(),
                ..FileMetadata::default()
            })),
        };
        let is_metadata = matches!(answer, Ok(Output::Metadata(_)));
        let _ = outputs.send(answer.map(output)).await;
        if is_metadata {
            let _ = outputs.send(Ok(output(Output::Done(())))).await;
        }
    }
}

fn request(path: &'static str, operation: Operation) -> OpenKind {
    OpenKind::Files(FileRequest {
        path: Bytes::from_static(path.as_bytes()),
        user: String::new(),
        operation: Some(operation),
    })
}

fn stat(path: &'static str) -> OpenKind {
    request(path, Operation::Stat(Stat::default()))
}

fn read(path: &'static str) -> OpenKind {
    request(path, Operation::Read(Read::default()))
}

fn write() -> OpenKind {
    request("/store", Operation::Write(Write::default()))
}

fn sent(of: Output) -> FromBox {
    FromBox::File(output(of))
}

#[tokio::test(flavor = "multi_thread")]
async fn content_and_answers_are_relayed_in_order() {
    let system = System::start().await;
    let inside = FakeBox::start(Files::default()).await;
    let mut session = system.gateway.open_as(&inside.open(write())).await.unwrap();
    assert_eq!(
        receive(&mut session, DEADLINE).await,
        Some(sent(Output::Ready(())))
    );
    let content = pattern(5 * 1024 * 1024);
    // Longer than boxd accepts: it is split.
    for chunk in content.chunks(3 * MAX_CHUNK) {
        let data = ToBox::Data(Bytes::copy_from_slice(chunk));
        session.send(data).await.unwrap();
    }
    session.send(ToBox::End).await.unwrap();
    let stored = Stored {
        created: true,
        etag: format!("\"{}\"", content.len()),
    };
    assert_eq!(
        receive(&mut session, DEADLINE).await,
        Some(sent(Output::Stored(stored)))
    );
    assert_eq!(
        receive(&mut session, DEADLINE).await,
        Some(sent(Output::Done(())))
    );
    assert_eq!(receive(&mut session, DEADLINE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_reader_stops_the_box_without_memory_growth_and_its_end_cancels_the_call() {
    let system = System::start().await;
    let files = Files::default();
    let inside = FakeBox::start(files.clone()).await;
    let open = inside.open(read("/endless"));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    assert!(receive(&mut session, DEADLINE).await.is_some());
    let before = system.proxy.peak_memory();
    // Blocked: no progress for a second.
    let mut last = (0, Instant::now());
    eventually("the box is blocked", 2 * DEADLINE, async || {
        let now = files.sent.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(1)
    })
    .await;
    // The kernel's counter is not exact, and may become a little less.
    let grown = system.proxy.peak_memory().saturating_sub(before);
    assert!(last.0 < 4 * 1024 * 1024, "{} bytes were buffered", last.0);
    assert!(grown < 8 * 1024 * 1024, "{grown}");
    // It continues where it was stopped.
    for _ in 0..100 {
        assert!(receive(&mut session, DEADLINE).await.is_some());
    }
    assert!(!files.cancelled.load(Ordering::SeqCst));
    drop(session);
    eventually("the call is cancelled", DEADLINE, async || {
        files.cancelled.load(Ordering::SeqCst)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_session_aborts_an_upload_and_a_silent_operation() {
    let system = System::start().await;
    for kind in [write(), stat("/silent")] {
        let files = Files::default();
        let inside = FakeBox::start(files.clone()).await;
        let is_upload = kind == write();
        let mut session = system.gateway.open_as(&inside.open(kind)).await.unwrap();
        if is_upload {
            receive(&mut session, DEADLINE).await;
        }
        session
            .send(ToBox::Data(Bytes::from_static(b"x")))
            .await
            .unwrap();
        drop(session);
        eventually("the call is cancelled", DEADLINE, async || {
            files.cancelled.load(Ordering::SeqCst)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_box_reach_the_gateway_with_their_codes() {
    let system = System::start().await;
    let inside = FakeBox::start(Files::default()).await;
    let mut session = system
        .gateway
        .open_as(&inside.open(stat("/missing")))
        .await
        .unwrap();
    assert_eq!(
        receive(&mut session, DEADLINE).await,
        Some(sent(failed("file_not_found")))
    );
    assert_eq!(receive(&mut session, DEADLINE).await, None);

    let mut session = system
        .gateway
        .open_as(&inside.open(stat("/unknown")))
        .await
        .unwrap();
    let Some(FromBox::File(FileOutput {
        output: Some(Output::Failed(failure)),
    })) = receive(&mut session, DEADLINE).await
    else {
        panic!("not a failure");
    };
    assert_eq!(failure.code, "internal");
    assert!(!failure.message.contains("the message"), "{failure:?}");

    for (path, code, message) in [
        ("/busy", ErrorCode::RateLimited, "the message"),
        ("/user", ErrorCode::UserNotFound, "the message"),
        ("/hostile/chunk", ErrorCode::BoxLost, "invalid message"),
        ("/hostile/entries", ErrorCode::BoxLost, "invalid message"),
        ("/hostile/message", ErrorCode::BoxLost, "invalid message"),
    ] {
        let open = inside.open(stat(path));
        let mut session = system.gateway.open_as(&open).await.unwrap();
        let error = session.recv().await.unwrap_err();
        assert_eq!(error.code, code, "{path}: {error}");
        assert!(error.message.contains(message), "{path}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_box_ends_a_transfer_and_a_dead_kept_connection_does_not_fail_the_next() {
    let system = System::start().await;
    let inside = FakeBox::start(Files::default()).await;
    let relay = Relay::to(inside.address).await;
    for _ in 0..2 {
        let open = inside.open_at(relay.address, stat("/file"));
        let mut session = system.gateway.open_as(&open).await.unwrap();
        assert!(matches!(
            receive(&mut session, DEADLINE).await,
            Some(FromBox::File(FileOutput {
                output: Some(Output::Metadata(_))
            }))
        ));
        assert_eq!(
            receive(&mut session, DEADLINE).await,
            Some(sent(Output::Done(())))
        );
        relay.disconnect();
    }
    let open = inside.open_at(relay.address, read("/endless"));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    receive(&mut session, DEADLINE).await;
    relay.disconnect();
    let error = loop {
        match session.recv().await {
            Ok(message) => assert!(message.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_transfers_with_an_error_and_cancels_their_calls() {
    let mut system = System::start().await;
    let files = Files::default();
    let inside = FakeBox::start(files.clone()).await;
    let open = inside.open(stat("/silent"));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    session.send(ToBox::End).await.unwrap();
    eventually("the box is asked", DEADLINE, async || {
        files.calls.load(Ordering::SeqCst) == 1
    })
    .await;
    system.proxy.terminate();
    let error = session.recv().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
    assert!(error.message.contains("shutting down"), "{error}");
    eventually("the call is cancelled", DEADLINE, async || {
        files.cancelled.load(Ordering::SeqCst)
    })
    .await;
    let proxy = &mut system.proxy;
    eventually("the process ends", DEADLINE, async || proxy.has_ended()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_that_does_not_run_is_refused() {
    let system = System::start().await;
    let inside = FakeBox::start(Files::default()).await;
    for (status, address) in [
        (EnvironmentStatus::Pending, None),
        (EnvironmentStatus::Terminated, Some(inside.address)),
    ] {
        let open = Open {
            status,
            address,
            ..inside.open(stat("/file"))
        };
        let mut session = system.gateway.open_as(&open).await.unwrap();
        let error = session.recv().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotRunning, "{error}");
    }
}
