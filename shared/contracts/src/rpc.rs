//! A request and its reply on the bus, named once.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// One method of one service. The bus turns it into a subject, both ways.
pub trait Rpc {
    /// The service that answers: `auth`, `scheduler`.
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
