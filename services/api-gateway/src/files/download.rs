//! `GET` and `HEAD /environments/{id}/files/content`: the bytes of a file, or a directory as an archive.

use agentbox_api::file::DownloadQuery;
use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{Archive, FileType, Opened, Read};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::operation::{begin, next, unexpected};
use super::outgoing::{self, Pieces};
use super::path::{self, FilePath};
use super::{conditions, disposition, media_type, range};
use crate::audit;
use crate::authorize::Action;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::error::ApiError;
use crate::edge::path::EnvironmentParameter;
use crate::edge::{Answer, Query};
use crate::memory::SessionKind;
use crate::state::Gateway;
use crate::stream::{AccessWatch, StreamGrant};

/// The content of an open file.
struct Content {
    /// Held: without it the operation would be cancelled.
    _to_box: SessionSender<ToBox>,
    from_box: SessionReceiver<FromBox>,
}

impl Pieces for Content {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match next(&mut self.from_box).await? {
                Some(Output::Data(bytes)) if bytes.is_empty() => {}
                Some(Output::Data(bytes)) => return Ok(Some(bytes)),
                Some(_) => return Err(unexpected()),
                None => return Ok(None),
            }
        }
    }
}

fn read(headers: &HeaderMap, is_head: bool, archive: Archive) -> Result<Read, Error> {
    // Ranges are defined for GET alone (RFC 9110, section 14.2).
    let requested = (!is_head).then(|| range::requested(headers)).flatten();
    let (range, if_range) = match requested {
        Some((range, condition)) => (Some(range), condition),
        None => (None, String::new()),
    };
    Ok(Read {
        head: is_head,
        range,
        if_range,
        if_none_match: conditions::if_none_match(headers)?,
        archive: archive as i32,
    })
}

/// The headers that describe the file, whatever part of it follows.
fn description(opened: &Opened, path: &[u8], archive: Archive) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let is_directory = opened.metadata.file_type() == FileType::Directory;
    let archive = media_type::of_archive(archive).filter(|_| is_directory);
    let mut name = path::name(path).to_vec();
    let (content_type, ranges) = match archive {
        Some((media_type, extension)) => {
            if name == b"/" {
                name = b"root".to_vec();
            }
            name.push(b'.');
            name.extend(extension.as_bytes());
            (media_type, "none")
        }
        None => ("application/octet-stream", "bytes"),
    };
    let mut set = |name: HeaderName, value: &str| {
        // What a box sends need not be a valid value.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, content_type);
    set(header::ACCEPT_RANGES, ranges);
    if archive.is_none() {
        let modified = opened.metadata.modified_unix_nanos;
        let modified = DateTime::<Utc>::from_timestamp_nanos(modified);
        // An HTTP date (RFC 9110, section 5.6.7).
        let modified = modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        set(header::LAST_MODIFIED, &modified);
    }
    if !opened.etag.is_empty() {
        set(header::ETAG, &opened.etag);
    }
    headers.insert(header::CONTENT_DISPOSITION, disposition::attachment(&name));
    headers
}

/// Adds the headers of the part that follows, and returns the status. `None`: no content follows.
fn describe_part(opened: &Opened, headers: &mut HeaderMap) -> Option<StatusCode> {
    if opened.not_modified {
        return None;
    }
    let status = match opened.part {
        Some(part) => {
            let size = opened.metadata.size;
            let range = format!("bytes {}-{}/{size}", part.first, part.last);
            if let Ok(range) = HeaderValue::from_str(&range) {
                headers.insert(header::CONTENT_RANGE, range);
            }
            StatusCode::PARTIAL_CONTENT
        }
        None => StatusCode::OK,
    };
    if let Some(length) = opened.length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Some(status)
}

/// The answer to a range that begins after the end of the file.
fn unsatisfiable(size: u64) -> Response {
    let error = Error::new(
        ErrorCode::RangeNotSatisfiable,
        format!("Range: must begin before the end of the file, which has {size} bytes"),
    );
    let mut response = ApiError(error).into_response();
    if let Ok(range) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    response
}

/// A body without content. For HEAD its length is unknown, so that none is added to the headers.
fn no_content(is_head: bool) -> Body {
    match is_head {
        true => Body::from_stream(futures::stream::empty::<Result<Bytes, Error>>()),
        false => Body::empty(),
    }
}

/// Download a file or a directory
///
/// Answers with the bytes of a file. Symbolic links are followed. One `Range` is answered with 206;
/// several, and malformed ones, are ignored. The `ETag` changes with each change of the file. A file of
/// unknown length, such as one in `/proc`, is sent without `Content-Length`. If the file shrinks
/// meanwhile, the connection is aborted.
///
/// A directory is refused with 409, unless `Accept` names `application/x-tar`,
/// `application/x-tar+gzip` or `application/x-tar+zstd`: then the answer is an archive of it.
///
/// `HEAD` answers with the headers alone.
#[utoipa::path(get, operation_id = "downloadFile", path = "/environments/{id}/files/content", tag = "files",
    params(EnvironmentParameter, DownloadQuery,
        ("Range" = Option<String>, Header, example = "bytes=0-1023",
            description = "The part of the file to send (RFC 9110). Default: all of it."),
        ("If-Range" = Option<String>, Header, example = "\"1f-3a-1000-18b5\"",
            description = "An ETag, or a date of the last change: the range is ignored if the file has another one."),
        ("If-None-Match" = Option<String>, Header, example = "\"1f-3a-1000-18b5\"",
            description = "ETags: the answer is 304 if the file has one of them.")),
    responses(
        (status = 200, description = "The bytes of the file, or the archive.",
            content((String = "application/octet-stream", example = "a,b\n1,2\n"),
                (String = "application/x-tar", example = "…"),
                (String = "application/x-tar+gzip", example = "…"),
                (String = "application/x-tar+zstd", example = "…"))),
        (status = 206, description = "The requested part of the file.", body = String,
            content_type = "application/octet-stream", example = "a,b\n"),
        (status = 304, description = "The file has one of the ETags of `If-None-Match`.")))]
pub(crate) async fn download(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    method: Method,
    Query(_query): Query<DownloadQuery>,
    FilePath(path): FilePath,
    headers: HeaderMap,
) -> Answer<Response> {
    let is_head = method == Method::HEAD;
    let archive = media_type::accepted(&headers);
    let read = read(&headers, is_head, archive)?;
    let location = location.require_running()?;
    // A request beyond a limit has no entry in the audit trail.
    let share = gateway.begin_session(&principal, SessionKind::Files)?;
    audit::accept(&gateway, AuditAction::DownloadFile, &location.id, &[]).await?;
    let grant = StreamGrant::environment(Action::DownloadFile, &location);
    let stop = gateway.shutdown.clone();
    let access = AccessWatch::new(gateway.clone(), principal, grant, stop);
    let operation = Operation::Read(read);
    let begun = begin(&gateway, &location, path.clone(), operation).await?;
    let Some(Output::Opened(opened)) = begun.first else {
        return Err(unexpected().into());
    };
    if opened.unsatisfiable {
        return Ok(unsatisfiable(opened.metadata.size));
    }
    let mut headers = description(&opened, &path, archive);
    let Some(status) = describe_part(&opened, &mut headers) else {
        return Ok((StatusCode::NOT_MODIFIED, headers, no_content(is_head)).into_response());
    };
    if is_head {
        return Ok((status, headers, no_content(is_head)).into_response());
    }
    let content = Content {
        _to_box: begun.to_box,
        from_box: begun.from_box,
    };
    let body = outgoing::body(&gateway, access, share, content);
    Ok((status, headers, body).into_response())
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::files::{FileMetadata, Part};

    use super::*;

    fn opened(file_type: FileType) -> Opened {
        Opened {
            metadata: FileMetadata {
                file_type: file_type as i32,
                size: 10,
                modified_unix_nanos: 784_111_777_900_000_000,
                ..FileMetadata::default()
            },
            etag: "\"e\"".to_owned(),
            length: Some(10),
            ..Opened::default()
        }
    }

    #[test]
    fn headers_describe_the_file() {
        let file = opened(FileType::File);
        // A plain file is no archive, whatever the client accepts.
        let mut headers = description(&file, b"/a/b.csv", Archive::Tar);
        assert_eq!(describe_part(&file, &mut headers), Some(StatusCode::OK));
        for (name, expected) in [
            (header::CONTENT_TYPE, "application/octet-stream"),
            (header::ACCEPT_RANGES, "bytes"),
            (header::LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (header::ETAG, "\"e\""),
            (header::CONTENT_LENGTH, "10"),
            (
                header::CONTENT_DISPOSITION,
                "attachment; filename=\"b.csv\"",
            ),
        ] {
            assert_eq!(headers[&name], expected, "{name}");
        }
        assert!(!headers.contains_key(header::CONTENT_RANGE));
    }

    #[test]
    fn archive_has_the_name_of_its_directory() {
        let directory = Opened {
            etag: String::new(),
            length: None,
            ..opened(FileType::Directory)
        };
        for (path, archive, media_type, name) in [
            (
                "/a/b/",
                Archive::TarZstd,
                "application/x-tar+zstd",
                "b.tar.zst",
            ),
            ("/", Archive::Tar, "application/x-tar", "root.tar"),
        ] {
            let mut headers = description(&directory, path.as_bytes(), archive);
            assert_eq!(
                describe_part(&directory, &mut headers),
                Some(StatusCode::OK)
            );
            assert_eq!(headers[header::CONTENT_TYPE], media_type);
            assert_eq!(headers[header::ACCEPT_RANGES], "none");
            let name = format!("attachment; filename=\"{name}\"");
            assert_eq!(headers[header::CONTENT_DISPOSITION], name.as_str());
            for absent in [header::ETAG, header::LAST_MODIFIED, header::CONTENT_LENGTH] {
                assert!(!headers.contains_key(&absent), "{absent}");
            }
        }
    }

    #[test]
    fn part_is_206_with_its_place() {
        let part = Opened {
            part: Some(Part { first: 2, last: 4 }),
            length: Some(3),
            ..opened(FileType::File)
        };
        let mut headers = HeaderMap::new();
        assert_eq!(
            describe_part(&part, &mut headers),
            Some(StatusCode::PARTIAL_CONTENT)
        );
        assert_eq!(headers[header::CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(headers[header::CONTENT_LENGTH], "3");
        let response = unsatisfiable(10);
        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(response.headers()[header::CONTENT_RANGE], "bytes */10");
        let unchanged = Opened {
            not_modified: true,
            ..opened(FileType::File)
        };
        assert_eq!(describe_part(&unchanged, &mut HeaderMap::new()), None);
    }

    #[test]
    fn head_ignores_the_range() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-1"));
        assert!(
            read(&headers, false, Archive::None)
                .unwrap()
                .range
                .is_some()
        );
        let head = read(&headers, true, Archive::None).unwrap();
        assert!(head.head && head.range.is_none());
    }
}
