//! Quantities: a user sends them as `resources`.
//!
//! * Exactly the texts that the OpenAPI document describes are quantities; a described text is
//!   refused only for its value.
//! * A value is from 1 to 2^63-1, and is read again from its own text.
//! * CPU and bytes agree: the same text is the same number, in thousandths and in ones.

#![no_main]

use std::sync::LazyLock;

use agentbox_api::kubernetes::Quantity;
use agentbox_contracts::units::{Bytes, MilliCpu, QuantityError};
use agentbox_fuzz::{Described, assert_short};
use libfuzzer_sys::fuzz_target;
use utoipa::PartialSchema as _;

static DESCRIBED: LazyLock<Described> = LazyLock::new(|| Described::new(&Quantity::schema(), None));

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let milli = text.parse::<MilliCpu>();
    let whole = text.parse::<Bytes>();
    check(text, &milli);
    check(text, &whole);
    match (milli, whole) {
        (Ok(milli), Ok(whole)) => {
            assert!((1..=i64::MAX as u64).contains(&milli.0), "{milli}");
            assert!((1..=i64::MAX as u64).contains(&whole.0), "{whole}");
            assert_eq!(milli.to_string().parse::<MilliCpu>(), Ok(milli));
            assert_eq!(whole.to_string().parse::<Bytes>(), Ok(whole));
            let (milli, whole) = (u128::from(milli.0), u128::from(whole.0));
            assert_eq!(milli.div_ceil(1000), whole, "{text}");
        }
        (Err(QuantityError::TooLarge(_)), Ok(_)) => {}
        (milli, whole) => {
            let kind = |error: &QuantityError| std::mem::discriminant(error);
            let kinds = (milli.as_ref().map_err(kind), whole.as_ref().map_err(kind));
            assert_eq!(kinds.0.err(), kinds.1.err(), "{text}");
        }
    }
});

fn check<T>(text: &str, result: &Result<T, QuantityError>) {
    let is_refused_for_its_form = match result {
        Ok(_) => false,
        Err(error) => {
            assert_short(&error.to_string());
            match error {
                QuantityError::Syntax(_) | QuantityError::TooLong(_) => true,
                QuantityError::TooLarge(_) => false,
                // Also a negative number, which the document does not describe.
                QuantityError::NotPositive(_) => text.starts_with('-'),
            }
        }
    };
    assert_eq!(
        is_refused_for_its_form,
        !DESCRIBED.describes(text),
        "{text}"
    );
}
