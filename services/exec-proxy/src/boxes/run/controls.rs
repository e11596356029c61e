//! What is said to a command beside its stdin, behind which it would have to wait.

use agentbox_box_protocol::proto::{ControlRequest, control_request};
use agentbox_contracts::ids::ExecId;
use tonic::Code;
use tracing::Instrument as _;

use crate::boxes::BoxError;
use crate::boxes::pool::Connection;
use crate::boxes::trace::{call_span, traced};

/// Resizes and signals, usable while the run is read.
pub struct Controls {
    pub(super) id: ExecId,
    pub(super) connection: Connection,
}

impl Controls {
    /// # Errors
    /// [`BoxError::Refused`] for what boxd does not know, such as the signal `SIGFOO`.
    pub async fn send(&self, what: control_request::Control) -> Result<(), BoxError> {
        let mut client = self.connection.client.clone();
        let span = call_span("Control");
        let request = traced(&span, control(&self.id, what));
        match client.control(request).instrument(span).await {
            Ok(_) => Ok(()),
            // The command ended meanwhile.
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(BoxError::from_status(status)),
        }
    }
}

pub(super) fn control(id: &ExecId, control: control_request::Control) -> ControlRequest {
    ControlRequest {
        run_id: id.to_string(),
        control: Some(control),
    }
}
