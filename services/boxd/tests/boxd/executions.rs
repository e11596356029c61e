//! Executions: commands that outlive the call that started them.

mod attach;
mod block;
mod bounds;
mod calls;
mod ending;
mod journal;
mod lifecycle;
mod output;
mod stdin;
