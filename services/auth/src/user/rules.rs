//! The rules for names, emails and the last administrator. Pure.

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{MAX_EMAIL, MAX_USERNAME, Role};

/// Checks a username.
///
/// # Errors
/// Validation, naming the field.
pub fn username(text: &str) -> Result<(), Error> {
    let is_valid = (1..=MAX_USERNAME).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if is_valid {
        Ok(())
    } else {
        Err(Error::value(
            "username",
            format_args!("must have 1 to {MAX_USERNAME} characters of a-z A-Z 0-9 . _ -"),
            text,
        ))
    }
}

/// Checks an email address: one `@` with text on both sides. Delivery is not checked.
///
/// # Errors
/// Validation, naming the field.
pub fn email(text: &str) -> Result<(), Error> {
    let parts: Vec<&str> = text.split('@').collect();
    let is_valid = text.len() <= MAX_EMAIL
        && !text.chars().any(|c| c.is_control() || c.is_whitespace())
        && matches!(parts.as_slice(), [local, domain] if !local.is_empty() && !domain.is_empty());
    if is_valid {
        Ok(())
    } else {
        Err(Error::value(
            "email",
            format_args!("must be an address of at most {MAX_EMAIL} bytes"),
            text,
        ))
    }
}

/// Checks that a user may lose its role. `other_admins` is the number of administrators besides
/// that user.
///
/// # Errors
/// Conflict when no administrator would be left.
pub fn may_lose_admin(role: Role, other_admins: u64) -> Result<(), Error> {
    if role == Role::Admin && other_admins == 0 {
        return Err(Error::new(
            ErrorCode::Conflict,
            "the last administrator cannot be removed: make another user an administrator first",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn username_is_checked_for_length_and_characters() {
        let longest = "a".repeat(64);
        for good in ["a", "Alice.B_c-9", longest.as_str()] {
            assert!(username(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "é", "a@b", "a\0", &"a".repeat(65)] {
            assert!(
                username(bad).unwrap_err().message.starts_with("username:"),
                "{bad}"
            );
        }
    }

    #[test]
    fn email_is_checked_for_one_at_sign_and_no_blanks() {
        let longest = format!("{}@b", "a".repeat(252));
        for good in ["a@b", "a.b+c@example.com", longest.as_str()] {
            assert!(email(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "@b",
            "a@",
            "a@b@c",
            "a b@c",
            "a\0@c",
            &format!("{longest}b"),
        ] {
            assert!(
                email(bad).unwrap_err().message.starts_with("email:"),
                "{bad}"
            );
        }
    }

    #[test]
    fn last_administrator_cannot_lose_the_role() {
        for (role, others, allowed) in [
            (Role::Admin, 0, false),
            (Role::Admin, 1, true),
            (Role::User, 0, true),
        ] {
            assert_eq!(
                may_lose_admin(role, others).is_ok(),
                allowed,
                "{role:?} {others}"
            );
        }
    }
}
