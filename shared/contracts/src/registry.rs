//! Credentials of registries, and the scheduler's RPCs about them. A user has at most one for each
//! registry.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The most credentials of one user.
pub const MAX_CREDENTIALS: usize = 32;
/// The longest registry with a credential, in characters.
pub const MAX_REGISTRY: usize = 64;
/// The longest user name at a registry, in characters.
pub const MAX_REGISTRY_USERNAME: usize = 255;
/// The longest password at a registry, in characters. Tokens and key files are some KiB.
pub const MAX_REGISTRY_PASSWORD: usize = 8_192;

/// A stored credential, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCredential {
    /// `host[:port]`, in lower case.
    pub registry: String,
    pub updated_at: DateTime<Utc>,
}

pub mod rpc {
    //! The gateway decides who may use them.

    use super::{Deserialize, Serialize, StoredCredential};
    use crate::identity::rpc::Secret;
    use crate::ids::UserId;
    use crate::rpc::{Empty, rpc};

    /// Stores a credential, or replaces it.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct SetCredentialRequest {
        pub owner: UserId,
        pub registry: String,
        pub username: String,
        pub password: Secret,
    }

    /// One page, in the order of the registries' names.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListCredentialsRequest {
        pub owner: UserId,
        pub limit: u32,
        pub offset: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListCredentialsReply {
        pub credentials: Vec<StoredCredential>,
        pub total: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct DeleteCredentialRequest {
        pub owner: UserId,
        pub registry: String,
    }

    rpc!(SetCredential: "scheduler", "set-credential", SetCredentialRequest => Empty);
    rpc!(ListCredentials: "scheduler", "list-credentials",
        ListCredentialsRequest => ListCredentialsReply);
    rpc!(DeleteCredential: "scheduler", "delete-credential", DeleteCredentialRequest => Empty);
}
