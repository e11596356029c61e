//! A box with the runtime class `gvisor` behaves like any other, on a kernel of its own. For drivers
//! whose machine has that class.

use std::time::Duration;

use agentbox_box_protocol::proto::{Empty, Resize, StartCommand, run_input::Input};
use agentbox_contracts::units::Bytes;
use futures::future::try_join;

use super::boxd::{RunningCommand, boxd_of, exec};
use super::{Subject, TIMEOUT, Violation, check, executions, files, ports};
use crate::{BoxConnector, BoxSpec, Runtime};

type Outcome = Result<(), Violation>;

/// Each round starts and removes two boxes.
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
/// When the driver does not meet the requirement.
pub async fn command_on_gvisor_returns_its_exit_code<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = on_gvisor(s.spec());
    s.first.preflight(&spec).await?;
    s.run(&spec).await?;
    let (stdout, code) = exec(s, &spec, &["dmesg"]).await?;
    check(code == 0 && stdout.contains("gVisor"), || stdout.clone())?;
    let (_, code) = exec(s, &spec, &["sh", "-c", "exit 3"]).await?;
    check(code == 3, || format!("exit code {code}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn command_on_gvisor_streams_stdin_and_stdout<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = on_gvisor(s.spec());
    s.run(&spec).await?;
    let cat = StartCommand {
        stdin: true,
        ..command(&["cat"])
    };
    let mut talk = RunningCommand::start(s, &spec, cat).await?;
    // Each line is echoed before the next one is sent.
    for question in ["one\n", "two\n", "three\n"] {
        talk.type_text(question)?;
        talk.read_until(question).await?;
    }
    talk.send(Input::StdinEof(Empty {}))?;
    let (rest, code) = talk.end().await?;
    check(code == 0 && rest.is_empty(), || format!("{code}: {rest}"))?;

    let (numbers, code) = exec(s, &spec, &["seq", "1", "100000"]).await?;
    let expected = (1..=100_000).map(|number| format!("{number}\n"));
    check(code == 0 && numbers == expected.collect::<String>(), || {
        format!("{code}: {} bytes", numbers.len())
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn terminal_on_gvisor_has_size_and_control_keys<D: Runtime + BoxConnector>(
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
    let mut terminal = RunningCommand::start(s, &spec, shell).await?;
    terminal.type_text("stty size\n")?;
    terminal.read_until("24 80").await?;
    terminal.send(Input::Resize(size(100, 40)))?;
    terminal.type_text("stty size\n")?;
    terminal.read_until("40 100").await?;
    // The terminal echoes its input, so the input spells the expected output differently.
    terminal.type_text("sh -c 'echo up''on; exec sleep 600'; echo le''ft\n")?;
    terminal.read_until("upon").await?;
    terminal.type_text("\u{3}")?;
    terminal.type_text("echo af''ter\n")?;
    terminal.read_until("after").await?;
    terminal.type_text("exit 7\n")?;
    let (_, code) = terminal.end().await?;
    check(code == 7, || format!("exit code {code}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn files_executions_and_ports_on_gvisor_work_as_elsewhere<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = on_gvisor(s.spec());
    s.run(&spec).await?;
    let boxd = boxd_of(s, &spec).await?;
    files::check_users(&boxd).await?;
    files::check_mounts(&boxd).await?;
    ports::serve(&boxd).await?;
    executions::resume(s, &spec).await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn warm_box_on_gvisor_is_claimed<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = on_gvisor(s.script("dmesg; echo \"claimed by $WHO\"; exit 5"));
    spec.env.insert("WHO".to_owned(), "me".to_owned());
    let address = s.run_warm(&spec).await?;
    s.first.claim(&spec, 1, address).await?;
    let end = s.end_of(&spec.id).await?;
    check(
        end.exit_code == 5 && end.output.contains("gVisor") && end.output.contains("claimed by me"),
        || format!("{end:?}"),
    )
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn gvisor_boxes_are_killed_and_removed_repeatedly<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    for round in 0..ROUNDS {
        let idle = on_gvisor(s.spec());
        let stubborn = on_gvisor(s.script("trap '' TERM; while :; do sleep 1; done"));
        try_join(s.run(&idle), s.run(&stubborn)).await?;
        let gone = async {
            s.first.stop(&stubborn.id, Duration::ZERO).await?;
            let end = s.end_of(&stubborn.id).await?;
            check(end.exit_code == 137, || format!("{end:?}"))?;
            try_join(s.first.remove(&idle.id), s.first.remove(&stubborn.id)).await?;
            Ok::<(), Violation>(())
        };
        tokio::time::timeout(TIMEOUT, gone)
            .await
            .map_err(|_| Violation(format!("round {round}: not gone in {TIMEOUT:?}")))??;
        for id in [&idle.id, &stubborn.id] {
            let left = s.second.get(id).await?;
            check(left.is_none(), || format!("round {round}: {left:?}"))?;
        }
    }
    Ok(())
}
