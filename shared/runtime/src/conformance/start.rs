//! The state of a box at its start: its command, variables, names and files.

use super::{Subject, Violation, check};
use crate::{BoxConnector, ExitReason, Runtime};

type Outcome = Result<(), Violation>;

/// Texts that a shell, `printf` or Kubernetes expands.
const TEXTS: [&str; 9] = [
    "$$",
    "$(HOME)",
    "$$(HOME)",
    "$$$",
    "$HOME $",
    "$é",
    "%s\\n `id`",
    "two\nlines",
    "",
];

/// # Errors
/// When the driver does not meet the requirement.
pub async fn command_and_variables_arrive_unchanged<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let variables: String = (0..TEXTS.len())
        .map(|number| format!(" \"$V{number}\""))
        .collect();
    let mut spec = s.script(&format!("printf '<%s>\\n' \"$@\"{variables}"));
    if let Some(command) = &mut spec.command {
        command.push("sh".to_owned());
        command.extend(TEXTS.map(str::to_owned));
    }
    for (number, text) in TEXTS.into_iter().enumerate() {
        spec.env.insert(format!("V{number}"), text.to_owned());
    }
    let end = s.run_to_end(&spec).await?;
    let printed: Vec<String> = TEXTS
        .iter()
        .chain(&TEXTS)
        .map(|text| format!("<{text}>"))
        .collect();
    check(
        end.exit_code == 0 && end.output == printed.join("\n"),
        || format!("{end:?}"),
    )?;
    let killed = s.run_to_end(&s.script("kill -9 $$")).await?;
    check(
        killed.exit_code == 137 && killed.reason == ExitReason::Exited,
        || format!("{killed:?}"),
    )
}
