//! `GET /environments/{id}/attach`: a terminal over WebSocket.
//!
//! Close codes: 1000 the command has ended; 1001 the gateway is stopping, connect again;
//! 1007 a message could not be read; 1011 the box was lost; 4401 the credential is no
//! longer good; 4404 the environment is gone; 4409 it does not run.

use std::time::Duration;

use agentbox_bus::{Session, SessionReceiver, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{
    AttachRequest, Exit, FromBox, MAX_CHUNK, OPEN, Open, OpenKind, TerminalSize, ToBox,
};
use agentbox_contracts::identity::{Principal, TicketAction};
use agentbox_contracts::ids::{EnvironmentId, ExecId};
use agentbox_contracts::subjects;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tracing::Instrument;

use crate::authorize::Action;
use crate::edge::admit::MaybeCaller;
use crate::edge::{Answer, Path};
use crate::exec::OPEN_DEADLINE;
use crate::lookup;
use crate::principal::{from_subprotocols, redeem, unauthorized};
use crate::state::Gateway;
use crate::stream::until_revoked;

const MAX_MESSAGE: usize = 1024 * 1024;
/// What may wait in the socket before the session is left unread.
const WRITE_BUFFER: usize = 128 * 1024;
const MAX_WRITE_BUFFER: usize = 2 * 1024 * 1024;
const PING: Duration = Duration::from_secs(20);
/// A client that takes nothing for so long is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// What the query string asks for.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    tty: bool,
    size: Option<(u16, u16)>,
    command: Vec<String>,
    binary: bool,
    ticket: Option<String>,
}

fn flag(name: &str, value: &str) -> Result<bool, Error> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(Error::field(
            name,
            format!("must be true or false, is `{other}`"),
        )),
    }
}

fn length(name: &str, value: &str) -> Result<u16, Error> {
    match value.parse() {
        Ok(length @ 1..=4096) => Ok(length),
        _ => Err(Error::field(
            name,
            format!("must be 1 to 4096, is `{value}`"),
        )),
    }
}

fn wanted(query: &str) -> Result<Wanted, Error> {
    let mut wanted = Wanted {
        tty: true,
        ..Wanted::default()
    };
    let (mut cols, mut rows) = (80, 24);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "tty" => wanted.tty = flag("tty", &value)?,
            "cols" => cols = length("cols", &value)?,
            "rows" => rows = length("rows", &value)?,
            "command" => wanted.command.push(value.into_owned()),
            "binary" => wanted.binary = flag("binary", &value)?,
            "ticket" => wanted.ticket = Some(value.into_owned()),
            other => return Err(Error::field(other, "is not a parameter of attach")),
        }
    }
    wanted.size = wanted.tty.then_some((cols, rows));
    Ok(wanted)
}

/// Client to server.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum ClientMessage {
    Stdin { data: String },
    Resize { cols: u16, rows: u16 },
    Signal { signal: String },
    Eof {},
}

/// Server to client.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum ServerMessage<'a> {
    Ready { session_id: String },
    Stdout { data: &'a str },
    Stderr { data: &'a str },
    Exit { exit_code: i32 },
    Error { message: &'a str },
}

fn frame(message: &ServerMessage<'_>) -> Message {
    Message::Text(serde_json::to_string(message).unwrap_or_default().into())
}

/// Bytes to text without breaking a character that spans two chunks.
#[derive(Default)]
struct TextSplitter {
    rest: Vec<u8>,
}

impl TextSplitter {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let complete = match std::str::from_utf8(&self.rest) {
            Ok(_) => self.rest.len(),
            // Only an unfinished character at the very end waits for its other half.
            Err(_) => self.rest.len() - unfinished(&self.rest),
        };
        let tail = self.rest.split_off(complete);
        let head = std::mem::replace(&mut self.rest, tail);
        String::from_utf8(head)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// How many bytes at the end begin a character that is not complete.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needs = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needs > back { back } else { 0 };
    }
    0
}

pub(crate) async fn attach(
    State(gateway): State<Gateway>,
    MaybeCaller(caller): MaybeCaller,
    Path(id): Path<EnvironmentId>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let wanted = wanted(query.as_deref().unwrap_or(""))?;
    let principal = match (caller, wanted.ticket.clone()) {
        (Some(principal), _) => principal,
        (None, Some(ticket)) => redeem(&gateway, ticket, id.clone(), TicketAction::Attach).await?,
        (None, None) => return Err(unauthorized("a token or a ticket is needed").into()),
    };
    let place = lookup::running(&gateway, &principal, Action::Attach, &id).await?;
    let upgrade = upgrade.map_err(|error| {
        Error::new(
            ErrorCode::BadRequest,
            format!("not a WebSocket handshake: {}", error.body_text()),
        )
    })?;
    let open = Open {
        environment: id,
        address: place.address,
        status: place.status,
        kind: OpenKind::Attach(AttachRequest {
            id: ExecId::random(),
            command: wanted.command,
            tty: wanted.size.map(|(cols, rows)| TerminalSize { cols, rows }),
        }),
    };
    let subject = subjects::exec_rpc(&place.cluster, OPEN);
    let session = gateway
        .bus
        .open_session::<ToBox, FromBox>(subject, &open, OPEN_DEADLINE)
        .await?;
    let (_, protocol) = from_subprotocols(&headers)?;
    let mut upgrade = upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER);
    if let Some(protocol) = protocol {
        upgrade = upgrade.protocols([protocol]);
    }
    let span = tracing::Span::current();
    Ok(upgrade.on_upgrade(move |socket| {
        run(gateway, principal, socket, session, wanted.binary).instrument(span)
    }))
}

/// Why it ended, for the client.
struct End {
    code: u16,
    reason: String,
    error: Option<String>,
}

impl End {
    fn failed(error: &Error) -> Self {
        let code = match error.code {
            ErrorCode::Unauthorized => 4401,
            ErrorCode::NotFound => 4404,
            ErrorCode::NotRunning => 4409,
            ErrorCode::BadRequest | ErrorCode::Validation => 1007,
            ErrorCode::Unavailable => 1001,
            _ => 1011,
        };
        Self {
            code,
            reason: error.code.word().to_owned(),
            error: Some(error.message.clone()),
        }
    }
}

async fn run(
    gateway: Gateway,
    principal: Principal,
    socket: WebSocket,
    session: Session<ToBox, FromBox>,
    binary: bool,
) {
    let (to_box, from_box) = session.split();
    let (mut sink, source) = socket.split();
    let end = tokio::select! {
        end = outwards(&mut sink, from_box, binary) => end,
        end = inwards(source, to_box) => end,
        error = until_revoked(&gateway, &principal) => Some(End::failed(&error)),
    };
    let Some(end) = end else { return };
    let closing = async {
        if let Some(message) = &end.error {
            let _ = sink.send(frame(&ServerMessage::Error { message })).await;
        }
        let close = CloseFrame {
            code: end.code,
            reason: Utf8Bytes::from(end.reason),
        };
        let _ = sink.send(Message::Close(Some(close))).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), closing).await;
}

/// Box to client, until the command ends. `None`: the client is gone.
async fn outwards(
    sink: &mut SplitSink<WebSocket, Message>,
    mut from_box: SessionReceiver<FromBox>,
    binary: bool,
) -> Option<End> {
    let (mut stdout, mut stderr) = (TextSplitter::default(), TextSplitter::default());
    let mut ping = tokio::time::interval(PING);
    ping.tick().await;
    loop {
        let message = tokio::select! {
            message = from_box.recv() => message,
            _ = ping.tick() => {
                write(sink, Message::Ping(Bytes::new())).await?;
                continue;
            }
        };
        match message {
            Ok(Some(FromBox::Started(id))) => {
                write(
                    sink,
                    frame(&ServerMessage::Ready {
                        session_id: id.to_string(),
                    }),
                )
                .await?;
            }
            Ok(Some(FromBox::Stdout(bytes) | FromBox::Stderr(bytes))) if binary => {
                write(sink, Message::Binary(bytes)).await?;
            }
            Ok(Some(FromBox::Stdout(bytes))) => {
                let data = stdout.push(&bytes);
                write(sink, frame(&ServerMessage::Stdout { data: &data })).await?;
            }
            Ok(Some(FromBox::Stderr(bytes))) => {
                let data = stderr.push(&bytes);
                write(sink, frame(&ServerMessage::Stderr { data: &data })).await?;
            }
            Ok(Some(FromBox::Exit(Exit { exit_code, .. }))) => {
                write(sink, frame(&ServerMessage::Exit { exit_code })).await?;
                return Some(End {
                    code: 1000,
                    reason: "the command has ended".into(),
                    error: None,
                });
            }
            Ok(Some(_)) => return Some(End::failed(&Error::internal())),
            Ok(None) => {
                return Some(End::failed(&Error::new(
                    ErrorCode::BoxLost,
                    "the session broke off",
                )));
            }
            Err(error) => return Some(End::failed(&error)),
        }
    }
}

async fn write(sink: &mut SplitSink<WebSocket, Message>, message: Message) -> Option<()> {
    tokio::time::timeout(WRITE_DEADLINE, sink.send(message))
        .await
        .ok()?
        .ok()
}

fn bad_message(error: &serde_json::Error) -> End {
    End::failed(&Error::new(
        ErrorCode::Validation,
        format!("message: {error}"),
    ))
}

/// Client to box. `None`: the client is gone.
async fn inwards(
    mut source: SplitStream<WebSocket>,
    mut to_box: SessionSender<ToBox>,
) -> Option<End> {
    loop {
        let messages = match source.next().await {
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(ClientMessage::Stdin { data }) => stdin(data.into_bytes().into()),
                Ok(ClientMessage::Resize { cols, rows }) if cols > 0 && rows > 0 => {
                    vec![ToBox::Resize(TerminalSize { cols, rows })]
                }
                Ok(ClientMessage::Resize { .. }) => continue,
                Ok(ClientMessage::Signal { signal }) => vec![ToBox::Signal(signal)],
                Ok(ClientMessage::Eof {}) => vec![ToBox::Eof],
                Err(error) => return Some(bad_message(&error)),
            },
            Some(Ok(Message::Binary(bytes))) => stdin(bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
        };
        for message in messages {
            if to_box.send(message).await.is_err() {
                // The other direction knows why and says it.
                return std::future::pending().await;
            }
        }
    }
}

fn stdin(mut bytes: Bytes) -> Vec<ToBox> {
    let mut chunks = Vec::with_capacity(bytes.len() / MAX_CHUNK + 1);
    while !bytes.is_empty() {
        chunks.push(ToBox::Stdin(bytes.split_to(bytes.len().min(MAX_CHUNK))));
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_split_over_chunks_stays_whole() {
        let text = "a€😀é";
        for size in 1..6 {
            let mut splitter = TextSplitter::default();
            let out: String = text
                .as_bytes()
                .chunks(size)
                .map(|chunk| splitter.push(chunk))
                .collect();
            assert_eq!(out, text, "chunks of {size}");
        }
        let mut splitter = TextSplitter::default();
        assert_eq!(splitter.push(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(splitter.push(b"\xe2\x82"), "");
        assert_eq!(splitter.push(b"x"), "\u{fffd}x");
    }

    #[test]
    fn the_query_is_read_strictly() {
        let read =
            wanted("cols=100&rows=30&command=sh&command=-c&command=ls+-l&binary=true").unwrap();
        assert_eq!(read.size, Some((100, 30)));
        assert_eq!(read.command, ["sh", "-c", "ls -l"]);
        assert!(read.binary && read.tty);
        assert_eq!(wanted("tty=false").unwrap().size, None);
        for bad in ["cols=0", "rows=x", "tty=maybe", "nope=1"] {
            assert_eq!(
                wanted(bad).unwrap_err().code,
                ErrorCode::Validation,
                "{bad}"
            );
        }
    }
}
