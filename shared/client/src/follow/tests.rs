use bytes::Bytes;

use super::*;

/// A stream whose body arrives in these chunks.
fn stream(chunks: &[&str]) -> Sse {
    let chunks: Vec<_> = chunks
        .iter()
        .map(|chunk| Ok::<_, std::io::Error>(Bytes::from((*chunk).to_owned())))
        .collect();
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    Sse::new(http::Response::new(body).into())
}

const LINE: &str = r#"{"timestamp":"2026-01-02T03:04:05Z","stream":"stdout","message":"é"}"#;

#[tokio::test]
async fn log_lines_and_named_events_are_returned_in_order() {
    let line = format!("id: 7\ndata: {LINE}\n\n");
    // The chunks split an event.
    let (head, tail) = line.split_at(line.find("stdout").unwrap());
    let mut follow = LogStream(stream(&[
        ": keepalive\n\n",
        head,
        tail,
        "event: gap\ndata: 3\n\nevent: end\ndata: {}\n\n",
    ]));
    let Some(LogItem::Line { id, line }) = follow.next().await.unwrap() else {
        panic!("the first item is not a line");
    };
    assert_eq!((id.as_deref(), line.message.as_str()), (Some("7"), "é"));
    assert!(!line.partial);
    for (name, data) in [("gap", "3"), ("end", "{}")] {
        let expected = LogItem::Event {
            name: name.into(),
            data: data.into(),
        };
        assert_eq!(follow.next().await.unwrap(), Some(expected));
    }
    assert_eq!(follow.next().await.unwrap(), None);
}

#[tokio::test]
async fn piece_of_a_line_is_marked() {
    let line = LINE.replace('}', r#","partial":true}"#);
    let mut follow = LogStream(stream(&[&format!("data: {line}\n\n")]));
    let Some(LogItem::Line { line, .. }) = follow.next().await.unwrap() else {
        panic!("the first item is not a line");
    };
    assert!(line.partial);
}

#[tokio::test]
async fn error_event_is_returned_as_api_error() {
    let body = r#"{"error":"not_found","message":"gone","code":404}"#;
    let event = format!("event: error\ndata: {body}\n\n");
    let error = EventStream(stream(&[&event])).next().await.unwrap_err();
    assert_eq!(error.status(), Some(404));
    assert_eq!(error.to_string(), "404 not_found: gone");
}

#[tokio::test]
async fn malformed_line_is_an_error_and_other_events_are_skipped() {
    let mut follow = LogStream(stream(&["data: {\n\n"]));
    assert!(matches!(follow.next().await, Err(Error::UnexpectedBody(_))));
    let mut events = EventStream(stream(&["event: heartbeat\ndata: {}\n\n"]));
    assert!(events.next().await.unwrap().is_none());
}

#[tokio::test]
async fn output_and_gaps_are_returned_until_the_end_of_the_execution() {
    let end = r#"{"id":"exec-1","command":["true"],"user":"root","working_dir":"/","status":"exited",
        "exit_code":0,"created_at":"2026-01-02T03:04:05Z","stdout_bytes":9,"stderr_bytes":0,
        "tty":null,"labels":{}}"#;
    let mut output = ExecutionOutput(stream(&[
        "id: 2-0\ndata: {\"stream\":\"stdout\",\"data\":\"é\",\"offset\":0}\n\n",
        "id: 9-0\nevent: gap\ndata: {\"stream\":\"stdout\",\"bytes\":7}\n\n",
        "event: later\ndata: {}\n\n",
        &format!("event: end\ndata: {}\n\n", end.replace('\n', "")),
    ]));
    let Some(OutputItem::Output(piece)) = output.next().await.unwrap() else {
        panic!("the first item is no output");
    };
    assert_eq!((piece.data.as_deref(), piece.offset), (Some("é"), 0));
    let Some(OutputItem::Gap(gap)) = output.next().await.unwrap() else {
        panic!("the second item is no gap");
    };
    assert_eq!(gap.bytes, 7);
    let Some(OutputItem::End(execution)) = output.next().await.unwrap() else {
        panic!("the third item is no end");
    };
    assert_eq!(execution.stdout_bytes, 9);
    assert_eq!(output.next().await.unwrap(), None);
}

#[tokio::test]
async fn event_over_size_limit_is_an_error() {
    let mebibyte = "x".repeat(1 << 20);
    let mut follow = LogStream(stream(&[mebibyte.as_str(); 5]));
    assert!(matches!(
        follow.next().await,
        Err(Error::EventTooLong { .. })
    ));
}
