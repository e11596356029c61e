//! Remote procedure calls: each method's service, name, request and reply in one place.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A request or a reply without content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// One method of one service, on the subject `abx.v1.rpc.<service>.<method>`.
pub trait Rpc {
    /// The service that serves it: `auth`, `scheduler`.
    const SERVICE: &'static str;
    const METHOD: &'static str;
    type Request: Serialize + DeserializeOwned + Send + Sync + 'static;
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
}

macro_rules! rpc {
    ($(#[$doc:meta])* $name:ident: $service:literal, $method:literal, $request:ty => $reply:ty) => {
        $(#[$doc])*
        pub struct $name;
        impl $crate::rpc::Rpc for $name {
            const SERVICE: &'static str = $service;
            const METHOD: &'static str = $method;
            type Request = $request;
            type Reply = $reply;
        }
    };
}
pub(crate) use rpc;
