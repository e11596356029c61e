//! The executions of ended environments: their outcomes, and the newest part of their output.
//!
//! * [`save()`]: stores them when a box is about to be stopped, and again when it has ended.
//! * `objects`: the objects that hold them.
//! * [`answer`]: answers operations on them.
//!
//! * I1. The archive is bounded: at most 1,000 executions, 1 MiB of records, 1 MiB of each stream and
//!   [`Limits::archived_output`] of one environment. The newest executions are kept.
//! * I2. An execution without an outcome is `lost` once the archive of the main command's output
//!   exists, because the environment has ended then.
//! * I3. Output is sent chunk by chunk: the memory that a reader needs does not depend on its size.
//!
//! [`Limits::archived_output`]: crate::config::Limits::archived_output

mod collect;
mod cursor;
mod objects;
mod record;
mod save;
mod saved;

use std::time::Duration;

use agentbox_bus::{Incoming, Session};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    Execution, ExecutionList, ExecutionOutput, ExecutionRequest, GetExecution, ReadOutput,
};
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use collect::list;
pub use save::save;

use crate::archive::ArchiveError;
use crate::archive::executions::cursor::OutputCursor;
use crate::archive::executions::objects::StoredExecutions;
use crate::archive::executions::record::after_end;
use crate::metrics;
use crate::outcome::{Outcome, refuse, stopping_error};
use crate::target::Target;

/// How long an operation on an environment that is ending waits for its archive.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The approximate size of one message with records, in bytes.
const LIST_BYTES: usize = 128 * 1024;

type ExecutionSession = Session<FromBox, ToBox>;

/// An operation that an environment answers after its end too.
enum Query {
    List,
    Get(GetExecution),
    Output(ReadOutput),
}

/// Why an answer stopped before its last message.
enum Stop {
    PeerGone,
    Stopping,
    Failed(Error),
}

/// Serves `request` on the session that `incoming` opens, for an environment that does not run. Refuses
/// operations that need a running box with `NotRunning`.
pub async fn answer(
    incoming: Incoming<BoxSession>,
    target: Target<'_>,
    request: ExecutionRequest,
    stopping: CancellationToken,
) -> Outcome {
    let query = match query(request, target.status) {
        Ok(query) => query,
        Err(error) => return refuse(incoming, error).await,
    };
    let mut session: ExecutionSession = incoming.accept();
    let answered = answer_query(&mut session, &target, query, &stopping).await;
    match answered {
        Ok(last) => match session.finish(message(last)).await {
            Ok(()) => Outcome::Finished,
            Err(_) => Outcome::PeerGone,
        },
        Err(Stop::PeerGone) => Outcome::PeerGone,
        Err(Stop::Stopping) => fail(session, stopping_error()).await,
        Err(Stop::Failed(error)) => fail(session, error).await,
    }
}

async fn fail(session: ExecutionSession, error: Error) -> Outcome {
    let code = error.code;
    session.fail(error).await;
    Outcome::Failed(code)
}

fn query(request: ExecutionRequest, status: Status) -> Result<Query, Error> {
    match request.operation {
        Some(Operation::List(())) => Ok(Query::List),
        Some(Operation::Get(get)) => Ok(Query::Get(get)),
        Some(Operation::Output(read)) => Ok(Query::Output(read)),
        Some(
            Operation::Start(_)
            | Operation::Stdin(_)
            | Operation::Control(_)
            | Operation::Delete(_)
            | Operation::Attach(_),
        ) => Err(Error::new(
            ErrorCode::NotRunning,
            format!("the environment is not running: it is {}", status.as_str()),
        )),
        None => Err(Error::new(
            ErrorCode::BadRequest,
            "the operation on executions is unknown",
        )),
    }
}

/// Sends the answer, and returns its last message.
async fn answer_query(
    session: &mut ExecutionSession,
    target: &Target<'_>,
    query: Query,
    stopping: &CancellationToken,
) -> Result<Output, Stop> {
    match query {
        Query::List => {
            let found = find(session, target, Wait::ForAny, stopping).await?;
            send_list(session, found.records).await
        }
        Query::Get(get) => {
            let wait = match get.wait_ms {
                0 => Wait::ForAny,
                wait_ms => Wait::ForEnd(Duration::from_millis(wait_ms).min(ARCHIVE_TIMEOUT)),
            };
            let found = find(session, target, wait, stopping).await?;
            Ok(Output::Execution(found.take(&get.id)?))
        }
        Query::Output(read) => {
            let wait = match read.follow {
                true => Wait::ForEnd(ARCHIVE_TIMEOUT),
                false => Wait::ForAny,
            };
            let found = find(session, target, wait, stopping).await?;
            if read.follow && !found.is_final {
                return Err(Stop::Failed(Error::new(
                    ErrorCode::BoxLost,
                    "the connection to the environment's box was lost; whether it has ended is not known yet",
                )));
            }
            let execution = found.take(&read.id)?;
            send_output(session, target, &read, &execution).await?;
            Ok(Output::Execution(execution))
        }
    }
}

/// What an operation waits for while its environment is ending.
#[derive(Clone, Copy)]
enum Wait {
    /// The executions that were stored before the box was stopped, or after its end.
    ForAny,
    /// Those after its end, for so long.
    ForEnd(Duration),
}

/// The archived executions of an environment.
struct Found {
    /// Newest first.
    records: Vec<Execution>,
    /// They do not change any more.
    is_final: bool,
}

impl Found {
    fn take(self, id: &str) -> Result<Execution, Stop> {
        let found = self.records.into_iter().find(|record| record.id == id);
        found.ok_or_else(|| Stop::Failed(Error::new(ErrorCode::NotFound, "execution not found")))
    }
}

/// Reads the archive, and waits for it while the environment is ending.
async fn find(
    session: &ExecutionSession,
    target: &Target<'_>,
    wait: Wait,
    stopping: &CancellationToken,
) -> Result<Found, Stop> {
    let timeout = match wait {
        Wait::ForAny => ARCHIVE_TIMEOUT,
        Wait::ForEnd(timeout) => timeout,
    };
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    loop {
        let (stored, is_final) = read(target).await?;
        let is_enough = is_final
            || target.status == Status::Pending
            || (stored.is_some() && matches!(wait, Wait::ForAny));
        if is_enough || Instant::now() >= deadline {
            let StoredExecutions { records, ending } = stored.unwrap_or_default();
            let records = match is_final {
                true => records
                    .into_iter()
                    .map(|record| after_end(record, &ending))
                    .collect(),
                false => records,
            };
            return Ok(Found { records, is_final });
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            () = session.closed() => return Err(Stop::PeerGone),
            () = stopping.cancelled() => return Err(Stop::Stopping),
        }
    }
}

/// The stored executions, and whether they are final.
async fn read(target: &Target<'_>) -> Result<(Option<StoredExecutions>, bool), Stop> {
    let (archive, environment) = (target.archive, &target.environment);
    // Before the executions: they are stored first.
    let is_final =
        target.status.is_ended() || archive.exists(environment).await.map_err(not_readable)?;
    let stored = archive
        .executions(environment)
        .await
        .map_err(not_readable)?;
    Ok((stored, is_final))
}

fn not_readable(error: ArchiveError) -> Stop {
    tracing::warn!(error = %ErrorChain(&error), "reading archived executions failed");
    Stop::Failed(Error::new(
        ErrorCode::Unavailable,
        "the archive of executions cannot be read",
    ))
}

/// Sends all records but those of the last message, which it returns.
async fn send_list(
    session: &mut ExecutionSession,
    records: Vec<Execution>,
) -> Result<Output, Stop> {
    let mut batch = ExecutionList::default();
    let mut bytes = 0;
    for record in records {
        let record_bytes = record.encoded_len();
        if bytes > 0 && bytes + record_bytes > LIST_BYTES {
            bytes = 0;
            send(session, Output::Executions(std::mem::take(&mut batch))).await?;
        }
        bytes += record_bytes;
        batch.executions.push(record);
    }
    batch.is_last = true;
    Ok(Output::Executions(batch))
}

/// Sends the kept output of one execution, and a gap for each part that is not kept.
async fn send_output(
    session: &mut ExecutionSession,
    target: &Target<'_>,
    read: &ReadOutput,
    execution: &Execution,
) -> Result<(), Stop> {
    let mut cursor = OutputCursor::new(read, execution);
    let stored = target.archive.execution_output(&target.environment).await;
    if let Some(mut messages) = stored.map_err(not_readable)? {
        let mut is_selected = false;
        while let Some(message) = messages
            .next::<ExecutionOutput>()
            .await
            .map_err(not_readable)?
        {
            match message.output {
                // Its section has ended.
                Some(Output::Execution(_)) if is_selected => break,
                Some(Output::Execution(head)) => is_selected = head.id == read.id,
                Some(Output::Output(piece)) if is_selected => {
                    let (gap, piece) = cursor.select(piece);
                    if let Some(gap) = gap {
                        send(session, Output::Gap(gap)).await?;
                    }
                    if let Some(piece) = piece {
                        metrics::bytes_out("executions", piece.data.len());
                        send(session, Output::Output(piece)).await?;
                    }
                }
                _ => {}
            }
        }
    }
    for gap in cursor.rest().into_iter().flatten() {
        send(session, Output::Gap(gap)).await?;
    }
    Ok(())
}

async fn send(session: &mut ExecutionSession, output: Output) -> Result<(), Stop> {
    session
        .send(message(output))
        .await
        .map_err(|_| Stop::PeerGone)
}

fn message(output: Output) -> FromBox {
    FromBox::Execution(ExecutionOutput {
        output: Some(output),
    })
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::executions::{ControlExecution, DeleteExecution, ExecutionStart};

    use super::*;

    #[test]
    fn only_reading_operations_are_answered_after_the_end() {
        let asked = |operation| {
            let operation = Some(operation);
            query(ExecutionRequest { operation }, Status::Terminated)
        };
        for operation in [
            Operation::List(()),
            Operation::Get(GetExecution::default()),
            Operation::Output(ReadOutput::default()),
        ] {
            assert!(asked(operation).is_ok());
        }
        for operation in [
            Operation::Start(ExecutionStart::default()),
            Operation::Control(ControlExecution::default()),
            Operation::Delete(DeleteExecution::default()),
        ] {
            let error = asked(operation).err().unwrap();
            assert_eq!(error.code, ErrorCode::NotRunning);
            assert!(error.message.ends_with("it is terminated"), "{error:?}");
        }
        let unknown = ExecutionRequest { operation: None };
        let error = query(unknown, Status::Failed).err().unwrap();
        assert_eq!(error.code, ErrorCode::BadRequest);
    }
}
