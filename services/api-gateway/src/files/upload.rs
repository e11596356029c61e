//! `PUT /environments/{id}/files/content`: stores a file, or unpacks an archive.
//!
//! * I1. The body is not read before the box is ready for it, so `Expect: 100-continue` is answered
//!   after the authorization and the conditions.
//! * I2. A client that sends nothing for the body timeout is refused with 408, however much has arrived.

use std::pin::pin;
use std::time::Duration;

use agentbox_api::file::UploadQuery;
use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{Stored, Write};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use super::operation::{in_time, next, open, unexpected};
use super::outgoing::ended;
use super::path::FilePath;
use super::{conditions, digest, media_type, metadata};
use crate::audit;
use crate::authorize::Action;
use crate::box_loss;
use crate::box_session::BoxSession;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::{Answer, Query};
use crate::exec::stdin_messages;
use crate::memory::SessionKind;
use crate::metrics::OpenStream;
use crate::state::Gateway;
use crate::stream::{AccessWatch, StreamGrant};

/// The operation in the box. `length` is that of the body, if it is known.
fn write(query: &UploadQuery, headers: &HeaderMap, length: Option<u64>) -> Result<Write, Error> {
    if headers.contains_key(header::CONTENT_RANGE) {
        // RFC 9110, section 14.5: never store a part as the whole.
        return Err(Error::field(
            "Content-Range",
            "must be absent: an upload stores a whole file",
        ));
    }
    Ok(Write {
        mode: metadata::mode(query.mode.as_deref())?,
        parents: query.parents,
        atomic: query.atomic,
        if_match: conditions::if_match(headers)?,
        if_absent: conditions::if_absent(headers)?,
        digests: digest::content_digests(headers)?,
        length,
        archive: media_type::of_body(headers) as i32,
    })
}

/// Sends a message. A box that takes no message has the reason in its next output, so this waits for
/// it without an end.
async fn send(to_box: &mut SessionSender<ToBox>, message: ToBox) -> Result<(), Error> {
    let sending = in_time(async { Ok::<_, Error>(to_box.send(message).await.is_ok()) });
    match sending.await? {
        true => Ok(()),
        false => std::future::pending().await,
    }
}

/// Sends the body. `progress` is how long the client may send nothing.
async fn feed(
    to_box: &mut SessionSender<ToBox>,
    mut body: Body,
    progress: Duration,
) -> Result<(), Error> {
    loop {
        let frame = tokio::time::timeout(progress, body.frame()).await;
        let frame = frame.map_err(|_| {
            Error::new(
                ErrorCode::RequestTimeout,
                format!(
                    "the body must make progress within {} seconds, did not",
                    progress.as_secs()
                ),
            )
        })?;
        let Some(frame) = frame else {
            return send(to_box, ToBox::End).await;
        };
        let frame = frame.map_err(|_| {
            Error::new(
                ErrorCode::BadRequest,
                "the connection ended before the body was complete",
            )
        })?;
        // Trailers are dropped.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        for message in stdin_messages(data) {
            send(to_box, message).await?;
        }
    }
}

/// The result of the operation, which may come before all of the body was sent.
async fn result(from_box: &mut SessionReceiver<FromBox>) -> Result<Stored, Error> {
    let mut stored = None;
    while let Some(output) = next(from_box).await? {
        match output {
            Output::Stored(answer) => stored = Some(answer),
            _ => return Err(unexpected()),
        }
    }
    stored.ok_or_else(unexpected)
}

/// Stores the body. Both halves of the session are held until the result has come: dropping one
/// before the end of the content aborts the upload in the box.
async fn store(session: BoxSession, body: Body, progress: Duration) -> Result<Stored, Error> {
    let (mut to_box, mut from_box) = session.split();
    match in_time(next(&mut from_box)).await? {
        Some(Output::Ready(())) => {}
        _ => return Err(unexpected()),
    }
    let mut result = pin!(result(&mut from_box));
    tokio::select! {
        biased;
        stored = result.as_mut() => return stored,
        fed = feed(&mut to_box, body, progress) => fed?,
    }
    in_time(result).await
}

/// Upload a file or an archive
///
/// Stores the body as the file, of any size: 201 if it is new, 204 if it replaces one. Symbolic links
/// are followed. With `atomic=true` the file is complete or unchanged, and keeps the mode, the owner and the
/// extended attributes of the file that it replaces; this needs room for both. A mount point, a
/// device or a FIFO cannot be replaced. An upload that fails or is aborted leaves no temporary file.
///
/// With a `Content-Type` of `application/x-tar`, `application/x-tar+gzip` or
/// `application/x-tar+zstd` the body is unpacked into the directory. Entries that would be written
/// outside of it are refused; the entries before them stay.
///
/// `Expect: 100-continue` is answered after the authorization and the conditions. The body may take
/// any time, but must make progress every 30 seconds, unless the operator changes
/// `AGENTBOX_BODY_TIMEOUT`.
#[utoipa::path(put, operation_id = "uploadFile", path = "/environments/{id}/files/content", tag = "files",
    params(EnvironmentParameter, UploadQuery,
        ("If-Match" = Option<String>, Header, example = "\"1f-3a-1000-18b5\"",
            description = "ETags, or `*`: the answer is 412 unless the file has one of them, or exists. Default: no condition."),
        ("If-None-Match" = Option<String>, Header, example = "*",
            description = "`*`: the answer is 412 if the file exists. Default: no condition."),
        ("Content-Digest" = Option<String>, Header, example = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:",
            description = "Digests of the body, `sha-256` or `sha-512` (RFC 9530), which are verified before the file is stored.")),
    request_body(description = "The bytes of the file, of any other type than an archive too, or the archive.",
        content((String = "application/octet-stream", example = "a,b\n1,2\n"),
            (String = "application/x-tar", example = "…"),
            (String = "application/x-tar+gzip", example = "…"),
            (String = "application/x-tar+zstd", example = "…"))),
    responses(
        (status = 201, description = "The file is created. The `ETag` header has its ETag."),
        (status = 204, description = "The file is replaced, or the archive is unpacked. The `ETag` header has the ETag of a file.")))]
pub(crate) async fn upload(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(mut query): Query<UploadQuery>,
    FilePath(path): FilePath,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let write = write(&query, &headers, body.size_hint().exact())?;
    let user = metadata::user("user", query.user.take())?;
    let location = location.require_running()?;
    // A request beyond a limit has no entry in the audit trail.
    let _share = gateway.begin_session(&principal, SessionKind::Files)?;
    audit::accept(&gateway, AuditAction::UploadFile, &location.id, &[]).await?;
    let _open = OpenStream::begin("file");
    let grant = StreamGrant::environment(Action::UploadFile, &location);
    let stop = gateway.shutdown.clone();
    let mut access = AccessWatch::new(gateway.clone(), principal, grant, stop);
    let progress = gateway.config.body_timeout();
    let storing = async {
        let session = open(&gateway, &location, path, user, Operation::Write(write)).await?;
        store(session, body, progress).await
    };
    let stored = tokio::select! {
        biased;
        end = access.ended() => Err(ended(end)),
        stored = storing => stored,
    };
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) => {
            let error = box_loss::with_reason(&gateway, &location.id, error).await;
            return Err(error.into());
        }
    };
    let status = match stored.created {
        true => StatusCode::CREATED,
        false => StatusCode::NO_CONTENT,
    };
    let mut response = status.into_response();
    if !stored.etag.is_empty()
        && let Ok(etag) = HeaderValue::from_str(&stored.etag)
    {
        response.headers_mut().insert(header::ETAG, etag);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::files::Archive;

    use super::*;

    fn query() -> UploadQuery {
        UploadQuery {
            path: "/a".to_owned(),
            mode: Some("0755".to_owned()),
            user: None,
            parents: true,
            atomic: false,
            ticket: None,
        }
    }

    #[test]
    fn headers_and_query_become_the_operation() {
        let mut headers = HeaderMap::new();
        let mut set = |name: header::HeaderName, value: &'static str| {
            headers.insert(name, HeaderValue::from_static(value));
        };
        set(header::IF_MATCH, "\"a\"");
        set(header::IF_NONE_MATCH, "*");
        set(header::CONTENT_TYPE, "application/x-tar+gzip");
        let expected = Write {
            mode: Some(0o755),
            parents: true,
            atomic: false,
            if_match: vec!["\"a\"".to_owned()],
            if_absent: true,
            digests: Vec::new(),
            length: Some(5),
            archive: Archive::TarGzip as i32,
        };
        assert_eq!(write(&query(), &headers, Some(5)), Ok(expected));
    }

    #[test]
    fn part_of_a_file_is_refused() {
        let mut headers = HeaderMap::new();
        let range = HeaderValue::from_static("bytes 0-1/2");
        headers.insert(header::CONTENT_RANGE, range);
        let error = write(&query(), &headers, None).unwrap_err();
        assert!(error.message.starts_with("Content-Range: "), "{error}");
    }
}
