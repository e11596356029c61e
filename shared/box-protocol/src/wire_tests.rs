//! The bytes of the protocol, as `protoc` encodes it, and of the files that boxd writes. A peer of
//! the previous version must be able to read them.

use std::fmt::Debug;

use agentbox_contracts::logs::OutputStream;
use chrono::DateTime;
use prost::Message;

use crate::output::record;
use crate::proto::{self, control_request, logs_reply, run_input, run_output};
use crate::termination::Termination;

fn assert_encodes(message: impl Message + Debug + Default + PartialEq, expected: &str) {
    assert_eq!(
        hex::encode(message.encode_to_vec()),
        expected,
        "{message:?}"
    );
    let bytes = hex::decode(expected).unwrap();
    assert_eq!(Message::decode(bytes.as_slice()), Ok(message));
}

#[test]
fn run_inputs_are_encoded_as_before() {
    let start = proto::StartCommand {
        run_id: "exec-1".into(),
        command: vec!["sh".into(), "-c".into()],
        working_dir: "/work".into(),
        env: [("A".into(), "1".into())].into(),
        tty: Some(proto::Resize { cols: 80, rows: 24 }),
        stdin: true,
        timeout_ms: 1000,
        orphan_grace_ms: 3000,
        acks: true,
        user: "ada".into(),
        merge_stderr: true,
    };
    let resume = proto::ResumeCommand {
        run_id: "exec-1".into(),
        from_sequence: 300,
    };
    let resize = proto::Resize { cols: 1, rows: 2 };
    for (input, expected) in [
        (
            run_input::Input::Start(start),
            "0a360a06657865632d311202736812022d631a052f776f726b22060a01411201312a0408501018300138\
             e80740b817480152036164615801",
        ),
        (
            run_input::Input::Resume(resume),
            "120b0a06657865632d3110ac02",
        ),
        (run_input::Input::Stdin(b"in".as_slice().into()), "1a02696e"),
        (run_input::Input::StdinEof(proto::Empty {}), "2200"),
        (run_input::Input::Resize(resize), "2a0408011002"),
        (
            run_input::Input::Signal("SIGINT".into()),
            "3206534947494e54",
        ),
        (run_input::Input::Kill(proto::Empty {}), "3a00"),
        (run_input::Input::Ack(300), "40ac02"),
    ] {
        assert_encodes(proto::RunInput { input: Some(input) }, expected);
    }
    for (control, expected) in [
        (
            control_request::Control::Resize(resize),
            "0a06657865632d31120408011002",
        ),
        (
            control_request::Control::Signal("INT".into()),
            "0a06657865632d311a03494e54",
        ),
        (
            control_request::Control::Kill(proto::Empty {}),
            "0a06657865632d312200",
        ),
        (control_request::Control::Ack(300), "0a06657865632d3128ac02"),
    ] {
        let request = proto::ControlRequest {
            run_id: "exec-1".into(),
            control: Some(control),
        };
        assert_encodes(request, expected);
    }
}

#[test]
fn run_outputs_are_encoded_as_before() {
    let span = proto::Span {
        trace_id: b"0123456789abcdef".to_vec(),
        span_id: b"01234567".to_vec(),
        parent_span_id: b"76543210".to_vec(),
        step: proto::Step::Command.into(),
        start_unix_nanos: 1,
        end_unix_nanos: 2,
    };
    let exited = proto::Exited {
        exit_code: 137,
        timed_out: true,
        oom_killed: true,
        duration_ms: 5,
        start_error: "not found".into(),
        spans: vec![span],
    };
    let started = proto::Started {
        pid: 9,
        duration_limit_ms: 8,
    };
    for (output, expected) in [
        (run_output::Output::Started(started), "0807120408091008"),
        (
            run_output::Output::Stdout(b"o".as_slice().into()),
            "08071a016f",
        ),
        (
            run_output::Output::Stderr(b"e".as_slice().into()),
            "0807220165",
        ),
        (
            run_output::Output::Exited(exited),
            "08072a420889011001180120052a096e6f7420666f756e64322c0a10303132333435363738396162636465\
             66120830313233343536371a083736353433323130200328013002",
        ),
        (
            run_output::Output::Gap(proto::Gap { lost_bytes: 4 }),
            "080732020804",
        ),
    ] {
        let output = proto::RunOutput {
            sequence: 7,
            output: Some(output),
        };
        assert_encodes(output, expected);
    }
}

#[test]
fn other_calls_are_encoded_as_before() {
    let request = proto::LogsRequest {
        from_sequence: 2,
        tail: Some(0),
        since_unix_nanos: Some(-1),
        follow: true,
    };
    assert_encodes(request, "0802100018ffffffffffffffffff012001");
    let entry = proto::LogEntry {
        sequence: 1,
        unix_nanos: 1_700_000_000_123_456_789,
        stream: proto::Stream::Stderr.into(),
        line: vec![0, 255],
        partial: true,
    };
    let batch = proto::LogBatch {
        entries: vec![entry],
    };
    for (reply, expected) in [
        (
            logs_reply::Reply::Batch(batch),
            "0a160a14080110959a97ece39fe7cb171802220200ff2801",
        ),
        (logs_reply::Reply::LostEntries(3), "1003"),
    ] {
        assert_encodes(proto::LogsReply { reply: Some(reply) }, expected);
    }
    let configure = proto::ConfigureRequest {
        command: vec!["sh".into()],
        env: [("A".into(), "1".into())].into(),
        owner: "u".into(),
        run_as_user: Some(7),
    };
    assert_encodes(configure, "0a02736812060a01411201312201752807");
    let usage = proto::UsageReply {
        cpu_usage_nanos: 1,
        cpu_milli: 2,
        memory_bytes: 3,
        memory_limit_bytes: 4,
        pids: 5,
        oom_kills: 6,
        egress_bytes: 7,
    };
    assert_encodes(usage, "0801100218032004280530063807");
    let status = proto::StatusReply {
        main: "exited".into(),
        exit_code: 1,
        runs: 2,
        idle_ms: 3,
    };
    assert_encodes(status, "0a06657869746564100118022003");
}

#[test]
fn files_are_written_as_before() {
    let nanos = 1_700_000_000_123_456_789;
    let mut bytes = record::MAGIC.to_vec();
    record::encode(&mut bytes, 7, nanos, OutputStream::Stderr, true, b"x");
    assert_eq!(
        hex::encode(bytes),
        "6162786f7574310a12000000eb5036ab070000000000000015cd853dfe9c97170378"
    );
    let termination = Termination {
        exit_code: 137,
        oom_killed: true,
        started_at: DateTime::from_timestamp_nanos(nanos),
        finished_at: DateTime::from_timestamp_nanos(1_700_000_001_000_000_000),
        message: "m".into(),
        claim: None,
    };
    assert_eq!(
        serde_json::to_string(&termination).unwrap(),
        r#"{"exit_code":137,"oom_killed":true,"started_at":"2023-11-14T22:13:20.123456789Z","finished_at":"2023-11-14T22:13:21Z","message":"m"}"#
    );
    let claimed = Termination {
        claim: Some("0a".into()),
        ..termination
    };
    assert!(
        serde_json::to_string(&claimed)
            .unwrap()
            .ends_with(r#","message":"m","claim":"0a"}"#)
    );
}
