//! What it means when the API server refuses a Pod. Pure.

use agentbox_runtime::FailureReason;

use crate::facts::Failure;
use crate::objects;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The cluster has not caught up with what was made a moment ago.
    NotYet,
    /// It will never be made.
    Final(Failure),
    /// It will not be made if this lasts: a usage that is not counted anew yet, or a class that
    /// the API server has not seen yet.
    FinalIfItLasts(Failure),
    /// Anything else.
    Unknown,
}

/// By status code and words.
pub fn classify(code: u16, message: &str) -> Refusal {
    let said = message.to_lowercase();
    let says = |part: &str| said.contains(part);
    let failure = |reason| Failure {
        reason,
        message: message.chars().take(500).collect(),
    };
    let failed = |reason| Refusal::Final(failure(reason));
    let lasting = |reason| Refusal::FinalIfItLasts(failure(reason));
    match code {
        403 if says("status unknown for quota") => Refusal::NotYet,
        403 if says("serviceaccount") && says("not found") => Refusal::NotYet,
        // Our own is full of creations that were cut off; they are forgotten in time.
        403 if says(&format!("exceeded quota: {},", objects::QUOTA)) => Refusal::NotYet,
        403 if says("exceeded quota") && uses_nothing(&said) => failed(FailureReason::Quota),
        403 if says("exceeded quota") => lasting(FailureReason::Quota),
        403 if says("runtimeclass") => lasting(FailureReason::RuntimeClass),
        403 if says("being terminated") => Refusal::Unknown,
        // A limit range, a security standard or another admission policy.
        403 if says("maximum") || says("minimum") => failed(FailureReason::Quota),
        403 if says("violates podsecurity") => failed(FailureReason::Unschedulable),
        422 if says("image") => failed(FailureReason::ImageInvalid),
        422 => failed(FailureReason::Unschedulable),
        _ => Refusal::Unknown,
    }
}

/// Whether a quota is exceeded by the Pod alone: `…, used: limits.memory=0, limited: …`.
fn uses_nothing(said: &str) -> bool {
    let Some((_, used)) = said.split_once("used: ") else {
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
    fn a_refusal_is_told_by_its_words() {
        let of = |refusal: Refusal| match refusal {
            Refusal::Final(failure) => Ok((failure.reason, false)),
            Refusal::FinalIfItLasts(failure) => Ok((failure.reason, true)),
            other => Err(other),
        };
        for (code, message, expected) in [
            (
                403,
                "pods \"main\" is forbidden: status unknown for quota: box, resources: pods",
                Err(Refusal::NotYet),
            ),
            (
                403,
                "pods \"main\" is forbidden: error looking up service account a/box: \
                 serviceaccount \"box\" not found",
                Err(Refusal::NotYet),
            ),
            (
                403,
                "pods \"main\" is forbidden: exceeded quota: box, requested: pods=1, used: pods=4",
                Err(Refusal::NotYet),
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
                Err(Refusal::Unknown),
            ),
            (
                422,
                "Pod \"main\" is invalid: spec.containers[0].image: Required value",
                Ok((FailureReason::ImageInvalid, false)),
            ),
            (500, "etcdserver: request timed out", Err(Refusal::Unknown)),
        ] {
            assert_eq!(of(classify(code, message)), expected, "{message}");
        }
    }
}
