//! The environments in use: those with an open session, and those whose session has ended since the
//! last report.
//!
//! * I1. An environment stays until it was reported after the end of its last session. There is at most
//!   one entry for each environment.

use std::collections::HashMap;
use std::sync::Arc;

use agentbox_contracts::ids::EnvironmentId;
use parking_lot::Mutex;

/// The environments in use. Clones share them.
#[derive(Clone, Default)]
pub struct InUse(Arc<Mutex<HashMap<EnvironmentId, usize>>>);

/// One open session; dropped at its end.
pub struct OpenUse {
    in_use: InUse,
    id: EnvironmentId,
}

impl InUse {
    pub fn begin(&self, id: &EnvironmentId) -> OpenUse {
        *self.0.lock().entry(id.clone()).or_default() += 1;
        OpenUse {
            in_use: self.clone(),
            id: id.clone(),
        }
    }

    #[must_use]
    pub fn contains(&self, id: &EnvironmentId) -> bool {
        self.0.lock().contains_key(id)
    }

    /// The environments to report. Those without an open session are removed.
    #[must_use]
    pub fn take(&self) -> Vec<EnvironmentId> {
        let mut sessions = self.0.lock();
        let ids = sessions.keys().cloned().collect();
        sessions.retain(|_, open| *open > 0);
        ids
    }

    /// Adds environments again whose report failed.
    pub fn restore(&self, ids: &[EnvironmentId]) {
        let mut sessions = self.0.lock();
        for id in ids {
            sessions.entry(id.clone()).or_default();
        }
    }
}

impl Drop for OpenUse {
    fn drop(&mut self) {
        if let Some(open) = self.in_use.0.lock().get_mut(&self.id) {
            *open = open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_reported_until_after_the_end_of_its_last_session() {
        let in_use = InUse::default();
        let id = EnvironmentId::random();
        assert!(in_use.take().is_empty() && !in_use.contains(&id));
        let (first, second) = (in_use.begin(&id), in_use.begin(&id));
        assert_eq!(in_use.take(), std::slice::from_ref(&id));
        drop(first);
        assert_eq!(in_use.take(), std::slice::from_ref(&id));
        drop(second);
        assert!(in_use.contains(&id));
        assert_eq!(in_use.take(), std::slice::from_ref(&id));
        assert!(in_use.take().is_empty());
        // The report failed.
        in_use.restore(std::slice::from_ref(&id));
        assert_eq!(in_use.take(), [id]);
        assert!(in_use.take().is_empty());
    }

    #[test]
    fn short_session_between_two_reports_is_reported() {
        let in_use = InUse::default();
        let id = EnvironmentId::random();
        drop(in_use.begin(&id));
        assert_eq!(in_use.take(), [id]);
    }
}
