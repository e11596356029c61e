//! `/auth/tickets`: single-use credentials for browsers, whose EventSource and WebSocket
//! send no headers.

use agentbox_api::user::{CreateTicket, TicketReply};
use agentbox_contracts::error::Error;
use agentbox_contracts::identity::{TicketAction, TicketResource, rpc};
use axum::extract::State;
use axum::http::StatusCode;

use crate::authorize::Action;
use crate::edge::{Answer, Caller, Json};
use crate::files::path;
use crate::lookup;
use crate::state::{AUTH_DEADLINE, Gateway};

/// What the caller of a ticket must be allowed to do.
const fn required(action: TicketAction) -> Action {
    match action {
        TicketAction::Logs => Action::TicketForLogs,
        TicketAction::Attach => Action::TicketForAttach,
        TicketAction::Output => Action::TicketForOutput,
        TicketAction::ExecutionAttach => Action::TicketForExecutionAttach,
        TicketAction::FileDownload => Action::TicketForFileDownload,
        TicketAction::FileUpload => Action::TicketForFileUpload,
    }
}

/// The resource that a ticket is bound to.
fn resource(body: &CreateTicket) -> Result<Option<TicketResource>, Error> {
    let unused = |field: &str, is_given: bool| match is_given {
        true => Err(Error::field(
            field,
            format_args!("is not for the action `{}`", body.action.as_str()),
        )),
        false => Ok(()),
    };
    let of_execution = matches!(
        body.action,
        TicketAction::Output | TicketAction::ExecutionAttach
    );
    let of_path = matches!(
        body.action,
        TicketAction::FileDownload | TicketAction::FileUpload
    );
    unused("execution_id", body.execution_id.is_some() && !of_execution)?;
    unused("path", body.path.is_some() && !of_path)?;
    unused("path_base64", body.path_base64.is_some() && !of_path)?;
    if of_path {
        let path = path::of_body("path", body.path.as_deref(), body.path_base64.as_deref())?;
        return Ok(Some(TicketResource::Path(path.into())));
    }
    if !of_execution {
        return Ok(None);
    }
    let id = body.execution_id.as_deref().ok_or_else(|| {
        Error::field(
            "execution_id",
            format_args!("is required for the action `{}`", body.action.as_str()),
        )
    })?;
    let id = id.parse().map_err(|_| Error::not_found("execution"))?;
    Ok(Some(TicketResource::Execution(id)))
}

/// Create a ticket
///
/// A ticket replaces the Authorization header where a browser cannot send one: append
/// `?ticket=<ticket>` to the URL of the logs, of the terminal, of the output of an execution, or of the
/// content of a file. It is valid once, within 60 seconds, for the environment, the action, and the
/// execution or path it was created for. The operator may choose a shorter time
/// (`AGENTBOX_TICKET_TTL`).
#[utoipa::path(post, operation_id = "createTicket", path = "/auth/tickets", tag = "auth", request_body = CreateTicket,
    responses((status = 201, description = "The ticket.", body = TicketReply)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<CreateTicket>,
) -> Answer<(StatusCode, axum::Json<TicketReply>)> {
    let resource = resource(&body)?;
    let action = required(body.action);
    let location = lookup::resolve(&gateway, &principal, action, &body.environment_id).await?;
    let request = rpc::TicketRequest {
        principal,
        environment: location.id,
        action: body.action,
        resource,
    };
    let reply = gateway
        .bus
        .call::<rpc::IssueTicket>(&request, AUTH_DEADLINE)
        .await?;
    let body = TicketReply {
        ticket: reply.ticket.0,
        expires_at: reply.expires_at,
    };
    Ok((StatusCode::CREATED, axum::Json(body)))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;

    use super::*;

    const EXECUTION: &str = "exec-0123456789abcdef";

    fn body(action: TicketAction) -> CreateTicket {
        CreateTicket {
            environment_id: "env-0123456789abcdef".to_owned(),
            action,
            execution_id: None,
            path: None,
            path_base64: None,
        }
    }

    #[test]
    fn ticket_is_bound_to_the_resource_of_its_action() {
        assert_eq!(resource(&body(TicketAction::Logs)), Ok(None));
        assert_eq!(resource(&body(TicketAction::Attach)), Ok(None));
        for action in [TicketAction::Output, TicketAction::ExecutionAttach] {
            let with_id = CreateTicket {
                execution_id: Some(EXECUTION.to_owned()),
                ..body(action)
            };
            let expected = TicketResource::Execution(EXECUTION.parse().unwrap());
            assert_eq!(resource(&with_id), Ok(Some(expected)));
        }
        for action in [TicketAction::FileDownload, TicketAction::FileUpload] {
            let with_path = CreateTicket {
                path_base64: Some("L2H/".to_owned()),
                ..body(action)
            };
            let expected = TicketResource::Path(b"/a\xff".to_vec());
            assert_eq!(resource(&with_path), Ok(Some(expected)));
        }
    }

    #[test]
    fn resource_that_is_missing_or_of_another_action_is_refused_by_field() {
        use ErrorCode::{InvalidPath, NotFound, Validation};
        let with = |action, execution_id: Option<&str>, path: Option<&str>| CreateTicket {
            execution_id: execution_id.map(ToOwned::to_owned),
            path: path.map(ToOwned::to_owned),
            ..body(action)
        };
        for (body, code, text) in [
            (
                with(TicketAction::Output, None, None),
                Validation,
                "execution_id: is required",
            ),
            (
                with(TicketAction::Output, Some("x"), None),
                NotFound,
                "execution not found",
            ),
            (
                with(TicketAction::Output, Some(EXECUTION), Some("/a")),
                Validation,
                "path: is not for the action `output`",
            ),
            (
                with(TicketAction::Logs, Some(EXECUTION), None),
                Validation,
                "execution_id: is not for the action `logs`",
            ),
            (
                with(TicketAction::FileUpload, None, None),
                Validation,
                "path: is required",
            ),
            (
                with(TicketAction::FileDownload, None, Some("a")),
                InvalidPath,
                "path: must be absolute",
            ),
        ] {
            let error = resource(&body).unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.starts_with(text), "{error}");
        }
    }
}
