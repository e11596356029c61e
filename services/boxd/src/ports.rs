//! The TCP ports of the box: connections to them, and the list of those that listen.
//!
//! * I1. A connection ends with its call, and with the box.
//! * I2. The number of connections is limited. A connection holds at most one chunk of bytes in each
//!   direction; a side that does not read stops the other.

mod connection;
mod listening;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::ERROR_CODE_METADATA;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ports::{PortInput, PortList};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataValue;
use tonic::{Status, Streaming};

use connection::Connection;

/// The limit of open connections.
const MAX_CONNECTIONS: usize = 256;
/// The deadline of a connection attempt, for all addresses together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The limit of the box's own addresses that are tried.
const MAX_OWN_ADDRESSES: usize = 4;

pub struct Ports {
    /// Where boxd listens.
    listen: SocketAddr,
    places: Arc<Semaphore>,
    /// One list is made at a time.
    listing: Mutex<()>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Ports {
    /// `closing` ends the connections.
    pub fn new(listen: SocketAddr, tasks: TaskTracker, closing: CancellationToken) -> Self {
        Self {
            listen,
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            listing: Mutex::new(()),
            tasks,
            closing,
        }
    }

    /// Connects to `port`, and starts to write `inputs` to it.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a number that is no port, RESOURCE_EXHAUSTED above the limit, and
    /// UNAVAILABLE with [`ErrorCode::NothingListening`].
    pub async fn connect(
        &self,
        port: u32,
        inputs: Streaming<PortInput>,
    ) -> Result<Connection, Status> {
        let number = u16::try_from(port).ok().filter(|number| *number > 0);
        let port = number.ok_or_else(|| {
            Status::invalid_argument(format!("port: must be 1 to 65535, is `{port}`"))
        })?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{MAX_CONNECTIONS} connections to ports of the environment are open, the most \
                     that may be; close some, or try again"
            ))
        })?;
        let dialed = timeout(CONNECT_DEADLINE, dial(self.addresses(), port)).await;
        let socket = dialed
            .ok()
            .flatten()
            .ok_or_else(|| nothing_listening(port))?;
        // Without it, small messages of a WebSocket wait for an acknowledgement.
        let _ = socket.set_nodelay(true);
        let closing = self.closing.child_token();
        let tasks = &self.tasks;
        Ok(Connection::start(
            socket, port, inputs, tasks, closing, place,
        ))
    }

    /// The listening sockets, without those of boxd.
    ///
    /// # Errors
    /// INTERNAL when the kernel's table cannot be read.
    pub async fn list(&self) -> Result<PortList, Status> {
        let _turn = self.listing.lock().await;
        spawn_blocking(listening::list)
            .await
            .map_err(|_| Status::internal("the listening sockets were not read"))?
            .map_err(|error| Status::internal(format!("reading the sockets failed: {error}")))
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ];
        match self.listen.ip() {
            any if any.is_unspecified() => addresses.extend(own_addresses()),
            own => addresses.push(own),
        }
        addresses
    }
}

/// The addresses of the box's network interfaces.
fn own_addresses() -> Vec<IpAddr> {
    // Without them the loopback addresses are left.
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter(|interface| !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .take(MAX_OWN_ADDRESSES)
        .collect()
}

/// Connects to the first address that accepts.
async fn dial(addresses: Vec<IpAddr>, port: u16) -> Option<TcpStream> {
    for address in addresses {
        if let Ok(socket) = TcpStream::connect((address, port)).await
            && !is_connected_to_itself(&socket)
        {
            return Some(socket);
        }
    }
    None
}

/// Whether the kernel has given the connecting socket the port that it connects to: TCP then
/// connects the socket to itself, although nothing listens.
fn is_connected_to_itself(socket: &TcpStream) -> bool {
    match (socket.local_addr(), socket.peer_addr()) {
        (Ok(local), Ok(peer)) => local == peer,
        _ => false,
    }
}

fn nothing_listening(port: u16) -> Status {
    let message = format!("nothing listens on port {port} of the environment");
    with_code(Status::unavailable(message), ErrorCode::NothingListening)
}

/// Adds the code for callers of the API.
fn with_code(mut status: Status, code: ErrorCode) -> Status {
    let code = MetadataValue::from_static(code.as_str());
    status.metadata_mut().insert(ERROR_CODE_METADATA, code);
    status
}
