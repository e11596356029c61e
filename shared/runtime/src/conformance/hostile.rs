//! Attacks by root in a box against the machine, all of which must fail. The attacks are Python
//! scripts beside this file; each prints a line for each attempt.
//!
//! * I1. An attempt must fail for lack of a right and not because it was malformed: an `EINVAL` is
//!   a broken test.
//! * I2. No attempt harms the machine when it succeeds.

use agentbox_box_protocol::client::start_http2;
use agentbox_box_protocol::proto::StatusRequest;
use agentbox_box_protocol::tls;
use agentbox_box_protocol::token::BoxToken;
use tonic::Code;

use super::boxd::{exec, failed};
use super::{End, Subject, Violation, check};
use crate::address_ranges::{EVERYWHERE, networks};
use crate::{
    BoxConnector, BoxSpec, CAPABILITIES, ExitReason, NetworkPolicy, Runtime, SecurityContext,
};

type Outcome = Result<(), Violation>;

const ATTEMPTS: &str = include_str!("hostile/attempts.py");

/// The outcomes of a refused attempt: no right, or no such object.
const REFUSALS: [&str; 14] = [
    "EPERM",
    "EACCES",
    "EROFS",
    "ENOSYS",
    "ENOENT",
    "ENXIO",
    "ENODEV",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "empty",
    "none",
    "none there",
    "not on this machine",
];

/// A box whose main command is a Python script, as root.
pub fn python<D: Runtime + BoxConnector>(s: &Subject<D>, script: &str) -> BoxSpec {
    let mut spec = s.spec();
    spec.image.clone_from(&s.python);
    let script = format!("{ATTEMPTS}{script}");
    spec.command = Some(vec!["python3".to_owned(), "-c".to_owned(), script]);
    spec
}

/// Gives the script its box's token reversed, so that the variable is not what the script searches for.
fn insert_reversed_token(spec: &mut BoxSpec) {
    let reversed: String = spec.boxd_token.chars().rev().collect();
    spec.env.insert("NEKOT".to_owned(), reversed);
}

/// Checks that a script succeeded and that each of its attempts was refused.
///
/// # Errors
/// [`Violation`] with the attempts that were not refused.
pub fn all_refused(end: &End, refusals: &[&str], min_attempts: usize) -> Outcome {
    let mut lines: Vec<&str> = end.output.lines().collect();
    check(end.exit_code == 0 && lines.pop() == Some("done"), || {
        format!("the script did not end well: {end:?}")
    })?;
    check(lines.len() >= min_attempts, || {
        format!("{} attempts, expected {min_attempts}: {end:?}", lines.len())
    })?;
    let refused = |line: &&str| {
        line.rsplit_once(": ")
            .is_some_and(|(_, why)| refusals.contains(&why))
    };
    let others: Vec<&str> = lines.into_iter().filter(|line| !refused(line)).collect();
    check(others.is_empty(), || format!("not refused: {others:#?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn escape_attempts_are_refused<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let end = s
        .run_to_end(&python(s, include_str!("hostile/escape.py")))
        .await?;
    all_refused(&end, &REFUSALS, 90)
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn sender_forging_sockets_are_refused<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let end = s
        .run_to_end(&python(s, include_str!("hostile/forge.py")))
        .await?;
    all_refused(&end, &REFUSALS, 13)
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn ipv6_probes_get_no_answer<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = python(s, include_str!("hostile/ipv6.py"));
    spec.isolation.network_policy = Some(NetworkPolicy {
        allow_internet: true,
        allowed_egress_cidrs: networks(&EVERYWHERE).collect(),
        allow_cluster_internal: true,
        ..Default::default()
    });
    let end = s.run_to_end(&spec).await?;
    // No route, no neighbour, a refusal on the way; or no answer within a second.
    let refusals = [
        "ENETUNREACH",
        "EHOSTUNREACH",
        "EADDRNOTAVAIL",
        "EACCES",
        "ECONNREFUSED",
        "EINVAL",
        "EPERM",
        "ETIMEDOUT",
        "None",
    ];
    all_refused(&end, &refusals, 20)
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn boxd_token_is_not_readable_in_the_box<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = python(s, include_str!("hostile/token.py"));
    "a-token-that-is-not-found-7f3a".clone_into(&mut spec.boxd_token);
    insert_reversed_token(&mut spec);
    let end = s.run_to_end(&spec).await?;
    // The control: the script finds the token in a file that it wrote itself.
    check(
        end.exit_code == 0 && end.output == "/tmp/control: ALLOWED\ndone",
        || format!("{end:?}"),
    )
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn boxd_refuses_calls_without_token<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = python(s, include_str!("hostile/boxd.py"));
    insert_reversed_token(&mut spec);
    let end = s.run_to_end(&spec).await?;
    let expected = "no token: none\nwrong token: none\nempty token: none\n\
                    right token: none\ndone";
    check(end.exit_code == 0 && end.output == expected, || {
        format!("{end:?}")
    })?;

    // Over TLS, as the services call it, the token decides.
    let spec = s.spec();
    let address = s.run(&spec).await?;
    let right = BoxToken::parse(&spec.boxd_token).map_err(failed)?;
    let wrong = BoxToken::parse("wrong").map_err(failed)?;
    for (token, expected) in [(&right, Code::Ok), (&wrong, Code::Unauthenticated)] {
        let stream = s.first.connect(&spec.id, address).await?;
        let encrypted = tls::connect(stream, &right).await.map_err(failed)?;
        let mut boxd = start_http2(encrypted, token).await.map_err(failed)?;
        let answer = boxd.status(StatusRequest {}).await;
        let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
        check(code == expected, || format!("{code:?}, not {expected:?}"))?;
    }
    // A client does not take one box for another.
    let stream = s.first.connect(&spec.id, address).await?;
    let taken = tls::connect(stream, &wrong).await;
    check(taken.is_err(), || {
        "another box's key is accepted".to_owned()
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn boxd_files_are_closed_to_other_users_of_the_box<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let end = s
        .run_to_end(&python(s, include_str!("hostile/files.py")))
        .await?;
    all_refused(&end, &REFUSALS, 5)
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn forged_report_does_not_change_the_exit_code<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let end = s
        .run_to_end(&python(s, include_str!("hostile/report.py")))
        .await?;
    check(
        (end.exit_code, end.reason) == (7, ExitReason::Exited),
        || format!("{end:?}"),
    )
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn filled_report_is_emptied_and_does_not_change_the_exit_code<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let end = s
        .run_to_end(&python(s, include_str!("hostile/fill_report.py")))
        .await?;
    check(
        (end.exit_code, end.reason) == (7, ExitReason::Exited),
        || format!("{end:?}"),
    )
}

/// The value of a line of `/proc/self/status`.
fn status<'a>(output: &'a str, name: &str) -> Result<&'a str, Violation> {
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(str::trim)
        .ok_or_else(|| Violation(format!("no {name} in {output}")))
}

/// Bits as in `<linux/capability.h>`.
const CAPABILITY_BITS: [(&str, u32); 10] = [
    ("CHOWN", 0),
    ("DAC_OVERRIDE", 1),
    ("FOWNER", 3),
    ("FSETID", 4),
    ("KILL", 5),
    ("SETGID", 6),
    ("SETUID", 7),
    ("SETPCAP", 8),
    ("NET_BIND_SERVICE", 10),
    ("SETFCAP", 31),
];

/// The documented capabilities as a bit set.
fn documented_capabilities() -> u64 {
    CAPABILITY_BITS
        .iter()
        .filter(|(name, _)| CAPABILITIES.contains(name))
        .map(|(_, bit)| 1u64 << bit)
        .sum()
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn capabilities_are_exactly_the_documented_ones<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let number = |output: &str, name: &str| {
        let text = status(output, name)?;
        u64::from_str_radix(text, 16).map_err(|_| Violation(format!("{name} is {text}")))
    };
    let root = s.run_to_end(&s.script("cat /proc/self/status")).await?;
    let mut as_user = s.script("cat /proc/self/status");
    as_user.isolation.security_context = Some(SecurityContext {
        run_as_user: Some(1000),
        ..Default::default()
    });
    let user = s.run_to_end(&as_user).await?;
    for (user_name, end, effective) in [
        ("root", &root, documented_capabilities()),
        ("a user", &user, 0),
    ] {
        for (name, expected) in [
            ("CapBnd", documented_capabilities()),
            ("CapPrm", effective),
            ("CapEff", effective),
            ("CapInh", 0),
            ("CapAmb", 0),
            ("NoNewPrivs", 1),
            ("Seccomp", 2),
        ] {
            let actual = number(&end.output, name)?;
            check(actual == expected, || {
                format!("{user_name}: {name} is {actual:x}, expected {expected:x}")
            })?;
        }
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn setuid_program_gains_root_only_when_allowed<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    for (allowed, effective) in [(None, "1000"), (Some(false), "1000"), (Some(true), "0")] {
        let mut spec = python(s, include_str!("hostile/setuid.py"));
        spec.isolation.security_context = allowed.map(|allowed| SecurityContext {
            allow_privilege_escalation: Some(allowed),
            ..Default::default()
        });
        let end = s.run_to_end(&spec).await?;
        let ids = status(&end.output, "Uid")?;
        check(ids.split_whitespace().nth(1) == Some(effective), || {
            format!("allow_privilege_escalation: {allowed:?}: {ids}")
        })?;
        let no_new_privileges = status(&end.output, "NoNewPrivs")?;
        let expected = if allowed == Some(true) { "0" } else { "1" };
        check(no_new_privileges == expected, || {
            format!("{allowed:?}: NoNewPrivs is {no_new_privileges}")
        })?;
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn each_box_has_user_ids_of_its_own<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    if s.differences.shares_user_ids {
        return Ok(());
    }
    let mut first_ids = Vec::new();
    for _ in 0..2 {
        // An idle box stays, so that its ids are not free.
        let spec = s.spec();
        s.run(&spec).await?;
        for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
            let (text, code) = exec(s, &spec, &["cat", map]).await?;
            let numbers: Vec<u64> = text
                .split_whitespace()
                .filter_map(|number| number.parse().ok())
                .collect();
            let is_own = matches!(numbers[..], [0, first, 65_536] if first >= 65_536);
            check(code == 0 && is_own, || format!("{map}: {text}"))?;
            first_ids.push(numbers[1]);
        }
        let script = "touch /own /tmp/own && chown 1000:1000 /own && \
                      stat -c %u:%g /own /tmp/own /etc/hosts /bin/sh /dev/shm /dev/pts \
                      /dev/pts/ptmx";
        let (owners, code) = exec(s, &spec, &["sh", "-c", script]).await?;
        let found: Vec<&str> = owners.split_whitespace().collect();
        check(
            code == 0 && found == ["1000:1000", "0:0", "0:0", "0:0", "0:0", "0:0", "0:0"],
            || format!("files have other owners in the box: {code} {owners:?}"),
        )?;
    }
    check(
        first_ids[0] == first_ids[1] && first_ids[0] != first_ids[2],
        || format!("two boxes have the same ids: {first_ids:?}"),
    )
}
