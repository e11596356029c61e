//! Real instances: started, used, killed, and looked for afterwards.

mod boxes;
mod host;
mod pod;
mod stores;
mod teardown;
