//! Logging in, users, tickets.

use agentbox_contracts::identity::{Role, TicketAction, User};
use agentbox_contracts::ids::{EnvironmentId, ExecId, UserId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::limits::UserLimitsBody;

/// The credentials of a user.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"username": "alice", "password": "correct horse battery staple"}))]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The user's name, as it was given when the user was created.
    #[schema(example = "alice")]
    pub username: String,
    /// The user's password.
    #[schema(example = "correct horse battery staple", format = Password)]
    pub password: String,
}

/// A new login.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "token": "eyJhbGciOiJFZERTQSJ9.eyJqdGkiOiJsb2dpbi0wMTIzNDU2Nzg5YWJjZGVmIn0.c2lnbmF0dXJl",
    "expires_at": "2026-01-22T11:00:00Z",
    "user": {
        "id": "user-0123456789abcdef",
        "username": "alice",
        "email": "alice@example.com",
        "role": "user",
        "created_at": "2026-01-22T10:00:00Z"
    }
}))]
pub struct LoginReply {
    /// The token, a signed JWT (RFC 7519). Send it as `Authorization: Bearer <token>`.
    #[schema(
        example = "eyJhbGciOiJFZERTQSJ9.eyJqdGkiOiJsb2dpbi0wMTIzNDU2Nzg5YWJjZGVmIn0.c2lnbmF0dXJl"
    )]
    pub token: String,
    /// When the token expires (RFC 3339, UTC).
    #[schema(example = "2026-01-22T11:00:00Z")]
    pub expires_at: DateTime<Utc>,
    /// The user who logged in.
    pub user: UserBody,
}

/// A user. No answer contains a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "user-0123456789abcdef",
    "username": "alice",
    "email": "alice@example.com",
    "role": "user",
    "created_at": "2026-01-22T10:00:00Z"
}))]
pub struct UserBody {
    /// The user's id. It never changes.
    #[schema(value_type = UserId)]
    pub id: String,
    /// The name to log in with.
    #[schema(example = "alice")]
    pub username: String,
    /// The user's email address.
    #[schema(example = "alice@example.com")]
    pub email: String,
    /// The user's role: an `admin` may manage users and see every environment.
    pub role: Role,
    /// When the user was created (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// The limits that an administrator has set for the user. Absent if there are none: then those of
    /// the deployment apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<UserLimitsBody>,
}

impl From<User> for UserBody {
    fn from(user: User) -> Self {
        Self {
            id: user.id.to_string(),
            username: user.username,
            email: user.email,
            role: user.role,
            created_at: user.created_at,
            limits: (!user.limits.is_default()).then(|| user.limits.into()),
        }
    }
}

/// The old and the new password of the caller.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "current_password": "correct horse battery staple",
    "new_password": "a longer and better one"
}))]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    /// The password until now.
    #[schema(example = "correct horse battery staple", format = Password)]
    pub current_password: String,
    /// The password from now on: 8 to 256 characters, 4 different ones at least, and neither a common
    /// password nor the username.
    #[schema(
        example = "a longer and better one",
        format = Password,
        min_length = 8,
        max_length = 256
    )]
    pub new_password: String,
    /// Revoke the caller's API keys too. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(default = false, example = false)]
    pub revoke_keys: Option<bool>,
}

fn plain_user() -> Role {
    Role::User
}

/// A user to create.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "username": "alice",
    "email": "alice@example.com",
    "password": "correct horse battery staple",
    "role": "user"
}))]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// The name to log in with: 1 to 64 letters, digits, dots, underscores and hyphens. It
    /// must be unused.
    #[schema(
        example = "alice",
        min_length = 1,
        max_length = 64,
        pattern = "^[A-Za-z0-9._-]+$"
    )]
    pub username: String,
    /// The user's email address, at most 254 bytes.
    #[schema(
        example = "alice@example.com",
        max_length = 254,
        pattern = r"^[^@\s\x00-\x1f\x7f-\x9f]+@[^@\s\x00-\x1f\x7f-\x9f]+$"
    )]
    pub email: String,
    /// The first password: 8 to 256 characters, 4 different ones at least, and neither a common
    /// password nor the username.
    #[schema(
        example = "correct horse battery staple",
        format = Password,
        min_length = 8,
        max_length = 256
    )]
    pub password: String,
    /// The user's role. Default: `user`.
    #[serde(default = "plain_user")]
    #[schema(default = "user")]
    pub role: Role,
}

/// The fields of a user to change. An absent or null field stays as it is. At least one is
/// required.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"email": "alice@example.org", "role": "admin"}))]
#[serde(deny_unknown_fields)]
pub struct PatchUser {
    /// The new email address, at most 254 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        example = "alice@example.org",
        max_length = 254,
        pattern = r"^[^@\s\x00-\x1f\x7f-\x9f]+@[^@\s\x00-\x1f\x7f-\x9f]+$"
    )]
    pub email: Option<String>,
    /// The new role. The last admin keeps its role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The new password: 8 to 256 characters, 4 different ones at least, and neither a common
    /// password nor the username. It revokes the user's earlier logins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        example = "a longer and better one",
        format = Password,
        min_length = 8,
        max_length = 256
    )]
    pub password: Option<String>,
    /// Revoke all API keys that the user has. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(default = false, example = false)]
    pub revoke_keys: Option<bool>,
    /// The new limits. They replace all limits that the user has: an absent limit becomes the limit of
    /// the deployment. They apply to the next request of the user and end nothing that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<UserLimitsBody>,
}

/// One page of users.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "users": [{
        "id": "user-0123456789abcdef",
        "username": "alice",
        "email": "alice@example.com",
        "role": "user",
        "created_at": "2026-01-22T10:00:00Z"
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct UserList {
    /// The users of this page.
    pub users: Vec<UserBody>,
    /// The number of users on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of users before this page.
    #[schema(example = 0)]
    pub offset: u64,
}

/// The page of a list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// The largest number of entries to return, 1 to 1000. Default: 100.
    #[serde(default)]
    #[param(minimum = 1, maximum = 1000, default = 100, example = 50)]
    pub limit: Option<u32>,
    /// The number of entries to skip, from the first. Default: 0.
    #[serde(default)]
    #[param(default = 0, example = 0)]
    pub offset: Option<u64>,
}

/// A ticket to create.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"environment_id": "env-0123456789abcdef", "action": "attach"}))]
#[serde(deny_unknown_fields)]
pub struct CreateTicket {
    /// The environment that the ticket opens. The caller must be allowed to do `action` there.
    #[schema(value_type = EnvironmentId)]
    pub environment_id: String,
    /// The one operation that the ticket opens.
    pub action: TicketAction,
    /// For `output` and `execution_attach`, which require it: the execution that the ticket opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ExecId>)]
    pub execution_id: Option<String>,
    /// For `file_download` and `file_upload`, which require it: the path that the ticket opens, exactly
    /// as in the request. Absolute, at most 4095 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work/result.csv")]
    pub path: Option<String>,
    /// Instead of `path`, in base64 (RFC 4648): a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0LmNzdg==")]
    pub path_base64: Option<String>,
}

/// A new ticket.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "ticket": "ticket_0123456789abcdef0123456789abcdef",
    "expires_at": "2026-01-22T10:01:00Z"
}))]
pub struct TicketReply {
    /// The ticket. Send it once, as the query parameter `ticket`.
    #[schema(example = "ticket_0123456789abcdef0123456789abcdef")]
    pub ticket: String,
    /// When an unused ticket expires (RFC 3339, UTC): 60 seconds from now, unless the operator
    /// chooses a shorter time (`AGENTBOX_TICKET_TTL`).
    #[schema(example = "2026-01-22T10:01:00Z")]
    pub expires_at: DateTime<Utc>,
}
