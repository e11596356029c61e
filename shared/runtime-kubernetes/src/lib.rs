//! The driver for boxes on a Kubernetes cluster.
//!
//! A box is a namespace, `agentbox-<id>`, with its network policy, quota, token, Service and one
//! Pod, `main`. The Pod's container has the user's image and boxd as its entry. An init
//! container copies boxd from an image of the deployment, or that image is a volume. An
//! ExternalName Service `<id>` in the system namespace makes the box's endpoint resolve.
//!
//! Names follow from the id, so that nothing is created twice. The namespace is the record of the
//! box: its annotations keep the state that Kubernetes does not ([`box_state`]), and the generation,
//! which fences older callers.
//!
//! Owns every object with its deployment's label, and changes nothing else (I5 of
//! [`agentbox_runtime::Runtime`]). Any number of drivers may serve one deployment: the API server
//! orders them.
//!
//! Never carries a box's input or output, except its last output; never uses the exec API.
//!
//! The modules from the bottom:
//!
//! * [`context`] has the configuration, the connections and the caches.
//! * [`box_state`], [`phase`], [`blocked`] and [`rejection`] decide.
//! * [`objects`], [`pod`], [`pull_secret`] and [`policy`] render.
//! * [`observe`], [`ensure`], [`claim`], [`policy_change`], [`ending`], [`watch`] and [`repair`] act.
//! * [`image_digest`] tells the content that boxes of an image have.
//! * [`stages`] measures.
//! * [`driver`] implements the traits.
//!
//! `docs/drivers.md` lists the differences from the driver for one machine.

mod blocked;
mod box_state;
mod capacity;
mod claim;
mod cluster;
mod config;
mod context;
mod driver;
mod ending;
mod ensure;
mod image_digest;
mod labels;
#[cfg(test)]
mod manifest_tests;
mod node_watch;
mod objects;
mod observe;
mod output;
mod phase;
mod pod;
mod pod_watch;
mod policy;
mod policy_change;
mod preflight;
mod pull_secret;
mod reach;
mod rejection;
mod repair;
mod stages;
mod timestamps;
mod usage;
mod usage_cache;
mod watch;

pub use config::{AllowedToleration, Config, ConfigError, Delivery, PresentImages, Reach};
pub use driver::{ConnectError, Driver};
