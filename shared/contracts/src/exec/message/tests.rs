use super::*;
use crate::executions::{OutputGap, execution_output};
use crate::files::file_output;
use crate::ports::{ListeningPort, port_output};

fn entry() -> LogEntry {
    LogEntry {
        sequence: 7,
        timestamp: DateTime::from_timestamp_nanos(1_700_000_000_123_456_789),
        stream: OutputStream::Stderr,
        line: vec![0, 255],
        partial: true,
    }
}

fn to_box() -> Vec<ToBox> {
    vec![
        ToBox::Data(Bytes::from_static(b"in")),
        ToBox::Data(Bytes::new()),
        ToBox::End,
        ToBox::Resize(TerminalSize { cols: 80, rows: 24 }),
        ToBox::Signal("SIGINT".into()),
        ToBox::TakeInput,
    ]
}

fn from_box() -> Vec<FromBox> {
    let exit = Exit {
        exit_code: 137,
        oom_killed: true,
        ..Exit::default()
    };
    vec![
        FromBox::CommandStarted,
        FromBox::Stdout(Bytes::from_static(b"\xff\x00")),
        FromBox::Stderr(Bytes::from_static(b"e")),
        FromBox::Exit(exit.clone()),
        FromBox::Result(ExecResult {
            stdout: vec![0, 255],
            stderr: b"e".to_vec(),
            stdout_truncated: true,
            stderr_truncated: false,
            exit,
        }),
        FromBox::Result(ExecResult::default()),
        FromBox::Logs(vec![entry()]),
        FromBox::Logs(Vec::new()),
        FromBox::LogsLost(3),
        FromBox::LogsLost(0),
        FromBox::LogsEnd { ended: true },
        FromBox::LogsEnd { ended: false },
        FromBox::File(FileOutput {
            output: Some(file_output::Output::Data(Bytes::from_static(b"\xff\x00"))),
        }),
        FromBox::Execution(ExecutionOutput {
            output: Some(execution_output::Output::Gap(OutputGap {
                stderr: true,
                offset: 3,
                bytes: 4,
            })),
        }),
        FromBox::Port(PortOutput {
            output: Some(port_output::Output::End(())),
        }),
        FromBox::Ports(PortList {
            ports: vec![ListeningPort {
                port: 80,
                address: "::1".into(),
                pid: None,
                process: String::new(),
            }],
        }),
    ]
}

#[test]
fn every_message_round_trips_and_is_not_empty() {
    for message in to_box() {
        let body = message.clone().encode();
        assert!(!body.is_empty(), "{message:?}");
        assert_eq!(ToBox::decode(body).unwrap(), message);
    }
    for message in from_box() {
        let body = message.clone().encode();
        assert!(!body.is_empty(), "{message:?}");
        assert_eq!(FromBox::decode(body).unwrap(), message);
    }
}

#[test]
fn unknown_empty_and_malformed_messages_are_errors() {
    // Field 99, a varint: a message of a newer version.
    let unknown = Bytes::from_static(&[0x98, 0x06, 0x01]);
    for body in [unknown, Bytes::new()] {
        assert!(matches!(
            FromBox::decode(body.clone()),
            Err(MalformedMessage::Unknown)
        ));
        assert!(matches!(
            ToBox::decode(body),
            Err(MalformedMessage::Unknown)
        ));
    }
    assert!(matches!(
        FromBox::decode(Bytes::from_static(&[0x12, 0x7f])),
        Err(MalformedMessage::Protobuf(_))
    ));
    let reserved = Bytes::from_static(b"\x0a\x15exec-0123456789abcdef");
    assert!(matches!(
        FromBox::decode(reserved),
        Err(MalformedMessage::Unknown)
    ));
}

#[test]
fn output_is_decoded_without_a_copy() {
    let body = FromBox::Stdout(Bytes::from(vec![7; 1000])).encode();
    let range = body.as_ptr_range();
    let FromBox::Stdout(bytes) = FromBox::decode(body).unwrap() else {
        panic!("another message");
    };
    assert!(range.contains(&bytes.as_ptr()));
}

/// A peer of the version before must be able to read this.
#[test]
fn encoding_is_unchanged() {
    let hex_of = |name: String, body: Bytes| format!("{name}\n    {}\n", hex::encode(body));
    let mut text = String::new();
    for message in to_box() {
        text += &hex_of(format!("{message:?}"), message.encode());
    }
    for message in from_box() {
        text += &hex_of(format!("{message:?}"), message.encode());
    }
    insta::assert_snapshot!(text);
}
