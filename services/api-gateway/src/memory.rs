//! The bounds of one replica's memory, in one place.
//!
//! * I1. Their sum is the memory limit of the replica: whatever users do, the kernel does not end a
//!   gateway for its memory. Sessions get what the other bounds leave, so that a larger limit of the
//!   container alone permits more of them.

use agentbox_bus::SESSION_WINDOW;
use agentbox_contracts::exec::MAX_CHUNK;

use crate::attach::{MAX_MESSAGE, MAX_WRITE_BUFFER};
use crate::config::Config;
use crate::exec;
use crate::shares::Resource;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A replica without requests: the program, the route mirror and the caches.
const BASE: u64 = 72 * MIB;
/// An idle connection.
const CONNECTION: u64 = 4 * KIB;

/// Bytes of one user's request bodies that may be in memory.
pub(crate) const MAX_BODY_BYTES_PER_USER: u64 = 16 * MIB;
/// Bytes of all users' request bodies that may be in memory.
pub(crate) const MAX_BODY_BYTES: u64 = 32 * MIB;

/// Stored events that one user's answers may hold in memory.
pub(crate) const MAX_STORED_EVENTS_PER_USER: u64 = 20_000;
/// Stored events that all answers together may hold in memory.
pub(crate) const MAX_STORED_EVENTS: u64 = 48_000;
/// The least for all sessions, however low the limit is.
const MIN_SESSIONS: u64 = 16 * MIB;
/// A stored event: some hundred bytes, with a long status message more.
const STORED_EVENT: u64 = KIB;

/// The messages of a session that wait in one direction.
const WINDOW: u64 = (SESSION_WINDOW * MAX_CHUNK) as u64;
/// One message of a session as JSON: each byte of it may be escaped as six.
const MESSAGE_AS_JSON: u64 = 256 * KIB;

/// The memory of open sessions.
pub(crate) const SESSION_MEMORY: Resource = Resource {
    labels: ["stream_bytes_per_user", "stream_bytes"],
    before: "the commands, terminals and streams of",
    holders: ["you", "all users"],
    after: "take all memory that they may have; end some, then try again",
};

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionKind {
    Exec,
    Attach,
    Logs,
    Events,
    /// A create that waits until its environment runs.
    Start,
    /// A file operation, with or without content.
    Files,
    /// The output of an execution, as bytes or as events; that of a command, as events.
    Output,
    /// Any other operation on executions.
    Execution,
    /// The stdin of an execution.
    Input,
    /// A connection to a port of a box.
    Port,
}

impl SessionKind {
    /// The most bytes that a replica holds for one session, if neither its client nor its box reads.
    /// It is reserved as long as the session is open.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            // Its messages are taken at once. Its stdin and its result are counted by their size.
            Self::Exec => 128 * KIB,
            // A message of the client, once as it arrives and once decoded, both windows, and what
            // waits for the socket.
            Self::Attach => (2 * MAX_MESSAGE + MAX_WRITE_BUFFER) as u64 + 2 * WINDOW,
            Self::Logs => WINDOW + MESSAGE_AS_JSON,
            // The events that JetStream has delivered, and one as JSON.
            Self::Events => 512 * KIB,
            // Content in one direction, and the chunk that is being split.
            Self::Files => 2 * WINDOW,
            Self::Output => WINDOW + MESSAGE_AS_JSON,
            Self::Execution => 128 * KIB,
            Self::Input => 2 * WINDOW,
            // Its environment, with the variables.
            Self::Start => 512 * KIB,
            // Both windows, and what the HTTP client and its connection hold.
            Self::Port => 2 * WINDOW + 256 * KIB,
        }
    }
}

/// The bytes of all bounds but that of sessions.
fn without_sessions(connections: u64, results: u64) -> u64 {
    [
        BASE,
        connections.saturating_mul(CONNECTION),
        results,
        MAX_BODY_BYTES,
        MAX_STORED_EVENTS * STORED_EVENT,
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}

/// The bytes that all sessions together may take.
pub(crate) fn session_bytes(config: &Config) -> u64 {
    let results = exec::memory::max_results(config);
    let others = without_sessions(config.max_connections as u64, results);
    if others.saturating_add(MIN_SESSIONS) > config.memory_limit {
        tracing::warn!(
            memory_limit = config.memory_limit,
            needed = others.saturating_add(MIN_SESSIONS),
            "the memory limit is below the bounds of this replica"
        );
    }
    config.memory_limit.saturating_sub(others).max(MIN_SESSIONS)
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::units::Bytes;
    use clap::CommandFactory as _;

    use super::*;

    fn default_of(id: &str) -> u64 {
        let command = Config::command();
        let argument = command
            .get_arguments()
            .find(|argument| argument.get_id().as_str() == id);
        let default = argument.unwrap().get_default_values().first();
        default.unwrap().to_str().unwrap().parse().unwrap()
    }

    /// The memory limit of a gateway in the chart.
    fn limit_of_the_chart() -> u64 {
        let values = include_str!("../../../deploy/helm/values.yaml");
        let gateway = values.split("\n  apiGateway:\n").nth(1).unwrap();
        let gateway = gateway.split("\n  auth:").next().unwrap();
        let limit = gateway.split("limits: { memory: ").nth(1).unwrap();
        let limit = limit.split(' ').next().unwrap();
        limit.parse::<Bytes>().unwrap().0
    }

    #[test]
    fn one_user_gets_enough_sessions_with_the_limit_of_the_chart() {
        let limit = default_of("memory_limit");
        assert_eq!(limit, limit_of_the_chart());
        let (connections, results) = (
            default_of("max_connections"),
            default_of("max_result_bytes"),
        );
        let sessions = limit - without_sessions(connections, results);
        // A page may load all its parts at once.
        let ports = SessionKind::Port.bytes() * default_of("max_sessions_per_user");
        assert!(ports <= sessions / 2, "{ports} of {sessions}");
        for kind in [
            SessionKind::Exec,
            SessionKind::Attach,
            SessionKind::Logs,
            SessionKind::Events,
            SessionKind::Start,
            SessionKind::Files,
            SessionKind::Output,
            SessionKind::Execution,
            SessionKind::Input,
            SessionKind::Port,
        ] {
            // One user gets at most half: as much as is left for the others.
            assert!(kind.bytes() * 40 <= sessions / 2, "{kind:?}: {sessions}");
        }
    }
}
