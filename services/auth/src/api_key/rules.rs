//! What may be asked of a new key. Pure.

use std::collections::BTreeSet;

use agentbox_contracts::error::Error;
use agentbox_contracts::identity::rpc::CreateKeyRequest;
use chrono::{DateTime, Days, Utc};

const MAX_DESCRIPTION: usize = 256;
const MAX_DAYS: u32 = 3_650;
const MAX_PERMISSIONS: usize = 100;

/// # Errors
/// Validation, naming the field as the guide does.
pub fn check(request: &CreateKeyRequest) -> Result<(), Error> {
    if let Some(description) = &request.description {
        if description.chars().count() > MAX_DESCRIPTION {
            return Err(Error::field(
                "description",
                format!("must have at most {MAX_DESCRIPTION} characters"),
            ));
        }
        if description.contains('\0') {
            return Err(Error::field("description", "must not contain NUL"));
        }
    }
    if request
        .expires_in_days
        .is_some_and(|days| !(1..=MAX_DAYS).contains(&days))
    {
        return Err(Error::field(
            "expires_in",
            format!("must be 1 to {MAX_DAYS} days"),
        ));
    }
    if request.permissions.len() > MAX_PERMISSIONS {
        return Err(Error::field(
            "permissions",
            format!("must have at most {MAX_PERMISSIONS} entries"),
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

/// `None`: never.
#[must_use]
pub fn expires_at(now: DateTime<Utc>, days: Option<u32>) -> Option<DateTime<Utc>> {
    days.and_then(|days| now.checked_add_days(Days::new(days.into())))
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
        }
    }

    fn permission() -> EnvironmentPermission {
        EnvironmentPermission {
            environment_id: EnvironmentId::random(),
            permission: Permission::Read,
        }
    }

    #[test]
    fn what_is_within_the_bounds_is_accepted() {
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
            full,
        ] {
            assert!(check(&good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn what_is_outside_is_refused_by_the_fields_name() {
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
        ];
        for (field, request) in bad {
            let message = check(&request).unwrap_err().message;
            assert!(message.starts_with(&format!("{field}:")), "{message}");
        }
    }
}
