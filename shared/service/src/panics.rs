//! A panic is a line of the log like any other failure, with the trace it happened in.
//!
//! Only words that the program was built with are repeated. A message that was put
//! together as it ran may quote a user (the slice that could not be cut, the text that
//! could not be read): the place says enough.

use std::any::Any;

/// What a panic says, when that is part of the program.
pub(crate) fn words(payload: &dyn Any) -> &'static str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("its message may quote a user and is not logged")
}

/// From now on in place of Rust's own lines on stderr, which are not JSON.
pub(crate) fn log_them() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(
            place = place.unwrap_or_default(),
            reason = words(panic.payload()),
            "panicked"
        );
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_in_the_programs_words_and_never_in_a_users() {
        let caught = |work: fn()| std::panic::catch_unwind(work).unwrap_err();
        assert_eq!(words(&*caught(|| panic!("on purpose"))), "on purpose");
        let quoting = caught(|| {
            let users = String::from("a user's secret");
            panic!("cannot read {users}");
        });
        assert!(!words(&*quoting).contains("secret"));
    }
}
