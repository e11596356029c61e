//! Executions of ended boxes.

use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ArchiveRequest, FromBox, Open, OpenKind};
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    DeleteExecution, Execution, ExecutionOutput, ExecutionRequest, ExecutionStart, ExecutionStatus,
    GetExecution, Offsets, OutputGap, ReadOutput,
};
use agentbox_contracts::ids::ExecId;
use chrono::{DateTime, Utc};

use crate::support::{System, TestBox, eventually, proxy};

const WAIT_MS: u64 = 10_000;

/// All answers to an operation; the last one ends the session.
async fn ask(
    system: &System,
    of: &TestBox,
    status: Status,
    operation: Operation,
) -> Result<Vec<Output>, Error> {
    let operation = Some(operation);
    let open = Open {
        environment: of.id.clone(),
        owner: None,
        address: (status == Status::Running).then_some(of.address),
        status,
        kind: OpenKind::Execution(ExecutionRequest { operation }),
    };
    let mut session = system.gateway.open_as(&open).await?;
    let mut outputs = Vec::new();
    loop {
        let message = session.recv().await?;
        let Some(FromBox::Execution(ExecutionOutput {
            output: Some(output),
        })) = message
        else {
            panic!("not an answer about executions: {message:?}");
        };
        let is_last = match &output {
            Output::Execution(_) => true,
            Output::Executions(list) => list.is_last,
            _ => false,
        };
        outputs.push(output);
        if is_last {
            return Ok(outputs);
        }
    }
}

async fn one(system: &System, of: &TestBox, status: Status, operation: Operation) -> Execution {
    match ask(system, of, status, operation).await.unwrap().pop() {
        Some(Output::Execution(execution)) => execution,
        other => panic!("not an execution: {other:?}"),
    }
}

async fn start(system: &System, of: &TestBox, script: &str) -> Execution {
    let start = ExecutionStart {
        id: ExecId::random().to_string(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        ..ExecutionStart::default()
    };
    one(system, of, Status::Running, Operation::Start(start)).await
}

fn get(of: &Execution, wait_ms: u64) -> Operation {
    Operation::Get(GetExecution {
        id: of.id.clone(),
        wait_ms,
    })
}

/// Starts a command and waits for its end.
async fn run(system: &System, of: &TestBox, script: &str) -> Execution {
    let started = start(system, of, script).await;
    let ended = one(system, of, Status::Running, get(&started, WAIT_MS)).await;
    assert_eq!(ended.status(), ExecutionStatus::Exited, "{ended:?}");
    ended
}

/// Starts a command that does not end, and waits for its output.
async fn start_endless(system: &System, of: &TestBox, text: &str) -> Execution {
    let started = start(system, of, &format!("printf {text}; exec sleep 600")).await;
    eventually("its output is kept", Duration::from_secs(10), async || {
        let present = one(system, of, Status::Running, get(&started, 0)).await;
        present.stdout_bytes == text.len() as u64
    })
    .await;
    started
}

async fn list(system: &System, of: &TestBox, status: Status) -> Vec<Execution> {
    let outputs = ask(system, of, status, Operation::List(())).await.unwrap();
    let lists = outputs.into_iter().map(|output| match output {
        Output::Executions(list) => list.executions,
        other => panic!("not a list: {other:?}"),
    });
    lists.flatten().collect()
}

fn read(of: &Execution, from: Option<(u64, u64)>) -> ReadOutput {
    ReadOutput {
        id: of.id.clone(),
        stdout: true,
        stderr: true,
        from: from.map(|(stdout, stderr)| Offsets { stdout, stderr }),
        follow: false,
    }
}

/// What a reader has received of stdout and stderr.
#[derive(Debug, Default, PartialEq, Eq)]
struct Received {
    streams: [Vec<u8>; 2],
    gaps: Vec<OutputGap>,
}

async fn read_output(
    system: &System,
    of: &TestBox,
    status: Status,
    read: ReadOutput,
) -> (Received, Execution) {
    let mut received = Received::default();
    let operation = Operation::Output(read);
    for output in ask(system, of, status, operation).await.unwrap() {
        match output {
            Output::Output(piece) => {
                received.streams[usize::from(piece.stderr)].extend(piece.data);
            }
            Output::Gap(gap) => received.gaps.push(gap),
            Output::Execution(execution) => return (received, execution),
            other => panic!("not output: {other:?}"),
        }
    }
    unreachable!("the last answer is an execution")
}

fn request(of: &TestBox, reason: StatusReason, ended_at: Option<DateTime<Utc>>) -> ArchiveRequest {
    ArchiveRequest {
        environment: of.id.clone(),
        address: Some(of.address),
        before_stop: ended_at.is_none(),
        status_reason: Some(reason),
        ended_at,
    }
}

/// Archives, stops and archives a box, as the scheduler does, and removes its files.
async fn delete(system: &System, of: &mut TestBox) -> DateTime<Utc> {
    let before = request(of, StatusReason::Deleted, None);
    system.gateway.archive_with(before).await.unwrap();
    of.terminate();
    of.ended().await;
    let ended_at = Utc::now();
    let after = request(of, StatusReason::Deleted, Some(ended_at));
    system.gateway.archive_with(after).await.unwrap();
    std::fs::remove_dir_all(proxy::output_dir(&of.id)).unwrap();
    ended_at
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_environment_keeps_outcomes_and_output() {
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    let ended = run(&system, &inside, "printf out; printf err >&2; exit 3").await;
    let running = start_endless(&system, &inside, "partial").await;
    let ended_at = delete(&system, &mut inside).await;

    for status in [Status::Terminated, Status::Failed] {
        let listed = list(&system, &inside, status).await;
        let ids: Vec<&str> = listed.iter().map(|found| found.id.as_str()).collect();
        assert_eq!(ids, [running.id.as_str(), ended.id.as_str()]);
        assert_eq!(listed[1], ended);
        let lost = &listed[0];
        assert_eq!(lost.status(), ExecutionStatus::Lost);
        assert_eq!(lost.status_reason, "DELETED");
        assert_eq!(lost.ended_unix_nanos, ended_at.timestamp_nanos_opt());
        assert_eq!(lost.exit_code, None);
        assert_eq!(*lost, one(&system, &inside, status, get(&running, 0)).await);

        let (received, last) = read_output(&system, &inside, status, read(&ended, None)).await;
        assert_eq!(received.streams, [b"out".to_vec(), b"err".to_vec()]);
        assert_eq!((received.gaps, last), (vec![], ended.clone()));
        let (received, _) = read_output(&system, &inside, status, read(&running, None)).await;
        assert_eq!(received.streams[0], b"partial");
        assert_eq!(received.gaps, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_environment_keeps_outcomes_and_reports_its_output_as_missing() {
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    let ended = run(&system, &inside, "printf out; exit 4").await;
    let running = start(&system, &inside, "exec sleep 600").await;
    inside.kill();
    let archive = request(&inside, StatusReason::OomKilled, Some(Utc::now()));
    // Repeated, also after the box's files are gone.
    for _ in 0..2 {
        system.gateway.archive_with(archive.clone()).await.unwrap();
        let _ = std::fs::remove_dir_all(proxy::output_dir(&inside.id));
    }
    let listed = list(&system, &inside, Status::Failed).await;
    assert_eq!(listed.len(), 2);
    let found = one(&system, &inside, Status::Failed, get(&ended, 0)).await;
    assert_eq!(
        (found.status(), found.exit_code, found.stdout_bytes),
        (ExecutionStatus::Exited, Some(4), 3)
    );
    let lost = one(&system, &inside, Status::Failed, get(&running, 0)).await;
    assert_eq!(
        (lost.status(), lost.status_reason.as_str()),
        (ExecutionStatus::Lost, "OOM_KILLED")
    );
    let output = read_output(&system, &inside, Status::Failed, read(&ended, None)).await;
    let gap = OutputGap {
        stderr: false,
        offset: 0,
        bytes: 3,
    };
    assert_eq!(output.0.gaps, [gap]);
    assert!(output.0.streams.iter().all(Vec::is_empty));
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_whose_command_exits_keeps_outcomes_and_output() {
    let system = System::start().await;
    let mut inside = TestBox::running("until [ -e end ]; do sleep 0.05; done").await;
    let ended = run(&system, &inside, "printf out; printf err >&2; exit 5").await;
    let running = start_endless(&system, &inside, "partial").await;
    std::fs::write(inside.path("end"), "").unwrap();
    inside.ended().await;
    let archive = request(&inside, StatusReason::Exited, Some(Utc::now()));
    system.gateway.archive_with(archive).await.unwrap();
    std::fs::remove_dir_all(proxy::output_dir(&inside.id)).unwrap();

    let status = Status::Terminated;
    let (received, last) = read_output(&system, &inside, status, read(&ended, None)).await;
    assert_eq!(received.streams, [b"out".to_vec(), b"err".to_vec()]);
    assert_eq!(
        (received.gaps, last.status(), last.exit_code),
        (vec![], ExecutionStatus::Exited, Some(5))
    );
    let (received, lost) = read_output(&system, &inside, status, read(&running, None)).await;
    assert_eq!(received.streams[0], b"partial");
    assert_eq!((received.gaps, lost.stdout_bytes), (vec![], 7));
    assert_eq!(
        (lost.status(), lost.status_reason.as_str()),
        (ExecutionStatus::Lost, "EXITED")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_output_is_its_newest_mebibyte_and_resumes_at_offsets() {
    const MIB: u64 = 1 << 20;
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    let script = "head -c 3145728 /dev/zero | tr '\\0' a; printf end; printf e >&2";
    let ended = run(&system, &inside, script).await;
    delete(&system, &mut inside).await;
    let total = 3 * MIB + 3;
    assert_eq!(ended.stdout_bytes, total);
    let whole = read_output(&system, &inside, Status::Terminated, read(&ended, None));
    let (whole, _) = whole.await;
    assert_eq!((&whole.streams[1][..], whole.gaps.len()), (&b"e"[..], 0));
    let whole = &whole.streams[0];
    assert!(whole.ends_with(b"aend"));
    let oldest = total - whole.len() as u64;
    assert!((total - MIB..=total - MIB * 15 / 16).contains(&oldest));
    for from in [0, MIB, oldest, total - 5, total] {
        let request = read(&ended, Some((from, 1)));
        let (received, _) = read_output(&system, &inside, Status::Terminated, request).await;
        let kept = usize::try_from(total - from.max(oldest)).unwrap();
        assert_eq!(received.streams[0], whole[whole.len() - kept..], "{from}");
        assert!(received.streams[1].is_empty(), "{from}");
        let gap = OutputGap {
            stderr: false,
            offset: from,
            bytes: oldest.saturating_sub(from),
        };
        let gaps = Vec::from_iter((from < oldest).then_some(gap));
        assert_eq!(received.gaps, gaps, "{from}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_keeps_newest_output_within_its_total() {
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    let mut all = Vec::new();
    for _ in 0..10 {
        let script = "head -c 1048576 /dev/zero";
        all.push(run(&system, &inside, script).await);
    }
    delete(&system, &mut inside).await;
    assert_eq!(list(&system, &inside, Status::Terminated).await.len(), 10);
    for (age, execution) in all.iter().rev().enumerate() {
        let request = read(execution, Some((0, 0)));
        let (received, _) = read_output(&system, &inside, Status::Terminated, request).await;
        let bytes = received.streams[0].len() as u64;
        let missing: u64 = received.gaps.iter().map(|gap| gap.bytes).sum();
        assert_eq!(bytes + missing, 1 << 20, "{age}");
        // The newest eight.
        assert_eq!(bytes > 0, age < 8, "{age}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_environment_refuses_changes_and_unknown_executions() {
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    delete(&system, &mut inside).await;
    assert_eq!(list(&system, &inside, Status::Terminated).await, []);
    let id = ExecId::random().to_string();
    let unknown = Execution {
        id: id.clone(),
        ..Execution::default()
    };
    for (operation, code) in [
        (get(&unknown, 0), ErrorCode::NotFound),
        (Operation::Output(read(&unknown, None)), ErrorCode::NotFound),
        (
            Operation::Start(ExecutionStart::default()),
            ErrorCode::NotRunning,
        ),
        (
            Operation::Delete(DeleteExecution { id, purge: true }),
            ErrorCode::NotRunning,
        ),
    ] {
        let refused = ask(&system, &inside, Status::Terminated, operation.clone()).await;
        assert_eq!(refused.unwrap_err().code, code, "{operation:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_of_an_ending_environment_waits_for_its_archive() {
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    let running = start_endless(&system, &inside, "partial").await;
    let before = request(&inside, StatusReason::Expired, None);
    system.gateway.archive_with(before).await.unwrap();
    // What was stored before the stop is answered at once, and not as lost.
    let present = one(&system, &inside, Status::Terminating, get(&running, 0)).await;
    assert_eq!(present.status(), ExecutionStatus::Running);
    inside.kill();
    let followed = ReadOutput {
        follow: true,
        ..read(&running, None)
    };
    let follow = read_output(&system, &inside, Status::Terminating, followed);
    let archive = async {
        let after = request(&inside, StatusReason::Expired, Some(Utc::now()));
        system.gateway.archive_with(after).await.unwrap();
    };
    let ((received, last), ()) = tokio::join!(follow, archive);
    assert_eq!(received.streams[0], b"partial");
    assert_eq!(
        (last.status(), last.status_reason.as_str()),
        (ExecutionStatus::Lost, "EXPIRED")
    );
}
