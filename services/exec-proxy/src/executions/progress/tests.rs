use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::executions::{
    AttachExecution, Attached, ControlExecution, DeleteExecution, Execution, ExecutionStart, Size,
    WriteStdin,
};
use bytes::Bytes;

use super::*;

fn progress(operation: Operation) -> Progress {
    Progress::new(ExecutionRequest {
        operation: Some(operation),
    })
}

fn read(from: Option<Offsets>) -> Progress {
    progress(Operation::Output(ReadOutput {
        id: "exec-0123456789abcdef".into(),
        stdout: true,
        stderr: true,
        from,
        follow: true,
    }))
}

fn take(progress: &mut Progress, output: Output) -> Result<Message, BoxError> {
    progress.take(ExecutionOutput {
        output: Some(output),
    })
}

fn piece(stderr: bool, offset: u64, data: &'static [u8]) -> Output {
    Output::Output(OutputPiece {
        stderr,
        offset,
        data: Bytes::from_static(data),
    })
}

fn gap(stderr: bool, offset: u64, bytes: u64) -> Output {
    Output::Gap(OutputGap {
        stderr,
        offset,
        bytes,
    })
}

fn sent(output: Output) -> Message {
    Message::Send(message(output))
}

/// Where the next request begins.
fn from(progress: &mut Progress) -> Option<Offsets> {
    match progress.request(Duration::ZERO).operation {
        Some(Operation::Output(read)) => read.from,
        other => panic!("{other:?}"),
    }
}

fn offsets(stdout: u64, stderr: u64) -> Option<Offsets> {
    Some(Offsets { stdout, stderr })
}

#[test]
fn output_continues_after_the_last_byte_of_each_stream() {
    let mut reader = read(None);
    assert_eq!(from(&mut reader), None);
    for output in [
        piece(false, 100, b"ab"),
        piece(true, 7, b"c"),
        gap(false, 102, 10),
        piece(false, 112, b"d"),
    ] {
        assert_eq!(take(&mut reader, output.clone()).unwrap(), sent(output));
    }
    assert_eq!(from(&mut reader), offsets(113, 8));

    let mut reader = read(offsets(5, 6));
    assert_eq!(from(&mut reader), offsets(5, 6));
    take(&mut reader, piece(true, 6, b"xyz")).unwrap();
    assert_eq!(from(&mut reader), offsets(5, 9));
}

#[test]
fn output_that_is_missing_or_repeated_is_an_error() {
    for wrong in [
        piece(false, 3, b"x"),
        piece(false, 1, b"x"),
        gap(false, 4, 1),
    ] {
        let mut reader = read(None);
        take(&mut reader, piece(false, 0, b"ab")).unwrap();
        let error = take(&mut reader, wrong).unwrap_err();
        assert!(matches!(error, BoxError::Lost(_)), "{error}");
    }
    let error = take(&mut read(None), gap(false, 2, u64::MAX)).unwrap_err();
    assert!(matches!(error, BoxError::Invalid(_)), "{error}");
}

#[test]
fn reader_from_the_oldest_byte_gets_no_gap_at_the_beginning_after_a_resume() {
    let mut reader = read(None);
    take(&mut reader, piece(false, 50, b"a")).unwrap();
    assert_eq!(from(&mut reader), offsets(51, 0));
    // The beginning of stderr is no longer kept, and its reader did not ask for it.
    assert_eq!(take(&mut reader, gap(true, 0, 40)).unwrap(), Message::Skip);
    let next = piece(true, 40, b"e");
    assert_eq!(take(&mut reader, next.clone()).unwrap(), sent(next));
    // A later gap is one.
    let later = gap(true, 41, 1);
    assert_eq!(take(&mut reader, later.clone()).unwrap(), sent(later));

    // A reader that asked for the beginning learns that it is gone.
    let mut reader = read(offsets(0, 0));
    take(&mut reader, piece(false, 0, b"a")).unwrap();
    assert_eq!(from(&mut reader), offsets(1, 0));
    let missing = gap(true, 0, 40);
    assert_eq!(take(&mut reader, missing.clone()).unwrap(), sent(missing));
}

#[test]
fn list_that_is_repeated_sends_each_execution_once() {
    let list = |ids: &[&str], is_last| {
        Output::Executions(ExecutionList {
            executions: ids
                .iter()
                .map(|id| Execution {
                    id: (*id).to_owned(),
                    ..Execution::default()
                })
                .collect(),
            is_last,
        })
    };
    let mut lister = progress(Operation::List(()));
    assert_eq!(
        take(&mut lister, list(&["b", "a"], false)).unwrap(),
        sent(list(&["b", "a"], false))
    );
    // The connection is lost. Meanwhile `c` was started.
    assert_eq!(
        take(&mut lister, list(&["c", "b"], false)).unwrap(),
        sent(list(&["c"], false))
    );
    assert_eq!(
        take(&mut lister, list(&["a"], false)).unwrap(),
        Message::Skip
    );
    assert_eq!(
        take(&mut lister, list(&[], true)).unwrap(),
        Message::Last(message(list(&[], true)))
    );
}

#[test]
fn endless_list_and_oversized_piece_of_a_hostile_box_are_refused() {
    let mut lister = progress(Operation::List(()));
    let executions = (0..=MAX_LISTED)
        .map(|n| Execution {
            id: n.to_string(),
            ..Execution::default()
        })
        .collect();
    let list = ExecutionList {
        executions,
        is_last: true,
    };
    let error = take(&mut lister, Output::Executions(list)).unwrap_err();
    assert!(matches!(error, BoxError::Invalid(_)), "{error}");
    let long = ExecutionList {
        executions: vec![Execution {
            id: "x".repeat(MAX_ID_BYTES + 1),
            ..Execution::default()
        }],
        is_last: true,
    };
    let mut lister = progress(Operation::List(()));
    let error = take(&mut lister, Output::Executions(long)).unwrap_err();
    assert!(matches!(error, BoxError::Invalid(_)), "{error}");
    let oversized = Output::Output(OutputPiece {
        stderr: false,
        offset: 0,
        data: Bytes::from(vec![0; MAX_CHUNK + 1]),
    });
    let error = take(&mut read(None), oversized).unwrap_err();
    assert!(matches!(error, BoxError::Invalid(_)), "{error}");
}

#[test]
fn output_of_another_operation_is_refused() {
    let get = || progress(Operation::Get(GetExecution::default()));
    for output in [
        piece(false, 0, b"x"),
        Output::Executions(ExecutionList::default()),
        Output::Attached(Attached::default()),
        Output::HasInput(true),
    ] {
        let error = take(&mut get(), output).unwrap_err();
        assert!(matches!(error, BoxError::Invalid(_)), "{error}");
    }
    let outcome = Output::Execution(Execution::default());
    assert_eq!(
        take(&mut get(), outcome.clone()).unwrap(),
        Message::Last(message(outcome))
    );
    let mut attached = progress(Operation::Attach(AttachExecution::default()));
    for output in [
        Output::Attached(Attached::default()),
        piece(false, 70, b"x"),
        Output::HasInput(false),
    ] {
        assert_eq!(take(&mut attached, output.clone()).unwrap(), sent(output));
    }
}

#[test]
fn operation_is_repeated_only_when_it_acts_once() {
    let control = |control| {
        Operation::Control(ControlExecution {
            control: Some(control),
            ..ControlExecution::default()
        })
    };
    let delete = |purge| {
        Operation::Delete(DeleteExecution {
            purge,
            ..DeleteExecution::default()
        })
    };
    for (operation, expected) in [
        (
            Operation::Start(ExecutionStart::default()),
            Repetition::Always,
        ),
        (Operation::List(()), Repetition::Always),
        (Operation::Output(ReadOutput::default()), Repetition::Always),
        (delete(false), Repetition::Always),
        (delete(true), Repetition::Never),
        (
            control(control_execution::Control::Resize(Size::default())),
            Repetition::Always,
        ),
        (
            control(control_execution::Control::Signal("INT".into())),
            Repetition::Never,
        ),
        (Operation::Stdin(WriteStdin::default()), Repetition::Opening),
        (
            Operation::Attach(AttachExecution::default()),
            Repetition::Opening,
        ),
    ] {
        assert_eq!(progress(operation).repetition(), expected);
    }
}

#[test]
fn continued_wait_is_shorter_by_the_time_that_has_passed() {
    let mut waiting = progress(Operation::Get(GetExecution {
        wait_ms: 5000,
        ..GetExecution::default()
    }));
    for (elapsed, expected) in [(0, 5000), (3, 2000), (33, 0)] {
        match waiting.request(Duration::from_secs(elapsed)).operation {
            Some(Operation::Get(get)) => assert_eq!(get.wait_ms, expected),
            other => panic!("{other:?}"),
        }
    }
}
