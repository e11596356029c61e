//! Kubernetes labels: the syntax of keys and values.

use std::collections::BTreeMap;

use crate::environment::MAX_LABELS;
use crate::error::{Error, shortened};

/// Checks `labels`; `field` names them in the error.
///
/// # Errors
/// [`crate::error::ErrorCode::Validation`] when a key or a value breaks Kubernetes' rules for labels.
pub fn check_labels(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Error> {
    if labels.len() > MAX_LABELS {
        return Err(Error::field(
            field,
            format_args!(
                "must have at most {MAX_LABELS} entries, has {}",
                labels.len()
            ),
        ));
    }
    for (key, value) in labels {
        label_key(key).map_err(|rule| Error::value(field, format_args!("a key {rule}"), key))?;
        label_value(value).map_err(|rule| {
            let shown = shortened(key);
            Error::value(field, format_args!("the value of `{shown}` {rule}"), value)
        })?;
    }
    Ok(())
}

/// Checks the key of a label.
///
/// # Errors
/// The rule that the key breaks.
pub fn label_key(key: &str) -> Result<(), &'static str> {
    const RULE: &str = "must be a Kubernetes label key: [prefix/]name of at most 63 \
                        letters, digits, -, _ and ., with a letter or digit at both ends";
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if name.is_empty() || !is_name(name) || prefix.is_some_and(|prefix| !is_dns_subdomain(prefix)) {
        return Err(RULE);
    }
    Ok(())
}

/// Checks the value of a label.
///
/// # Errors
/// The rule that the value breaks.
pub fn label_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || is_name(value) {
        Ok(())
    } else {
        Err(
            "must be empty or at most 63 letters, digits, -, _ and ., with a letter or digit \
             at both ends",
        )
    }
}

fn is_name(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().copied().all(is_allowed)
        && ends(bytes.first())
        && ends(bytes.last())
}

/// Whether `text` is a DNS subdomain (RFC 1123).
#[must_use]
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Whether `text` is a DNS label (RFC 1123).
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(is_allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
