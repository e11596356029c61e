//! Passwords: their rule, and Argon2id off the async threads.
//!
//! Owns the parameters of Argon2id. Never keeps a password longer than one computation.
//!
//! * I1. At most `concurrency` hashes are computed at once and `queue` requests wait. More
//!   are refused at once, so a flood of logins costs neither memory nor the latency of other
//!   requests.
//! * I2. One client network has only a part of these places, so that its flood does not refuse the
//!   logins of other networks.
//! * I3. The check for an unknown user computes the same hash as the check for a known one.
//! * I4. The memory of a computation is kept for the next one for [`KEEP_MEMORY`] ([`memory`]).

mod memory;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::identity::{MAX_PASSWORD, MIN_PASSWORD};
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{ARGON2ID_IDENT, Algorithm, Argon2, Block, Params, Version};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use memory::Memory;

/// OWASP's recommendation for Argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// A request that waited this long is refused: its caller has timed out by then.
const MAX_WAIT: Duration = Duration::from_secs(4);
/// How long the memory of computations is kept after the last one.
const KEEP_MEMORY: Duration = Duration::from_secs(60);

/// The different characters that a password has at least, blanks excepted.
const MIN_DIFFERENT: usize = 4;
/// Passwords that an attacker tries first, in lower case. With digits or symbols after it, one of them
/// is as easy to guess.
const COMMON: &str = include_str!("password/common.txt");

/// Checks a new password of `username`. `field` is its name in the request.
///
/// # Errors
/// Validation, naming the field; never the password.
pub fn check(field: &str, password: &Secret, username: &str) -> Result<(), Error> {
    if !(MIN_PASSWORD..=MAX_PASSWORD).contains(&password.0.chars().count()) {
        return Err(Error::field(
            field,
            format_args!("must have {MIN_PASSWORD} to {MAX_PASSWORD} characters"),
        ));
    }
    let visible = password.0.chars().filter(|c| !c.is_whitespace());
    if visible.collect::<BTreeSet<_>>().len() < MIN_DIFFERENT {
        return Err(Error::field(
            field,
            format_args!("must have at least {MIN_DIFFERENT} different characters besides blanks"),
        ));
    }
    let whole = password.0.trim().to_lowercase();
    let stem = whole.trim_end_matches(|c: char| !c.is_alphabetic());
    let is_easy_to_guess = |word: &str| word == whole || word == stem;
    if COMMON.lines().any(is_easy_to_guess) {
        return Err(Error::field(
            field,
            "must not be a common password, also with digits or symbols after it",
        ));
    }
    if !username.is_empty() && is_easy_to_guess(&username.to_lowercase()) {
        return Err(Error::field(
            field,
            "must not be the username, also with digits or symbols after it",
        ));
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum HasherError {
    #[error("too many requests wait for a password check")]
    Busy,
    #[error("a password hash cannot be computed: {0}")]
    Failed(String),
}

impl From<HasherError> for Error {
    fn from(error: HasherError) -> Self {
        match error {
            HasherError::Busy => {
                metrics::password_queue_full();
                Self::new(ErrorCode::Unavailable, "too many logins at once; try again")
            }
            HasherError::Failed(_) => {
                tracing::error!(error = %ErrorChain(&error), "password hash not computed");
                Self::internal()
            }
        }
    }
}

/// The requests of each client network that run or wait. A network without one uses no memory.
struct Networks {
    max_each: u32,
    /// The number of each, while it is not 0.
    held: Mutex<HashMap<IpAddr, u32>>,
}

/// The place of an admitted request, until this is dropped.
struct Place<'a> {
    networks: &'a Networks,
    network: Option<IpAddr>,
}

impl Networks {
    /// Admits a request. One without a network is AgentBox's own, and not limited.
    fn admit(&self, network: Option<IpAddr>) -> Result<Place<'_>, HasherError> {
        if let Some(network) = network {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            let count = held.get(&network).copied().unwrap_or(0);
            if count >= self.max_each {
                return Err(HasherError::Busy);
            }
            held.insert(network, count + 1);
        }
        Ok(Place {
            networks: self,
            network,
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(network) = self.network else {
            return;
        };
        let held = &self.networks.held;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get(&network).copied() {
            Some(count) if count > 1 => {
                held.insert(network, count - 1);
            }
            _ => {
                held.remove(&network);
            }
        }
    }
}

fn failed(error: impl std::fmt::Display) -> HasherError {
    HasherError::Failed(error.to_string())
}

/// Computes a hash with our parameters.
fn compute_hash(
    argon2: &Argon2<'_>,
    memory: &mut [Block],
    password: &Secret,
    salt: &[u8],
) -> Result<PasswordHash, HasherError> {
    let mut output = [0_u8; Params::DEFAULT_OUTPUT_LEN];
    argon2
        .hash_password_into_with_memory(password.0.as_bytes(), salt, &mut output, memory)
        .map_err(failed)?;
    Ok(PasswordHash {
        algorithm: ARGON2ID_IDENT,
        version: Some(u32::from(Version::V0x13)),
        params: ParamsString::try_from(argon2.params()).map_err(failed)?,
        salt: Some(Salt::new(salt).map_err(failed)?),
        hash: Some(Output::new(&output).map_err(failed)?),
    })
}

/// Whether `hash` is the hash of `password`. One with other parameters is computed in memory of its
/// own.
fn is_hash_of(
    argon2: &Argon2<'_>,
    memory: &mut [Block],
    password: &Secret,
    hash: &str,
) -> Result<bool, HasherError> {
    let hash = PasswordHash::new(hash).map_err(failed)?;
    let ours = ParamsString::try_from(argon2.params()).map_err(failed)?;
    let length = hash.hash.as_ref().map(Output::len);
    let is_ours = hash.algorithm == ARGON2ID_IDENT
        && hash.version == Some(u32::from(Version::V0x13))
        && hash.params == ours
        && length == Some(Params::DEFAULT_OUTPUT_LEN);
    match &hash.salt {
        // Outputs are compared in constant time.
        Some(salt) if is_ours => Ok(compute_hash(argon2, memory, password, salt)? == hash),
        _ => Ok(argon2.verify_password(password.0.as_bytes(), &hash).is_ok()),
    }
}

pub struct Hasher {
    argon2: Argon2<'static>,
    /// At most as many as computations run at once.
    memory: Arc<Memory>,
    running: Arc<Semaphore>,
    /// One permit for each request that runs or waits.
    admitted: Semaphore,
    networks: Networks,
    /// The hash of a random password, verified when there is no user.
    dummy_hash: String,
}

impl Hasher {
    /// `per_network`: the requests of one client network that run or wait.
    ///
    /// # Errors
    /// [`HasherError::Failed`] when the machine cannot compute one hash.
    pub async fn new(concurrency: u32, queue: u32, per_network: u32) -> Result<Self, HasherError> {
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(failed)?;
        let concurrency = usize::try_from(concurrency).unwrap_or(usize::MAX);
        let queue = usize::try_from(queue).unwrap_or(usize::MAX);
        let mut hasher = Self {
            argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, params),
            memory: Arc::default(),
            running: Arc::new(Semaphore::new(concurrency)),
            admitted: Semaphore::new(
                concurrency
                    .saturating_add(queue)
                    .min(Semaphore::MAX_PERMITS),
            ),
            networks: Networks {
                max_each: per_network,
                held: Mutex::default(),
            },
            dummy_hash: String::new(),
        };
        let random = Secret(hex::encode(rand::random::<[u8; 16]>()));
        hasher.dummy_hash = hasher.hash(&random).await?;
        Ok(hasher)
    }

    /// The hash to store, as a PHC string with a random salt.
    ///
    /// # Errors
    /// [`HasherError::Busy`] when too many wait.
    pub async fn hash(&self, password: &Secret) -> Result<String, HasherError> {
        let (argon2, password) = (self.argon2.clone(), password.clone());
        self.compute("create", move |memory| {
            let salt: [u8; Salt::RECOMMENDED_LENGTH] = rand::random();
            compute_hash(&argon2, memory, &password, &salt).map(|hash| hash.to_string())
        })
        .await
    }

    /// Whether `hash` is the hash of `password`. `None`, for a user that does not exist, gives
    /// false after the same time.
    ///
    /// # Errors
    /// [`HasherError::Busy`] when too many wait.
    pub async fn verify(&self, password: &Secret, hash: Option<&str>) -> Result<bool, HasherError> {
        let user_exists = hash.is_some();
        let hash = hash.unwrap_or(&self.dummy_hash).to_owned();
        let (argon2, password) = (self.argon2.clone(), password.clone());
        let matches = self
            .compute("verify", move |memory| {
                is_hash_of(&argon2, memory, &password, &hash)
            })
            .await?;
        Ok(matches && user_exists)
    }

    /// Frees the memory of computations a minute after the last one, until `shutdown`.
    ///
    /// # Errors
    /// Never: this is a task of the service.
    pub async fn free_unused_memory(
        self: Arc<Self>,
        shutdown: CancellationToken,
    ) -> Result<(), anyhow::Error> {
        self.memory.free_unused(KEEP_MEMORY, &shutdown).await;
        Ok(())
    }

    async fn compute<T: Send + 'static>(
        &self,
        purpose: &'static str,
        work: impl FnOnce(&mut [Block]) -> Result<T, HasherError> + Send + 'static,
    ) -> Result<T, HasherError> {
        let network = agentbox_bus::current_origin().and_then(|origin| origin.network());
        let _place = self.networks.admit(network)?;
        let _admitted = self.admitted.try_acquire().map_err(|_| HasherError::Busy)?;
        let permit = tokio::time::timeout(MAX_WAIT, Arc::clone(&self.running).acquire_owned())
            .await
            .map_err(|_| HasherError::Busy)?
            .map_err(failed)?;
        let (memory, blocks) = (Arc::clone(&self.memory), self.argon2.params().block_count());
        tokio::task::spawn_blocking(move || {
            // Released when the computation ends, also when its request was cancelled before.
            let _permit = permit;
            let started = Instant::now();
            let outcome = memory.with(blocks, work);
            metrics::password_hashed(purpose, started.elapsed());
            outcome
        })
        .await
        .map_err(failed)?
    }
}

#[cfg(test)]
mod tests;
