//! Who may do what: one pure function for every route, HTTP, SSE and WebSocket alike.
//!
//! * I1. What is not the caller's to see is not found, exactly as if it did not exist;
//!   what it may see but not do is forbidden.
//! * I2. A key never reaches beyond its owner, and a ticket never beyond its one
//!   environment and action.

use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{Credential, Permission, Principal, Role, Scope, TicketAction};
use agentbox_contracts::ids::{EnvironmentId, UserId};

/// Everything a caller can want, one for each kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Needs no credential: health, the API's description.
    Public,
    LogIn,
    /// About the caller itself: me.
    Myself,
    /// End the login that the request came with.
    LogOut,
    ChangePassword,
    ManageUsers,
    ManageOwnKeys,
    CreateEnvironment,
    /// And the events of all that are listed.
    ListEnvironments,
    ViewEnvironment,
    ReadLogs,
    Exec,
    Attach,
    PatchEnvironment,
    DeleteEnvironment,
    /// To ask for a ticket at all; the two below are for its environment.
    IssueTicket,
    TicketForLogs,
    TicketForAttach,
}

impl Action {
    /// What of an environment it needs; `None`: it is on no environment.
    pub(crate) const fn needs(self) -> Option<Permission> {
        match self {
            Self::ViewEnvironment | Self::ReadLogs | Self::TicketForLogs => Some(Permission::Read),
            Self::Exec | Self::Attach | Self::TicketForAttach => Some(Permission::Write),
            Self::PatchEnvironment | Self::DeleteEnvironment => Some(Permission::Admin),
            Self::Public
            | Self::LogIn
            | Self::Myself
            | Self::LogOut
            | Self::ChangePassword
            | Self::ManageUsers
            | Self::ManageOwnKeys
            | Self::CreateEnvironment
            | Self::ListEnvironments
            | Self::IssueTicket => None,
        }
    }

    /// Whether it needs no credential.
    pub(crate) const fn is_open(self) -> bool {
        matches!(self, Self::Public | Self::LogIn)
    }

    /// The ticket that opens it.
    pub(crate) const fn ticket(self) -> Option<TicketAction> {
        match self {
            Self::ReadLogs => Some(TicketAction::Logs),
            Self::Attach => Some(TicketAction::Attach),
            _ => None,
        }
    }
}

/// The environment that an action is on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub id: &'a EnvironmentId,
    pub owner: &'a UserId,
}

pub(crate) fn unauthorized(message: &str) -> Error {
    Error::new(ErrorCode::Unauthorized, message)
}

fn forbidden(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::Forbidden, what)
}

/// Whether `caller` may do `action`, on `target` where it has one.
///
/// # Errors
/// [`ErrorCode::Unauthorized`] without a caller, [`ErrorCode::NotFound`] for an
/// environment that is not the caller's to see, [`ErrorCode::Forbidden`] for what it may
/// see but not do.
pub(crate) fn authorize(
    caller: Option<&Principal>,
    action: Action,
    target: Option<Target<'_>>,
) -> Result<(), Error> {
    if action.is_open() {
        return Ok(());
    }
    let Some(principal) = caller else {
        return Err(unauthorized(
            "a token is needed: `Authorization: Bearer <token>`",
        ));
    };
    match (action.needs(), target) {
        (Some(needed), Some(target)) => on_environment(principal, action, needed, target),
        // A route on an environment that did not look for it: a mistake of ours.
        (Some(_), None) => Err(Error::internal()),
        (None, _) => in_general(principal, action),
    }
}

fn on_environment(
    principal: &Principal,
    action: Action,
    needed: Permission,
    target: Target<'_>,
) -> Result<(), Error> {
    let not_found = || Error::not_found("environment");
    if principal.role != Role::Admin && principal.user != *target.owner {
        return Err(not_found());
    }
    if let Credential::Ticket {
        environment,
        action: granted,
        ..
    } = &principal.credential
    {
        if environment != target.id {
            return Err(not_found());
        }
        if action.ticket() != Some(*granted) {
            return Err(forbidden("the ticket is for another action"));
        }
    }
    match &principal.scope {
        Scope::Full => Ok(()),
        Scope::Environments(granted) => match granted.get(target.id) {
            None => Err(not_found()),
            Some(level) if *level >= needed => Ok(()),
            Some(level) => Err(forbidden(format!(
                "this needs the permission `{}`, the key has `{}`",
                word(needed),
                word(*level)
            ))),
        },
    }
}

const fn word(permission: Permission) -> &'static str {
    match permission {
        Permission::Read => "read",
        Permission::Write => "write",
        Permission::Admin => "admin",
    }
}

fn in_general(principal: &Principal, action: Action) -> Result<(), Error> {
    if matches!(principal.credential, Credential::Ticket { .. }) {
        return Err(forbidden(
            "a ticket is good for its one environment and action only",
        ));
    }
    let limited = matches!(principal.scope, Scope::Environments(_));
    match action {
        Action::ManageUsers if principal.role != Role::Admin || limited => {
            Err(forbidden("only an administrator may do this"))
        }
        Action::CreateEnvironment if limited => Err(forbidden(
            "a key with permissions cannot create environments",
        )),
        Action::ManageOwnKeys if limited => {
            Err(forbidden("a key with permissions cannot manage keys"))
        }
        Action::ChangePassword if limited => Err(forbidden(
            "a key with permissions cannot change its owner's password",
        )),
        Action::LogOut if !matches!(principal.credential, Credential::Login { .. }) => Err(
            forbidden("only a login can be logged out; an API key is revoked"),
        ),
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
mod tests;
