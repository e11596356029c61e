//! Auth as the gateway sees it: over the bus, on real Postgres and NATS, in processes of
//! its own. Needs `cargo build -p agentbox-local` once.

mod api_keys;
mod deletions;
mod housekeeping;
mod logins;
mod replicas;
mod support;
mod tickets;
mod users;
