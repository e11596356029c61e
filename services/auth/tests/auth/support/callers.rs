//! Callers of auth, and the calls that most tests make.

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{
    Authenticate, AuthenticateRequest, CreateKey, CreateKeyReply, CreateKeyRequest, CreateUser,
    CreateUserRequest, IssueTicket, Login, LoginReply, LoginRequest, Logout, LogoutRequest, Secret,
    TicketReply, TicketRequest,
};
use agentbox_contracts::identity::{
    EnvironmentPermission, Principal, Role, TicketAction, TicketResource, User,
};
use agentbox_contracts::ids::{EnvironmentId, UserId};

use super::Replica;

pub const ADMIN: &str = "root.admin";
pub const ADMIN_PASSWORD: &str = "bootstrap-Passw0rd";
/// The password of every user that a test creates.
pub const PASSWORD: &str = "correct horse battery";

/// A user who has logged in.
pub struct Caller {
    pub user: User,
    pub token: Secret,
    pub principal: Principal,
}

/// A name that no other test's user has.
fn random_name() -> String {
    UserId::random().as_str().to_owned()
}

impl Replica {
    pub async fn create_user(&self, role: Role) -> User {
        let username = random_name();
        let request = CreateUserRequest {
            actor: None,
            email: format!("{username}@example.com"),
            username,
            password: Secret(PASSWORD.to_owned()),
            role,
        };
        self.call::<CreateUser>(request).await.unwrap()
    }

    pub async fn login(&self, username: &str, password: &str) -> Result<LoginReply, Error> {
        let request = LoginRequest {
            username: username.to_owned(),
            password: Secret(password.to_owned()),
        };
        self.call::<Login>(request).await
    }

    /// A new user who has logged in.
    pub async fn caller(&self, role: Role) -> Caller {
        let user = self.create_user(role).await;
        self.caller_as(user).await
    }

    /// Another login of a user.
    pub async fn caller_as(&self, user: User) -> Caller {
        let token = self.login(&user.username, PASSWORD).await.unwrap().token;
        let principal = self.bearer(&token).await.unwrap();
        Caller {
            user,
            token,
            principal,
        }
    }

    pub async fn bearer(&self, token: &Secret) -> Result<Principal, Error> {
        self.call::<Authenticate>(AuthenticateRequest::Bearer {
            token: token.clone(),
        })
        .await
    }

    pub async fn revalidate(&self, principal: &Principal) -> Result<Principal, Error> {
        let (user, credential) = (principal.user.clone(), principal.credential.clone());
        self.call::<Authenticate>(AuthenticateRequest::Revalidate { user, credential })
            .await
    }

    pub async fn logout(&self, principal: &Principal) {
        self.call::<Logout>(LogoutRequest {
            principal: principal.clone(),
        })
        .await
        .unwrap();
    }

    pub async fn key(
        &self,
        owner: &UserId,
        permissions: Vec<EnvironmentPermission>,
    ) -> CreateKeyReply {
        let request = CreateKeyRequest {
            owner: owner.clone(),
            description: Some("for the test".to_owned()),
            expires_in_days: Some(30),
            permissions,
            management: false,
            creator: None,
        };
        self.call::<CreateKey>(request).await.unwrap()
    }

    pub async fn ticket(
        &self,
        principal: &Principal,
        environment: &EnvironmentId,
        action: TicketAction,
    ) -> Result<TicketReply, Error> {
        self.bound_ticket(principal, environment, action, None)
            .await
    }

    /// A ticket that is bound to a resource.
    pub async fn bound_ticket(
        &self,
        principal: &Principal,
        environment: &EnvironmentId,
        action: TicketAction,
        resource: Option<&TicketResource>,
    ) -> Result<TicketReply, Error> {
        let request = TicketRequest {
            principal: principal.clone(),
            environment: environment.clone(),
            action,
            resource: resource.cloned(),
        };
        self.call::<IssueTicket>(request).await
    }

    pub async fn redeem(
        &self,
        ticket: &Secret,
        environment: &EnvironmentId,
        action: TicketAction,
    ) -> Result<Principal, Error> {
        self.redeem_on(ticket, environment, action, None).await
    }

    pub async fn redeem_on(
        &self,
        ticket: &Secret,
        environment: &EnvironmentId,
        action: TicketAction,
        resource: Option<&TicketResource>,
    ) -> Result<Principal, Error> {
        self.call::<Authenticate>(AuthenticateRequest::Ticket {
            ticket: ticket.clone(),
            environment: environment.clone(),
            action,
            resource: resource.cloned(),
        })
        .await
    }
}

/// Asserts that a credential is refused as invalid. Returns the message.
#[track_caller]
pub fn refused(outcome: Result<Principal, Error>) -> String {
    let error = outcome.expect_err("the credential is still valid");
    assert_eq!(error.code, ErrorCode::Unauthorized, "{error}");
    error.message
}
