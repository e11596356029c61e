//! The state of a box at its start: its command, variables, names and files.

use agentbox_contracts::units::Bytes;

use super::boxd::exec;
use super::{Subject, Violation, check};
use crate::{BoxConnector, ExitReason, Runtime, SecurityContext};

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

/// # Errors
/// When the driver does not meet the requirement.
pub async fn hosts_file_names_the_box_and_nothing_of_the_machine<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    spec.image.clone_from(&s.python);
    let address = s.run(&spec).await?.ip().to_string();
    // Resolves IPv4 only, so that no resolver is asked.
    let script = "uname -n && getent ahostsv4 \"$(uname -n)\" && echo hosts && cat /etc/hosts";
    let (output, code) = exec(s, &spec, &["sh", "-c", script]).await?;
    let (resolved, hosts) = output.split_once("hosts\n").unwrap_or_default();
    let mut resolved = resolved.lines();
    check(
        code == 0 && resolved.next() == Some(spec.id.as_str()),
        || output.clone(),
    )?;
    let resolves = resolved
        .next()
        .is_some_and(|line| line.split_whitespace().next() == Some(address.as_str()));
    check(resolves, || format!("not {address}: {output}"))?;
    let names = hosts
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(|line| line.split_whitespace().skip(1));
    let foreign: Vec<&str> = names
        .filter(|name| *name != spec.id.as_str() && *name != "localhost")
        .filter(|name| !name.starts_with("ip6-"))
        .collect();
    check(foreign.is_empty(), || format!("{foreign:?} in {output}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn shared_memory_has_the_size_of_the_memory_limit<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script("df -k /dev/shm | tail -n 1; touch /dev/shm/x && echo writable");
    // Neither the default of a runtime nor a round number of it.
    spec.resources.memory = Bytes(96 << 20);
    spec.isolation.security_context = Some(SecurityContext {
        run_as_user: Some(1234),
        ..Default::default()
    });
    let end = s.run_to_end(&spec).await?;
    let size = end.output.split_whitespace().nth(1);
    check(
        size == Some("98304") && end.output.contains("writable"),
        || format!("{end:?}"),
    )
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn read_only_root_has_a_writable_tmp_in_memory<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script(
        "touch /x; echo '#!/bin/sh' > /tmp/x && chmod +x /tmp/x && /tmp/x && echo executable; \
         dd if=/dev/zero of=/tmp/big bs=1M count=60; echo ended $?",
    );
    spec.resources.memory = Bytes(32 << 20);
    spec.isolation.security_context = Some(SecurityContext {
        run_as_user: Some(1234),
        read_only_root_filesystem: Some(true),
        ..Default::default()
    });
    let end = s.run_to_end(&spec).await?;
    check(
        end.output.contains("Read-only") && end.output.contains("executable"),
        || format!("{end:?}"),
    )?;
    // A file larger than the memory fits nowhere.
    check(
        end.output.contains("ended 137") || end.reason == ExitReason::OomKilled,
        || format!("{end:?}"),
    )
}
