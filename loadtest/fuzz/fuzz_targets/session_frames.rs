//! What a peer on the bus sends in a session: the request that opens it, frames, and messages.
//!
//! * A frame that is decoded and encoded again is the same frame; one with data, byte for byte.
//! * A message or a request to open a session that is decoded and encoded again is the same, and never
//!   empty.

#![no_main]

use std::fmt::Debug;

use agentbox_bus::reencode_frame;
use agentbox_contracts::exec::{FromBox, Open, SessionMessage, ToBox};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

/// The first bytes of a frame with data, and of the last one.
const DATA: [u8; 2] = [2, 3];

fuzz_target!(|bytes: &[u8]| {
    let body = Bytes::copy_from_slice(bytes);
    if let Some(frame) = reencode_frame(body.clone()) {
        if bytes.first().is_some_and(|kind| DATA.contains(kind)) {
            assert_eq!(frame, body);
        }
        assert_eq!(reencode_frame(frame.clone()), Some(frame));
    }
    round_trip::<ToBox>(&body);
    round_trip::<FromBox>(&body);
    round_trip::<Open>(&body);
});

fn round_trip<M: SessionMessage + Clone + Debug + PartialEq>(body: &Bytes) {
    let Ok(message) = M::decode(body.clone()) else {
        return;
    };
    let encoded = message.clone().encode();
    assert!(!encoded.is_empty(), "{message:?}");
    assert_eq!(M::decode(encoded).expect("a written message"), message);
}
