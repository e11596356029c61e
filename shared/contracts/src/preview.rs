//! Previews: a port of an environment with an origin of its own, and auth's RPCs about them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{EnvironmentId, PreviewId, UserId};

/// The most previews of one environment.
pub const MAX_PREVIEWS: u64 = 32;
/// The longest lifetime of a preview, in seconds.
pub const MAX_PREVIEW_S: u64 = 7 * 24 * 60 * 60;
/// The lifetime of a preview whose creator does not choose one, in seconds.
pub const DEFAULT_PREVIEW_S: u64 = 60 * 60;

/// A preview, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    pub id: PreviewId,
    pub environment: EnvironmentId,
    pub port: u16,
    /// Whether it needs no secret.
    pub public: bool,
    pub creator: UserId,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

pub mod rpc {
    //! The gateway decides who may create, list and delete previews. Auth decides who may use one.

    use super::{Deserialize, EnvironmentId, Preview, PreviewId, Serialize};
    use crate::identity::Principal;
    use crate::identity::rpc::Secret;
    use crate::rpc::{Empty, rpc};

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct CreatePreviewRequest {
        /// The creator. The preview ends with its credential.
        pub principal: Principal,
        pub environment: EnvironmentId,
        pub port: u16,
        pub public: bool,
        pub expires_in_s: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct CreatePreviewReply {
        pub preview: Preview,
        /// For programs, any number of times. Absent: the preview is public.
        #[serde(default)]
        pub token: Option<Secret>,
        /// For one browser, once. Absent: the preview is public.
        #[serde(default)]
        pub link: Option<Secret>,
    }

    /// One page, newest first.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListPreviewsRequest {
        pub environment: EnvironmentId,
        pub limit: u32,
        pub offset: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListPreviewsReply {
        pub previews: Vec<Preview>,
        pub total: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct DeletePreviewRequest {
        pub environment: EnvironmentId,
        pub id: PreviewId,
    }

    /// What a request to a preview presents.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum PreviewAccess {
        /// Nothing, which opens a public preview.
        None,
        Token(Secret),
        Cookie(Secret),
        /// This call uses the link up.
        Link(Secret),
        /// An open connection, which presented one of the others before.
        Open,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct OpenPreviewRequest {
        pub id: PreviewId,
        pub access: PreviewAccess,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct OpenPreviewReply {
        pub preview: Preview,
        /// The creator, as it is now. It expires with the preview.
        pub principal: Principal,
        /// The secret of the cookie that replaces the link.
        #[serde(default)]
        pub cookie: Option<Secret>,
    }

    rpc!(
        /// `QuotaExceeded` beyond [`super::MAX_PREVIEWS`].
        CreatePreview: "auth", "create-preview", CreatePreviewRequest => CreatePreviewReply
    );
    rpc!(ListPreviews: "auth", "list-previews", ListPreviewsRequest => ListPreviewsReply);
    rpc!(DeletePreview: "auth", "delete-preview", DeletePreviewRequest => Empty);
    rpc!(
        /// `NotFound` for a preview that does not exist, or has ended with its creator's credential.
        /// `Unauthorized` when it needs something else than the request presents.
        OpenPreview: "auth", "open-preview", OpenPreviewRequest => OpenPreviewReply
    );
}
