//! The audit trail: its entries, the origin of a request, and auth's RPC that reads it.
//!
//! * I1. An entry has ids, an address and values of closed lists. A text from a request is in it
//!   only as the name of a registry that the operator allows, as the name of a pool, as that of a
//!   cluster that the operator configured, and as `arguments`, which the operator switches on.
//! * I2. The id of an entry is chosen once, where the entry is made. Whatever is sent again is
//!   therefore recorded once.

use std::net::{IpAddr, Ipv6Addr};

use chrono::{DateTime, Datelike as _, SubsecRound as _, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::identity::Principal;
use crate::ids::{ApiKeyId, AuditId, UserId};

/// The most bytes of a command that one entry keeps, over all its arguments.
pub const MAX_ARGUMENT_BYTES: usize = 4 * 1024;

/// The longest target and trace id, in bytes.
const MAX_ID_BYTES: usize = 64;

/// How far the clock of a service may be ahead. The retention keeps an entry of the future, and all
/// entries after it.
const MAX_SKEW: TimeDelta = TimeDelta::days(1);

/// An action that is recorded. The list is closed: a new action is a change of the API.
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
#[cfg_attr(feature = "openapi", schema(example = "exec"))]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case", const_into_str)]
pub enum AuditAction {
    BootstrapAdmin,
    Login,
    Logout,
    ChangePassword,
    CreateUser,
    PatchUser,
    DeleteUser,
    CreateKey,
    RevokeKey,
    /// All keys of the target, a user.
    RevokeKeys,
    IssueTicket,
    CreateSigningKey,
    CreateEnvironment,
    PatchEnvironment,
    DeleteEnvironment,
    /// The credential of the target, a registry.
    SetRegistryCredential,
    DeleteRegistryCredential,
    /// The target is the pool's name.
    SetPool,
    DeletePool,
    Exec,
    Attach,
    ReadLogs,
    /// The target of this and the following actions is the environment.
    DownloadFile,
    UploadFile,
    ChangeFiles,
    WatchFiles,
    StartExecution,
    ReadOutput,
    ControlExecution,
    AttachExecution,
    UsePort,
    CreatePreview,
    DeletePreview,
    /// It has no target: the id of the webhook is made afterwards.
    CreateWebhook,
    /// The target of this and the next action is the webhook.
    DeleteWebhook,
    RedeliverWebhook,
    /// The target of this and the following two actions is the name of the cluster.
    CordonCluster,
    UncordonCluster,
    DrainCluster,
    /// The target of this and the following action is the number of the dead letter.
    ReplayDeadLetter,
    DiscardDeadLetter,
}

impl AuditAction {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }

    /// Whether AgentBox acts by itself, without an API request.
    #[must_use]
    pub const fn is_internal(self) -> bool {
        matches!(self, Self::BootstrapAdmin | Self::CreateSigningKey)
    }

    /// The service that performs and records the action.
    #[must_use]
    pub const fn service(self) -> &'static str {
        match self {
            Self::Exec
            | Self::Attach
            | Self::ReadLogs
            | Self::DownloadFile
            | Self::UploadFile
            | Self::ChangeFiles
            | Self::WatchFiles
            | Self::StartExecution
            | Self::ReadOutput
            | Self::ControlExecution
            | Self::AttachExecution
            | Self::UsePort
            | Self::CreatePreview
            | Self::DeletePreview
            | Self::CreateWebhook
            | Self::DeleteWebhook
            | Self::RedeliverWebhook
            | Self::ReplayDeadLetter
            | Self::DiscardDeadLetter => "api-gateway",
            Self::CreateEnvironment
            | Self::PatchEnvironment
            | Self::DeleteEnvironment
            | Self::SetRegistryCredential
            | Self::DeleteRegistryCredential
            | Self::SetPool
            | Self::DeletePool
            | Self::CordonCluster
            | Self::UncordonCluster
            | Self::DrainCluster => "scheduler",
            Self::BootstrapAdmin
            | Self::Login
            | Self::Logout
            | Self::ChangePassword
            | Self::CreateUser
            | Self::PatchUser
            | Self::DeleteUser
            | Self::CreateKey
            | Self::RevokeKey
            | Self::RevokeKeys
            | Self::IssueTicket
            | Self::CreateSigningKey => "auth",
        }
    }
}

/// The outcome of a recorded action: `ok` and `refused` are final. `accepted` was recorded before
/// the action began, and does not tell how it ended.
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
#[cfg_attr(feature = "openapi", schema(example = "ok"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum AuditOutcome {
    Ok,
    Refused,
    Accepted,
}

impl AuditOutcome {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// Who sent a request, and from where. It travels with every request on the bus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `None`: the request had no credential, or AgentBox itself acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// The API key that authenticated the request, or that its ticket was issued to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ApiKeyId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The `X-Trace-Id` of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The sender gave no origin, although an API request was the cause: a fault of that service.
    #[serde(
        default,
        rename = "origin_missing",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub is_missing: bool,
}

impl Origin {
    /// The origin of a request from `address`, by `principal` if it had a credential.
    #[must_use]
    pub fn new(principal: Option<&Principal>, address: IpAddr, trace_id: Option<String>) -> Self {
        Self {
            user: principal.map(|principal| principal.user.clone()),
            key: principal.and_then(|principal| principal.credential.key().cloned()),
            address: Some(address),
            trace_id,
            is_missing: false,
        }
    }

    /// The origin of a request whose sender gave none.
    #[must_use]
    pub fn missing() -> Self {
        Self {
            is_missing: true,
            ..Self::default()
        }
    }

    /// The client network of the request, [`client_network`] of its address.
    #[must_use]
    pub fn network(&self) -> Option<IpAddr> {
        self.address.map(client_network)
    }
}

/// The network that is counted as one client: an IPv4 address, or an IPv6 /64, which is usually
/// assigned to one client.
#[must_use]
pub fn client_network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// One entry of the trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub id: AuditId,
    pub at: DateTime<Utc>,
    #[serde(flatten)]
    pub origin: Origin,
    pub action: AuditAction,
    /// The id that the action was about, or the name of a registry, a pool or a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub outcome: AuditOutcome,
    /// The command, if the operator records arguments. At most [`MAX_ARGUMENT_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
    /// The command was longer than [`MAX_ARGUMENT_BYTES`]; its end is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub arguments_truncated: bool,
}

impl AuditEntry {
    /// An entry of this moment, with a new id.
    #[must_use]
    pub fn new(
        origin: Origin,
        action: AuditAction,
        target: Option<&str>,
        outcome: AuditOutcome,
    ) -> Self {
        Self {
            id: AuditId::random(),
            // The precision of Postgres.
            at: Utc::now().trunc_subsecs(6),
            origin,
            action,
            target: target.map(ToOwned::to_owned),
            outcome,
            arguments: None,
            arguments_truncated: false,
        }
    }

    /// Whether the trail can store the entry exactly. An entry of [`Self::new`] with an id as its
    /// target is; a message of a compromised service may not be.
    #[must_use]
    pub fn is_storable(&self) -> bool {
        let is_id = |text: &Option<String>| {
            text.as_deref().is_none_or(|text| {
                text.len() <= MAX_ID_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic())
            })
        };
        is_id(&self.target)
            && is_id(&self.origin.trace_id)
            && self.at.year() >= 1970
            && self.at <= Utc::now() + MAX_SKEW
            && self.at == self.at.trunc_subsecs(6)
    }

    /// Adds the arguments of a command, up to [`MAX_ARGUMENT_BYTES`].
    #[must_use]
    pub fn with_arguments(mut self, command: &[String]) -> Self {
        let mut left = MAX_ARGUMENT_BYTES;
        let mut kept = Vec::new();
        for argument in command {
            let length = argument.floor_char_boundary(left);
            if length < argument.len() {
                self.arguments_truncated = true;
                if length > 0 {
                    kept.push(argument[..length].to_owned());
                }
                break;
            }
            left -= length;
            kept.push(argument.clone());
        }
        self.arguments = Some(kept);
        self
    }
}

/// The published head of the chain. A trail that lacks it has lost its newest entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// The number of the newest entry.
    pub sequence: u64,
    /// The hash of that entry, in hexadecimal digits.
    pub hash: String,
    /// An Ed25519 signature (RFC 8032) by auth, in hexadecimal digits.
    pub signature: String,
    pub at: DateTime<Utc>,
}

pub mod rpc {
    //! Auth's RPC about the trail. The gateway decides whose entries a caller may read.

    use super::{AuditAction, AuditEntry, DateTime, Deserialize, Serialize, UserId, Utc};
    use crate::rpc::rpc;

    /// One page of the trail, newest first. Each filter that is absent matches every entry.
    #[derive(Clone, Debug, Default, Serialize, Deserialize)]
    pub struct ListAuditRequest {
        /// The user that acted.
        #[serde(default)]
        pub user: Option<UserId>,
        #[serde(default)]
        pub action: Option<AuditAction>,
        #[serde(default)]
        pub target: Option<String>,
        /// The first time that is included.
        #[serde(default)]
        pub since: Option<DateTime<Utc>>,
        /// The first time that is not included.
        #[serde(default)]
        pub until: Option<DateTime<Utc>>,
        pub limit: u32,
        pub offset: u64,
    }

    /// An entry and its place in the chain.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct ChainedEntry {
        pub sequence: u64,
        /// In hexadecimal digits.
        pub hash: String,
        pub entry: AuditEntry,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListAuditReply {
        /// As many as fit in a message, at least one if there are any.
        pub entries: Vec<ChainedEntry>,
        /// At most 100,000: more are not counted.
        pub total: u64,
        /// The page has more entries than fit in this message.
        #[serde(default)]
        pub has_more: bool,
    }

    rpc!(ListAudit: "auth", "list-audit", ListAuditRequest => ListAuditReply);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditEntry {
        AuditEntry::new(
            Origin::default(),
            AuditAction::Exec,
            None,
            AuditOutcome::Accepted,
        )
    }

    #[test]
    fn short_command_is_kept_whole() {
        let command = ["echo".to_owned(), "ü".repeat(MAX_ARGUMENT_BYTES / 2 - 2)];
        let entry = entry().with_arguments(&command);
        assert_eq!(entry.arguments.as_deref(), Some(&command[..]));
        assert!(!entry.arguments_truncated);
    }

    #[test]
    fn long_command_is_cut_at_a_character_and_marked() {
        let command = [
            "e".to_owned(),
            "ü".repeat(MAX_ARGUMENT_BYTES),
            "z".to_owned(),
        ];
        let entry = entry().with_arguments(&command);
        let kept = entry.arguments.unwrap();
        assert!(entry.arguments_truncated);
        assert_eq!(kept.len(), 2);
        assert!(kept.concat().len() <= MAX_ARGUMENT_BYTES);
        assert!(kept[1].chars().all(|character| character == 'ü'));
    }

    #[test]
    fn entry_that_postgres_would_change_or_refuse_is_not_storable() {
        let with = |change: fn(&mut AuditEntry)| {
            let mut entry = entry();
            change(&mut entry);
            entry.is_storable()
        };
        assert!(with(|_| {}));
        assert!(with(
            |entry| entry.target = Some("env-0123456789abcdef".into())
        ));
        assert!(!with(|entry| entry.target = Some("a\0".into())));
        assert!(!with(|entry| entry.target = Some("x".repeat(65))));
        assert!(!with(|entry| entry.origin.trace_id = Some("a b".into())));
        assert!(!with(|entry| entry.at = DateTime::<Utc>::MAX_UTC));
        assert!(with(|entry| entry.at += TimeDelta::hours(1)));
        assert!(!with(|entry| entry.at += TimeDelta::days(2)));
        let nanosecond = |entry: &mut AuditEntry| entry.at += TimeDelta::nanoseconds(1);
        assert!(!with(nanosecond));
    }

    #[test]
    fn missing_origin_is_marked_in_the_entry() {
        let json = |origin| {
            let action = AuditAction::CreateUser;
            let entry = AuditEntry::new(origin, action, None, AuditOutcome::Ok);
            serde_json::to_value(entry).unwrap()
        };
        assert_eq!(json(Origin::missing())["origin_missing"], true);
        assert!(json(Origin::default()).get("origin_missing").is_none());
    }

    #[test]
    fn entry_without_arguments_parses_back() {
        let entry = entry();
        let text = serde_json::to_string(&entry).unwrap();
        assert!(!text.contains("arguments"), "{text}");
        assert_eq!(serde_json::from_str::<AuditEntry>(&text).unwrap(), entry);
    }
}
