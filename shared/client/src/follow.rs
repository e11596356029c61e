//! A followed log: server-sent events as they come.

use agentbox_api::logs::LogLine;
use reqwest::Response;

use crate::Error;

/// Of one event, in bytes.
const LONGEST: usize = 4 << 20;

/// What came next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Its SSE id, for `Last-Event-ID`, when it has one.
    Line { id: Option<String>, line: LogLine },
    /// An event with another name: `end`, `gap`.
    Event { name: String, data: String },
}

/// Dropping it ends the stream.
pub struct Follow {
    answer: Response,
    buffer: Vec<u8>,
}

impl Follow {
    pub(crate) fn new(answer: Response) -> Self {
        Self {
            answer,
            buffer: Vec::new(),
        }
    }

    /// `None` after the last. Waits without a deadline, since a log may be silent.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection broke, [`Error::Shape`],
    /// [`Error::EventTooLong`].
    pub async fn next(&mut self) -> Result<Option<Followed>, Error> {
        loop {
            while let Some(block) = take_block(&mut self.buffer) {
                if let Some(event) = parse(&block)? {
                    return Ok(Some(event));
                }
            }
            if self.buffer.len() > LONGEST {
                return Err(Error::EventTooLong { limit: LONGEST });
            }
            match self.answer.chunk().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

/// The bytes up to the first empty line.
fn take_block(buffer: &mut Vec<u8>) -> Option<String> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let block: Vec<u8> = buffer.drain(..end + 2).collect();
    Some(String::from_utf8_lossy(&block).into_owned())
}

/// `None` for a block without data, such as a comment.
fn parse(block: &str) -> Result<Option<Followed>, Error> {
    let (mut name, mut id, mut data) = (String::new(), None, Vec::new());
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut name),
            "id" => id = Some(value.to_owned()),
            "data" => data.push(value),
            _ => {}
        }
    }
    if data.is_empty() {
        return Ok(None);
    }
    let data = data.join("\n");
    Ok(Some(if name.is_empty() || name == "message" {
        Followed::Line {
            id,
            line: serde_json::from_str(&data)?,
        }
    } else {
        Followed::Event { name, data }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_at_empty_lines_and_comments_are_skipped() {
        let mut buffer = b": hi\n\nid: 7\ndata: {\"stream\":\"stdout\",\"message\":\"a\"}\n\nevent: end\ndata: {}\n\nda".to_vec();
        let mut seen = Vec::new();
        while let Some(block) = take_block(&mut buffer) {
            seen.extend(parse(&block).unwrap());
        }
        assert_eq!(buffer, b"da");
        assert!(
            matches!(&seen[0], Followed::Line { id: Some(id), line } if id == "7" && line.message == "a")
        );
        assert!(matches!(&seen[1], Followed::Event { name, .. } if name == "end"));
        assert_eq!(seen.len(), 2);
    }
}
