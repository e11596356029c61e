//! The body of an exec: JSON, or `multipart/form-data` with JSON and stdin.
//!
//! Of a form the part `exec` is read, and its stdin is left to be streamed.

use agentbox_api::exec::ExecBody;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::UserId;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use tokio::time::timeout;

use super::form::{self, Form};
use crate::edge::error::ApiError;
use crate::edge::json::{self, BODIES, LargeJson, MAX_COMMAND_BODY};
use crate::shares::Share;
use crate::state::Gateway;

/// The stdin of a form, which has not been read yet.
pub(super) struct StdinPart {
    form: Form,
}

/// Takes stdin piece by piece.
pub(super) trait StdinSink: Send {
    /// Returns when there is room for the next piece.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = ()> + Send;
}

fn unexpected(name: Option<&str>, expected: &str) -> Error {
    Error::value(
        "body",
        format_args!("must have the parts `exec` and `stdin`, in this order; expected {expected}"),
        name.unwrap_or(""),
    )
}

/// Reads the body of a request, except the stdin of a form.
///
/// # Errors
/// As [`LargeJson`], and [`ErrorCode::BadRequest`] for a malformed form.
pub(super) async fn read(
    gateway: &Gateway,
    user: &UserId,
    request: Request,
) -> Result<(ExecBody, Option<StdinPart>), ApiError> {
    let Some(boundary) = form::boundary(request.headers())? else {
        let LargeJson(body) = LargeJson::from_request(request, gateway).await?;
        return Ok((body, None));
    };
    let deadline = gateway.config.body_timeout();
    let form = Form::new(request.into_body(), &boundary, deadline);
    // Held until the part is parsed.
    let share = gateway.bodies.take(user, 0);
    let mut share = share.map_err(|exceeded| BODIES.unavailable(exceeded))?;
    let read = timeout(deadline, read_exec(form, &mut share)).await;
    let (body, part) = read.map_err(|_| {
        Error::new(
            ErrorCode::RequestTimeout,
            format!(
                "the part `exec` must arrive within {} seconds, did not",
                deadline.as_secs()
            ),
        )
    })??;
    Ok((body, Some(part)))
}

/// Reads the part `exec`. `share` grows with it.
async fn read_exec(
    mut form: Form,
    share: &mut Share<UserId>,
) -> Result<(ExecBody, StdinPart), Error> {
    let name = form.next_part().await?;
    if name.as_deref() != Some("exec") {
        return Err(unexpected(name.as_deref(), "`exec`"));
    }
    let mut json = Vec::new();
    while let Some(chunk) = form.chunk().await? {
        if json.len() + chunk.len() > MAX_COMMAND_BODY {
            return Err(Error::new(
                ErrorCode::PayloadTooLarge,
                format!("the part `exec` must be at most {MAX_COMMAND_BODY} bytes, is larger"),
            ));
        }
        share
            .grow(chunk.len() as u64)
            .map_err(|exceeded| BODIES.unavailable(exceeded))?;
        json.extend_from_slice(&chunk);
    }
    let body: ExecBody = json::parse(&json)?;
    for (field, value) in [("stdin", &body.stdin), ("stdin_base64", &body.stdin_base64)] {
        if value.is_some() {
            return Err(Error::field(
                field,
                "must be absent in a form, whose part `stdin` has it; is given",
            ));
        }
    }
    Ok((body, StdinPart { form }))
}

impl StdinPart {
    /// Reads stdin piece by piece, and passes each to `sink`.
    ///
    /// # Errors
    /// When the form is malformed or late, or has other parts.
    pub(super) async fn copy_to(mut self, sink: &mut impl StdinSink) -> Result<(), Error> {
        let name = self.form.next_part().await?;
        match name.as_deref() {
            None => return Ok(()),
            Some("stdin") => {}
            other => return Err(unexpected(other, "`stdin`")),
        }
        while let Some(bytes) = self.form.chunk().await? {
            sink.write(bytes).await;
        }
        match self.form.next_part().await? {
            None => Ok(()),
            Some(name) => Err(unexpected(Some(&name), "the end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;

    use super::*;
    use crate::shares::Shares;

    impl StdinSink for Vec<u8> {
        async fn write(&mut self, bytes: Bytes) {
            self.extend_from_slice(&bytes);
        }
    }

    async fn read_all(parts: &[(&str, &str)]) -> Result<(ExecBody, Vec<u8>), Error> {
        let mut text = String::new();
        for (name, content) in parts {
            text.push_str(&format!(
                "--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{content}\r\n"
            ));
        }
        text.push_str("--b--\r\n");
        let form = Form::new(Body::from(text), "b", Duration::from_secs(10));
        let bodies = Shares::new(1 << 30, 1 << 30);
        let mut share = bodies.take(&UserId::random(), 0).unwrap();
        let (body, part) = read_exec(form, &mut share).await?;
        let mut stdin = Vec::new();
        part.copy_to(&mut stdin).await?;
        Ok((body, stdin))
    }

    const EXEC: (&str, &str) = ("exec", r#"{"command":["cat"]}"#);

    #[tokio::test]
    async fn form_has_a_command_and_stdin_of_any_size() {
        let long = "x".repeat(3 * 1024 * 1024);
        for stdin in ["", "some input\n", &long] {
            let (body, read) = read_all(&[EXEC, ("stdin", stdin)]).await.unwrap();
            assert_eq!(body.command, ["cat"]);
            assert!(read == stdin.as_bytes(), "{}", stdin.len());
        }
        let (_, stdin) = read_all(&[EXEC]).await.unwrap();
        assert!(stdin.is_empty());
    }

    #[tokio::test]
    async fn form_with_other_parts_is_refused() {
        let table: [(&[(&str, &str)], &str); 6] = [
            (&[], "body: "),
            (&[("stdin", "a"), EXEC], "body: "),
            (&[EXEC, ("file", "a")], "body: "),
            (&[EXEC, ("stdin", "a"), ("stdin", "b")], "body: "),
            (&[("exec", "{")], "the body is not JSON"),
            (&[("exec", r#"{"command":["a"],"stdin":""}"#)], "stdin: "),
        ];
        for (parts, begin) in table {
            let error = read_all(parts).await.err().unwrap();
            assert!(error.message.starts_with(begin), "{parts:?}: {error}");
        }
    }
}
