//! The configuration reference, `docs/configuration.md`: its tables are rendered from the
//! clap arguments of each program, and a unit test of that program compares them.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Args as _, Command};

use crate::CommonConfig;

/// The variable that makes [`check`] write the tables instead of comparing them.
const UPDATE: &str = "UPDATE_CONFIGURATION";
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");

/// Compares the table of `section` in `docs/configuration.md` with the arguments of
/// `command`. For use in a test.
///
/// # Errors
/// When the table differs or is missing; the message says how to update it.
pub fn check(section: &str, command: &Command) -> Result<(), String> {
    let table = table(command);
    if std::env::var_os(UPDATE).is_some() {
        let document = read()?;
        let (before, _, after) = split(&document, section)?;
        return std::fs::write(DOCUMENT, format!("{before}{table}{after}"))
            .map_err(|error| format!("{DOCUMENT}: {error}"));
    }
    let document = read()?;
    let (_, found, _) = split(&document, section)?;
    if found == table {
        return Ok(());
    }
    Err(format!(
        "docs/configuration.md, section {section}, does not match the code. Update it with \
         `{UPDATE}=1 cargo test configuration_reference` and check the difference."
    ))
}

/// The arguments that every service has, as a command without a name of its own.
fn common() -> Command {
    CommonConfig::augment_args(Command::new("services"))
}

fn read() -> Result<String, String> {
    std::fs::read_to_string(Path::new(DOCUMENT)).map_err(|error| format!("{DOCUMENT}: {error}"))
}

/// Splits the document into the parts before, in and after the table of `section`.
fn split<'a>(document: &'a str, section: &str) -> Result<(&'a str, &'a str, &'a str), String> {
    let (begin, end) = (
        format!("<!-- table: {section} -->\n"),
        "<!-- end of table -->",
    );
    let missing = || format!("docs/configuration.md has no table of the section {section}");
    let start = document.find(&begin).ok_or_else(missing)? + begin.len();
    let length = document[start..].find(end).ok_or_else(missing)?;
    Ok((
        &document[..start],
        &document[start..start + length],
        &document[start + length..],
    ))
}

/// Renders a row for each argument with a variable, without the arguments of [`CommonConfig`].
fn table(command: &Command) -> String {
    let common = common();
    let is_common = |arg: &Arg| {
        command.get_name() != common.get_name()
            && common
                .get_arguments()
                .any(|known| known.get_id() == arg.get_id())
    };
    let mut table = String::from("| variable | flag | default | meaning |\n|---|---|---|---|\n");
    for arg in arguments(command) {
        if let Some(variable) = arg.get_env()
            && !is_common(arg)
        {
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "| `{}` | {} | {} | {} |",
                variable.to_string_lossy(),
                flag(arg),
                default(arg),
                meaning(arg)
            );
        }
    }
    table
}

/// The arguments of a command, then those of its subcommands.
fn arguments(command: &Command) -> Vec<&Arg> {
    let inner = command.get_subcommands().flat_map(arguments);
    command.get_arguments().chain(inner).collect()
}

/// A secret has no documented flag: flags are visible in the process list.
fn flag(arg: &Arg) -> String {
    match arg.get_long() {
        Some(long) if !arg.is_hide_set() => format!("`--{long}`"),
        _ => String::new(),
    }
}

fn default(arg: &Arg) -> String {
    let values: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    match values.join(",") {
        text if !text.is_empty() => format!("`{text}`"),
        _ if arg.is_required_set() => "required".to_owned(),
        _ => "none".to_owned(),
    }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help());
    let text = help.map(ToString::to_string).unwrap_or_default();
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.replace('|', "\\|");
    if line.is_empty() || line.ends_with('.') {
        line
    } else {
        format!("{line}.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_reference_matches_code() {
        check("services", &common()).unwrap();
    }

    #[test]
    fn table_lists_variables_without_common_ones_and_hides_flags_of_secrets() {
        #[derive(clap::Parser)]
        struct Config {
            #[command(flatten)]
            _common: CommonConfig,
            /// The longest wait, in seconds
            #[arg(long, env = "AGENTBOX_EXAMPLE_WAIT", default_value_t = 3)]
            _wait_s: u64,
            #[arg(long, env = "AGENTBOX_EXAMPLE_SECRET", hide = true)]
            _secret: String,
        }
        let table = table(&<Config as clap::CommandFactory>::command());
        assert_eq!(
            table.lines().skip(2).collect::<Vec<_>>(),
            [
                "| `AGENTBOX_EXAMPLE_WAIT` | `--wait-s` | `3` | The longest wait, in seconds. |",
                "| `AGENTBOX_EXAMPLE_SECRET` |  | required |  |",
            ]
        );
    }
}
