//! The boxd of a running box, and a command through it, as the exec-proxy runs one.

use std::fmt::Display;

use agentbox_box_protocol::ERROR_CODE_METADATA;
use agentbox_box_protocol::client::{BoxClient, connect};
use agentbox_box_protocol::proto::{
    RunInput, RunOutput, StartCommand, run_input::Input, run_output::Output,
};
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::ids::EnvironmentId;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use tonic::{Status, Streaming};

use super::{Subject, TIMEOUT, Violation};
use crate::{BoxConnector, BoxPhase, BoxSpec, Runtime};

/// The violation that an error is.
pub(super) fn failed(error: impl Display) -> Violation {
    Violation(error.to_string())
}

/// The size limit of a command's last output in a violation, in bytes.
const SHOWN_BYTES: usize = 1000;

/// A connection to the boxd of a running box.
///
/// # Errors
/// When the box does not run or its boxd does not answer.
pub(super) async fn boxd_of<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    spec: &BoxSpec,
) -> Result<BoxClient, Violation> {
    boxd_through(&s.first, spec).await
}

/// As [`boxd_of`], through one of the drivers.
///
/// # Errors
/// As [`boxd_of`].
pub(super) async fn boxd_through<D: Runtime + BoxConnector>(
    driver: &D,
    spec: &BoxSpec,
) -> Result<BoxClient, Violation> {
    let phase = driver.get(&spec.id).await?.map(|observed| observed.phase);
    let Some(BoxPhase::Running { address, .. }) = phase else {
        return Err(failed(format!("the box does not run: {phase:?}")));
    };
    let stream = driver.connect(&spec.id, address).await?;
    let token = BoxToken::parse(&spec.boxd_token).map_err(failed)?;
    connect(stream, &token).await.map_err(failed)
}

/// Awaits an answer of boxd for at most [`TIMEOUT`].
///
/// # Errors
/// The call's own, or after the deadline.
pub(super) async fn in_time<T>(
    call: impl Future<Output = Result<T, Violation>>,
) -> Result<T, Violation> {
    let answer = tokio::time::timeout(TIMEOUT, call).await;
    answer.unwrap_or_else(|_| Err(failed(format!("boxd did not answer within {TIMEOUT:?}"))))
}

/// The error code for callers in a status of boxd; its message when it has none.
pub(super) fn error_code(status: &Status) -> String {
    let code = status.metadata().get(ERROR_CODE_METADATA);
    let code = code.and_then(|code| code.to_str().ok());
    code.unwrap_or(status.message()).to_owned()
}

/// A command that boxd runs, and its streams.
#[derive(Debug)]
pub struct RunningCommand {
    inputs: UnboundedSender<RunInput>,
    outputs: Streaming<RunOutput>,
    /// The standard output that [`Self::read_until`] has not passed yet.
    stdout: Vec<u8>,
    _boxd: BoxClient,
}

impl RunningCommand {
    /// # Errors
    /// When the box does not run or its boxd does not answer.
    pub async fn start<D: Runtime + BoxConnector>(
        s: &Subject<D>,
        spec: &BoxSpec,
        command: StartCommand,
    ) -> Result<Self, Violation> {
        let mut boxd = boxd_of(s, spec).await?;
        let (inputs, received) = unbounded();
        let start = StartCommand {
            run_id: EnvironmentId::random().to_string(),
            ..command
        };
        let first = RunInput {
            input: Some(Input::Start(start)),
        };
        inputs.unbounded_send(first).map_err(failed)?;
        let outputs = boxd.run(received).await.map_err(failed)?.into_inner();
        Ok(Self {
            inputs,
            outputs,
            stdout: Vec::new(),
            _boxd: boxd,
        })
    }

    /// # Errors
    /// When the command has ended.
    pub fn send(&self, input: Input) -> Result<(), Violation> {
        let input = RunInput { input: Some(input) };
        self.inputs.unbounded_send(input).map_err(failed)
    }

    /// # Errors
    /// When the command has ended.
    pub fn type_text(&self, text: &str) -> Result<(), Violation> {
        self.send(Input::Stdin(text.as_bytes().to_vec().into()))
    }

    async fn next(&mut self) -> Result<Output, Violation> {
        let output = tokio::time::timeout(TIMEOUT, self.outputs.message()).await;
        let last_output = || {
            let start = self.stdout.len().saturating_sub(SHOWN_BYTES);
            String::from_utf8_lossy(&self.stdout[start..]).into_owned()
        };
        match output {
            Ok(Ok(Some(output))) => output
                .output
                .ok_or_else(|| failed("an output message is empty")),
            Ok(Ok(None)) => Err(failed(format!(
                "the stream ended without an exit, after {:?}",
                last_output()
            ))),
            Ok(Err(status)) => Err(failed(format!("{status}, after {:?}", last_output()))),
            Err(_) => Err(failed(format!(
                "no output within {TIMEOUT:?}, after {:?}",
                last_output()
            ))),
        }
    }

    /// Reads the output up to and including this text.
    ///
    /// # Errors
    /// When the command ends before it prints the text, or prints nothing for [`TIMEOUT`].
    pub async fn read_until(&mut self, text: &str) -> Result<(), Violation> {
        let text = text.as_bytes();
        loop {
            let at = self
                .stdout
                .windows(text.len())
                .position(|part| part == text);
            if let Some(at) = at {
                self.stdout.drain(..at + text.len());
                return Ok(());
            }
            match self.next().await? {
                Output::Stdout(bytes) => self.stdout.extend(bytes),
                Output::Exited(exited) => {
                    return Err(failed(format!(
                        "the command ended before its output: {exited:?}, {:?}",
                        self.stdout
                    )));
                }
                _ => {}
            }
        }
    }

    /// Waits for the end; returns the rest of the standard output and the exit code.
    ///
    /// # Errors
    /// When the command does not end, or prints nothing for [`TIMEOUT`].
    pub async fn end(mut self) -> Result<(String, i32), Violation> {
        loop {
            match self.next().await? {
                Output::Stdout(bytes) => self.stdout.extend(bytes),
                Output::Exited(exited) => {
                    let stdout = String::from_utf8_lossy(&self.stdout).into_owned();
                    return Ok((stdout, exited.exit_code));
                }
                _ => {}
            }
        }
    }
}

/// Runs a command; returns its standard output and exit code.
///
/// # Errors
/// As [`RunningCommand`]'s.
pub async fn exec<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    spec: &BoxSpec,
    command: &[&str],
) -> Result<(String, i32), Violation> {
    let command = StartCommand {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    };
    RunningCommand::start(s, spec, command).await?.end().await
}
