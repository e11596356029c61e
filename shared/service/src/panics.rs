//! Logs a panic as a log line of the service, with the trace in which it happened.
//!
//! Only a message that is a literal of the program is logged. A formatted message may contain
//! a user's data, such as a text that could not be parsed. For it the location is logged alone.

use std::any::Any;

/// The message of a panic, if it is a literal of the program.
pub(crate) fn panic_message(payload: &dyn Any) -> &'static str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("the message may contain user data and is not logged")
}

/// Installs the panic hook. Rust's default hook writes lines to stderr that are not JSON.
pub(crate) fn install_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(
            location = location.unwrap_or_default(),
            reason = panic_message(panic.payload()),
            "panicked"
        );
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_message_is_static_text_only() {
        let caught = |work: fn()| std::panic::catch_unwind(work).unwrap_err();
        assert_eq!(
            panic_message(&*caught(|| panic!("on purpose"))),
            "on purpose"
        );
        let quoting = caught(|| {
            let input = String::from("a user's secret");
            panic!("cannot read {input}");
        });
        assert!(!panic_message(&*quoting).contains("secret"));
    }
}
