//! Executions: commands that outlive the request that started them, and every connection.
//!
//! The operations of the `Executions` call ([`operations`]) on the executions of the box
//! ([`registry`]). An [`execution`] is a process of [`crate::process`] with a record and with
//! [`output`] for any number of [`reader`]s; [`attach`] adds inputs. Invariants:
//! * I1. An id starts one command. A start with a used id is answered with its execution.
//! * I2. An exit code is the process's own, a signal is the one that ended it.
//! * I3. What is kept is bounded: records by number, output for each stream and in total
//!   ([`kept`]). The memory of boxd is charged to the box.
//! * I4. An execution that the box's end kills has no outcome. Its record is in the journal
//!   ([`agentbox_box_protocol::executions`]), which outlives boxd, and on boxd's stdout. The newest
//!   output is in a file beside the journal when the box has ended by itself or by SIGTERM
//!   ([`save`]).

mod attach;
mod clients;
mod execution;
mod kept;
mod operations;
mod output;
mod reader;
mod registry;
mod save;
mod spec;
mod start;

use std::path::Path;
use std::sync::Arc;

use agentbox_box_protocol::executions::Journal;

use crate::logs::Log;
use crate::process::Starter;
use crate::settings::Settings;
use crate::stderr;
use kept::KeptOutput;
use registry::Registry;

pub struct Executions {
    starter: Arc<Starter>,
    registry: Registry,
    kept: Arc<KeptOutput>,
}

impl Executions {
    #[must_use]
    pub fn new(starter: Arc<Starter>, log: Arc<Log>, settings: &Settings) -> Self {
        let journal = settings.output_dir.as_deref().and_then(journal);
        Self {
            starter,
            registry: Registry::new(settings.max_executions, journal, log),
            kept: Arc::new(KeptOutput::new(settings.executions_output_bytes)),
        }
    }

    /// Refuses new executions from now on.
    pub fn close(&self) {
        self.registry.close();
    }
}

/// The journal; `None` when it cannot be created, for example in a full directory.
fn journal(directory: &Path) -> Option<Journal> {
    Journal::create(directory)
        .inspect_err(|error| {
            stderr::line(&format!(
                "boxd: creating the journal of executions: {error}"
            ));
        })
        .ok()
}
