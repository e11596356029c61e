//! The body of an exec: JSON, or `multipart/form-data` with JSON and stdin.
//!
//! Of a form the part `exec` is read, and its stdin is left to be streamed.

use std::time::Duration;

use agentbox_api::exec::ExecBody;
use agentbox_contracts::error::{Error, ErrorCode};
use axum::extract::multipart::{Multipart, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use tokio::time::timeout;

use crate::edge::error::ApiError;
use crate::edge::json::{self, LargeJson, MAX_COMMAND_BODY};
use crate::state::Gateway;

/// The stdin of a form, which has not been read yet.
pub(super) struct StdinPart {
    form: Multipart,
}

/// Takes stdin piece by piece.
pub(super) trait StdinSink: Send {
    /// Returns when there is room for the next piece.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = ()> + Send;
}

fn is_form(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("multipart/form-data"))
}

fn malformed(error: &MultipartError) -> Error {
    Error::new(
        ErrorCode::BadRequest,
        format!("the body is not a form: {}", error.body_text()),
    )
}

fn unexpected(name: Option<&str>, expected: &str) -> Error {
    Error::value(
        "body",
        format_args!(
            "must have the parts `exec` and `stdin`, in this order; `{expected}` is expected"
        ),
        name.unwrap_or(""),
    )
}

fn late(deadline: Duration) -> Error {
    Error::new(
        ErrorCode::RequestTimeout,
        format!(
            "the body must arrive within {} seconds, did not",
            deadline.as_secs()
        ),
    )
}

/// Reads the body of a request, except the stdin of a form.
///
/// # Errors
/// As [`LargeJson`], and [`ErrorCode::BadRequest`] for a malformed form.
pub(super) async fn read(
    gateway: &Gateway,
    request: Request,
) -> Result<(ExecBody, Option<StdinPart>), ApiError> {
    if !is_form(request.headers()) {
        let LargeJson(body) = LargeJson::from_request(request, gateway).await?;
        return Ok((body, None));
    }
    let deadline = gateway.config.body_timeout();
    let form = timeout(deadline, read_form(request)).await;
    let (body, part) = form.map_err(|_| late(deadline))??;
    Ok((body, Some(part)))
}

async fn read_form(mut request: Request) -> Result<(ExecBody, StdinPart), Error> {
    // Its stdin is streamed.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|error| Error::new(ErrorCode::BadRequest, error.body_text()))?;
    let json = read_exec(&mut form).await?;
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

/// Reads the part `exec`.
async fn read_exec(form: &mut Multipart) -> Result<Vec<u8>, Error> {
    let field = form.next_field().await.map_err(|error| malformed(&error))?;
    let mut field = field.ok_or_else(|| unexpected(None, "exec"))?;
    if field.name() != Some("exec") {
        return Err(unexpected(field.name(), "exec"));
    }
    let mut json = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| malformed(&error))? {
        if json.len() + chunk.len() > MAX_COMMAND_BODY {
            return Err(Error::new(
                ErrorCode::PayloadTooLarge,
                format!("the part `exec` must be at most {MAX_COMMAND_BODY} bytes, is larger"),
            ));
        }
        json.extend_from_slice(&chunk);
    }
    Ok(json)
}

impl StdinPart {
    /// Reads stdin piece by piece, and passes each to `sink`. The next one must arrive within `idle`.
    ///
    /// # Errors
    /// When the form is malformed or late.
    pub(super) async fn copy_to(
        mut self,
        idle: Duration,
        sink: &mut impl StdinSink,
    ) -> Result<(), Error> {
        let next = timeout(idle, self.form.next_field()).await;
        let field = next
            .map_err(|_| late(idle))?
            .map_err(|error| malformed(&error))?;
        let Some(mut field) = field else {
            return Ok(());
        };
        if field.name() != Some("stdin") {
            return Err(unexpected(field.name(), "stdin"));
        }
        loop {
            let chunk = timeout(idle, field.chunk()).await;
            let chunk = chunk
                .map_err(|_| late(idle))?
                .map_err(|error| malformed(&error))?;
            match chunk {
                Some(bytes) => sink.write(bytes).await,
                None => break,
            }
        }
        drop(field);
        let next = timeout(idle, self.form.next_field()).await;
        match next
            .map_err(|_| late(idle))?
            .map_err(|error| malformed(&error))?
        {
            Some(field) => Err(unexpected(field.name(), "the end of the body")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    impl StdinSink for Vec<u8> {
        async fn write(&mut self, bytes: Bytes) {
            self.extend_from_slice(&bytes);
        }
    }

    fn form(parts: &[(&str, &str)]) -> Request {
        let mut text = String::new();
        for (name, content) in parts {
            text.push_str(&format!(
                "--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{content}\r\n"
            ));
        }
        text.push_str("--b--\r\n");
        Request::builder()
            .header(header::CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(Body::from(text))
            .unwrap()
    }

    async fn read_all(parts: &[(&str, &str)]) -> Result<(ExecBody, Vec<u8>), Error> {
        let request = form(parts);
        assert!(is_form(request.headers()));
        let (body, part) = read_form(request).await?;
        let mut stdin = Vec::new();
        let idle = Duration::from_secs(10);
        part.copy_to(idle, &mut stdin).await?;
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
        for (parts, begin) in [
            (&[][..], "body: "),
            (&[("stdin", "a"), EXEC][..], "body: "),
            (&[EXEC, ("file", "a")][..], "body: "),
            (&[EXEC, ("stdin", "a"), ("stdin", "b")][..], "body: "),
            (&[("exec", "{")][..], "the body is not JSON"),
            (
                &[("exec", r#"{"command":["a"],"stdin":""}"#)][..],
                "stdin: ",
            ),
        ] {
            let error = read_all(parts).await.err().unwrap();
            assert!(error.message.starts_with(begin), "{parts:?}: {error}");
        }
    }
}
