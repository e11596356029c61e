//! The messages of boxd's gRPC: a caller's, which boxd reads, and a box's, which exec-proxy reads.
//!
//! * A message that is decoded and encoded again is the same message.
//! * A command that boxd accepts has the arguments and variables of the request, and `execve` can
//!   pass them.
//! * A log entry of a box keeps its number, time and line.

#![no_main]

use std::ffi::OsString;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt as _;

use agentbox_box_protocol::proto::{
    self, ConfigureRequest, ControlRequest, LogsReply, LogsRequest, RunInput, RunOutput,
    StatusReply, UsageReply, logs_reply, run_input,
};
use agentbox_contracts::logs::LogEntry;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Some(run_input::Input::Start(start)) =
        round_trip::<RunInput>(bytes).and_then(|message| message.input)
    {
        check_start(start);
    }
    round_trip::<ControlRequest>(bytes);
    round_trip::<LogsRequest>(bytes);
    round_trip::<ConfigureRequest>(bytes);

    round_trip::<RunOutput>(bytes);
    round_trip::<UsageReply>(bytes);
    round_trip::<StatusReply>(bytes);
    if let Some(logs_reply::Reply::Batch(batch)) =
        round_trip::<LogsReply>(bytes).and_then(|message| message.reply)
    {
        batch.entries.into_iter().for_each(check_entry);
    }
});

fn round_trip<M: Message + Debug + Default + PartialEq>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let encoded = message.encode_to_vec();
    assert_eq!(M::decode(encoded.as_slice()).as_ref(), Ok(&message));
    Some(message)
}

fn check_start(start: proto::StartCommand) {
    let (command, env) = (start.command.clone(), start.env.clone());
    let Some((arguments, variables)) = agentbox_boxd::accepted_start(start) else {
        return;
    };
    let command: Vec<OsString> = command.into_iter().map(OsString::from).collect();
    assert_eq!(arguments, command);
    assert_eq!(variables.len(), env.len());
    let has = |text: &OsString, byte: u8| text.as_bytes().contains(&byte);
    assert!(!arguments.iter().any(|argument| has(argument, 0)));
    for (name, value) in variables {
        assert!(!name.is_empty() && !has(&name, b'=') && !has(&name, 0));
        assert!(!has(&value, 0));
    }
}

fn check_entry(entry: proto::LogEntry) {
    let read = LogEntry::from(entry.clone());
    let written = proto::LogEntry::from(read.clone());
    assert_eq!(
        (written.sequence, written.unix_nanos, written.partial),
        (entry.sequence, entry.unix_nanos, entry.partial)
    );
    assert_eq!(written.line, entry.line);
    assert_eq!(LogEntry::from(written), read);
}
