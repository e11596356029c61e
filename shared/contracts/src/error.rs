//! The error codes that a caller sees, each with its HTTP status.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($(#[doc = $doc:literal] $name:ident = $text:tt, $status:literal;)*) => {
        /// The kind of an error: a stable word from a closed list, for programs to compare.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(example = "validation_failed"))]
        pub enum ErrorCode {
            $(#[doc = $doc] #[serde(rename = $text)] $name,)*
        }

        impl ErrorCode {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The code with this text; `None` for an unknown one.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.as_str() == text)
            }

            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The condition under which a caller receives this code, in one or two sentences.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => $doc.trim_ascii(),)* }
            }
        }
    };
}

codes! {
    /// The request cannot be read: it is not JSON, or its query or path is malformed.
    BadRequest = "bad_request", 400;
    /// A field is missing, unknown, of the wrong type or outside its rule. The message names it.
    Validation = "validation_failed", 400;
    /// The request carries no credential, or one that is wrong, expired or revoked.
    Unauthorized = "unauthorized", 401;
    /// The username and password do not match.
    InvalidCredentials = "invalid_credentials", 401;
    /// The caller may see the resource, but may not do this.
    Forbidden = "forbidden", 403;
    /// The caller's quota does not allow another one.
    QuotaExceeded = "quota_exceeded", 403;
    /// The resource does not exist, or the caller may not see it.
    NotFound = "not_found", 404;
    /// The path does not accept this method. The `Allow` header lists those it accepts.
    MethodNotAllowed = "method_not_allowed", 405;
    /// The head or the body of the request did not arrive in time.
    RequestTimeout = "request_timeout", 408;
    /// The request contradicts the present state: the name is taken, or the environment has another status.
    Conflict = "conflict", 409;
    /// The environment is not running.
    NotRunning = "environment_not_running", 409;
    /// The idempotency key was used before, with another body.
    IdempotencyConflict = "idempotency_conflict", 409;
    /// The body is larger than this operation accepts.
    PayloadTooLarge = "payload_too_large", 413;
    /// The path and query of the request are too long.
    UriTooLong = "uri_too_long", 414;
    /// The Content-Type is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type", 415;
    /// The file or directory does not exist.
    FileNotFound = "file_not_found", 404;
    /// A part of the path, or the path itself, is not a directory.
    NotADirectory = "not_a_directory", 409;
    /// The path is a directory, and the operation needs a file.
    IsADirectory = "is_a_directory", 409;
    /// The path exists, and the request does not allow to replace it.
    AlreadyExists = "already_exists", 409;
    /// The directory has entries, and the request is not recursive.
    NotEmpty = "not_empty", 409;
    /// A mount point, a device, a FIFO or a socket cannot be replaced.
    NotReplaceable = "not_replaceable", 409;
    /// The kernel reports the file as busy.
    Busy = "busy", 409;
    /// The two paths are on different file systems.
    CrossDevice = "cross_device", 409;
    /// The user in the environment may not do this.
    PermissionDenied = "permission_denied", 403;
    /// The file system is mounted read-only.
    ReadOnlyFilesystem = "read_only_filesystem", 403;
    /// The file system, or the storage of the environment, is full.
    NoSpace = "no_space", 507;
    /// A condition of the request (`If-Match`, `If-None-Match`) does not hold.
    PreconditionFailed = "precondition_failed", 412;
    /// The range begins after the end of the file.
    RangeNotSatisfiable = "range_not_satisfiable", 416;
    /// A name in the path is longer than its file system allows.
    NameTooLong = "name_too_long", 400;
    /// The path is not absolute, is too long, or contains a NUL.
    InvalidPath = "invalid_path", 400;
    /// The path has too many symbolic links.
    TooManyLinks = "too_many_links", 400;
    /// The user or group does not exist in the environment.
    UserNotFound = "user_not_found", 400;
    /// The environment does not allow to act as this user.
    UserNotAllowed = "user_not_allowed", 400;
    /// The content does not have the digest of `Content-Digest`.
    DigestMismatch = "digest_mismatch", 400;
    /// The archive is malformed, or has an entry that is refused. The message names the entry.
    ArchiveInvalid = "archive_invalid", 400;
    /// The working directory of the command does not exist, or cannot be entered.
    WorkingDirNotFound = "working_dir_not_found", 400;
    /// Nothing listens on the port, or what listens does not answer with HTTP.
    NothingListening = "nothing_listening", 502;
    /// Previews for browsers need a domain, which the operator has not configured.
    PreviewDomainMissing = "preview_domain_missing", 501;
    /// Too many requests in this minute, or too many connections, commands or streams at once. `Retry-After` says when to try again, in seconds.
    RateLimited = "rate_limited", 429;
    /// The headers of the request are too many or too long.
    HeadersTooLarge = "headers_too_large", 431;
    /// A fault of the server. Its log has the details, under the `X-Trace-Id` of the answer.
    Internal = "internal", 500;
    /// The environment, or its connection, was lost while it worked on this request.
    BoxLost = "box_lost", 502;
    /// The environment ended while it worked on this request: it was deleted, its lifetime is over, or its main command has ended.
    EnvironmentEnded = "environment_ended", 502;
    /// A part of the system cannot be reached. Try again after `Retry-After` seconds.
    Unavailable = "unavailable", 503;
    /// A part of the system did not answer in time.
    Timeout = "timeout", 504;
}

/// A value for an error message: at most 80 characters, without control characters.
#[must_use]
pub fn shortened(value: &str) -> String {
    const MAX_CHARACTERS: usize = 80;
    let mut visible = value.chars().filter(|c| !c.is_control());
    let mut shown: String = visible.by_ref().take(MAX_CHARACTERS).collect();
    if visible.next().is_some() {
        shown.push('…');
    }
    shown
}

/// An error for a caller. It holds no detail that is meant for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}", code = code.as_str())]
pub struct Error {
    pub code: ErrorCode,
    pub message: String,
    /// For 429 and 503: the seconds to wait before the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

impl Error {
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retry_after_s = matches!(code, ErrorCode::Unavailable).then_some(1);
        Self {
            code,
            message: message.into(),
            retry_after_s,
        }
    }

    /// A field broke a rule; the message is `field: rule, is `value``. For a secret use
    /// [`Self::field`], which does not show the value.
    #[must_use]
    pub fn value(field: &str, rule: impl std::fmt::Display, value: impl std::fmt::Display) -> Self {
        let value = shortened(&value.to_string());
        Self::field(field, format_args!("{rule}, is `{value}`"))
    }

    /// A field broke a rule; the message is `field: rule`.
    #[must_use]
    pub fn field(field: &str, rule: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Validation, format!("{field}: {rule}"))
    }

    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("{what} not found"))
    }

    /// A fault of the server. The caller receives no detail, so the place that detects the fault
    /// logs it.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            ErrorCode::Internal,
            "internal error; report it with the X-Trace-Id of the answer",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_value_names_field_rule_and_bounded_value() {
        let error = Error::value("name", "must be short", "ä".repeat(90));
        assert_eq!(error.code, ErrorCode::Validation);
        let shown = format!("name: must be short, is `{}…`", "ä".repeat(80));
        assert_eq!(error.message, shown);
        assert_eq!(shortened("a\u{1b}[31m\nb"), "a[31mb");
        let error = Error::value("limit", "must be 1 to 1000", 0);
        assert_eq!(error.message, "limit: must be 1 to 1000, is `0`");
    }

    #[test]
    fn error_codes_are_unique_and_round_trip_through_json() {
        let mut texts = std::collections::BTreeSet::new();
        for code in ErrorCode::ALL {
            assert!(texts.insert(code.as_str()), "{}", code.as_str());
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).unwrap(), *code);
            assert!((400..600).contains(&code.status()));
        }
    }
}
