//! Authorization: one pure function for every route, for HTTP, SSE and WebSocket alike.
//!
//! * I1. An environment that the caller may not see is not found, exactly as if it did not
//!   exist. An action that the caller may not do on an environment it sees is forbidden.
//! * I2. A key never has more rights than its owner, and a ticket is valid for its one
//!   environment and action only, and for its one execution or path if its action has one.
//! * I3. A leaked key gives no rights that outlive it: to manage users, credentials of registries,
//!   webhooks, and keys that it did not make, and to operate the system, needs a login, or a key that
//!   was made for it.

use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{
    Credential, Permission, Principal, Role, Scope, TicketAction, TicketResource,
};
use agentbox_contracts::ids::{EnvironmentId, UserId};

/// The action of a request. Routes with the same rules share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Read public information, without a credential: health, the API's description.
    Public,
    LogIn,
    /// Read the caller's own user.
    Myself,
    /// Revoke the login that the request carries.
    LogOut,
    ChangePassword,
    ManageUsers,
    ManageOwnKeys,
    /// Set, list and delete the caller's credentials of registries.
    ManageRegistries,
    /// Define, list and delete warm pools.
    ManagePools,
    /// Create, list and delete the caller's webhooks, and their deliveries.
    ManageWebhooks,
    CreateEnvironment,
    /// List environments, or the events of all of them.
    ListEnvironments,
    ViewEnvironment,
    ReadLogs,
    Exec,
    Attach,
    /// Read the metadata of files, and list directories.
    ViewFiles,
    /// Read the contents of a file or a directory.
    DownloadFile,
    /// Write a file, or unpack an archive.
    UploadFile,
    /// Create, move, copy, change and delete files.
    ChangeFiles,
    /// Follow the changes of files.
    WatchFiles,
    /// Read executions and their status.
    ViewExecutions,
    /// Read the output of an execution.
    ReadOutput,
    StartExecution,
    /// Send stdin, signals and sizes to an execution, or delete it.
    ControlExecution,
    AttachExecution,
    /// List the listening ports, or the previews.
    ViewPorts,
    /// Send requests to a port.
    UsePort,
    /// Create and delete previews.
    ManagePreviews,
    PatchEnvironment,
    DeleteEnvironment,
    /// Read the audit trail: the caller's own entries, or all of them.
    ReadAudit,
    /// See and change clusters, dead letters, and the use of all users.
    OperateSystem,
    /// Request a ticket. The actions below are authorized on its environment.
    IssueTicket,
    TicketForLogs,
    TicketForAttach,
    TicketForOutput,
    TicketForExecutionAttach,
    TicketForFileDownload,
    TicketForFileUpload,
}

impl Action {
    /// The permission that this action requires on its environment; `None` if it has none.
    pub(crate) const fn required_permission(self) -> Option<Permission> {
        match self {
            Self::ViewEnvironment
            | Self::ReadLogs
            | Self::TicketForLogs
            | Self::TicketForOutput
            | Self::ViewFiles
            | Self::ViewExecutions
            | Self::ReadOutput
            | Self::ViewPorts => Some(Permission::Read),
            Self::Exec
            | Self::Attach
            | Self::TicketForAttach
            | Self::TicketForExecutionAttach
            | Self::TicketForFileDownload
            | Self::TicketForFileUpload
            | Self::DownloadFile
            | Self::UploadFile
            | Self::ChangeFiles
            | Self::WatchFiles
            | Self::StartExecution
            | Self::ControlExecution
            | Self::AttachExecution
            | Self::UsePort
            | Self::ManagePreviews => Some(Permission::Write),
            Self::PatchEnvironment | Self::DeleteEnvironment => Some(Permission::Admin),
            Self::Public
            | Self::LogIn
            | Self::Myself
            | Self::LogOut
            | Self::ChangePassword
            | Self::ManageUsers
            | Self::ManageOwnKeys
            | Self::ManageRegistries
            | Self::ManagePools
            | Self::ManageWebhooks
            | Self::CreateEnvironment
            | Self::ListEnvironments
            | Self::IssueTicket
            | Self::ReadAudit
            | Self::OperateSystem => None,
        }
    }

    /// Whether this action is allowed without a credential.
    pub(crate) const fn is_open(self) -> bool {
        matches!(self, Self::Public | Self::LogIn)
    }

    /// The kind of ticket that allows this action.
    pub(crate) const fn ticket(self) -> Option<TicketAction> {
        match self {
            Self::ReadLogs => Some(TicketAction::Logs),
            Self::Attach => Some(TicketAction::Attach),
            Self::ReadOutput => Some(TicketAction::Output),
            Self::AttachExecution => Some(TicketAction::ExecutionAttach),
            Self::DownloadFile => Some(TicketAction::FileDownload),
            Self::UploadFile => Some(TicketAction::FileUpload),
            _ => None,
        }
    }
}

/// The environment that an action concerns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub id: &'a EnvironmentId,
    pub owner: &'a UserId,
    /// The execution or the path of the request, if a ticket for its action is bound to one.
    pub resource: Option<&'a TicketResource>,
}

pub(crate) fn unauthorized(message: &str) -> Error {
    Error::new(ErrorCode::Unauthorized, message)
}

fn forbidden(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Forbidden, message)
}

/// Whether `caller` may do `action`, on `target` where it has one.
///
/// # Errors
/// [`ErrorCode::Unauthorized`] without a caller, [`ErrorCode::NotFound`] if the caller may not see
/// the environment, [`ErrorCode::Forbidden`] if the caller may not do the action.
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
            "the request has no credential: send `Authorization: Bearer <token>`",
        ));
    };
    match (action.required_permission(), target) {
        (Some(needed), Some(target)) => authorize_on_environment(principal, action, needed, target),
        // The route did not look up its environment: a fault in this program.
        (Some(_), None) => Err(Error::internal()),
        (None, _) => authorize_without_environment(principal, action),
    }
}

fn authorize_on_environment(
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
        resource,
        ..
    } = &principal.credential
    {
        if environment != target.id {
            return Err(not_found());
        }
        if action.ticket() != Some(*granted) {
            return Err(forbidden("this ticket allows another action only"));
        }
        if resource.as_ref() != target.resource {
            return Err(forbidden(
                "this ticket is for another execution or another path only",
            ));
        }
    }
    match &principal.scope {
        Scope::Full => Ok(()),
        Scope::Environments(granted) => match granted.get(target.id) {
            None => Err(not_found()),
            Some(level) if *level >= needed => Ok(()),
            Some(level) => Err(forbidden(format!(
                "this needs the permission `{}` on the environment, the API key has `{}`",
                needed.as_str(),
                level.as_str()
            ))),
        },
    }
}

fn authorize_without_environment(principal: &Principal, action: Action) -> Result<(), Error> {
    if matches!(principal.credential, Credential::Ticket { .. }) {
        return Err(forbidden(
            "a ticket allows only its one action on its one environment",
        ));
    }
    let limited = matches!(principal.scope, Scope::Environments(_));
    match action {
        Action::ManageUsers if principal.role != Role::Admin || limited => {
            Err(forbidden("only an administrator may manage users"))
        }
        Action::ManageUsers if !may_manage(principal) => Err(forbidden(
            "managing users needs a login, or an API key with `management`",
        )),
        Action::ManagePools if principal.role != Role::Admin || limited => {
            Err(forbidden("only an administrator may manage pools"))
        }
        Action::OperateSystem if principal.role != Role::Admin || limited => {
            Err(forbidden("only an administrator may operate the system"))
        }
        Action::OperateSystem if !may_manage(principal) => Err(forbidden(
            "operating the system needs a login, or an API key with `management`",
        )),
        Action::CreateEnvironment if limited => Err(forbidden(
            "an API key with permissions cannot create environments",
        )),
        Action::ManageOwnKeys if limited => Err(forbidden(
            "an API key with permissions cannot manage API keys",
        )),
        Action::ManageRegistries if limited || !may_manage(principal) => Err(forbidden(
            "managing credentials of registries needs a login, or an API key with `management`",
        )),
        Action::ManageWebhooks if limited || !may_manage(principal) => Err(forbidden(
            "managing webhooks needs a login, or an API key with `management`",
        )),
        Action::ReadAudit if limited => Err(forbidden(
            "an API key with permissions cannot read the audit trail",
        )),
        Action::ChangePassword if limited => Err(forbidden(
            "an API key with permissions cannot change its owner's password",
        )),
        Action::LogOut if !matches!(principal.credential, Credential::Login { .. }) => Err(
            forbidden("only a login can be logged out; to end an API key, revoke it"),
        ),
        _ => Ok(()),
    }
}

/// Whether `principal` may manage users and operate the system, if it is an administrator, its
/// credentials of registries, its webhooks, and keys that it did not make: by a login, or by a key with
/// `management`.
pub(crate) fn may_manage(principal: &Principal) -> bool {
    match principal.credential {
        Credential::Login { .. } => true,
        Credential::ApiKey { .. } => principal.management,
        Credential::Ticket { .. } => false,
    }
}

/// The environments that `principal` sees in lists and event streams.
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
