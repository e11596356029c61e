//! The rules of a spec that hold on every cluster, and their messages.

use agentbox_contracts::units::Bytes;

use crate::{BoxSpec, PreflightError};

/// The memory that runc needs to start a container.
pub const MIN_MEMORY: Bytes = Bytes(8 << 20);

/// Checks the rules that need no cluster.
///
/// # Errors
/// The first rule that the spec breaks.
pub fn check_spec(spec: &BoxSpec) -> Result<(), PreflightError> {
    if let Some(asked) = &spec.isolation.security_context {
        if asked.run_as_non_root == Some(true) && asked.run_as_user == Some(0) {
            return Err(PreflightError {
                field: "isolation.security_context.run_as_non_root",
                message: "run_as_user is 0, which is root".to_owned(),
            });
        }
        if asked.run_as_group.is_some() && asked.run_as_user.is_none() {
            return Err(PreflightError {
                field: "isolation.security_context.run_as_group",
                message: "run_as_group needs run_as_user".to_owned(),
            });
        }
    }
    if spec.resources.memory < MIN_MEMORY {
        return Err(PreflightError {
            field: "resources.memory",
            message: format!("a box needs at least {MIN_MEMORY}"),
        });
    }
    Ok(())
}

/// Whether the operator allows a runtime class. Without a list every class is allowed.
#[must_use]
pub fn is_allowed_runtime_class(class: &str, allowed: Option<&[String]>) -> bool {
    allowed.is_none_or(|allowed| allowed.iter().any(|one| one == class))
}

/// Checks a runtime class against those that the cluster has and its operator allows.
///
/// # Errors
/// When the cluster does not have it.
pub fn check_runtime_class<'a>(
    class: &str,
    available: impl IntoIterator<Item = &'a String>,
) -> Result<(), PreflightError> {
    let available: Vec<&str> = available.into_iter().map(String::as_str).collect();
    if available.contains(&class) {
        return Ok(());
    }
    Err(PreflightError {
        field: "isolation.runtime_class",
        message: format!(
            "`{}` is not a runtime class of this cluster; it has: {}",
            printable(class),
            available.join(", ")
        ),
    })
}

/// The error for a value of a request that the cluster's operator does not allow.
#[must_use]
pub fn not_allowed<'a>(
    field: &'static str,
    value: &str,
    allowed: impl IntoIterator<Item = &'a str>,
) -> PreflightError {
    let allowed: Vec<&str> = allowed.into_iter().collect();
    let allowed = if allowed.is_empty() {
        "nothing".to_owned()
    } else {
        allowed.join(", ")
    };
    PreflightError {
        field,
        message: format!(
            "`{}` is not allowed on this cluster; it allows: {allowed}",
            printable(value)
        ),
    }
}

/// The error for a selector that no node matches.
#[must_use]
pub fn no_node_matches(selector: &str) -> PreflightError {
    PreflightError {
        field: "node_selector",
        message: format!("no node of this cluster has `{}`", printable(selector)),
    }
}

/// A user's text within an error message: bounded, on one line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(130).collect()
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::SecurityContext;

    use super::*;
    use crate::conformance::example_spec;

    fn security(user: Option<u32>, group: Option<u32>) -> Option<SecurityContext> {
        Some(SecurityContext {
            run_as_user: user,
            run_as_group: group,
            run_as_non_root: Some(true),
            ..Default::default()
        })
    }

    #[test]
    fn spec_that_can_run_nowhere_returns_its_field() {
        let example = || example_spec(|_| {});
        let with_security =
            |context| example_spec(|spec| spec.isolation.security_context = context);
        let with_memory = |bytes| example_spec(|spec| spec.resources.memory = Bytes(bytes));
        for (spec, field) in [
            (example(), None),
            (
                with_security(security(Some(0), None)),
                Some("isolation.security_context.run_as_non_root"),
            ),
            (
                with_security(security(None, Some(5))),
                Some("isolation.security_context.run_as_group"),
            ),
            (with_security(security(Some(5), Some(5))), None),
            (with_memory(1 << 20), Some("resources.memory")),
            (with_memory(MIN_MEMORY.0), None),
        ] {
            let got = check_spec(&spec).err().map(|error| error.field);
            assert_eq!(got, field, "{spec:?}");
        }
    }

    #[test]
    fn value_that_is_not_allowed_returns_the_allowed_ones() {
        for (allowed, expected) in [
            (
                &[][..],
                "node_selector: `disk` is not allowed on this cluster; it allows: nothing",
            ),
            (
                &["gpu", "zone"],
                "node_selector: `disk` is not allowed on this cluster; it allows: gpu, zone",
            ),
        ] {
            let error = not_allowed("node_selector", "disk\n", allowed.iter().copied());
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn every_runtime_class_is_allowed_without_a_list() {
        let only_gvisor = ["gvisor".to_owned()];
        for (class, allowed, expected) in [
            ("runc", None, true),
            ("runc", Some(&[][..]), false),
            ("runc", Some(&only_gvisor[..]), false),
            ("gvisor", Some(&only_gvisor[..]), true),
        ] {
            assert_eq!(
                is_allowed_runtime_class(class, allowed),
                expected,
                "{class}"
            );
        }
    }

    #[test]
    fn unknown_runtime_class_returns_the_available_ones() {
        let available = ["gvisor".to_owned(), "runc".to_owned()];
        assert!(check_runtime_class("gvisor", &available).is_ok());
        let error = check_runtime_class("ka\nta", &available).unwrap_err();
        assert_eq!(
            error.to_string(),
            "isolation.runtime_class: `kata` is not a runtime class of this cluster; \
             it has: gvisor, runc"
        );
    }
}
