//! Reads `multipart/form-data` (RFC 7578) part by part, as it arrives.
//!
//! * I1. Memory holds one frame of the body, and what may be the beginning of a delimiter. So a part may
//!   have any size.
//! * I2. The body begins with a delimiter: a preamble, which no client sends, is refused.

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

/// The longest boundary (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;
/// The longest headers of a part, in bytes.
const MAX_HEAD: usize = 8 * 1024;
const HEAD_END: &[u8] = b"\r\n\r\n";

pub(super) struct Form {
    body: Body,
    /// The line end and the boundary that end a part.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    /// How long the next frame of the body may take to arrive.
    idle: Duration,
}

fn malformed(problem: &str) -> Error {
    Error::new(
        ErrorCode::BadRequest,
        format!("the body is not multipart/form-data: {problem}"),
    )
}

/// The boundary of a form. `None`: the request has another body.
///
/// # Errors
/// [`ErrorCode::BadRequest`] for a form without a valid boundary.
pub(super) fn boundary(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next().unwrap_or("");
    if !essence.eq_ignore_ascii_case("multipart/form-data") {
        return Ok(None);
    }
    let boundary = parts
        .find_map(|parameter| parameter_value(parameter, "boundary"))
        .filter(|boundary| (1..=MAX_BOUNDARY).contains(&boundary.len()))
        .ok_or_else(|| malformed("its Content-Type has no boundary of 1 to 70 characters"))?;
    Ok(Some(boundary.to_owned()))
}

/// The value of the parameter `name`, without quotes.
fn parameter_value<'a>(parameter: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = parameter.split_once('=')?;
    key.trim()
        .eq_ignore_ascii_case(name)
        .then(|| value.trim().trim_matches('"'))
}

/// The name of a part, from its headers.
fn part_name(head: &[u8]) -> Option<String> {
    let head = std::str::from_utf8(head).ok()?;
    let disposition = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("content-disposition")
            .then_some(value)
    })?;
    let mut parameters = disposition.split(';').map(str::trim);
    let name = parameters.find_map(|parameter| parameter_value(parameter, "name"))?;
    Some(name.to_owned())
}

fn position(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

impl Form {
    pub(super) fn new(body: Body, boundary: &str, idle: Duration) -> Self {
        Self {
            body,
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // The first delimiter needs no line end before it.
            buffer: BytesMut::from("\r\n"),
            idle,
        }
    }

    /// Receives a frame.
    async fn fill(&mut self) -> Result<(), Error> {
        let frame = timeout(self.idle, self.body.frame()).await.map_err(|_| {
            Error::new(
                ErrorCode::RequestTimeout,
                format!(
                    "a part of the body must arrive every {} seconds, did not",
                    self.idle.as_secs()
                ),
            )
        })?;
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.buffer.extend_from_slice(data);
                }
                Ok(())
            }
            Some(Err(_)) | None => Err(malformed("it ends before its last boundary")),
        }
    }

    /// Begins the next part, after the content of the one before, and returns its name. `None`: the
    /// form is complete.
    ///
    /// # Errors
    /// When the form is malformed or late.
    pub(super) async fn next_part(&mut self) -> Result<Option<String>, Error> {
        while self.buffer.len() < self.delimiter.len() + 2 {
            self.fill().await?;
        }
        if !self.buffer.starts_with(&self.delimiter) {
            return Err(malformed("a part has no boundary before it"));
        }
        let _ = self.buffer.split_to(self.delimiter.len());
        if self.buffer.starts_with(b"--") {
            return Ok(None);
        }
        let end = loop {
            if !self.buffer.starts_with(b"\r\n") {
                return Err(malformed("a boundary is not followed by a line end"));
            }
            match position(&self.buffer, HEAD_END) {
                Some(end) if end <= MAX_HEAD => break end,
                None if self.buffer.len() < MAX_HEAD + HEAD_END.len() => self.fill().await?,
                _ => return Err(malformed("the headers of a part are too long")),
            }
        };
        let head = self.buffer.split_to(end + HEAD_END.len());
        let name = part_name(&head);
        name.map(Some)
            .ok_or_else(|| malformed("a part has no name"))
    }

    /// The next bytes of the part. `None`: it is complete.
    ///
    /// # Errors
    /// When the form is malformed or late.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            // The last bytes may begin a delimiter.
            let certain = match position(&self.buffer, &self.delimiter) {
                Some(0) => return Ok(None),
                Some(end) => end,
                None => self.buffer.len().saturating_sub(self.delimiter.len() - 1),
            };
            if certain > 0 {
                return Ok(Some(self.buffer.split_to(certain).freeze()));
            }
            self.fill().await?;
        }
    }
}

/// Reads a form with the boundary `b`, whose body arrives in frames of at most `frame` bytes: the names
/// and the contents of its parts.
///
/// # Errors
/// When the form is malformed.
#[cfg(any(test, fuzzing))]
pub(crate) async fn parse(body: &[u8], frame: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let frames: Vec<_> = body
        .chunks(frame)
        .map(|frame| Ok::<_, std::convert::Infallible>(Bytes::copy_from_slice(frame)))
        .collect();
    let body = Body::from_stream(futures::stream::iter(frames));
    let mut form = Form::new(body, "b", Duration::from_secs(10));
    let mut parts = Vec::new();
    while let Some(name) = form.next_part().await? {
        let mut content = Vec::new();
        while let Some(bytes) = form.chunk().await? {
            content.extend_from_slice(&bytes);
        }
        parts.push((name, content));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parts_are_read_in_frames_of_any_length() {
        let content = b"\r\n--\r\n-- b\r\n--a\r\n\0\xff--b";
        let mut body = b"--b\r\ncontent-disposition: form-data; name=\"one\"\r\n\r\n".to_vec();
        body.extend_from_slice(content);
        body.extend_from_slice(
            b"\r\n--b\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name=two; \
              filename=\"x\"\r\n\r\n\r\n--b--\r\nepilogue",
        );
        let expected = [
            ("one".to_owned(), content.to_vec()),
            ("two".to_owned(), Vec::new()),
        ];
        for length in 1..=body.len() {
            assert_eq!(parse(&body, length).await.unwrap(), expected, "{length}");
        }
    }

    #[tokio::test]
    async fn long_part_is_read_piece_by_piece() {
        let mut body = b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n".to_vec();
        body.resize(body.len() + 1_000_000, b'\r');
        body.extend_from_slice(b"\r\n--b--");
        let frames: Vec<_> = body
            .chunks(1000)
            .map(|frame| Ok::<_, std::convert::Infallible>(Bytes::copy_from_slice(frame)))
            .collect();
        let body = Body::from_stream(futures::stream::iter(frames));
        let mut form = Form::new(body, "b", Duration::from_secs(10));
        assert_eq!(form.next_part().await.unwrap().as_deref(), Some("a"));
        let mut length = 0;
        while let Some(bytes) = form.chunk().await.unwrap() {
            length += bytes.len();
            assert!(form.buffer.len() <= 1000 + form.delimiter.len());
        }
        assert_eq!(length, 1_000_000);
        assert_eq!(form.next_part().await.unwrap(), None);
    }

    #[tokio::test]
    async fn malformed_form_is_refused() {
        let long = format!("--b\r\n{}", "x".repeat(MAX_HEAD * 2));
        for body in [
            "",
            "--b",
            "--c\r\n\r\n\r\n--c--",
            "preamble\r\n--b\r\n",
            "--b\r\nContent-Type: a\r\n\r\nx\r\n--b--",
            "--b\r\nContent-Disposition: form-data; name=a\r\n\r\nx",
            "--bx\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--bx--",
            &long,
        ] {
            for frame in [7, 100_000] {
                let error = parse(body.as_bytes(), frame).await.unwrap_err();
                assert_eq!(error.code, ErrorCode::BadRequest, "{body}");
            }
        }
    }

    #[test]
    fn boundary_is_read_from_the_content_type() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            boundary(&headers)
        };
        assert_eq!(boundary(&HeaderMap::new()), Ok(None));
        assert_eq!(of("application/json"), Ok(None));
        let plain = of("Multipart/Form-Data; charset=utf-8; Boundary=a-b");
        assert_eq!(plain, Ok(Some("a-b".to_owned())));
        let quoted = of("multipart/form-data;boundary=\"a b\"");
        assert_eq!(quoted, Ok(Some("a b".to_owned())));
        for bad in ["multipart/form-data", "multipart/form-data; boundary="] {
            assert_eq!(of(bad).unwrap_err().code, ErrorCode::BadRequest, "{bad}");
        }
    }
}
