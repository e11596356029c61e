//! The rules for issuing a ticket, and its scope. Pure.

use std::collections::BTreeMap;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{
    Credential, Permission, Principal, Scope, TicketAction, TicketResource,
};
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId, LoginId};

/// The credential that asked for a ticket. The ticket is void once it has expired or was
/// revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issuer {
    Login(LoginId),
    ApiKey(ApiKeyId),
}

impl Issuer {
    /// The credential of the principal that redeems the ticket.
    #[must_use]
    pub fn ticket(
        self,
        environment: EnvironmentId,
        action: TicketAction,
        resource: Option<TicketResource>,
    ) -> Credential {
        let issued_by = Box::new(match self {
            Self::Login(id) => Credential::Login { id },
            Self::ApiKey(id) => Credential::ApiKey { id },
        });
        Credential::Ticket {
            environment,
            action,
            resource,
            issued_by,
        }
    }
}

/// The permission on the environment that an action needs.
const fn required_permission(action: TicketAction) -> Permission {
    match action {
        TicketAction::Logs | TicketAction::Output => Permission::Read,
        TicketAction::Attach
        | TicketAction::ExecutionAttach
        | TicketAction::FileDownload
        | TicketAction::FileUpload => Permission::Write,
    }
}

/// A scope that grants no more than the action needs.
#[must_use]
pub fn scope(environment: &EnvironmentId, action: TicketAction) -> Scope {
    Scope::Environments(BTreeMap::from([(
        environment.clone(),
        required_permission(action),
    )]))
}

/// The issuer of a ticket that `principal` asks for. This function checks that the credential
/// grants the action. Its caller has checked that the user may see the environment.
///
/// # Errors
/// NotFound for an environment outside the credential's scope. Forbidden when the credential
/// grants less than the action needs, and when it is itself a ticket.
pub fn issuer(
    principal: &Principal,
    environment: &EnvironmentId,
    action: TicketAction,
) -> Result<Issuer, Error> {
    if let Scope::Environments(permissions) = &principal.scope {
        match permissions.get(environment) {
            None => return Err(Error::not_found("environment")),
            Some(granted) if *granted < required_permission(action) => {
                return Err(Error::new(
                    ErrorCode::Forbidden,
                    "the API key does not permit this on the environment",
                ));
            }
            Some(_) => {}
        }
    }
    match &principal.credential {
        Credential::Login { id } => Ok(Issuer::Login(id.clone())),
        Credential::ApiKey { id } => Ok(Issuer::ApiKey(id.clone())),
        Credential::Ticket { .. } => Err(Error::new(
            ErrorCode::Forbidden,
            "a ticket cannot issue a ticket: use a token or an API key",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentbox_contracts::identity::Role;
    use agentbox_contracts::ids::UserId;

    fn principal(credential: Credential, scope: Scope) -> Principal {
        Principal {
            user: UserId::random(),
            username: "a".to_owned(),
            role: Role::User,
            credential,
            scope,
            expires_at: None,
            management: false,
            limits: Default::default(),
            profile: None,
        }
    }

    #[test]
    fn ticket_is_granted_only_within_the_credentials_scope() {
        let environment = EnvironmentId::random();
        let key = ApiKeyId::random();
        let granted =
            |permission| Scope::Environments(BTreeMap::from([(environment.clone(), permission)]));
        let elsewhere = Scope::Environments(BTreeMap::from([(
            EnvironmentId::random(),
            Permission::Admin,
        )]));
        for (scope, action, expected) in [
            (Scope::Full, TicketAction::Attach, None),
            (granted(Permission::Read), TicketAction::Logs, None),
            (
                granted(Permission::Read),
                TicketAction::Attach,
                Some(ErrorCode::Forbidden),
            ),
            (granted(Permission::Write), TicketAction::Attach, None),
            (granted(Permission::Read), TicketAction::Output, None),
            (
                granted(Permission::Read),
                TicketAction::ExecutionAttach,
                Some(ErrorCode::Forbidden),
            ),
            (
                granted(Permission::Read),
                TicketAction::FileDownload,
                Some(ErrorCode::Forbidden),
            ),
            (
                granted(Permission::Read),
                TicketAction::FileUpload,
                Some(ErrorCode::Forbidden),
            ),
            (granted(Permission::Write), TicketAction::FileUpload, None),
            (granted(Permission::Admin), TicketAction::Attach, None),
            (elsewhere, TicketAction::Logs, Some(ErrorCode::NotFound)),
        ] {
            let caller = principal(Credential::ApiKey { id: key.clone() }, scope.clone());
            let outcome = issuer(&caller, &environment, action);
            match expected {
                None => assert_eq!(outcome, Ok(Issuer::ApiKey(key.clone())), "{scope:?}"),
                Some(code) => assert_eq!(outcome.unwrap_err().code, code, "{scope:?}"),
            }
        }
    }

    #[test]
    fn ticket_asked_for_with_a_ticket_is_forbidden() {
        let environment = EnvironmentId::random();
        let credential =
            Issuer::Login(LoginId::random()).ticket(environment.clone(), TicketAction::Logs, None);
        let caller = principal(credential, scope(&environment, TicketAction::Logs));
        let outcome = issuer(&caller, &environment, TicketAction::Logs);
        assert_eq!(outcome.unwrap_err().code, ErrorCode::Forbidden);
    }
}
