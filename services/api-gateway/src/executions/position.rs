//! The offsets of both streams as text: the id of an event, and `from`. Pure.
//!
//! The text is `<stdout>-<stderr>`: the number of bytes of each that its reader has.

use agentbox_contracts::error::Error;
use agentbox_contracts::executions::Offsets;
use axum::http::HeaderMap;

/// The header with the position, as errors name it.
pub(super) const LAST_EVENT_ID: &str = "Last-Event-ID";

pub(super) fn encode(offsets: Offsets) -> String {
    format!("{}-{}", offsets.stdout, offsets.stderr)
}

/// A number as [`encode`] writes it: digits alone.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// Reads the offsets; `field` names the text in the error.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(crate) fn parse(field: &str, text: &str) -> Result<Offsets, Error> {
    text.split_once('-')
        .and_then(|(stdout, stderr)| {
            Some(Offsets {
                stdout: number(stdout)?,
                stderr: number(stderr)?,
            })
        })
        .ok_or_else(|| {
            Error::value(
                field,
                "must be the id of an event of this output, such as `4096-0`",
                text,
            )
        })
}

/// Reads the offset of one stream.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(super) fn parse_offset(text: &str) -> Result<u64, Error> {
    number(text).ok_or_else(|| {
        Error::value(
            "from",
            "must be an offset in bytes, for one stream without `follow`",
            text,
        )
    })
}

/// Reads the id of the last event that the client received, which browsers send by themselves.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<Offsets>, Error> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    match value.to_str().unwrap_or("?").trim() {
        "" => Ok(None),
        text => parse(LAST_EVENT_ID, text).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_reads_back_as_it_is_written() {
        for (stdout, stderr) in [(0, 0), (4096, 7), (u64::MAX, 1)] {
            let offsets = Offsets { stdout, stderr };
            assert_eq!(parse("from", &encode(offsets)), Ok(offsets));
        }
        for bad in [
            "",
            "7",
            "-",
            "1-",
            "-1",
            "1-2-3",
            "+1-2",
            "a-b",
            "18446744073709551616-0",
        ] {
            let error = parse("from", bad).unwrap_err();
            assert!(error.message.starts_with("from: "), "{bad}: {error}");
        }
        assert_eq!(parse_offset("12"), Ok(12));
        for bad in ["", "-1", "1-0", "+1"] {
            assert!(parse_offset(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn last_event_id_is_optional_and_checked() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", value.parse().unwrap());
            last_event_id(&headers)
        };
        assert_eq!(last_event_id(&HeaderMap::new()), Ok(None));
        assert_eq!(with(""), Ok(None));
        let offsets = Offsets {
            stdout: 3,
            stderr: 4,
        };
        assert_eq!(with("3-4"), Ok(Some(offsets)));
        let error = with("12").unwrap_err();
        assert!(error.message.starts_with("Last-Event-ID: "), "{error}");
    }
}
