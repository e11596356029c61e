use super::*;
use crate::executions::{ExecutionRequest, GetExecution, execution_request};
use crate::files::{Delete, FileRequest, file_request};
use crate::ports::ConnectPort;

/// The environment, the owner, the address and the status of [`open`].
const PREFIX: &str = "0a14656e762d303132333435363738396162636465661215757365722d30313233343536373839\
                      6162636465661a0e31302e302e302e323a3130373737220772756e6e696e67";

fn open(kind: OpenKind) -> Open {
    Open {
        environment: "env-0123456789abcdef".parse().unwrap(),
        owner: Some("user-0123456789abcdef".parse().unwrap()),
        address: Some("10.0.0.2:10777".parse().unwrap()),
        status: Status::Running,
        kind,
    }
}

fn id() -> ExecId {
    "exec-0123456789abcdef".parse().unwrap()
}

fn exec() -> ExecRequest {
    ExecRequest {
        id: id(),
        command: vec!["cat".into()],
        working_dir: Some("/tmp".into()),
        env: [("A".into(), "b".into())].into(),
        user: Some("ada:users".into()),
        merge_stderr: true,
        stream: true,
        stdin: Some(vec![0, 255]),
        stdin_follows: true,
        timeout_ms: 1000,
        max_output_bytes: 1024,
    }
}

fn attach() -> AttachRequest {
    AttachRequest {
        id: id(),
        command: vec!["sh".into()],
        working_dir: Some("/tmp".into()),
        env: [("A".into(), "b".into())].into(),
        tty: Some(TerminalSize { cols: 80, rows: 24 }),
    }
}

fn logs() -> LogsRequest {
    LogsRequest {
        from_sequence: Some(7),
        tail: Some(10),
        since: Some(DateTime::from_timestamp_nanos(1_700_000_000_123_456_789)),
        follow: true,
    }
}

fn files() -> FileRequest {
    FileRequest {
        path: Bytes::from_static(b"/tmp"),
        user: "ada".into(),
        operation: Some(file_request::Operation::Delete(Delete { recursive: true })),
    }
}

fn execution() -> ExecutionRequest {
    let get = GetExecution {
        id: id().to_string(),
        wait_ms: 5,
    };
    ExecutionRequest {
        operation: Some(execution_request::Operation::Get(get)),
    }
}

/// A peer of the version before must be able to read this.
#[test]
fn every_kind_round_trips_and_its_encoding_is_unchanged() {
    for (kind, expected) in [
        (
            OpenKind::Exec(exec()),
            "52450a15657865632d3031323334353637383961626364656612036361741a042f746d7022060a0141120162\
             2a096164613a757365727330013801420200ff480150e807588008",
        ),
        (
            OpenKind::Attach(attach()),
            "5a2f0a15657865632d30313233343536373839616263646566120273681a042f746d7022060a01411201622a\
             0408501018",
        ),
        (
            OpenKind::Logs(logs()),
            "62100807100a18959a97ece39fe7cb172001",
        ),
        (
            OpenKind::Files(files()),
            "6a100a042f746d7012036164619201020801",
        ),
        (
            OpenKind::Execution(execution()),
            "721b1a190a15657865632d303132333435363738396162636465661005",
        ),
        (OpenKind::Port(ConnectPort { port: 8080 }), "7a0308903f"),
        (OpenKind::Ports, "820100"),
    ] {
        let open = open(kind);
        let body = open.clone().encode();
        assert_eq!(
            hex::encode(&body),
            format!("{PREFIX}{expected}"),
            "{open:?}"
        );
        assert_eq!(Open::decode(body).unwrap(), open);
    }
}

#[test]
fn absent_fields_stay_absent_and_empty_stdin_stays_empty() {
    for stdin in [None, Some(Vec::new())] {
        let open = Open {
            owner: None,
            address: None,
            status: Status::Terminated,
            ..open(OpenKind::Exec(ExecRequest {
                working_dir: None,
                env: std::collections::BTreeMap::new(),
                user: None,
                stdin,
                ..exec()
            }))
        };
        assert_eq!(Open::decode(open.clone().encode()).unwrap(), open);
    }
}

#[test]
fn instant_outside_the_range_becomes_the_nearest_one() {
    for (instant, expected) in [
        (DateTime::<Utc>::MIN_UTC, i64::MIN),
        (DateTime::<Utc>::MAX_UTC, i64::MAX),
    ] {
        assert_eq!(unix_nanos(instant), expected);
    }
}

#[test]
fn malformed_requests_are_errors() {
    let valid = || wire::Open {
        environment: "env-0123456789abcdef".into(),
        status: "running".into(),
        kind: Some(wire::open::Kind::Ports(())),
        ..Default::default()
    };
    let decode = |open: wire::Open| Open::decode(open.encode_to_vec().into());
    decode(valid()).unwrap();
    let with = |change: &dyn Fn(&mut wire::Open)| {
        let mut open = valid();
        change(&mut open);
        decode(open).unwrap_err()
    };
    assert!(matches!(
        with(&|open| open.environment = "env-1".into()),
        MalformedMessage::Id(_)
    ));
    assert!(matches!(
        with(&|open| open.owner = Some("env-0123456789abcdef".into())),
        MalformedMessage::Id(_)
    ));
    assert!(matches!(
        with(&|open| open.address = Some("localhost:1".into())),
        MalformedMessage::Field("address")
    ));
    assert!(matches!(
        with(&|open| open.status = "asleep".into()),
        MalformedMessage::Field("status")
    ));
    // A kind of a newer version.
    assert!(matches!(
        with(&|open| open.kind = None),
        MalformedMessage::Unknown
    ));
    let foreign = wire::Exec {
        id: "run-1".into(),
        ..Default::default()
    };
    assert!(matches!(
        with(&|open| open.kind = Some(wire::open::Kind::Exec(foreign.clone()))),
        MalformedMessage::Id(_)
    ));
    for bytes in [&b""[..], b"\x0a\x7f", b"{\"environment\": 1}"] {
        Open::decode(Bytes::copy_from_slice(bytes)).unwrap_err();
    }
}
