//! `GET /environments/{id}/files/events`: the changes of files, as server-sent events.
//!
//! * I1. The answer begins when changes are noticed: a change after it is not missed.
//! * I2. The box keeps no changes. So the first event of a client that reconnects is `overflow`.

use agentbox_api::file::{FileChange as ChangeBody, WatchQuery};
use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{ChangeKind, FileChange, Watch};
use agentbox_contracts::ids::EnvironmentId;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse::Event;

use super::metadata;
use super::operation::{begin, next, unexpected};
use super::path::FilePath;
use crate::audit;
use crate::authorize::Action;
use crate::box_loss;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::{Answer, Query};
use crate::memory::SessionKind;
use crate::state::Gateway;
use crate::stream::StreamGrant;
use crate::stream::sse::{self, EventQueue, Source};

struct Follower {
    gateway: Gateway,
    environment: EnvironmentId,
    /// Held: without it the operation would be cancelled.
    _to_box: SessionSender<ToBox>,
    from_box: SessionReceiver<FromBox>,
    ready: EventQueue,
}

const fn name(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Overflow => "overflow",
        ChangeKind::Created => "created",
        ChangeKind::Modified => "modified",
        ChangeKind::Moved => "moved",
        ChangeKind::Deleted => "deleted",
        ChangeKind::Attributes => "attributes",
    }
}

fn event(change: &FileChange) -> Event {
    let kind = change.kind();
    if kind == ChangeKind::Overflow {
        return sse::numbered(name(kind), change.number, &serde_json::json!({}));
    }
    let (path, path_base64) = metadata::text(&change.path);
    let (from, from_base64) = match change.from.as_deref().map(metadata::text) {
        Some((from, base64)) => (Some(from), base64),
        None => (None, None),
    };
    let body = ChangeBody {
        path,
        path_base64,
        from,
        from_base64,
    };
    sse::numbered(name(kind), change.number, &body)
}

impl Source for Follower {
    fn queue(&mut self) -> &mut EventQueue {
        &mut self.ready
    }

    async fn fill(&mut self) {
        match next(&mut self.from_box).await {
            Ok(Some(Output::Changes(changes))) => {
                self.ready.extend(changes.changes.iter().map(event));
            }
            Ok(Some(_)) => self.ready.fail(&unexpected()),
            // The box has ended the operation: what was followed is gone.
            Ok(None) => self.ready.end(),
            Err(error) => {
                let error = box_loss::classify(&self.gateway, &self.environment, error).await;
                self.ready.fail(&error);
            }
        }
    }
}

/// Follow the changes of files
///
/// Answers with a stream of server-sent events, one for each change of the file, or of the entries of
/// the directory: `created`, `modified`, `moved`, `deleted` and `attributes`, each with a `FileChange`
/// and an `id`. A change after the head of the answer is not missed. The event `overflow` (`{}`) means
/// that changes were missed: list the directory again. It is the first event after a reconnect with
/// `Last-Event-ID`. The event `error` comes last if the stream cannot continue, with an `ErrorBody`.
#[utoipa::path(get, operation_id = "watchFiles", path = "/environments/{id}/files/events", tag = "files",
    params(EnvironmentParameter, WatchQuery,
        ("Last-Event-ID" = Option<u64>, Header, example = 17,
            description = "The `id` of the last event that the client has. Browsers send it when they reconnect.")),
    responses((status = 200, description = "A stream of server-sent events.", body = String, content_type = "text/event-stream",
        example = "event: created\nid: 1\ndata: {\"path\":\"/work/result.csv\"}\n\n")))]
pub(crate) async fn watch(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(query): Query<WatchQuery>,
    FilePath(path): FilePath,
    headers: HeaderMap,
) -> Answer<Response> {
    let last = sse::last_event_id(&headers)?;
    let operation = Operation::Watch(Watch {
        recursive: query.recursive,
        after: last.map(|id| id.to_string()).unwrap_or_default(),
    });
    let location = location.require_running()?;
    // A request beyond a limit has no entry in the audit trail.
    let share = gateway.begin_session(&principal, SessionKind::Files)?;
    audit::accept(&gateway, AuditAction::WatchFiles, &location.id, &[]).await?;
    let begun = begin(&gateway, &location, path, operation).await?;
    let Some(Output::Ready(())) = begun.first else {
        return Err(unexpected().into());
    };
    let grant = StreamGrant::environment(Action::WatchFiles, &location);
    let source = Follower {
        gateway: gateway.clone(),
        environment: location.id,
        _to_box: begun.to_box,
        from_box: begun.from_box,
        ready: EventQueue::default(),
    };
    Ok(sse::answer(
        "file_events",
        gateway,
        principal,
        grant,
        share,
        source,
    ))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::stream::sse::testing::on_the_wire;

    #[tokio::test]
    async fn changes_have_the_documented_wire_format() {
        let moved = FileChange {
            number: 3,
            kind: ChangeKind::Moved as i32,
            path: Bytes::from_static(b"/d/b\xff"),
            from: Some(Bytes::from_static(b"/d/a")),
        };
        assert_eq!(
            on_the_wire(vec![event(&moved)]).await,
            "event: moved\nid: 3\ndata: {\"path\":\"/d/b\u{fffd}\",\"path_base64\":\"L2QvYv8=\",\
             \"from\":\"/d/a\"}\n\n"
        );
        let overflow = FileChange {
            number: 1,
            ..FileChange::default()
        };
        assert_eq!(
            on_the_wire(vec![event(&overflow)]).await,
            "event: overflow\nid: 1\ndata: {}\n\n"
        );
    }
}
