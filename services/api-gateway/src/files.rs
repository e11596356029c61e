//! The files of an environment.

pub(crate) mod path;
