//! Starts with an `Idempotency-Key`. Pure.
//!
//! The id of such an execution is a hash of its user, its environment and the key. So boxd, which
//! answers an id that it knows with its execution, makes the start idempotent, and no service stores
//! the key: it is known as long as the execution. A hash of the request is kept as a label, which is not
//! shown; a repeated key with another request is detected by it.

use std::collections::HashMap;

use agentbox_api::execution::StartExecution;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::executions::Execution;
use agentbox_contracts::ids::{EnvironmentId, ExecId, RANDOM_LEN, UserId};
use sha2::{Digest, Sha256};

/// The prefix of labels that clients neither set nor see.
const RESERVED_PREFIX: &str = "agentbox.io/";
const REQUEST_LABEL: &str = "agentbox.io/request";
/// Characters of the hash in the label.
const HASH_LENGTH: usize = 32;

/// The id that a key stands for.
pub(super) fn id(user: &UserId, environment: &EnvironmentId, key: &str) -> ExecId {
    // Ids have a fixed length, so the parts cannot be confused.
    let hash = Sha256::new()
        .chain_update(user.as_str())
        .chain_update(environment.as_str())
        .chain_update(key)
        .finalize();
    let mut bytes = [0; RANDOM_LEN];
    for (byte, hashed) in bytes.iter_mut().zip(hash) {
        *byte = hashed;
    }
    ExecId::from_hash(bytes)
}

/// The hash of a request: equal for bodies with the same fields, however they are written.
pub(super) fn request_hash(body: &StartExecution) -> String {
    // Plain data with string keys always serializes, its maps in their order.
    let json = serde_json::to_vec(body).unwrap_or_default();
    let hash = Sha256::digest(json);
    let mut text: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(HASH_LENGTH);
    text
}

/// Adds the hash to the labels of an execution.
pub(super) fn add(labels: &mut HashMap<String, String>, hash: String) {
    labels.insert(REQUEST_LABEL.to_owned(), hash);
}

/// Checks that an execution was started by the request with this hash.
///
/// # Errors
/// [`ErrorCode::IdempotencyConflict`]
pub(super) fn check(execution: &Execution, hash: &str) -> Result<(), Error> {
    if execution.labels.get(REQUEST_LABEL).map(String::as_str) == Some(hash) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::IdempotencyConflict,
        "Idempotency-Key: was used before with another body",
    ))
}

/// Whether a label is not for clients.
pub(super) fn is_reserved(label: &str) -> bool {
    label.starts_with(RESERVED_PREFIX)
}

/// Removes the labels that clients do not see.
pub(super) fn hide(mut execution: Execution) -> Execution {
    execution.labels.retain(|label, _| !is_reserved(label));
    execution
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_depends_on_user_environment_and_key() {
        let (user, environment) = (UserId::random(), EnvironmentId::random());
        let first = id(&user, &environment, "k");
        assert_eq!(first, id(&user, &environment, "k"));
        assert_eq!(first.as_str().parse::<ExecId>(), Ok(first.clone()));
        assert_ne!(first, id(&user, &environment, "l"));
        assert_ne!(first, id(&UserId::random(), &environment, "k"));
        assert_ne!(first, id(&user, &EnvironmentId::random(), "k"));
    }

    #[test]
    fn repeated_key_with_another_body_is_a_conflict() {
        let read = |json: &str| request_hash(&serde_json::from_str(json).unwrap());
        let hash = read(r#"{"command":["a"],"env":{"A":"1","B":"2"}}"#);
        assert_eq!(hash, read(r#"{"env":{"B":"2","A":"1"}, "command":["a"]}"#));
        let mut execution = Execution::default();
        add(&mut execution.labels, hash.clone());
        execution.labels.insert("step".into(), "1".into());
        assert_eq!(check(&execution, &hash), Ok(()));
        let other = read(r#"{"command":["a"],"env":{"A":"1","B":"3"}}"#);
        let error = check(&execution, &other).unwrap_err();
        assert_eq!(error.code, ErrorCode::IdempotencyConflict);
        let shown = hide(execution);
        assert_eq!(shown.labels.len(), 1);
        assert!(check(&shown, &hash).is_err());
    }
}
