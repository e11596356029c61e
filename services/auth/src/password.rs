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
/// Passwords that are tried first, in lower case. With digits or symbols after it, one of them is as
/// easy to guess.
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
    let is_guessed = |word: &str| word == whole || word == stem;
    if COMMON.lines().any(is_guessed) {
        return Err(Error::field(
            field,
            "must not be a common password, also with digits or symbols after it",
        ));
    }
    if !username.is_empty() && is_guessed(&username.to_lowercase()) {
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
    admitted: Mutex<HashMap<IpAddr, u32>>,
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
            let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
            let held = admitted.get(&network).copied().unwrap_or(0);
            if held >= self.max_each {
                return Err(HasherError::Busy);
            }
            admitted.insert(network, held + 1);
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
        let admitted = &self.networks.admitted;
        let mut admitted = admitted.lock().unwrap_or_else(PoisonError::into_inner);
        match admitted.get(&network).copied() {
            Some(held) if held > 1 => {
                admitted.insert(network, held - 1);
            }
            _ => {
                admitted.remove(&network);
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
                admitted: Mutex::default(),
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
mod tests {
    use agentbox_contracts::audit::Origin;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret(text.to_owned())
    }

    #[test]
    fn password_of_8_to_256_characters_that_is_not_guessed_first_is_accepted() {
        for (password, good) in [
            (String::new(), false),
            ("fk3-x9q".to_owned(), false),
            ("fk3-x9qz".to_owned(), true),
            ("дверь-17".to_owned(), true),
            ("abcd".repeat(64), true),
            (format!("{}e", "abcd".repeat(64)), false),
            ("correct horse battery staple".to_owned(), true),
            ("password".to_owned(), false),
            (" PassWord ".to_owned(), false),
            ("password2026!".to_owned(), false),
            ("12345678".to_owned(), false),
            (" ".repeat(8), false),
            ("\u{a0}\t \u{2003}\u{2002}\u{2001}  ".to_owned(), false),
            ("aabbaabb".to_owned(), false),
            ("x".repeat(256), false),
            ("Alice.Smith".to_owned(), false),
            ("alice.smith99".to_owned(), false),
            ("not-alice.smith".to_owned(), true),
        ] {
            let outcome = check("new_password", &Secret(password.clone()), "alice.smith");
            assert_eq!(outcome.is_ok(), good, "{password}");
            if let Err(error) = outcome {
                assert!(
                    error.message.starts_with("new_password:"),
                    "{}",
                    error.message
                );
            }
        }
        // A user without a name, which does not exist, has no further rule.
        assert!(check("new_password", &secret("fk3-x9qz"), "").is_ok());
    }

    #[test]
    fn common_passwords_are_listed_in_lower_case_without_blanks() {
        for word in COMMON.lines() {
            assert_eq!(word, word.trim().to_lowercase());
            assert!(!word.is_empty());
        }
    }

    #[tokio::test]
    async fn hash_verifies_only_its_password_and_has_the_owasp_parameters() {
        let hasher = Hasher::new(2, 8, 4).await.unwrap();
        let hash = hasher.hash(&secret("correct horse")).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        assert_ne!(hash, hasher.hash(&secret("correct horse")).await.unwrap());
        assert!(
            hasher
                .verify(&secret("correct horse"), Some(&hash))
                .await
                .unwrap()
        );
        assert!(
            !hasher
                .verify(&secret("wrong horse"), Some(&hash))
                .await
                .unwrap()
        );
        assert!(!hasher.verify(&secret("correct horse"), None).await.unwrap());
    }

    #[tokio::test]
    async fn hash_with_other_parameters_verifies() {
        let argon2 = Argon2::new(
            Algorithm::Argon2id,
            Version::V0x13,
            Params::new(64, 1, 1, None).unwrap(),
        );
        let password = secret("correct horse");
        let mut memory = vec![Block::new(); argon2.params().block_count()];
        let hash = compute_hash(&argon2, &mut memory, &password, b"a salt of its own").unwrap();
        let hash = hash.to_string();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{hash}");
        let hasher = Hasher::new(1, 1, 1).await.unwrap();
        assert!(hasher.verify(&password, Some(&hash)).await.unwrap());
        let other = secret("wrong horse");
        assert!(!hasher.verify(&other, Some(&hash)).await.unwrap());
    }

    /// The resident memory of this process in MiB.
    fn resident_mib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mut lines = status.lines();
        let resident = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        kib >> 10
    }

    #[tokio::test]
    async fn memory_of_many_computations_is_that_of_those_at_once() {
        const AT_ONCE: u32 = 2;
        // As other work does: many threads wait for some, and each may run a computation.
        let started = Arc::new(std::sync::Barrier::new(32));
        let threads = (0..32).map(|_| {
            let started = Arc::clone(&started);
            tokio::task::spawn_blocking(move || started.wait())
        });
        futures::future::join_all(threads).await;
        let hasher = Hasher::new(AT_ONCE, 16, 16).await.unwrap();
        let before = resident_mib();
        let password = secret("correct horse");
        for _ in 0..10 {
            let hashes = std::iter::repeat_with(|| hasher.hash(&password)).take(12);
            for hash in futures::future::join_all(hashes).await {
                assert!(hasher.dummy_hash.len() == hash.unwrap().len());
            }
        }
        // The margin is for the tests that run beside this one.
        let grown = resident_mib().saturating_sub(before);
        assert!(grown < 16 * 19, "{grown} MiB more");
        let kept = hasher.memory.kept_count();
        assert!(kept <= AT_ONCE as usize, "memory of {kept} computations");
    }

    #[tokio::test]
    async fn request_beyond_the_queue_is_refused_and_the_others_are_served() {
        let hasher = Arc::new(Hasher::new(1, 2, 4).await.unwrap());
        let hash = hasher.hash(&secret("correct horse")).await.unwrap();
        let password = secret("correct horse");
        let calls = std::iter::repeat_with(|| hasher.verify(&password, Some(&hash))).take(10);
        let outcomes = futures::future::join_all(calls).await;
        let served = outcomes.iter().filter(|o| matches!(o, Ok(true))).count();
        let refused = outcomes
            .iter()
            .filter(|o| matches!(o, Err(HasherError::Busy)))
            .count();
        assert_eq!((served, refused), (3, 7));
        assert!(
            hasher.verify(&password, Some(&hash)).await.unwrap(),
            "the permits are released"
        );
    }

    #[tokio::test]
    async fn flood_of_one_network_leaves_places_for_others() {
        let hasher = Hasher::new(1, 8, 2).await.unwrap();
        let password = secret("correct horse");
        let hash = hasher.hash(&password).await.unwrap();
        let log_in_from = |address: &str| {
            let origin = Origin::new(None, address.parse().unwrap(), None);
            agentbox_bus::with_origin(origin, hasher.verify(&password, Some(hash.as_str())))
        };
        let attempts = [
            ("192.0.2.1", true),
            ("192.0.2.1", true),
            ("192.0.2.1", false),
            ("192.0.2.2", true),
            ("2001:db8::1", true),
            ("2001:db8::2", true),
            ("2001:db8::3", false),
            ("2001:db8:0:1::1", true),
        ];
        for _ in 0..2 {
            let logins = attempts.map(|(address, _)| log_in_from(address));
            let outcomes = futures::future::join_all(logins).await;
            for ((address, expected), outcome) in attempts.into_iter().zip(outcomes) {
                assert_eq!(outcome.is_ok(), expected, "{address}: {outcome:?}");
            }
            let admitted = hasher.networks.admitted.lock().unwrap();
            assert!(admitted.is_empty(), "the places are released");
        }
    }
}
