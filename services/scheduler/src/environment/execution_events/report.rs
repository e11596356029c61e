//! Decides which events follow from the executions that a box lists. Pure.

use std::collections::{BTreeMap, BTreeSet};

use agentbox_contracts::environment::{EventExecution, EventExecutionStatus, EventKind};
use agentbox_contracts::ids::ExecId;

/// The most events of one report. Others follow in the next ones, as long as the box lists the
/// executions.
pub const MAX_EVENTS: usize = 10;
/// The most reported executions of one environment that are kept when the box does not list them any
/// more. One that is listed again would be reported again.
pub const MAX_KNOWN: usize = 2_000;

/// The executions whose start is reported, and whether their end is.
pub type Known = BTreeMap<ExecId, bool>;

/// What one look at a box reports.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In their order.
    pub events: Vec<(EventKind, EventExecution)>,
    /// The executions with events, and whether they have ended.
    pub changed: Known,
    /// Known executions that need not be kept.
    pub forgotten: BTreeSet<ExecId>,
}

/// The report about `listed`, the executions of a box, newest first. An execution that could not be
/// started has only the event of its end.
#[must_use]
pub fn report(known: &Known, listed: &[EventExecution]) -> Report {
    let mut report = Report::default();
    for execution in listed.iter().rev() {
        let id = &execution.id;
        // A box that lists one twice has not made the second.
        if report.changed.contains_key(id) || known.get(id) == Some(&true) {
            continue;
        }
        let has_ended = execution.status.is_ended();
        let mut events = Vec::with_capacity(2);
        if !known.contains_key(id) && execution.status != EventExecutionStatus::FailedToStart {
            let started = EventExecution {
                id: id.clone(),
                status: EventExecutionStatus::Running,
                exit_code: None,
            };
            events.push((EventKind::ExecutionStarted, started));
        }
        if has_ended {
            events.push((EventKind::ExecutionEnded, execution.clone()));
        }
        if report.events.len() + events.len() > MAX_EVENTS {
            break;
        }
        if !events.is_empty() {
            report.events.append(&mut events);
            report.changed.insert(id.clone(), has_ended);
        }
    }
    if known.len() > MAX_KNOWN {
        let listed: BTreeSet<&ExecId> = listed.iter().map(|execution| &execution.id).collect();
        let unlisted = known.keys().filter(|id| !listed.contains(id));
        report.forgotten = unlisted.cloned().collect();
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn execution(number: usize, status: EventExecutionStatus) -> EventExecution {
        EventExecution {
            id: format!("exec-{number:016}").parse().unwrap(),
            status,
            exit_code: (status == EventExecutionStatus::Exited).then_some(0),
        }
    }

    fn kinds(report: &Report) -> Vec<(EventKind, &str)> {
        let events = report.events.iter();
        events
            .map(|(kind, execution)| (*kind, execution.status.as_str()))
            .collect()
    }

    #[test]
    fn start_and_end_are_reported_once() {
        let running = execution(1, EventExecutionStatus::Running);
        let first = report(&Known::new(), std::slice::from_ref(&running));
        assert_eq!(kinds(&first), [(EventKind::ExecutionStarted, "running")]);
        let known = first.changed;
        assert_eq!(report(&known, &[running]), Report::default());
        let exited = execution(1, EventExecutionStatus::Exited);
        let second = report(&known, std::slice::from_ref(&exited));
        assert_eq!(second.events, [(EventKind::ExecutionEnded, exited.clone())]);
        assert_eq!(report(&second.changed, &[exited]), Report::default());
    }

    #[test]
    fn execution_that_is_first_seen_after_its_end_has_both_events() {
        let killed = execution(1, EventExecutionStatus::TimedOut);
        let expected = [
            (EventKind::ExecutionStarted, "running"),
            (EventKind::ExecutionEnded, "timed_out"),
        ];
        assert_eq!(kinds(&report(&Known::new(), &[killed])), expected);
        let failed = execution(2, EventExecutionStatus::FailedToStart);
        let expected = [(EventKind::ExecutionEnded, "failed_to_start")];
        assert_eq!(kinds(&report(&Known::new(), &[failed])), expected);
    }

    #[test]
    fn events_beyond_the_bound_follow_in_the_next_reports_oldest_first() {
        let listed: Vec<EventExecution> = (0..25)
            .rev()
            .map(|number| execution(number, EventExecutionStatus::Exited))
            .collect();
        let mut known = Known::new();
        let mut reported = Vec::new();
        for _ in 0..5 {
            let mut next = report(&known, &listed);
            assert_eq!(next.events.len(), MAX_EVENTS);
            known.append(&mut next.changed);
            reported.extend(next.events.into_iter().map(|(_, execution)| execution.id));
        }
        assert_eq!(report(&known, &listed), Report::default());
        assert!(reported.is_sorted());
    }

    #[test]
    fn execution_that_is_listed_twice_is_reported_once() {
        let twice = [
            execution(1, EventExecutionStatus::Exited),
            execution(1, EventExecutionStatus::Running),
        ];
        let first = report(&Known::new(), &twice);
        assert_eq!(kinds(&first), [(EventKind::ExecutionStarted, "running")]);
    }

    #[test]
    fn executions_that_are_not_listed_are_forgotten_beyond_the_bound_only() {
        let id = |number| execution(number, EventExecutionStatus::Exited).id;
        let mut known: Known = (0..MAX_KNOWN).map(|number| (id(number), true)).collect();
        let listed = [execution(7, EventExecutionStatus::Exited)];
        assert_eq!(report(&known, &listed), Report::default());
        known.insert(id(MAX_KNOWN), true);
        let forgotten = report(&known, &listed).forgotten;
        assert_eq!(forgotten.len(), MAX_KNOWN);
        assert!(!forgotten.contains(&id(7)));
    }
}
