//! What root in a box tries against the machine, and what it gets: nothing. The attempts
//! are Python scripts beside this file; each prints a line an attempt.
//!
//! * I1. What is refused is refused for lack of a right, not because the attempt was
//!   wrong: an `EINVAL` is a broken test, and fails the claim.
//! * I2. No attempt harms the machine when it succeeds.

use super::{End, Subject, Violation, claim};
use crate::address_ranges::{EVERYWHERE, networks};
use crate::{BoxConnector, BoxSpec, CAPABILITIES, NetworkPolicy, Runtime, SecurityContext};

type Outcome = Result<(), Violation>;

const ATTEMPTS: &str = include_str!("hostile/attempts.py");

/// How a refusal sounds: no right, or no such thing to begin with.
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

/// Every line of a script that ended well is a refusal.
///
/// # Errors
/// [`Violation`] with the lines that are not.
pub fn all_refused(end: &End, refusals: &[&str], least: usize) -> Outcome {
    let mut lines: Vec<&str> = end.output.lines().collect();
    claim(end.exit_code == 0 && lines.pop() == Some("done"), || {
        format!("the script did not end well: {end:?}")
    })?;
    claim(lines.len() >= least, || {
        format!("{} attempts, expected {least}: {end:?}", lines.len())
    })?;
    let refused = |line: &&str| {
        line.rsplit_once(": ")
            .is_some_and(|(_, why)| refusals.contains(&why))
    };
    let others: Vec<&str> = lines.into_iter().filter(|line| !refused(line)).collect();
    claim(others.is_empty(), || format!("not refused: {others:#?}"))
}

/// # Errors
/// When it does not hold.
pub async fn no_way_out_of_a_box_is_open<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let end = s
        .run_to_end(&python(s, include_str!("hostile/escape.py")))
        .await?;
    all_refused(&end, &REFUSALS, 90)
}

/// # Errors
/// When it does not hold.
pub async fn no_socket_that_could_forge_a_sender_is_opened<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let end = s
        .run_to_end(&python(s, include_str!("hostile/forge.py")))
        .await?;
    all_refused(&end, &REFUSALS, 13)
}

/// # Errors
/// When it does not hold.
pub async fn nothing_answers_over_ipv6<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = python(s, include_str!("hostile/ipv6.py"));
    spec.isolation.network_policy = Some(NetworkPolicy {
        allow_internet: true,
        allowed_egress_cidrs: networks(&EVERYWHERE).collect(),
        allow_cluster_internal: true,
        ..Default::default()
    });
    let end = s.run_to_end(&spec).await?;
    // No route, no neighbour, a refusal on the way; or nothing for a second.
    let silences = [
        "ENETUNREACH",
        "EHOSTUNREACH",
        "EADDRNOTAVAIL",
        "EACCES",
        "ECONNREFUSED",
        "EINVAL",
        "ETIMEDOUT",
        "None",
    ];
    all_refused(&end, &silences, 20)
}

/// # Errors
/// When it does not hold.
pub async fn the_token_of_boxd_is_nowhere_to_be_found<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = python(s, include_str!("hostile/token.py"));
    "a-token-that-nobody-finds-7f3a".clone_into(&mut spec.boxd_token);
    let backwards: String = spec.boxd_token.chars().rev().collect();
    spec.env.insert("NEKOT".to_owned(), backwards);
    let end = s.run_to_end(&spec).await?;
    // Where the script itself puts it, it is found; and nowhere else.
    claim(
        end.exit_code == 0 && end.output == "/tmp/control: ALLOWED\ndone",
        || format!("{end:?}"),
    )
}

/// # Errors
/// When it does not hold.
pub async fn boxd_does_nothing_for_who_has_no_token<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = python(s, include_str!("hostile/boxd.py"));
    let backwards: String = spec.boxd_token.chars().rev().collect();
    spec.env.insert("NEKOT".to_owned(), backwards);
    let end = s.run_to_end(&spec).await?;
    let expected = "no token: none\nwrong token: none\nempty token: none\n\
                    right token: ALLOWED None\ndone";
    claim(end.exit_code == 0 && end.output == expected, || {
        format!("{end:?}")
    })
}

/// A line of `/proc/self/status`, in whatever base.
fn status<'a>(output: &'a str, name: &str) -> Result<&'a str, Violation> {
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(str::trim)
        .ok_or_else(|| Violation(format!("no {name} in {output}")))
}

/// Bits as in `<linux/capability.h>`.
const BITS: [(&str, u32); 10] = [
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

fn documented() -> u64 {
    BITS.iter()
        .filter(|(name, _)| CAPABILITIES.contains(name))
        .map(|(_, bit)| 1u64 << bit)
        .sum()
}

/// # Errors
/// When it does not hold.
pub async fn rights_are_exactly_the_documented_ones<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let of = |output: &str, name: &str| {
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
    for (who, end, effective) in [("root", &root, documented()), ("a user", &user, 0)] {
        for (name, expected) in [
            ("CapBnd", documented()),
            ("CapPrm", effective),
            ("CapEff", effective),
            ("CapInh", 0),
            ("CapAmb", 0),
            ("NoNewPrivs", 1),
            ("Seccomp", 2),
        ] {
            let held = of(&end.output, name)?;
            claim(held == expected, || {
                format!("{who}: {name} is {held:x}, expected {expected:x}")
            })?;
        }
    }
    Ok(())
}

/// # Errors
/// When it does not hold.
pub async fn a_setuid_program_gains_nothing_unless_it_may<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    for (may, effective) in [(None, "1000"), (Some(false), "1000"), (Some(true), "0")] {
        let mut spec = python(s, include_str!("hostile/setuid.py"));
        spec.isolation.security_context = may.map(|may| SecurityContext {
            allow_privilege_escalation: Some(may),
            ..Default::default()
        });
        let end = s.run_to_end(&spec).await?;
        let ids = status(&end.output, "Uid")?;
        claim(ids.split_whitespace().nth(1) == Some(effective), || {
            format!("allow_privilege_escalation: {may:?}: {ids}")
        })?;
        let no_new_privileges = status(&end.output, "NoNewPrivs")?;
        let expected = if may == Some(true) { "0" } else { "1" };
        claim(no_new_privileges == expected, || {
            format!("{may:?}: NoNewPrivs is {no_new_privileges}")
        })?;
    }
    Ok(())
}
