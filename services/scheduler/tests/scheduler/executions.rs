//! Executions of environments that end, on a real containerd.

use std::time::Duration;

use agentbox_contracts::environment::{
    EXECUTION_EVENTS_LABEL, EXECUTION_EVENTS_ON, Environment, EventExecutionStatus, EventKind,
    Status,
};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{FromBox, Open, OpenKind};
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    Execution, ExecutionOutput, ExecutionRequest, ExecutionStart, ExecutionStatus, GetExecution,
    ReadOutput,
};
use agentbox_contracts::ids::ExecId;
use agentbox_testing::eventually_some;

use crate::support::cluster::{CALL, CLUSTER, World, is_without_answer};
use crate::support::request;

const SOON: Duration = Duration::from_secs(20);

/// The output that an operation on one execution sends, and the execution. An operation without an
/// answer is repeated: the exec-proxy, a process, may not be ready.
async fn ask(world: &World, of: &Environment, operation: Operation) -> (Vec<u8>, Execution) {
    eventually_some("the exec-proxy answers", SOON, async || {
        match try_ask(world, of, operation.clone()).await {
            Ok(answer) => Some(answer),
            Err(error) if is_without_answer(&error) => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await
}

async fn try_ask(
    world: &World,
    of: &Environment,
    operation: Operation,
) -> Result<(Vec<u8>, Execution), Error> {
    let operation = Some(operation);
    let open = Open {
        environment: of.id.clone(),
        owner: None,
        address: of.address,
        status: of.status,
        kind: OpenKind::Execution(ExecutionRequest { operation }),
    };
    let mut session = world
        .gateway
        .open_session::<BoxSession>(CLUSTER, &open, CALL)
        .await?;
    let mut received = Vec::new();
    loop {
        let Some(FromBox::Execution(ExecutionOutput { output })) = session.recv().await? else {
            panic!("not an answer about executions");
        };
        match output {
            Some(Output::Output(piece)) => received.extend(piece.data),
            Some(Output::Execution(execution)) => return Ok((received, execution)),
            other => panic!("not of one execution: {other:?}"),
        }
    }
}

/// Starts a shell script as an execution.
pub async fn start(world: &World, of: &Environment, script: &str) -> Execution {
    let start = ExecutionStart {
        id: ExecId::random().to_string(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        ..ExecutionStart::default()
    };
    ask(world, of, Operation::Start(start)).await.1
}

async fn get(world: &World, of: &Environment, id: &str) -> Execution {
    let get = GetExecution {
        id: id.to_owned(),
        wait_ms: 5_000,
    };
    ask(world, of, Operation::Get(get)).await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_environment_keeps_its_executions_and_their_output() {
    let world = World::new().await;
    let replica = world.replica().await;
    let created = world.create(request("deleted")).await;
    let running = world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    let ended = start(&world, &running, "printf out; exit 3").await;
    let ended = get(&world, &running, &ended.id).await;
    assert_eq!(ended.status(), ExecutionStatus::Exited);
    let endless = start(&world, &running, "exec sleep 600").await;
    world.force_delete(&created.id).await;
    let deleted = world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;

    let lost = get(&world, &deleted, &endless.id).await;
    assert_eq!(
        (lost.status(), lost.status_reason.as_str()),
        (ExecutionStatus::Lost, "DELETED")
    );
    assert!(lost.ended_unix_nanos >= lost.started_unix_nanos);
    let read = ReadOutput {
        id: ended.id.clone(),
        stdout: true,
        ..ReadOutput::default()
    };
    let (output, execution) = ask(&world, &deleted, Operation::Output(read)).await;
    assert_eq!((output, execution), (b"out".to_vec(), ended));
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn execution_is_lost_with_the_reason_of_its_environment() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut wanted = request("exits");
    // The main command ends when an execution writes to the FIFO.
    let script = "mkfifo /tmp/end; read -r line < /tmp/end";
    wanted.command = Some(vec!["sh".into(), "-c".into(), script.into()]);
    let created = world.create(wanted).await;
    let running = world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    let endless = start(&world, &running, "exec sleep 600").await;
    start(
        &world,
        &running,
        "until [ -p /tmp/end ]; do sleep 0.1; done; echo > /tmp/end",
    )
    .await;
    let ended = world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
    let lost = get(&world, &ended, &endless.id).await;
    assert_eq!(
        (lost.status(), lost.status_reason.as_str()),
        (ExecutionStatus::Lost, "EXITED")
    );
    // Postgres keeps microseconds.
    let ended_at = ended.ended_at.unwrap().timestamp_micros();
    assert!((lost.ended_unix_nanos.unwrap() / 1000 - ended_at).abs() <= 1);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn execution_of_a_labelled_environment_has_events_before_those_of_its_end() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut wanted = request("observed");
    let label = EXECUTION_EVENTS_LABEL.to_owned();
    wanted.labels.insert(label, EXECUTION_EVENTS_ON.to_owned());
    let created = world.create(wanted).await;
    let running = world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    let started = start(&world, &running, "exit 3").await;
    let events = world.events(&created.id, 4).await;
    let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
    let expected = [
        EventKind::Created,
        EventKind::Running,
        EventKind::ExecutionStarted,
        EventKind::ExecutionEnded,
    ];
    assert_eq!(kinds, expected);
    let ended = events[3].execution.clone().unwrap();
    assert_eq!(ended.id.as_str(), started.id);
    assert_eq!(ended.status, EventExecutionStatus::Exited);
    assert_eq!(ended.exit_code, Some(3));

    world.force_delete(&created.id).await;
    let events = world.events(&created.id, 6).await;
    assert_eq!(events[5].kind, EventKind::Terminated);
    replica.stop().await;
}
