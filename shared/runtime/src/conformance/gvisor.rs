//! A box of the runtime class `gvisor` is a box like any other, on a kernel of its own. For
//! the tests of a driver whose machine has that class; not each one has.

use std::time::Duration;

use agentbox_box_protocol::proto::{Empty, Resize, StartCommand, run_input::Input};
use agentbox_contracts::units::Bytes;
use futures::future::try_join;

use super::session::{Session, exec};
use super::{PATIENCE, Subject, Violation, claim};
use crate::{BoxConnector, BoxSpec, Runtime};

type Outcome = Result<(), Violation>;

/// Twice this number of boxes comes and goes.
const ROUNDS: usize = 10;

#[must_use]
pub fn on_gvisor(mut spec: BoxSpec) -> BoxSpec {
    spec.isolation.runtime_class = Some("gvisor".to_owned());
    spec.resources.memory = Bytes(256 << 20);
    spec.resources.pids = 128;
    spec
}

fn command(words: &[&str]) -> StartCommand {
    StartCommand {
        command: words.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    }
}

/// # Errors
/// When it does not hold.
pub async fn a_command_runs_on_gvisors_kernel_and_tells_its_end<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = on_gvisor(s.spec());
    s.first.preflight(&spec).await?;
    s.run(&spec).await?;
    let (said, code) = exec(s, &spec, &["dmesg"]).await?;
    claim(code == 0 && said.contains("gVisor"), || said.clone())?;
    let (_, code) = exec(s, &spec, &["sh", "-c", "exit 3"]).await?;
    claim(code == 3, || format!("exit code {code}"))
}

/// # Errors
/// When it does not hold.
pub async fn what_a_command_on_gvisor_is_told_and_says_comes_as_it_happens<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let spec = on_gvisor(s.spec());
    s.run(&spec).await?;
    let cat = StartCommand {
        stdin: true,
        ..command(&["cat"])
    };
    let mut talk = Session::start(s, &spec, cat).await?;
    // Each answer is there before the next question.
    for question in ["one\n", "two\n", "three\n"] {
        talk.types(question)?;
        talk.until(question).await?;
    }
    talk.send(Input::StdinEof(Empty {}))?;
    let (rest, code) = talk.end().await?;
    claim(code == 0 && rest.is_empty(), || format!("{code}: {rest}"))?;

    let (numbers, code) = exec(s, &spec, &["seq", "1", "100000"]).await?;
    let expected = (1..=100_000).map(|number| format!("{number}\n"));
    claim(code == 0 && numbers == expected.collect::<String>(), || {
        format!("{code}: {} bytes", numbers.len())
    })
}

/// # Errors
/// When it does not hold.
pub async fn a_terminal_on_gvisor_has_a_size_and_its_keys_work<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = on_gvisor(s.spec());
    s.run(&spec).await?;
    let size = |cols, rows| Resize { cols, rows };
    let shell = StartCommand {
        stdin: true,
        tty: Some(size(80, 24)),
        ..command(&["sh"])
    };
    let mut terminal = Session::start(s, &spec, shell).await?;
    terminal.types("stty size\n")?;
    terminal.until("24 80").await?;
    terminal.send(Input::Resize(size(100, 40)))?;
    terminal.types("stty size\n")?;
    terminal.until("40 100").await?;
    // What is typed is echoed, so what is waited for is written otherwise.
    terminal.types("sh -c 'echo up''on; exec sleep 600'; echo le''ft\n")?;
    terminal.until("upon").await?;
    terminal.types("\u{3}")?;
    terminal.types("echo af''ter\n")?;
    terminal.until("after").await?;
    terminal.types("exit 7\n")?;
    let (_, code) = terminal.end().await?;
    claim(code == 7, || format!("exit code {code}"))
}

/// # Errors
/// When it does not hold.
pub async fn boxes_on_gvisor_are_killed_and_removed_again_and_again<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    for round in 0..ROUNDS {
        let idle = on_gvisor(s.spec());
        let deaf = on_gvisor(s.script("trap '' TERM; while :; do sleep 1; done"));
        try_join(s.run(&idle), s.run(&deaf)).await?;
        let gone = async {
            s.first.stop(&deaf.id, Duration::ZERO).await?;
            let end = s.end_of(&deaf.id).await?;
            claim(end.exit_code == 137, || format!("{end:?}"))?;
            try_join(s.first.remove(&idle.id), s.first.remove(&deaf.id)).await?;
            Ok::<(), Violation>(())
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .map_err(|_| Violation(format!("round {round}: not gone in {PATIENCE:?}")))??;
        for id in [&idle.id, &deaf.id] {
            let left = s.second.get(id).await?;
            claim(left.is_none(), || format!("round {round}: {left:?}"))?;
        }
    }
    Ok(())
}
