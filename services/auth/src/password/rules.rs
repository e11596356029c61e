//! What may be a password. Pure.

use agentbox_contracts::error::Error;
use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::identity::{MAX_PASSWORD, MIN_PASSWORD};

/// `field` is what the request calls it.
///
/// # Errors
/// Validation, naming the field; never the password.
pub fn check(field: &str, password: &Secret) -> Result<(), Error> {
    match password.0.chars().count() {
        MIN_PASSWORD..=MAX_PASSWORD => Ok(()),
        _ => Err(Error::field(
            field,
            format!("must have {MIN_PASSWORD} to {MAX_PASSWORD} characters"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_has_8_to_256_characters_of_any_kind() {
        for (password, good) in [
            (String::new(), false),
            ("1234567".to_owned(), false),
            ("12345678".to_owned(), true),
            ("пароль-1".to_owned(), true),
            ("x".repeat(256), true),
            ("x".repeat(257), false),
        ] {
            let verdict = check("new_password", &Secret(password.clone()));
            assert_eq!(verdict.is_ok(), good, "{password}");
            if let Err(error) = verdict {
                assert!(
                    error.message.starts_with("new_password:"),
                    "{}",
                    error.message
                );
            }
        }
    }
}
