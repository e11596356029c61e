//! `GET …/output`: the bytes of one stream, or the output of both as server-sent events.

mod events;
mod raw;

use std::time::Duration;

use agentbox_api::execution::OutputQuery;
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::Error;
use agentbox_contracts::executions::{Execution, ExecutionStatus, Offsets, ReadOutput};
use agentbox_contracts::logs::OutputStream;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::position;
use super::reader::Reader;
use super::status;
use crate::audit;
use crate::authorize::Action;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::{EnvironmentParameter, ExecutionId, ExecutionParameter};
use crate::edge::{Answer, Query};
use crate::memory::SessionKind;
use crate::state::Gateway;
use crate::stream::{StreamGrant, sse};

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The bytes of one stream.
    Raw,
    Events,
}

/// What a request asks for.
struct Wanted {
    form: Form,
    read: ReadOutput,
    /// The parameter or header that has the position.
    field: &'static str,
}

/// The request for the box. Of events, which report gaps, the default is the beginning; the bytes of a
/// stream begin at the oldest kept one.
fn request(id: &str, query: &OutputQuery, headers: &HeaderMap) -> Result<Wanted, Error> {
    let mut field = "from";
    let stdout = query.stream != Some(OutputStream::Stderr);
    let stderr = query.stream != Some(OutputStream::Stdout);
    let form = match query.follow || query.stream.is_none() {
        true => Form::Events,
        false => Form::Raw,
    };
    let from = match (form, query.from.as_deref()) {
        (Form::Raw, None) => None,
        (Form::Raw, Some(text)) => {
            let offset = position::parse_offset(text)?;
            Some(Offsets {
                stdout: offset,
                stderr: offset,
            })
        }
        (Form::Events, from) => match position::last_event_id(headers)? {
            Some(last) => {
                field = position::LAST_EVENT_ID;
                Some(last)
            }
            None => Some(match from {
                Some(text) => position::parse("from", text)?,
                None => Offsets::default(),
            }),
        },
    };
    let read = ReadOutput {
        id: id.to_owned(),
        stdout,
        stderr,
        from,
        follow: query.follow,
    };
    Ok(Wanted { form, read, field })
}

/// Whether the byte counts of an execution are those of a copy that was made before its box ended: a
/// client may have received more.
fn is_copied(execution: &Execution, environment: Status) -> bool {
    let status = execution.status();
    status == ExecutionStatus::Lost || (status.is_active() && environment != Status::Running)
}

/// Checks that the output does not end before the requested position.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
fn check_position(wanted: &Wanted, execution: &Execution) -> Result<(), Error> {
    let read = &wanted.read;
    let from = read.from.unwrap_or_default();
    for (is_read, from, written) in [
        (read.stdout, from.stdout, execution.stdout_bytes),
        (read.stderr, from.stderr, execution.stderr_bytes),
    ] {
        if is_read && from > written {
            return Err(Error::value(
                wanted.field,
                format_args!("must be at most {written}, the bytes of the stream"),
                from,
            ));
        }
    }
    Ok(())
}

/// Read or follow the output
///
/// With `stream` and without `follow`, returns the kept bytes of that stream as they were written.
/// Otherwise the answer is a stream of server-sent events: one `OutputEvent` in each, with an `id` that
/// encodes the offsets of both streams. Three other events may occur: `gap` (output that is no longer
/// kept, a `GapEvent`), `end` (the execution has ended, or without `follow` all kept output was sent: the
/// execution) and `error` (the stream cannot continue, with an `ErrorBody`). A stream resumes after an
/// `id`, by `Last-Event-ID` or `from`. It works also after the environment has ended, for the retention
/// time.
#[utoipa::path(get, operation_id = "getExecutionOutput", path = "/environments/{id}/executions/{execution}/output", tag = "executions",
    params(EnvironmentParameter, ExecutionParameter, OutputQuery,
        ("Last-Event-ID" = Option<String>, Header, example = "4096-0",
            description = "With server-sent events: the `id` of the last event that the client has. The stream continues after it, whatever `from` says.")),
    responses((status = 200, description = "The bytes of one stream, or a stream of server-sent events.",
        content((String = "application/octet-stream", example = "epoch 1\n"),
            (String = "text/event-stream", example = "id: 8-0\ndata: {\"stream\":\"stdout\",\"data\":\"epoch 1\\n\",\"offset\":0}\n\n")))))]
pub(crate) async fn output(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    ExecutionId(id): ExecutionId,
    Query(query): Query<OutputQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let wanted = request(id.as_str(), &query, &headers)?;
    // A request beyond the limit has no entry in the audit trail.
    let share = gateway.begin_session(&principal, SessionKind::Output)?;
    audit::accept(&gateway, AuditAction::ReadOutput, &location.id, &[]).await?;
    let execution = status::read(&gateway, location.clone(), id.as_str(), Duration::ZERO).await?;
    if !is_copied(&execution, location.status) {
        check_position(&wanted, &execution)?;
    }
    let Wanted { form, read, .. } = wanted;
    let grant = StreamGrant::environment(Action::ReadOutput, &location);
    let from = read.from;
    let reader = Reader::new(gateway.clone(), location, execution, read);
    Ok(match form {
        Form::Raw => raw::answer(gateway, principal, grant, share, reader, from.is_none()).await?,
        Form::Events => {
            let source = events::Events::new(reader, from.unwrap_or_default());
            sse::answer("output", gateway, principal, grant, share, source)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str, last: Option<&str>) -> Result<Wanted, Error> {
        let uri = format!("/x?{query}").parse().unwrap();
        let mut headers = HeaderMap::new();
        if let Some(last) = last {
            headers.insert("last-event-id", last.parse().unwrap());
        }
        let query = crate::edge::query::parse(&uri).unwrap();
        request("exec-0123456789abcdef", &query, &headers)
    }

    #[test]
    fn one_stream_without_follow_is_bytes_and_all_else_is_events() {
        let at = |stdout, stderr| Some(Offsets { stdout, stderr });
        for (query, last, form, streams, from) in [
            ("", None, Form::Events, (true, true), at(0, 0)),
            ("stream=stdout", None, Form::Raw, (true, false), None),
            (
                "stream=stderr&from=7",
                None,
                Form::Raw,
                (false, true),
                at(7, 7),
            ),
            (
                "stream=stderr&follow=true",
                None,
                Form::Events,
                (false, true),
                at(0, 0),
            ),
            (
                "follow=true&from=3-4",
                None,
                Form::Events,
                (true, true),
                at(3, 4),
            ),
            (
                "follow=true&from=3-4",
                Some("5-6"),
                Form::Events,
                (true, true),
                at(5, 6),
            ),
        ] {
            let Wanted {
                form: found, read, ..
            } = read(query, last).unwrap();
            assert_eq!((found, read.from), (form, from), "{query}");
            assert_eq!((read.stdout, read.stderr), streams, "{query}");
        }
        for (query, last) in [
            ("stream=stdout&from=1-2", None),
            ("from=7", None),
            ("follow=true", Some("7")),
        ] {
            assert!(read(query, last).is_err(), "{query}");
        }
    }

    #[test]
    fn position_after_the_end_of_a_stream_is_refused() {
        let execution = Execution {
            stdout_bytes: 10,
            stderr_bytes: 2,
            ..Execution::default()
        };
        for (query, is_accepted) in [
            ("follow=true&from=10-2", true),
            ("follow=true&from=11-2", false),
            ("follow=true&from=10-3", false),
            ("stream=stdout&from=10", true),
            ("stream=stderr&from=10", false),
            ("stream=stdout&follow=true&from=10-99", true),
        ] {
            let checked = check_position(&read(query, None).unwrap(), &execution);
            assert_eq!(checked.is_ok(), is_accepted, "{query}");
        }
        let resumed = read("follow=true", Some("11-2")).unwrap();
        let error = check_position(&resumed, &execution).unwrap_err();
        assert!(error.message.starts_with("Last-Event-ID: "), "{error}");
    }

    #[test]
    fn byte_counts_are_final_unless_the_box_ended_after_they_were_copied() {
        for (status, environment, expected) in [
            (ExecutionStatus::Running, Status::Running, false),
            (ExecutionStatus::Running, Status::Terminating, true),
            (ExecutionStatus::Exited, Status::Terminating, false),
            (ExecutionStatus::Exited, Status::Failed, false),
            (ExecutionStatus::Lost, Status::Failed, true),
        ] {
            let execution = Execution {
                status: status.into(),
                ..Execution::default()
            };
            let found = is_copied(&execution, environment);
            assert_eq!(found, expected, "{status:?} {environment:?}");
        }
    }
}
