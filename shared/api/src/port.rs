//! Ports of environments, and previews.

use agentbox_contracts::ids::PreviewId;
use agentbox_contracts::ports::ListeningPort;
use agentbox_contracts::preview::{DEFAULT_PREVIEW_S, Preview};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A TCP socket that listens in an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"port": 8080, "address": "0.0.0.0", "pid": 12, "process": "python3"}))]
pub struct PortBody {
    /// The port, 1 to 65535.
    #[schema(example = 8080)]
    pub port: u32,
    /// The address that it listens on, such as `0.0.0.0` or `::1`.
    #[schema(example = "0.0.0.0")]
    pub address: String,
    /// The id of its process in the environment. Absent if it is hidden.
    #[schema(example = 12)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The name of its process. Absent if it is hidden.
    #[schema(example = "python3")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
}

impl From<ListeningPort> for PortBody {
    fn from(listening: ListeningPort) -> Self {
        Self {
            port: listening.port,
            address: listening.address,
            pid: listening.pid,
            process: Some(listening.process).filter(|name| !name.is_empty()),
        }
    }
}

/// The sockets that listen in an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "ports": [{"port": 8080, "address": "0.0.0.0", "pid": 12, "process": "python3"}]
}))]
pub struct PortList {
    /// The sockets, by port.
    pub ports: Vec<PortBody>,
}

const fn default_lifetime() -> u64 {
    DEFAULT_PREVIEW_S
}

/// A request for a preview of a port.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"port": 8080, "expires_in": 3600}))]
#[serde(deny_unknown_fields)]
pub struct CreatePreview {
    /// The TCP port of the server in the environment, 1 to 65535.
    #[schema(example = 8080, minimum = 1, maximum = 65535)]
    pub port: u16,
    /// The lifetime in seconds, 1 to 604800 (7 days). Default: 3600.
    #[schema(example = 3600, minimum = 1, maximum = 604800)]
    #[serde(default = "default_lifetime")]
    pub expires_in: u64,
    /// Whether everyone who knows the address may use it. Default: false.
    #[schema(example = false)]
    #[serde(default)]
    pub public: bool,
}

/// A preview: a port with an origin of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "preview-0123456789abcdef", "port": 8080, "public": false,
    "created_at": "2026-01-22T10:00:00Z", "expires_at": "2026-01-22T11:00:00Z"
}))]
pub struct PreviewBody {
    /// The id to delete the preview by.
    pub id: PreviewId,
    /// The TCP port of the server in the environment.
    #[schema(example = 8080)]
    pub port: u16,
    /// Whether everyone who knows the address may use it.
    #[schema(example = false)]
    pub public: bool,
    /// When it was created (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// When it ends (RFC 3339, UTC). It ends earlier with its environment, and with the credential
    /// that created it.
    #[schema(example = "2026-01-22T11:00:00Z")]
    pub expires_at: DateTime<Utc>,
}

impl From<Preview> for PreviewBody {
    fn from(preview: Preview) -> Self {
        Self {
            id: preview.id,
            port: preview.port,
            public: preview.public,
            created_at: preview.created_at,
            expires_at: preview.expires_at,
        }
    }
}

/// A new preview, with what opens it. Neither can be read again later.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "preview-0123456789abcdef", "port": 8080, "public": false,
    "created_at": "2026-01-22T10:00:00Z", "expires_at": "2026-01-22T11:00:00Z",
    "url": "http://8080-preview-0123456789abcdef.localhost:8080/.agentbox/open?link=7c1f",
    "token": "b1946ac9"
}))]
pub struct CreatedPreview {
    /// The id to delete the preview by.
    pub id: PreviewId,
    /// The TCP port of the server in the environment.
    #[schema(example = 8080)]
    pub port: u16,
    /// Whether everyone who knows the address may use it.
    #[schema(example = false)]
    pub public: bool,
    /// When it was created (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// When it ends (RFC 3339, UTC). It ends earlier with its environment, and with the credential
    /// that created it.
    #[schema(example = "2026-01-22T11:00:00Z")]
    pub expires_at: DateTime<Utc>,
    /// The address for a browser. It may be opened once, unless the preview is public: the browser that
    /// opened it has access until the preview ends.
    #[schema(
        example = "http://8080-preview-0123456789abcdef.localhost:8080/.agentbox/open?link=7c1f"
    )]
    pub url: String,
    /// The token for programs, in the header `X-Agentbox-Preview-Token`. Absent if the preview is
    /// public.
    #[schema(example = "b1946ac9")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// One page of the previews of an environment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "previews": [{
        "id": "preview-0123456789abcdef", "port": 8080, "public": false,
        "created_at": "2026-01-22T10:00:00Z", "expires_at": "2026-01-22T11:00:00Z"
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct PreviewList {
    /// The previews of this page, newest first.
    pub previews: Vec<PreviewBody>,
    /// The number of previews on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of previews before this page.
    #[schema(example = 0)]
    pub offset: u64,
}
