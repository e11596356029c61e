//! `GET /environments/{id}/files`: the metadata of a file, and the entries of a directory.
//!
//! * I1. The entries are written as JSON while they arrive. In memory are one message of the box and
//!   its JSON.

use agentbox_api::file::{FileReply, FilesQuery};
use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{Entries, FileMetadata, FileType, List, Stat};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::metadata;
use super::operation::{in_time, next, open, perform, unexpected};
use super::outgoing::{self, Pieces};
use super::path::FilePath;
use crate::authorize::Action;
use crate::box_loss;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::query::page;
use crate::edge::{Answer, Query};
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::state::Gateway;
use crate::stream::{AccessWatch, StreamGrant};

/// The most levels of a directory in one list.
const MAX_DEPTH: u32 = 64;

/// The operation in the box.
fn operation(query: &FilesQuery) -> Result<Operation, Error> {
    let (limit, _) = page(query.limit, None)?;
    if query.depth > MAX_DEPTH {
        return Err(Error::value(
            "depth",
            format_args!("must be 0 to {MAX_DEPTH}"),
            query.depth,
        ));
    }
    let cursor = query.cursor.as_deref().unwrap_or("");
    let decoded = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| {
        let rule = "must be the `next_cursor` of the page before";
        Error::value("cursor", rule, cursor)
    })?;
    let follow = query.follow;
    Ok(match query.depth {
        0 => Operation::Stat(Stat { follow }),
        depth => Operation::List(List {
            follow,
            depth,
            limit,
            cursor: decoded.into(),
        }),
    })
}

/// JSON of plain data, which always serializes.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// A page of a directory as it arrives.
struct Page {
    /// Held: without it the operation would be cancelled.
    _to_box: SessionSender<ToBox>,
    from_box: SessionReceiver<FromBox>,
    /// The beginning of the JSON.
    head: Option<String>,
    /// Entries that have arrived.
    first: Option<Entries>,
    /// No more entries will arrive.
    is_received: bool,
    writer: Writer,
    is_written: bool,
}

/// Writes a [`FileReply`] in pieces.
#[derive(Default)]
struct Writer {
    has_entries: bool,
    next_cursor: Bytes,
}

impl Writer {
    /// The beginning, up to the first entry.
    fn head(metadata: &FileMetadata) -> String {
        let mut head = json(&FileReply {
            file: metadata::info(metadata),
            entries: None,
            next_cursor: None,
        });
        head.pop();
        head.push_str(",\"entries\":[");
        head
    }

    fn entries(&mut self, entries: Entries) -> String {
        let mut text = String::new();
        for entry in &entries.entries {
            if std::mem::replace(&mut self.has_entries, true) {
                text.push(',');
            }
            text.push_str(&json(&metadata::info(entry)));
        }
        self.next_cursor = entries.next_cursor;
        text
    }

    fn end(&self) -> String {
        if self.next_cursor.is_empty() {
            return "]}".to_owned();
        }
        let cursor = URL_SAFE_NO_PAD.encode(&self.next_cursor);
        format!("],\"next_cursor\":\"{cursor}\"}}")
    }
}

impl Pieces for Page {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head.into()));
        }
        while !self.is_written {
            let entries = match self.first.take() {
                Some(entries) => Some(entries),
                None if self.is_received => None,
                None => next_entries(&mut self.from_box).await?,
            };
            let text = match entries {
                Some(entries) => self.writer.entries(entries),
                None => {
                    self.is_written = true;
                    self.writer.end()
                }
            };
            if !text.is_empty() {
                return Ok(Some(text.into()));
            }
        }
        Ok(None)
    }
}

/// The next entries; `None` when all have been received.
async fn next_entries(from_box: &mut SessionReceiver<FromBox>) -> Result<Option<Entries>, Error> {
    match next(from_box).await? {
        Some(Output::Entries(entries)) => Ok(Some(entries)),
        Some(_) => Err(unexpected()),
        None => Ok(None),
    }
}

/// What a path names.
enum Found {
    File(FileMetadata),
    Directory(Page),
}

/// Lists a directory. The first entries are awaited, so that an unreadable directory is an error
/// and not an answer that breaks off.
async fn list(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    path: Bytes,
    operation: Operation,
) -> Result<Found, Error> {
    let session = open(gateway, location, path, String::new(), operation).await?;
    let (to_box, mut from_box) = session.split();
    let metadata = match next(&mut from_box).await? {
        Some(Output::Metadata(metadata)) => metadata,
        _ => return Err(unexpected()),
    };
    let mut entries = next_entries(&mut from_box).await?;
    if metadata.file_type() != FileType::Directory {
        while entries.is_some() {
            entries = next_entries(&mut from_box).await?;
        }
        return Ok(Found::File(metadata));
    }
    Ok(Found::Directory(Page {
        _to_box: to_box,
        from_box,
        head: Some(Writer::head(&metadata)),
        is_received: entries.is_none(),
        first: entries,
        writer: Writer::default(),
        is_written: false,
    }))
}

/// Describes what is at a path, without entries.
async fn describe(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    path: Bytes,
    stat: Stat,
) -> Result<FileMetadata, Error> {
    let operation = Operation::Stat(stat);
    match perform(gateway, location, path, String::new(), operation).await? {
        Some(Output::Metadata(metadata)) => Ok(metadata),
        _ => Err(unexpected()),
    }
}

/// Describe a file or list a directory
///
/// Returns the metadata of a file. Of a directory also its entries, `depth` levels deep, one page at
/// a time: `next_cursor` selects the next page. A symbolic link is described itself, unless
/// `follow=true`.
#[utoipa::path(get, operation_id = "getFile", path = "/environments/{id}/files", tag = "files",
    params(EnvironmentParameter, FilesQuery),
    responses((status = 200, description = "The metadata, and one page of the entries of a directory.", body = FileReply)))]
pub(crate) async fn view(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(query): Query<FilesQuery>,
    FilePath(path): FilePath,
) -> Answer<Response> {
    let operation = operation(&query)?;
    let location = location.require_running()?;
    let share = gateway.begin_session(&principal, SessionKind::Files)?;
    let found = match operation {
        Operation::Stat(stat) => describe(&gateway, &location, path, stat)
            .await
            .map(Found::File),
        operation => match in_time(list(&gateway, &location, path, operation)).await {
            Ok(found) => Ok(found),
            Err(error) => Err(box_loss::with_reason(&gateway, &location.id, error).await),
        },
    };
    let page = match found? {
        Found::File(metadata) => {
            return Ok(axum::Json(metadata::info(&metadata)).into_response());
        }
        Found::Directory(page) => page,
    };
    let grant = StreamGrant::environment(Action::ViewFiles, &location);
    let stop = gateway.shutdown.clone();
    let access = AccessWatch::new(gateway.clone(), principal, grant, stop);
    let mut response = outgoing::body(&gateway, access, share, page).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &'static [u8]) -> FileMetadata {
        FileMetadata {
            path: Bytes::from_static(path),
            file_type: FileType::File as i32,
            ..FileMetadata::default()
        }
    }

    fn written(pages: Vec<Entries>) -> FileReply {
        let directory = FileMetadata {
            path: Bytes::from_static(b"/d"),
            file_type: FileType::Directory as i32,
            ..FileMetadata::default()
        };
        let mut writer = Writer::default();
        let mut text = Writer::head(&directory);
        for entries in pages {
            text.push_str(&writer.entries(entries));
        }
        text.push_str(&writer.end());
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn pieces_form_the_documented_reply() {
        let reply = written(vec![
            Entries {
                entries: vec![file(b"/d/a"), file(b"/d/\"b\\")],
                next_cursor: Bytes::new(),
            },
            Entries {
                entries: vec![file(b"/d/c\xff")],
                next_cursor: Bytes::from_static(b"\xff\xfe"),
            },
        ]);
        assert_eq!(reply.file.path, "/d");
        let entries = reply.entries.unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a", "\"b\\", "c\u{fffd}"]);
        assert_eq!(reply.next_cursor.as_deref(), Some("__4"));
        let empty = written(vec![Entries::default()]);
        assert_eq!((empty.entries, empty.next_cursor), (Some(Vec::new()), None));
    }

    fn query() -> FilesQuery {
        FilesQuery {
            path: "/d".to_owned(),
            depth: 2,
            follow: true,
            limit: None,
            cursor: Some("__4".to_owned()),
        }
    }

    #[test]
    fn query_becomes_the_operation() {
        let expected = Operation::List(List {
            follow: true,
            depth: 2,
            limit: 100,
            cursor: Bytes::from_static(b"\xff\xfe"),
        });
        assert_eq!(operation(&query()), Ok(expected));
        let stat = FilesQuery {
            depth: 0,
            ..query()
        };
        let expected = Operation::Stat(Stat { follow: true });
        assert_eq!(operation(&stat), Ok(expected));
    }

    #[test]
    fn query_that_breaks_a_rule_is_refused_by_parameter() {
        let refused = |query| operation(&query).unwrap_err().message;
        let deep = FilesQuery {
            depth: 65,
            ..query()
        };
        assert_eq!(refused(deep), "depth: must be 0 to 64, is `65`");
        let long = FilesQuery {
            limit: Some(1001),
            ..query()
        };
        assert!(refused(long).starts_with("limit: "));
        let unknown = FilesQuery {
            cursor: Some("?".to_owned()),
            ..query()
        };
        assert!(refused(unknown).starts_with("cursor: "));
    }
}
