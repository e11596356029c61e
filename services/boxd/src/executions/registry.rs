//! The executions of the box, by id and in the order of their creation, and their journal.
//!
//! * I1. An id is added once, before its command is started.
//! * I2. At most `max_kept` executions are kept; beyond it the oldest ones that have ended are
//!   forgotten.
//! * I3. A journal that cannot be written ends no execution.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use agentbox_box_protocol::executions::Journal;
use parking_lot::Mutex;

use super::execution::Execution;
use crate::logs::Log;
use crate::stderr;

pub struct Registry {
    max_kept: usize,
    executions: Mutex<Entries>,
    journal: Mutex<Writer>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Entries {
    by_number: BTreeMap<u64, Arc<Execution>>,
    numbers: HashMap<String, u64>,
    next: u64,
    is_closed: bool,
}

struct Writer {
    /// `None`: the box has no output directory, or the journal cannot be created.
    journal: Option<Journal>,
    /// A failure was logged.
    has_failed: bool,
}

/// The result of [`Registry::add`].
pub enum Add {
    Added,
    /// The id was used before.
    Exists(Arc<Execution>),
    /// The box is shutting down.
    Closed,
}

impl Registry {
    #[must_use]
    pub fn new(max_kept: usize, journal: Option<Journal>, log: Arc<Log>) -> Self {
        Self {
            max_kept,
            executions: Mutex::default(),
            journal: Mutex::new(Writer {
                journal,
                has_failed: false,
            }),
            log,
        }
    }

    #[must_use]
    pub fn find(&self, id: &str) -> Option<Arc<Execution>> {
        let executions = self.executions.lock();
        let number = executions.numbers.get(id)?;
        executions.by_number.get(number).cloned()
    }

    /// Adds an execution that is to be started.
    pub fn add(&self, execution: &Arc<Execution>) -> Add {
        let mut executions = self.executions.lock();
        if executions.is_closed {
            return Add::Closed;
        }
        let number = executions.numbers.get(execution.id());
        if let Some(existing) = number.and_then(|number| executions.by_number.get(number)) {
            return Add::Exists(Arc::clone(existing));
        }
        let number = executions.next;
        executions.next += 1;
        executions.numbers.insert(execution.id().to_owned(), number);
        executions.by_number.insert(number, Arc::clone(execution));
        let forgotten = executions.forget_surplus(self.max_kept);
        drop(executions);
        for execution in forgotten {
            self.record_forgotten(&execution);
        }
        Add::Added
    }

    /// Forgets an execution that has ended.
    pub fn forget(&self, execution: &Execution) {
        let mut executions = self.executions.lock();
        if let Some(number) = executions.numbers.remove(execution.id()) {
            executions.by_number.remove(&number);
        }
        drop(executions);
        self.record_forgotten(execution);
    }

    /// All executions, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Execution>> {
        let executions = self.executions.lock();
        executions.by_number.values().rev().cloned().collect()
    }

    /// Writes the present record of the execution to the journal, and to boxd's stdout.
    pub fn record(&self, execution: &Execution) {
        let record = execution.record();
        self.log.write_execution(&record);
        self.write(|journal| journal.record(&record));
    }

    fn record_forgotten(&self, execution: &Execution) {
        self.log.forget_execution(execution.id());
        self.write(|journal| journal.forget(execution.id()));
    }

    /// Refuses new executions from now on.
    pub fn close(&self) {
        self.executions.lock().is_closed = true;
    }

    fn write(&self, write: impl FnOnce(&mut Journal) -> std::io::Result<()>) {
        let mut writer = self.journal.lock();
        let Some(journal) = &mut writer.journal else {
            return;
        };
        if let Err(error) = write(journal)
            && !writer.has_failed
        {
            writer.has_failed = true;
            stderr::line(&format!("boxd: writing the journal of executions: {error}"));
        }
    }
}

impl Entries {
    fn forget_surplus(&mut self, max_kept: usize) -> Vec<Arc<Execution>> {
        let surplus = self.by_number.len().saturating_sub(max_kept);
        if surplus == 0 {
            return Vec::new();
        }
        let ended = self.by_number.iter();
        let ended = ended.filter(|(_, execution)| !execution.is_active());
        let oldest: Vec<u64> = ended.map(|(number, _)| *number).take(surplus).collect();
        let forgotten: Vec<_> = oldest
            .iter()
            .filter_map(|number| self.by_number.remove(number))
            .collect();
        for execution in &forgotten {
            self.numbers.remove(execution.id());
        }
        forgotten
    }
}
