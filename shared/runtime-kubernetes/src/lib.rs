//! Boxes on a Kubernetes cluster.
//!
//! A box is a namespace, `agentbox-<id>`, with its network policy, quota, token, Service
//! and one Pod, `main`: the user's image with boxd as its entry, which an init container has
//! copied from an image of ours, or which is on that image as a volume. Beside that, an
//! ExternalName Service `<id>` in the system namespace, so that the box's endpoint resolves.
//!
//! Names follow from the id alone, so nothing is ever made twice. The namespace is the
//! record of the box: what Kubernetes cannot remember is in its annotations ([`facts`]),
//! and the generation in it is the fence.
//!
//! Owns everything labelled with its deployment, and touches nothing else (I5 of
//! [`agentbox_runtime::Runtime`]). Any number of drivers may serve one deployment: the API
//! server orders them.
//!
//! Never carries a byte of a box's input or output but its last output; never uses the
//! exec API.
//!
//! Making a box: [`ensure`], of [`objects`], [`pod`] and [`policy`]. Ending it: [`ending`].
//! Looking: [`observe`], [`phase`] (which decides), [`watch`]; putting back: [`repair`].
//! Where it differs from the driver for one machine: `docs/drivers.md`.

mod capacity;
mod cluster;
mod config;
mod driver;
mod ending;
mod ensure;
mod facts;
mod image;
mod labels;
mod objects;
mod observe;
mod output;
mod phase;
mod pod;
mod policy;
mod preflight;
mod reach;
mod refusal;
mod repair;
mod usage;
mod watch;

pub use config::{Config, ConfigError, Delivery, Reach};
pub use driver::{ConnectError, Driver};
