//! What a client sends as JSON: bodies of requests, and text frames of an attached terminal.
//!
//! * Exactly what serde_json reads is JSON, with the same value.
//! * A body that is read and written again is read as the same body, also by serde alone.
//! * A frame becomes messages that a session can carry.
//! * An error says that the input is wrong, and is short.

#![no_main]

use agentbox_api::api_key::CreateApiKey;
use agentbox_api::environment::{CreateEnvironment, PatchEnvironment};
use agentbox_api::exec::ExecBody;
use agentbox_api::execution::StartExecution;
use agentbox_api::file::{CopyFile, CreateDirectory, MoveFile, PatchFile};
use agentbox_api::user::{ChangePassword, CreateTicket, CreateUser, Login, PatchUser};
use agentbox_api_gateway::fuzzing::{parse_body, parse_frame};
use agentbox_contracts::exec::{MAX_CHUNK, SessionMessage as _, ToBox};
use agentbox_fuzz::{assert_input_error, to_json};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let value = parse_body::<Value>(bytes);
    assert_eq!(value.ok(), serde_json::from_slice::<Value>(bytes).ok());
    check_body::<CreateEnvironment>(bytes);
    check_body::<PatchEnvironment>(bytes);
    check_body::<ExecBody>(bytes);
    check_body::<CreateDirectory>(bytes);
    check_body::<MoveFile>(bytes);
    check_body::<CopyFile>(bytes);
    check_body::<PatchFile>(bytes);
    check_body::<StartExecution>(bytes);
    check_body::<CreateApiKey>(bytes);
    check_body::<CreateUser>(bytes);
    check_body::<PatchUser>(bytes);
    check_body::<ChangePassword>(bytes);
    check_body::<Login>(bytes);
    check_body::<CreateTicket>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_frame(text);
    }
});

fn check_body<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let body = match parse_body::<T>(bytes) {
        Ok(body) => to_json(&body),
        Err(error) => return assert_input_error(&error),
    };
    let written = body.to_string();
    let read: T = parse_body(written.as_bytes()).expect("a written body");
    assert_eq!(to_json(&read), body);
    let read: T = serde_json::from_str(&written).expect("a written body");
    assert_eq!(to_json(&read), body);
}

fn check_frame(text: &str) {
    let messages = match parse_frame(text) {
        Ok(messages) => messages,
        Err(error) => return assert_input_error(&error),
    };
    for message in messages {
        if let ToBox::Data(chunk) = &message {
            assert!((1..=MAX_CHUNK).contains(&chunk.len()));
        }
        let encoded = message.clone().encode();
        assert_eq!(ToBox::decode(encoded).expect("a written message"), message);
    }
}
