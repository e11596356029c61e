//! Classifies the API server's rejection of a Pod. Pure.

use agentbox_runtime::FailureReason;

use crate::box_state::Failure;
use crate::objects;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The cluster has not seen an object that was created a moment ago.
    Retry,
    /// No later attempt can succeed.
    Final(Failure),
    /// Final at the deadline: until then the usage of a quota may be stale, or a new runtime
    /// class may not be known yet.
    FinalAtDeadline(Failure),
    /// Anything else.
    Unknown,
}

/// Classifies by status code and message.
pub fn classify(code: u16, message: &str) -> Rejection {
    let lower = message.to_lowercase();
    let contains = |part: &str| lower.contains(part);
    let failure = |reason| Failure {
        reason,
        message: message.chars().take(500).collect(),
    };
    let permanent = |reason| Rejection::Final(failure(reason));
    let at_deadline = |reason| Rejection::FinalAtDeadline(failure(reason));
    match code {
        403 if contains("status unknown for quota") => Rejection::Retry,
        403 if contains("serviceaccount") && contains("not found") => Rejection::Retry,
        // Interrupted creations count against our own quota until its controller recounts.
        403 if contains(&format!("exceeded quota: {},", objects::QUOTA)) => Rejection::Retry,
        403 if contains("exceeded quota") && uses_nothing(&lower) => {
            permanent(FailureReason::Quota)
        }
        403 if contains("exceeded quota") => at_deadline(FailureReason::Quota),
        403 if contains("runtimeclass") => at_deadline(FailureReason::RuntimeClass),
        403 if contains("being terminated") => Rejection::Unknown,
        // A limit range, a security standard or another admission policy.
        403 if contains("maximum") || contains("minimum") => permanent(FailureReason::Quota),
        403 if contains("violates podsecurity") => permanent(FailureReason::Unschedulable),
        422 if contains("image") => permanent(FailureReason::ImageInvalid),
        422 => permanent(FailureReason::Unschedulable),
        _ => Rejection::Unknown,
    }
}

/// Whether a quota is exceeded by the Pod alone: `…, used: limits.memory=0, limited: …`.
fn uses_nothing(message: &str) -> bool {
    let Some((_, used)) = message.split_once("used: ") else {
        return false;
    };
    let used = used.split_once(", limited").map_or(used, |(used, _)| used);
    used.split(',').all(|part| {
        part.split_once('=')
            .is_some_and(|(_, amount)| amount.trim() == "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejection_is_classified_by_its_text() {
        let outcome = |rejection: Rejection| match rejection {
            Rejection::Final(failure) => Ok((failure.reason, false)),
            Rejection::FinalAtDeadline(failure) => Ok((failure.reason, true)),
            other => Err(other),
        };
        for (code, message, expected) in [
            (
                403,
                "pods \"main\" is forbidden: status unknown for quota: box, resources: pods",
                Err(Rejection::Retry),
            ),
            (
                403,
                "pods \"main\" is forbidden: error looking up service account a/box: \
                 serviceaccount \"box\" not found",
                Err(Rejection::Retry),
            ),
            (
                403,
                "pods \"main\" is forbidden: exceeded quota: box, requested: pods=1, used: pods=4",
                Err(Rejection::Retry),
            ),
            (
                403,
                "pods \"main\" is forbidden: exceeded quota: team, requested: pods=1, used: pods=4, \
                 limited: pods=4",
                Ok((FailureReason::Quota, true)),
            ),
            (
                403,
                "pods \"main\" is forbidden: exceeded quota: team, \
                 requested: limits.cpu=1,limits.memory=64Mi, used: limits.cpu=0,limits.memory=0, \
                 limited: limits.cpu=2,limits.memory=1Mi",
                Ok((FailureReason::Quota, false)),
            ),
            (
                403,
                "pods \"main\" is forbidden: pod rejected: RuntimeClass \"gvisor\" not found",
                Ok((FailureReason::RuntimeClass, true)),
            ),
            (
                403,
                "pods \"main\" is forbidden: unable to create new content in namespace x \
                 because it is being terminated",
                Err(Rejection::Unknown),
            ),
            (
                422,
                "Pod \"main\" is invalid: spec.containers[0].image: Required value",
                Ok((FailureReason::ImageInvalid, false)),
            ),
            (
                500,
                "etcdserver: request timed out",
                Err(Rejection::Unknown),
            ),
        ] {
            assert_eq!(outcome(classify(code, message)), expected, "{message}");
        }
    }
}
