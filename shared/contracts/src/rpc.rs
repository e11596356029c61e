//! Remote procedure calls: each method's service, name, request and reply in one place.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::exec::SessionMessage;

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

/// One method that each process of a service serves for itself, on the subject
/// `abx.v1.rpc.<service>.<instance>.<method>`.
pub trait InstanceRpc {
    const SERVICE: &'static str;
    const METHOD: &'static str;
    type Request: Serialize + DeserializeOwned + Send + Sync + 'static;
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// One method that the exec-proxies of each cluster serve, on the subject
/// `abx.v1.rpc.exec.<cluster>.<method>`.
pub trait ClusterRpc {
    const METHOD: &'static str;
    type Request: Serialize + DeserializeOwned + Send + Sync + 'static;
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// A kind of session that the exec-proxies of each cluster serve. The opener sends `Open` on
/// the subject `abx.v1.rpc.exec.<cluster>.<method>`; then messages flow both ways. What is too long
/// for one message continues in the first frames of the session.
pub trait SessionRpc {
    const METHOD: &'static str;
    type Open: SessionMessage + Clone + Sync + 'static;
    /// Messages from the opener.
    type ToServer: SessionMessage;
    /// Messages to the opener.
    type ToOpener: SessionMessage;
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
