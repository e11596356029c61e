//! Identity: users, logins, API keys, tickets, and auth's RPCs.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{ApiKeyId, EnvironmentId, ExecId, LoginId, UserId};
use crate::limits::UserLimits;
use crate::logs::base64_bytes;

/// The longest username, in characters.
pub const MAX_USERNAME: usize = 64;
/// The longest email address, in bytes.
pub const MAX_EMAIL: usize = 254;
/// The shortest password, in characters.
pub const MIN_PASSWORD: usize = 8;
/// The longest password, in characters.
pub const MAX_PASSWORD: usize = 256;
/// The longest description of a key, in characters.
pub const MAX_KEY_DESCRIPTION: usize = 256;
/// The longest lifetime of a key that expires, in days.
pub const MAX_KEY_DAYS: u32 = 3_650;
/// The most environments that a key's permissions may list.
pub const MAX_KEY_PERMISSIONS: usize = 100;

/// The role of a user. An `admin` may manage users and see every environment.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "user"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum Role {
    User,
    Admin,
}

impl Role {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// The permission of an API key on one environment: `read` views it and its logs, `write`
/// also runs commands in it, `admin` also changes and deletes it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "write"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum Permission {
    /// View it and its logs.
    Read,
    /// Run commands in it.
    Write,
    /// Change and delete it.
    Admin,
}

impl Permission {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// The one action that a ticket allows: `logs` and `attach` on the environment; `output` and
/// `execution_attach` on one execution; `file_download` and `file_upload` of one path.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "attach"))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum TicketAction {
    /// Read or follow the logs.
    Logs,
    /// Attach a terminal.
    Attach,
    /// Read or follow the output of an execution.
    Output,
    /// Attach to an execution.
    ExecutionAttach,
    /// Download a file or a directory.
    FileDownload,
    /// Upload a file or an archive.
    FileUpload,
}

impl TicketAction {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// The execution or the path, within its environment, that a ticket is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TicketResource {
    Execution(ExecId),
    /// Bytes: a path need not be UTF-8.
    Path(#[serde(with = "base64_bytes")] Vec<u8>),
}

impl TicketResource {
    /// The id or the path. The action of a ticket decides which of them it is.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Execution(id) => id.as_str().as_bytes(),
            Self::Path(path) => path,
        }
    }
}

/// The credential that authenticated a caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    Login {
        id: LoginId,
    },
    ApiKey {
        id: ApiKeyId,
    },
    /// Valid for one environment and one action.
    Ticket {
        environment: EnvironmentId,
        action: TicketAction,
        /// `None`: the action has no resource of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resource: Option<TicketResource>,
        /// The login or key that the ticket was issued to. A stream ends when it is revoked.
        issued_by: Box<Credential>,
    },
}

impl Credential {
    /// The API key that authenticated the caller, also by a ticket.
    #[must_use]
    pub fn key(&self) -> Option<&ApiKeyId> {
        match self {
            Self::Login { .. } => None,
            Self::ApiKey { id } => Some(id),
            Self::Ticket { issued_by, .. } => issued_by.key(),
        }
    }
}

/// The environments that a credential gives access to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything that the user may access.
    Full,
    /// These environments only, up to the permission of each.
    Environments(BTreeMap<EnvironmentId, Permission>),
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    pub user: UserId,
    pub username: String,
    pub role: Role,
    pub credential: Credential,
    pub scope: Scope,
    /// When the credential expires.
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether the credential is an API key that may do what needs a login otherwise.
    #[serde(default)]
    pub management: bool,
    /// The limits of the user.
    #[serde(default, skip_serializing_if = "UserLimits::is_default")]
    pub limits: UserLimits,
    /// `None` from an auth of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// What a user is shown of its own record, and no decision needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub email: String,
    pub created_at: DateTime<Utc>,
}

impl Principal {
    /// The user, as it was when the credential was checked. `None` without its [`Profile`].
    #[must_use]
    pub fn to_user(&self) -> Option<User> {
        let profile = self.profile.clone()?;
        Some(User {
            id: self.user.clone(),
            username: self.username.clone(),
            email: profile.email,
            role: self.role,
            created_at: profile.created_at,
            limits: self.limits,
        })
    }
}

/// A user, without any secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub id: UserId,
    pub username: String,
    pub email: String,
    pub role: Role,
    pub created_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "UserLimits::is_default")]
    pub limits: UserLimits,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentPermission {
    pub environment_id: EnvironmentId,
    pub permission: Permission,
}

/// An API key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub owner: UserId,
    #[serde(default)]
    pub description: Option<String>,
    pub created_at: DateTime<Utc>,
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub last_used_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub permissions: Vec<EnvironmentPermission>,
    /// Whether the key may manage users, and keys that it did not make, as a login may.
    #[serde(default)]
    pub management: bool,
}

/// How long a gateway that has renewed its lease may answer from what auth has confirmed before. A
/// revocation waits for that long, and a margin, for a gateway that does not answer.
pub const CREDENTIAL_LEASE: Duration = Duration::from_millis(1_500);

pub mod rpc {
    //! Auth's RPCs. The gateway's `authorize` decides which caller may use them. Auth
    //! enforces the rules that need its tables: ownership of keys, the last admin.

    use super::{
        ApiKey, ApiKeyId, Credential, DateTime, Deserialize, EnvironmentId, EnvironmentPermission,
        Principal, Role, Serialize, TicketAction, TicketResource, User, UserId, UserLimits, Utc,
    };
    use crate::ids::InstanceId;
    use crate::rpc::{Empty, InstanceRpc, rpc};

    /// A token, password or ticket. `Debug` does not print it.
    #[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct Secret(pub String);

    impl std::fmt::Debug for Secret {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Secret(…)")
        }
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum AuthenticateRequest {
        /// A JWT or an API key, as in the Authorization header.
        Bearer { token: Secret },
        /// This call uses the ticket up.
        Ticket {
            ticket: Secret,
            environment: EnvironmentId,
            action: TicketAction,
            /// The execution or the path of the request.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            resource: Option<TicketResource>,
        },
        /// Checks that a credential of this user is still valid, for an open stream.
        Revalidate {
            user: UserId,
            credential: Credential,
        },
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct LoginRequest {
        pub username: String,
        pub password: Secret,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct LoginReply {
        pub token: Secret,
        pub expires_at: DateTime<Utc>,
        pub user: User,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ChangePasswordRequest {
        pub user: UserId,
        pub current_password: Secret,
        pub new_password: Secret,
        /// Revoke the user's API keys too.
        #[serde(default)]
        pub revoke_keys: bool,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct LogoutRequest {
        pub principal: Principal,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct UserRequest {
        pub id: UserId,
    }

    /// The user to delete, and the user that asks for it.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct DeleteUserRequest {
        /// See [`CreateUserRequest::actor`].
        #[serde(default)]
        pub actor: Option<UserId>,
        pub id: UserId,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct CreateUserRequest {
        /// The user that asks for the change, for the audit trail. `None` only in a message of
        /// a gateway from before this field.
        #[serde(default)]
        pub actor: Option<UserId>,
        pub username: String,
        pub email: String,
        pub password: Secret,
        pub role: Role,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct PatchUserRequest {
        /// See [`CreateUserRequest::actor`].
        #[serde(default)]
        pub actor: Option<UserId>,
        pub id: UserId,
        #[serde(default)]
        pub email: Option<String>,
        #[serde(default)]
        pub role: Option<Role>,
        #[serde(default)]
        pub password: Option<Secret>,
        /// Revoke the user's API keys.
        #[serde(default)]
        pub revoke_keys: bool,
        /// Replaces all limits of the user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub limits: Option<UserLimits>,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct PageRequest {
        pub limit: u32,
        pub offset: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListUsersReply {
        pub users: Vec<User>,
        pub total: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct CreateKeyRequest {
        pub owner: UserId,
        pub description: Option<String>,
        pub expires_in_days: Option<u32>,
        pub permissions: Vec<EnvironmentPermission>,
        #[serde(default)]
        pub management: bool,
        /// The login or key that asks. A key's keys end with it. `None` only in a message of a
        /// gateway from before this field.
        #[serde(default)]
        pub creator: Option<Credential>,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct CreateKeyReply {
        pub api_key: ApiKey,
        /// The complete key. It cannot be read again later.
        pub key: Secret,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListKeysRequest {
        pub owner: UserId,
        pub limit: u32,
        pub offset: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListKeysReply {
        pub api_keys: Vec<ApiKey>,
        pub total: u64,
    }

    /// One key of this owner. A key of another owner is not found.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct KeyRequest {
        pub owner: UserId,
        pub id: ApiKeyId,
    }

    /// See [`KeyRequest`].
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct RevokeKeyRequest {
        pub owner: UserId,
        pub id: ApiKeyId,
        /// The key that asks, if it may revoke only itself and the keys that it made.
        #[serde(default)]
        pub creator: Option<ApiKeyId>,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct TicketRequest {
        pub principal: Principal,
        pub environment: EnvironmentId,
        pub action: TicketAction,
        /// The actions on an execution and on a path need one, the others have none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub resource: Option<TicketResource>,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct TicketReply {
        pub ticket: Secret,
        pub expires_at: DateTime<Utc>,
    }

    /// The keys that verify tokens, as a JWK set (RFC 7517).
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct PublicKeysReply {
        pub keys: Vec<serde_json::Value>,
    }

    /// The process of the gateway that holds a lease.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct LeaseRequest {
        pub gateway: InstanceId,
    }

    /// The state of all credentials: another number means that some may have changed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct CredentialRevision {
        pub revision: i64,
    }

    rpc!(
        /// `Unauthorized` when the credential is not valid, for any reason.
        Authenticate: "auth", "authenticate", AuthenticateRequest => Principal
    );
    rpc!(Login: "auth", "login", LoginRequest => LoginReply);
    rpc!(Logout: "auth", "logout", LogoutRequest => Empty);
    rpc!(ChangePassword: "auth", "change-password", ChangePasswordRequest => Empty);
    rpc!(GetUser: "auth", "get-user", UserRequest => User);
    rpc!(CreateUser: "auth", "create-user", CreateUserRequest => User);
    rpc!(ListUsers: "auth", "list-users", PageRequest => ListUsersReply);
    rpc!(PatchUser: "auth", "patch-user", PatchUserRequest => User);
    rpc!(DeleteUser: "auth", "delete-user", DeleteUserRequest => Empty);
    rpc!(CreateKey: "auth", "create-key", CreateKeyRequest => CreateKeyReply);
    rpc!(ListKeys: "auth", "list-keys", ListKeysRequest => ListKeysReply);
    rpc!(GetKey: "auth", "get-key", KeyRequest => ApiKey);
    rpc!(RevokeKey: "auth", "revoke-key", RevokeKeyRequest => Empty);
    rpc!(IssueTicket: "auth", "issue-ticket", TicketRequest => TicketReply);
    rpc!(PublicKeys: "auth", "public-keys", Empty => PublicKeysReply);
    rpc!(Ready: "auth", "ready", Empty => Empty);
    rpc!(
        /// The lease lasts [`super::CREDENTIAL_LEASE`] from before the request was sent.
        RenewLease: "auth", "renew-lease", LeaseRequest => CredentialRevision
    );
    rpc!(
        /// Ends a lease of which the gateway makes no use any more, so that no revocation waits for it.
        ReleaseLease: "auth", "release-lease", LeaseRequest => Empty
    );

    /// Auth asks each gateway with a lease to forget what it has confirmed before this revision.
    pub struct ForgetCredentials;

    impl InstanceRpc for ForgetCredentials {
        const SERVICE: &'static str = "api-gateway";
        const METHOD: &'static str = "forget-credentials";
        type Request = CredentialRevision;
        type Reply = Empty;
    }
}
