//! Attached clients.

use agentbox_contracts::executions::execution_input::Input;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    AttachExecution, Attached, ExecutionStart, ExecutionStatus, Offsets, OnFull, Size, StdinMode,
};

use super::calls::{Call, attach, command, follow, get, script, started, status};
use crate::support::TestBox;

fn terminal(wanted: ExecutionStart) -> ExecutionStart {
    ExecutionStart {
        tty: Some(Size { cols: 80, rows: 24 }),
        on_full: OnFull::Block.into(),
        ..wanted
    }
}

async fn attached(call: &mut Call) -> Attached {
    match call.next().await.unwrap() {
        Some(Output::Attached(attached)) => attached,
        other => panic!("{other:?}"),
    }
}

/// Reads until the client learns whether it holds the input.
async fn has_input(call: &mut Call) -> bool {
    loop {
        match call.next().await.unwrap() {
            Some(Output::HasInput(has_input)) => return has_input,
            Some(Output::Output(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn keys(call: &Call, text: &str) {
    call.send(Input::Data(text.to_owned().into())).await;
}

#[tokio::test]
async fn input_belongs_to_one_client_and_passes_on() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        stdin: StdinMode::Open.into(),
        ..script("while read line; do echo got=$line; done; echo end")
    };
    let id = started(&client, wanted).await;
    let mut first = attach(&client, &id, false).await;
    let ready = attached(&mut first).await;
    assert!(ready.has_input);
    assert_eq!(ready.offsets, Offsets::default());
    assert_eq!(ready.execution.id, id);
    let mut second = attach(&client, &id, false).await;
    assert!(!attached(&mut second).await.has_input);
    keys(&second, "ignored\n").await;
    keys(&first, "one\n").await;
    for call in [&mut first, &mut second] {
        assert_eq!(call.until("got=one\n").await, "got=one\n");
    }
    second.send(Input::TakeInput(())).await;
    assert!(has_input(&mut second).await);
    assert!(!has_input(&mut first).await);
    keys(&first, "late\n").await;
    keys(&second, "two\n").await;
    for call in [&mut first, &mut second] {
        assert_eq!(call.until("got=two\n").await, "got=two\n");
    }
    let mut third = attach(&client, &id, true).await;
    assert!(attached(&mut third).await.has_input);
    assert!(!has_input(&mut second).await);
    // The client that is attached for longest gets the input of one that leaves.
    drop(third);
    assert!(has_input(&mut first).await);
    first.send(Input::End(())).await;
    for call in [first, second] {
        let finished = call.finish().await;
        assert!(finished.text().ends_with("end\n"), "{finished:?}");
        assert_eq!(finished.execution.unwrap().exit_code, Some(0));
    }
}

#[tokio::test]
async fn input_of_an_ended_execution_passes_to_nobody() {
    const BYTES: usize = 12 * 1024 * 1024;
    let (boxd, client) = TestBox::idle().await;
    let (other_client, _relay) = boxd.abortable_client().await;
    let wanted = ExecutionStart {
        stdin: StdinMode::Open.into(),
        keep_bytes: 16 * 1024 * 1024,
        ..script(&format!("read line; yes | head -c {BYTES}"))
    };
    let id = started(&client, wanted).await;
    let mut holder = attach(&client, &id, false).await;
    assert!(attached(&mut holder).await.has_input);
    // It has not received all output when the holder leaves.
    let mut slow = attach(&other_client, &id, false).await;
    assert!(!attached(&mut slow).await.has_input);
    keys(&holder, "go\n").await;
    assert_eq!(holder.finish().await.data[0].len(), BYTES);
    let mut received = 0;
    while let Some(output) = slow.next().await.unwrap() {
        match output {
            Output::Output(piece) => received += piece.data.len(),
            Output::Execution(execution) => assert_eq!(execution.exit_code, Some(0)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, BYTES);
}

#[tokio::test]
async fn next_client_of_a_terminal_gets_the_last_screenful_and_a_resize() {
    let (boxd, client) = TestBox::idle().await;
    let lines = "i=0; while [ $i -lt 3000 ]; do echo line-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); done";
    let wanted = terminal(script(&format!(
        "trap 'echo redrawn' WINCH; {lines}; echo up; while :; do sleep 0.05; done"
    )));
    let id = started(&client, wanted).await;
    let (cut, relay) = boxd.abortable_client().await;
    let mut first = attach(&cut, &id, false).await;
    assert_eq!(attached(&mut first).await.offsets.stdout, 0);
    first.until("up\r\n").await;
    relay.abort();
    let mut next = attach(&client, &id, true).await;
    let ready = attached(&mut next).await;
    assert_eq!(status(&ready.execution), ExecutionStatus::Running);
    let end = ready.execution.stdout_bytes;
    let screen = end - ready.offsets.stdout;
    assert!(screen <= 64 * 1024 && screen > 32 * 1024, "{screen}");
    let seen = next.until("redrawn").await;
    assert!(seen.starts_with("line-"), "{}", &seen[..80]);
    assert!(seen.contains("up\r\n"));
    next.send(Input::Resize(Size { cols: 40, rows: 20 })).await;
    next.until("redrawn").await;
    let size = get(&client, &id, 0).await.unwrap().tty;
    assert_eq!(size, Some(Size { cols: 40, rows: 20 }));
    next.send(Input::Signal("KILL".into())).await;
    let ended = next.finish().await.execution.unwrap();
    assert_eq!(ended.signal, Some(9));
}

#[tokio::test]
async fn shell_in_a_terminal_survives_lost_clients() {
    let (boxd, client) = TestBox::idle().await;
    let id = started(&client, terminal(command(&["sh"]))).await;
    let mut position = 0;
    for round in 0..4 {
        let (cut, relay) = boxd.abortable_client().await;
        let request = AttachExecution {
            id: id.clone(),
            from: Some(Offsets {
                stdout: position,
                stderr: 0,
            }),
            take_input: true,
        };
        let mut call = Call::open(&cut, Operation::Attach(request)).await.unwrap();
        let ready = attached(&mut call).await;
        assert_eq!((ready.offsets.stdout, ready.has_input), (position, true));
        keys(&call, &format!("echo a{round}b | tr ab AB\n")).await;
        let seen = call.until(&format!("A{round}B\r\n")).await;
        assert_eq!(seen.matches(&format!("A{round}B")).count(), 1, "{seen:?}");
        position += seen.len() as u64;
        relay.abort();
    }
    let mut last = attach(&client, &id, true).await;
    assert!(attached(&mut last).await.has_input);
    keys(&last, "exit 5\n").await;
    assert_eq!(last.finish().await.execution.unwrap().exit_code, Some(5));
}

#[tokio::test]
async fn client_without_stdin_only_reads() {
    let (_boxd, client) = TestBox::idle().await;
    let id = started(&client, script("sleep 0.3; echo out")).await;
    let mut call = attach(&client, &id, true).await;
    assert!(!attached(&mut call).await.has_input);
    keys(&call, "ignored").await;
    call.send(Input::TakeInput(())).await;
    assert_eq!(call.finish().await.text(), "out\n");
    let mut late = attach(&client, &id, false).await;
    let ready = attached(&mut late).await;
    assert_eq!(status(&ready.execution), ExecutionStatus::Exited);
    assert_eq!(late.finish().await.text(), "out\n");
    assert_eq!(
        follow(&client, &id, None).await.finish().await.text(),
        "out\n"
    );
}
