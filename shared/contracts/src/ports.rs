//! TCP ports of a box: the messages between api-gateway, exec-proxy and boxd.

/// A connection to a TCP port of the box: 127.0.0.1, then `::1`, then the box's address. The first
/// answer is `connected`; then bytes flow both ways, and each side ends its own.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ConnectPort {
    /// 1 to 65535.
    #[prost(uint32, tag = "1")]
    pub port: u32,
}

/// What the caller sends.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PortInput {
    #[prost(oneof = "port_input::Input", tags = "1, 2, 3")]
    pub input: Option<port_input::Input>,
}

pub mod port_input {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Input {
        /// The first input, once.
        #[prost(message, tag = "1")]
        Connect(super::ConnectPort),
        /// At most [`crate::exec::MAX_CHUNK`] bytes.
        #[prost(bytes = "bytes", tag = "2")]
        Data(bytes::Bytes),
        /// The caller sends no more; the box may.
        #[prost(message, tag = "3")]
        End(()),
    }
}

/// What the box answers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PortOutput {
    #[prost(oneof = "port_output::Output", tags = "1, 2, 3")]
    pub output: Option<port_output::Output>,
}

pub mod port_output {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Output {
        #[prost(message, tag = "1")]
        Connected(()),
        /// At most [`crate::exec::MAX_CHUNK`] bytes.
        #[prost(bytes = "bytes", tag = "2")]
        Data(bytes::Bytes),
        /// The process in the box sends no more; the caller may. The last output of the call. The
        /// exec-proxy repeats it as the last message of the session, when both have ended.
        #[prost(message, tag = "3")]
        End(()),
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PortList {
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<ListeningPort>,
}

/// A listening TCP socket.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListeningPort {
    #[prost(uint32, tag = "1")]
    pub port: u32,
    /// `0.0.0.0`, `::1`.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Absent: boxd may not know it.
    #[prost(uint32, optional, tag = "3")]
    pub pid: Option<u32>,
    /// The name of the process. Empty: unknown.
    #[prost(string, tag = "4")]
    pub process: String,
}
