//! The rules for a new key. Pure.

use std::collections::BTreeSet;

use agentbox_contracts::error::Error;
use agentbox_contracts::identity::rpc::CreateKeyRequest;
use agentbox_contracts::identity::{MAX_KEY_DAYS, MAX_KEY_DESCRIPTION, MAX_KEY_PERMISSIONS};
use chrono::{DateTime, Days, Utc};

/// Checks a request for a new key.
///
/// # Errors
/// Validation, naming the field as the public API does.
pub fn check(request: &CreateKeyRequest) -> Result<(), Error> {
    if let Some(description) = &request.description {
        let length = description.chars().count();
        if length > MAX_KEY_DESCRIPTION {
            return Err(Error::field(
                "description",
                format_args!("must have at most {MAX_KEY_DESCRIPTION} characters, has {length}"),
            ));
        }
        if description.contains('\0') {
            return Err(Error::field("description", "must not contain NUL"));
        }
    }
    if let Some(days) = request.expires_in_days
        && !(1..=MAX_KEY_DAYS).contains(&days)
    {
        let rule = format_args!("must be 1 to {MAX_KEY_DAYS} days");
        return Err(Error::value("expires_in", rule, days));
    }
    let entries = request.permissions.len();
    if entries > MAX_KEY_PERMISSIONS {
        return Err(Error::field(
            "permissions",
            format_args!("must have at most {MAX_KEY_PERMISSIONS} entries, has {entries}"),
        ));
    }
    if request.management && entries > 0 {
        return Err(Error::field(
            "management",
            "must be false for a key with permissions, which can manage neither users nor keys",
        ));
    }
    let mut seen = BTreeSet::new();
    for permission in &request.permissions {
        if !seen.insert(&permission.environment_id) {
            return Err(Error::field(
                "permissions",
                format!("{} is listed twice", permission.environment_id),
            ));
        }
    }
    Ok(())
}

/// When a key made at `now` expires: after `days`, and no later than `creator`, the expiry of the
/// key that makes it. `None`: never.
#[must_use]
pub fn expires_at(
    now: DateTime<Utc>,
    days: Option<u32>,
    creator: Option<DateTime<Utc>>,
) -> Option<DateTime<Utc>> {
    let asked = days.and_then(|days| now.checked_add_days(Days::new(days.into())));
    asked.into_iter().chain(creator).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentbox_contracts::identity::{EnvironmentPermission, Permission};
    use agentbox_contracts::ids::{EnvironmentId, UserId};

    fn request() -> CreateKeyRequest {
        CreateKeyRequest {
            owner: UserId::random(),
            description: None,
            expires_in_days: None,
            permissions: Vec::new(),
            management: false,
            creator: None,
        }
    }

    fn permission() -> EnvironmentPermission {
        EnvironmentPermission {
            environment_id: EnvironmentId::random(),
            permission: Permission::Read,
        }
    }

    #[test]
    fn request_within_the_bounds_is_accepted() {
        let full = CreateKeyRequest {
            description: Some("ä".repeat(256)),
            expires_in_days: Some(3_650),
            permissions: std::iter::repeat_with(permission).take(100).collect(),
            ..request()
        };
        for good in [
            request(),
            CreateKeyRequest {
                expires_in_days: Some(1),
                ..request()
            },
            CreateKeyRequest {
                management: true,
                ..request()
            },
            full,
        ] {
            assert!(check(&good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn key_expires_no_later_than_its_creator() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let day = |n: u64| now.checked_add_days(Days::new(n));
        for (days, creator, expected) in [
            (None, None, None),
            (Some(2), None, day(2)),
            (None, day(1), day(1)),
            (Some(2), day(1), day(1)),
            (Some(1), day(2), day(1)),
        ] {
            assert_eq!(expires_at(now, days, creator), expected, "{days:?}");
        }
    }

    #[test]
    fn request_beyond_a_bound_is_refused_naming_the_field() {
        let twice = permission();
        let bad = [
            (
                "description",
                CreateKeyRequest {
                    description: Some("x".repeat(257)),
                    ..request()
                },
            ),
            (
                "description",
                CreateKeyRequest {
                    description: Some("\0".into()),
                    ..request()
                },
            ),
            (
                "expires_in",
                CreateKeyRequest {
                    expires_in_days: Some(0),
                    ..request()
                },
            ),
            (
                "expires_in",
                CreateKeyRequest {
                    expires_in_days: Some(3_651),
                    ..request()
                },
            ),
            (
                "permissions",
                CreateKeyRequest {
                    permissions: std::iter::repeat_with(permission).take(101).collect(),
                    ..request()
                },
            ),
            (
                "permissions",
                CreateKeyRequest {
                    permissions: vec![twice.clone(), twice],
                    ..request()
                },
            ),
            (
                "management",
                CreateKeyRequest {
                    permissions: vec![permission()],
                    management: true,
                    ..request()
                },
            ),
        ];
        for (field, request) in bad {
            let message = check(&request).unwrap_err().message;
            assert!(message.starts_with(&format!("{field}:")), "{message}");
        }
    }
}
