//! Who may do what: one pure function for every route.

use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{Credential, Permission, Principal, Role, Scope, TicketAction};
use agentbox_contracts::ids::{EnvironmentId, UserId};

/// Everything a caller can want, one for each kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// About the caller itself: me, logout, change-password.
    Myself,
    ManageUsers,
    ManageOwnKeys,
    CreateEnvironment,
    ListEnvironments,
    ViewEnvironment,
    ReadLogs,
    Exec,
    Attach,
    PatchEnvironment,
    DeleteEnvironment,
    TicketForLogs,
    TicketForAttach,
}

/// The environment that an action is on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub id: &'a EnvironmentId,
    pub owner: &'a UserId,
}

/// What of an environment an action needs.
fn needed(action: Action) -> Option<Permission> {
    match action {
        Action::ViewEnvironment | Action::ReadLogs | Action::TicketForLogs => {
            Some(Permission::Read)
        }
        Action::Exec | Action::Attach | Action::TicketForAttach => Some(Permission::Write),
        Action::PatchEnvironment | Action::DeleteEnvironment => Some(Permission::Admin),
        _ => None,
    }
}

fn forbidden(what: &str) -> Error {
    Error::new(ErrorCode::Forbidden, what)
}

/// Whether `principal` may do `action`, on `target` where it has one.
///
/// # Errors
/// [`ErrorCode::NotFound`] for an environment that is not the caller's to see,
/// [`ErrorCode::Forbidden`] for what it may see but not do.
pub(crate) fn authorize(
    principal: &Principal,
    action: Action,
    target: Option<Target<'_>>,
) -> Result<(), Error> {
    if let Credential::Ticket {
        environment,
        action: granted,
        ..
    } = &principal.credential
    {
        let fits = matches!(
            (granted, action),
            (TicketAction::Logs, Action::ReadLogs) | (TicketAction::Attach, Action::Attach)
        ) && target.is_some_and(|target| target.id == environment);
        if !fits {
            return Err(forbidden(
                "a ticket is good for its one environment and action only",
            ));
        }
    }
    match (needed(action), target) {
        (Some(needed), Some(target)) => on_environment(principal, needed, target),
        (Some(_), None) => Err(Error::internal()),
        (None, _) => in_general(principal, action),
    }
}

fn on_environment(
    principal: &Principal,
    needed: Permission,
    target: Target<'_>,
) -> Result<(), Error> {
    let not_found = || Error::not_found("environment");
    if principal.role != Role::Admin && principal.user != *target.owner {
        return Err(not_found());
    }
    match &principal.scope {
        Scope::Full => Ok(()),
        Scope::Environments(granted) => match granted.get(target.id) {
            None => Err(not_found()),
            Some(level) if *level >= needed => Ok(()),
            Some(level) => Err(forbidden(&format!(
                "this needs the permission `{}`, the key has `{}`",
                word(needed),
                word(*level)
            ))),
        },
    }
}

fn word(permission: Permission) -> &'static str {
    match permission {
        Permission::Read => "read",
        Permission::Write => "write",
        Permission::Admin => "admin",
    }
}

fn in_general(principal: &Principal, action: Action) -> Result<(), Error> {
    let limited = matches!(principal.scope, Scope::Environments(_));
    match action {
        Action::ListEnvironments => Ok(()),
        Action::ManageUsers if principal.role != Role::Admin || limited => {
            Err(forbidden("only an administrator may do this"))
        }
        Action::CreateEnvironment if limited => Err(forbidden(
            "a key with permissions cannot create environments",
        )),
        Action::ManageOwnKeys if limited => {
            Err(forbidden("a key with permissions cannot manage keys"))
        }
        _ => Ok(()),
    }
}

/// Which environments lists and event streams show `principal`.
pub(crate) fn visibility(principal: &Principal) -> Visibility {
    match &principal.scope {
        Scope::Environments(granted) => Visibility::Listed {
            owner: principal.user.clone(),
            only: granted.keys().cloned().collect(),
        },
        Scope::Full if principal.role == Role::Admin => Visibility::All,
        Scope::Full => Visibility::Owner(principal.user.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use agentbox_contracts::ids::{ApiKeyId, LoginId};

    use super::*;

    const ALL: [Action; 13] = [
        Action::Myself,
        Action::ManageUsers,
        Action::ManageOwnKeys,
        Action::CreateEnvironment,
        Action::ListEnvironments,
        Action::ViewEnvironment,
        Action::ReadLogs,
        Action::Exec,
        Action::Attach,
        Action::PatchEnvironment,
        Action::DeleteEnvironment,
        Action::TicketForLogs,
        Action::TicketForAttach,
    ];

    fn principal(user: &UserId, role: Role, scope: Scope) -> Principal {
        let credential = match scope {
            Scope::Full => Credential::Login {
                id: LoginId::random(),
            },
            Scope::Environments(_) => Credential::ApiKey {
                id: ApiKeyId::random(),
            },
        };
        Principal {
            user: user.clone(),
            username: "u".into(),
            role,
            credential,
            scope,
            expires_at: None,
        }
    }

    /// One letter an action, in the order of [`ALL`]: allowed, forbidden, not found.
    fn row(principal: &Principal, target: Target<'_>) -> String {
        ALL.iter()
            .map(|action| {
                let on = needed(*action).map(|_| target);
                match authorize(principal, *action, on).map_err(|error| error.code) {
                    Ok(()) => 'A',
                    Err(ErrorCode::Forbidden) => 'F',
                    Err(ErrorCode::NotFound) => 'N',
                    Err(other) => panic!("{other:?}"),
                }
            })
            .collect()
    }

    #[test]
    fn every_principal_may_do_exactly_what_the_table_says() {
        let (owner, stranger) = (UserId::random(), UserId::random());
        let (id, other) = (EnvironmentId::random(), EnvironmentId::random());
        let target = Target {
            id: &id,
            owner: &owner,
        };
        let level =
            |on: &EnvironmentId, level| Scope::Environments(BTreeMap::from([(on.clone(), level)]));
        let table = [
            (
                "owner",
                principal(&owner, Role::User, Scope::Full),
                "AFAAAAAAAAAAA",
            ),
            (
                "stranger",
                principal(&stranger, Role::User, Scope::Full),
                "AFAAANNNNNNNN",
            ),
            (
                "admin",
                principal(&stranger, Role::Admin, Scope::Full),
                "AAAAAAAAAAAAA",
            ),
            (
                "read key",
                principal(&owner, Role::User, level(&id, Permission::Read)),
                "AFFFAAAFFFFAF",
            ),
            (
                "write key",
                principal(&owner, Role::User, level(&id, Permission::Write)),
                "AFFFAAAAAFFAA",
            ),
            (
                "admin key",
                principal(&owner, Role::User, level(&id, Permission::Admin)),
                "AFFFAAAAAAAAA",
            ),
            (
                "key for another",
                principal(&owner, Role::User, level(&other, Permission::Admin)),
                "AFFFANNNNNNNN",
            ),
            (
                "an admin's limited key",
                principal(&stranger, Role::Admin, level(&id, Permission::Read)),
                "AFFFAAAFFFFAF",
            ),
            (
                "a stranger's key naming it",
                principal(&stranger, Role::User, level(&id, Permission::Admin)),
                "AFFFANNNNNNNN",
            ),
        ];
        for (name, principal, expected) in table {
            assert_eq!(row(&principal, target), expected, "{name}");
        }
    }

    #[test]
    fn a_ticket_is_good_for_its_environment_and_action_alone() {
        let owner = UserId::random();
        let (id, other) = (EnvironmentId::random(), EnvironmentId::random());
        let mut ticket = principal(&owner, Role::User, Scope::Full);
        ticket.credential = Credential::Ticket {
            environment: id.clone(),
            action: TicketAction::Logs,
            issued_by: Box::new(Credential::Login {
                id: LoginId::random(),
            }),
        };
        let on = |id| Some(Target { id, owner: &owner });
        assert!(authorize(&ticket, Action::ReadLogs, on(&id)).is_ok());
        assert!(authorize(&ticket, Action::Attach, on(&id)).is_err());
        assert!(authorize(&ticket, Action::ReadLogs, on(&other)).is_err());
        assert!(authorize(&ticket, Action::Myself, None).is_err());
    }
}
