//! What surrounds every handler: errors, bodies, traces, admission.

pub(crate) mod admit;
pub(crate) mod error;
pub(crate) mod input;
pub(crate) mod trace;

pub(crate) use admit::{Caller, PeerAddress};
pub(crate) use error::Answer;
pub(crate) use input::{Json, Path, Query};
