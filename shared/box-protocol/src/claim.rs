//! Identifies the claim of a warm box: what boxd is given once, by `Configure`.
//!
//! boxd and the drivers compute it, and compare it: the same claim again changes nothing. boxd records it
//! before the main command is started ([`crate::termination`]), so that it is known after boxd's end.
//!
//! * I1. It is a digest, because variables are secret. It begins with the box's token, so that nobody
//!   who reads it can try values.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::proto::ConfigureRequest;
use crate::token::BoxToken;

/// The claim of the box with this token by `request`, in lower-case hex.
#[must_use]
pub fn identify(token: &BoxToken, request: &ConfigureRequest) -> String {
    let ConfigureRequest {
        command,
        env,
        owner,
        run_as_user,
    } = request;
    // A map of the message has no order.
    let env: BTreeMap<&String, &String> = env.iter().collect();
    let mut digest = Sha256::new();
    // The lengths keep apart what would have the same bytes otherwise.
    digest.update(format!("{} {} {run_as_user:?} ", command.len(), env.len()));
    let texts = [token.expose(), owner.as_str()]
        .into_iter()
        .chain(command.iter().map(String::as_str))
        .chain(
            env.into_iter()
                .flat_map(|(name, value)| [name.as_str(), value]),
        );
    for text in texts {
        digest.update(format!("{} ", text.len()));
        digest.update(text);
    }
    hex::encode(digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> BoxToken {
        BoxToken::parse(text).unwrap()
    }

    fn request(owner: &str, command: &[&str], env: &[(&str, &str)]) -> ConfigureRequest {
        ConfigureRequest {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            owner: owner.to_owned(),
            run_as_user: None,
        }
    }

    #[test]
    fn claim_is_identified_by_the_token_and_all_of_the_request() {
        let mine = token("mine");
        let first = identify(
            &mine,
            &request("o", &["sh", "-c"], &[("A", "1"), ("B", "2")]),
        );
        let reordered = request("o", &["sh", "-c"], &[("B", "2"), ("A", "1")]);
        assert_eq!(identify(&mine, &reordered), first);
        assert_ne!(identify(&token("other"), &reordered), first);
        for other in [
            request("p", &["sh", "-c"], &[("A", "1"), ("B", "2")]),
            request("o", &["sh-c"], &[("A", "1"), ("B", "2")]),
            request("o", &["sh", "-c", "A", "1"], &[("B", "2")]),
            request("o", &["sh", "-c"], &[("A", "2"), ("B", "1")]),
            request("o", &["sh", "-c"], &[("A", "1")]),
        ] {
            assert_ne!(identify(&mine, &other), first, "{other:?}");
        }
        let of_user = ConfigureRequest {
            run_as_user: Some(0),
            ..reordered
        };
        assert_ne!(identify(&mine, &of_user), first);
    }
}
