//! The slots of client connections: in total, and for each client network.
//!
//! * I1. At most the configured number of connections is open; more wait in the kernel.
//!   A WebSocket keeps its slot.
//! * I2. A connection counts under the network of its client, and until one of its requests had a
//!   valid credential also as an unauthenticated one. Both numbers are limited for each network.
//! * I3. The connection of a trusted proxy counts under the network of the client whose request it
//!   carried last; before its first request under the proxy's own, as an authenticated one.
//! * I4. A connection beyond a limit of its network takes no slot. It is answered with 429, for at
//!   most [`REFUSAL_DEADLINE`]. Beyond [`REFUSALS`] of them it is closed at once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client_address::ClientAddress;
use super::error::ApiError;
use crate::config::Config;
use crate::metrics;
use crate::rate_limit::window::write_headers;
use crate::shares::{Share, Shares};

/// How long a connection beyond a limit is answered.
pub(super) const REFUSAL_DEADLINE: Duration = Duration::from_secs(2);
/// Connections beyond a limit that are answered at once.
const REFUSALS: usize = 256;
/// When a refused client should try again, in seconds.
const RETRY_AFTER_S: u32 = 5;

/// The slots of all listeners together.
#[derive(Clone)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    capacity: usize,
    refusals: Arc<Semaphore>,
    networks: Networks,
}

#[derive(Clone)]
struct Networks {
    all: Shares<IpAddr>,
    max_all: u64,
    unauthenticated: Shares<IpAddr>,
    max_unauthenticated: u64,
}

/// The limit that a connection exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full {
    limit: u64,
    is_unauthenticated: bool,
}

impl Full {
    pub(super) fn error(self) -> Error {
        let Self {
            limit,
            is_unauthenticated,
        } = self;
        let kind = match is_unauthenticated {
            true => " without a valid credential",
            false => "",
        };
        let mut error = Error::new(
            ErrorCode::RateLimited,
            format!(
                "your network has {limit} connections{kind}, the most that it may have; close \
                 some, or try again in {RETRY_AFTER_S} s"
            ),
        );
        error.retry_after_s = Some(RETRY_AFTER_S);
        error
    }
}

/// What a connection takes of the limits of its client's network.
struct Place {
    network: IpAddr,
    _all: Share<IpAddr>,
    /// `None`: a request has had a valid credential.
    unauthenticated: Option<Share<IpAddr>>,
}

impl Networks {
    fn enter(&self, network: IpAddr) -> Result<Place, Full> {
        let all = self.take_all(network)?;
        let unauthenticated = self.unauthenticated.take(&network, 1).map_err(|_| {
            metrics::limit_reached("unauthenticated_connections_per_network");
            Full {
                limit: self.max_unauthenticated,
                is_unauthenticated: true,
            }
        })?;
        Ok(Place {
            network,
            _all: all,
            unauthenticated: Some(unauthenticated),
        })
    }

    fn enter_unassigned(&self, network: IpAddr) -> Result<State, Full> {
        let all = self.take_all(network)?;
        Ok(State::Unassigned { _all: all })
    }

    fn take_all(&self, network: IpAddr) -> Result<Share<IpAddr>, Full> {
        self.all.take(&network, 1).map_err(|_| {
            metrics::limit_reached("connections_per_network");
            Full {
                limit: self.max_all,
                is_unauthenticated: false,
            }
        })
    }
}

/// The slot of one connection. It is an extension of the connection's requests.
#[derive(Clone)]
pub(crate) struct Slot(Arc<Inner>);

struct Inner {
    networks: Networks,
    /// The peer is a trusted proxy.
    is_proxied: bool,
    state: Mutex<State>,
    _permit: OwnedSemaphorePermit,
}

enum State {
    /// A proxy's connection before its first request.
    Unassigned {
        _all: Share<IpAddr>,
    },
    Open(Place),
    Refused(Full),
}

impl Slots {
    pub(crate) fn new(config: &Config) -> Self {
        let capacity = config.max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let max_all = config.max_connections_per_network;
        let max_unauthenticated = config.max_unauthenticated_connections_per_network;
        Self {
            free: Arc::new(Semaphore::new(capacity)),
            capacity,
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            networks: Networks {
                all: Shares::new(max_all, u64::MAX),
                max_all,
                unauthenticated: Shares::new(max_unauthenticated, u64::MAX),
                max_unauthenticated,
            },
        }
    }

    /// Waits for a free slot. `None`: never, the semaphore is closed.
    pub(super) async fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        if self.free.available_permits() == 0 {
            metrics::limit_reached("connections");
        }
        let permit = Arc::clone(&self.free).acquire_owned().await.ok()?;
        metrics::connections(self.capacity - self.free.available_permits());
        Some(permit)
    }

    /// Gives `permit` to a connection, or refuses it.
    ///
    /// # Errors
    /// When the connection is refused, and too many others are being answered.
    pub(super) fn open(
        &self,
        permit: OwnedSemaphorePermit,
        peer: ClientAddress,
        is_proxied: bool,
    ) -> Result<Slot, Full> {
        let network = peer.network();
        let entered = match is_proxied {
            true => self.networks.enter_unassigned(network),
            false => self.networks.enter(network).map(State::Open),
        };
        let (permit, state) = match entered {
            Ok(state) => (permit, state),
            Err(full) => {
                drop(permit);
                let refusal = Arc::clone(&self.refusals).try_acquire_owned();
                (refusal.map_err(|_| full)?, State::Refused(full))
            }
        };
        Ok(Slot(Arc::new(Inner {
            networks: self.networks.clone(),
            is_proxied,
            state: Mutex::new(state),
            _permit: permit,
        })))
    }
}

impl Slot {
    pub(super) fn is_refused(&self) -> bool {
        matches!(*self.0.state.lock(), State::Refused(_))
    }

    /// Counts the connection under the network of the client whose request it carries.
    ///
    /// # Errors
    /// When the connection is refused, or the network has too many.
    fn enter(&self, network: IpAddr) -> Result<(), Full> {
        let mut state = self.0.state.lock();
        match &*state {
            State::Refused(full) => return Err(*full),
            State::Open(place) if !self.0.is_proxied || place.network == network => return Ok(()),
            State::Open(_) | State::Unassigned { .. } => {}
        }
        *state = State::Open(self.0.networks.enter(network)?);
        Ok(())
    }

    /// Records that a request of the connection has a valid credential.
    pub(crate) fn set_authenticated(&self) {
        if let State::Open(place) = &mut *self.0.state.lock() {
            place.unauthenticated = None;
        }
    }
}

/// Refuses the requests of a connection beyond a limit.
pub(crate) async fn require_slot(request: Request, next: Next) -> Response {
    let network = ClientAddress::from_extensions(request.extensions()).network();
    let entered = match request.extensions().get::<Slot>() {
        Some(slot) => slot.enter(network),
        None => Ok(()),
    };
    let full = match entered {
        Ok(()) => return next.run(request).await,
        Err(full) => full,
    };
    let mut response = ApiError(full.error()).into_response();
    let now = u64::try_from(Utc::now().timestamp()).unwrap_or(0);
    let reset = now + u64::from(RETRY_AFTER_S);
    write_headers(response.headers_mut(), full.limit, 0, reset);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(all: u64, unauthenticated: u64) -> Slots {
        Slots {
            free: Arc::new(Semaphore::new(100)),
            capacity: 100,
            refusals: Arc::new(Semaphore::new(1)),
            networks: Networks {
                all: Shares::new(all, u64::MAX),
                max_all: all,
                unauthenticated: Shares::new(unauthenticated, u64::MAX),
                max_unauthenticated: unauthenticated,
            },
        }
    }

    async fn open(slots: &Slots, address: [u8; 4], is_proxied: bool) -> Result<Slot, Full> {
        let permit = slots.acquire().await.unwrap();
        slots.open(permit, ClientAddress(address.into()), is_proxied)
    }

    #[tokio::test]
    async fn network_at_its_limit_takes_no_slot_of_another() {
        let slots = slots(3, 2);
        let hostile = [192, 0, 2, 1];
        let first = open(&slots, hostile, false).await.unwrap();
        let _second = open(&slots, hostile, false).await.unwrap();
        let refused = open(&slots, hostile, false).await.unwrap();
        assert!(refused.is_refused());
        let full = refused.enter(hostile.into()).unwrap_err();
        assert!(full.is_unauthenticated && full.limit == 2);
        assert!(open(&slots, hostile, false).await.is_err());
        assert_eq!(slots.free.available_permits(), 98);
        let other = open(&slots, [192, 0, 2, 2], false).await.unwrap();
        assert!(!other.is_refused());

        first.set_authenticated();
        drop(refused);
        let third = open(&slots, hostile, false).await.unwrap();
        assert!(!third.is_refused());
        third.set_authenticated();
        let fourth = open(&slots, hostile, false).await.unwrap();
        let full = fourth.enter(hostile.into()).unwrap_err();
        assert!(!full.is_unauthenticated && full.limit == 3);
        drop(first);
        drop(fourth);
        assert!(!open(&slots, hostile, false).await.unwrap().is_refused());
    }

    #[tokio::test]
    async fn connection_of_a_proxy_counts_under_its_last_client() {
        let slots = slots(2, 1);
        let proxy = [10, 0, 0, 1];
        let network = |last| IpAddr::from([192, 0, 2, last]);
        let first = open(&slots, proxy, true).await.unwrap();
        let second = open(&slots, proxy, true).await.unwrap();
        // Without a request they count under the proxy's own network.
        assert!(open(&slots, proxy, true).await.unwrap().is_refused());
        assert_eq!(first.enter(network(1)), Ok(()));
        assert!(!open(&slots, proxy, true).await.unwrap().is_refused());
        assert_eq!(first.enter(network(1)), Ok(()));
        assert!(second.enter(network(1)).is_err());
        assert_eq!(second.enter(network(2)), Ok(()));
        assert!(!second.is_refused());
        // The first connection now carries another client's request.
        assert_eq!(first.enter(network(3)), Ok(()));
        assert_eq!(second.enter(network(1)), Ok(()));
    }
}
