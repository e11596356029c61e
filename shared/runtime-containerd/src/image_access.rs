//! The owners who may use the images of private repositories that this machine has.
//!
//! containerd gives every image that it has to everybody. So a repository from which an image was
//! pulled with a credential is recorded, and whoever uses an image of it proves access first, by a
//! pull with an own credential or none. Such a pull compares the image with the registry's, and
//! transfers only what is missing.
//!
//! * I1. A pull with a credential has a record from before it begins until it has failed, or its
//!   repository has one: a killed pull leaves no private image without a record. A failed pull leaves
//!   none, so that nobody can make the images of others need a proof.
//! * I2. A proof is valid for one owner, one image and one credential, for [`VALIDITY`]. Without a
//!   credential it is valid for every owner.
//! * I3. An image that was imported, or pulled without a credential, needs no proof. A tag was
//!   imported if containerd has no digest for it, and it has no record here or in
//!   [`crate::pulled_images`].

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_runtime::{BoxSpec, image_reference};

use crate::pulled_images::record_name;

/// How long a proof is valid. An owner whose access ends may start boxes for as long.
const VALIDITY: Duration = Duration::from_secs(600);
/// The most proofs in memory. A proof that does not fit costs another pull.
const MAX_PROOFS: usize = 8_192;
/// The directory of the records, in the directory for records of images.
const DIRECTORY: &str = "private-repositories";
/// The record of a repository, in its directory.
const PRIVATE: &str = ".private";
/// The beginning of the record of a pull, which continues with the tag or the digest.
const PULLING: &str = ".pulling";

/// Who has proved access, and to which image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Proof {
    /// `None`: the pull had no credential.
    owner: Option<UserId>,
    image: String,
    /// A keyed hash: a proof with a former credential is invalid.
    credential: Option<u64>,
}

/// A pull with a credential that is running, or whose outcome is unknown.
#[derive(Debug)]
pub struct PrivatePull {
    directory: PathBuf,
    record: PathBuf,
}

impl PrivatePull {
    /// Records that the repository is private.
    ///
    /// # Errors
    /// When that cannot be stored. The record of the pull stays.
    pub fn succeeded(self) -> io::Result<()> {
        std::fs::File::create(self.directory.join(PRIVATE))?.sync_all()?;
        std::fs::remove_file(self.record)
    }

    /// Removes the record of a pull that has certainly brought no image.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn failed(self) -> io::Result<()> {
        std::fs::remove_file(self.record)?;
        // It stays if it has another record.
        let _ = std::fs::remove_dir(self.directory);
        Ok(())
    }
}

/// The records of one machine, and the proofs of this process.
#[derive(Debug)]
pub struct ImageAccess {
    directory: PathBuf,
    hasher: RandomState,
    proofs: Mutex<HashMap<Proof, Instant>>,
}

impl ImageAccess {
    pub fn new(records_dir: &Path) -> Self {
        Self {
            directory: records_dir.join(DIRECTORY),
            hasher: RandomState::new(),
            proofs: Mutex::default(),
        }
    }

    /// Whether the owner may use an image that the machine has.
    pub fn is_allowed(&self, spec: &BoxSpec, now: Instant) -> bool {
        if !self.is_private(&spec.image) {
            return true;
        }
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_valid = |proof: &Proof| {
            let at = proofs.get(proof);
            at.is_some_and(|at| now.saturating_duration_since(*at) < VALIDITY)
        };
        is_valid(&self.proof(spec)) || is_valid(&public(spec))
    }

    /// Records that an image is pulled with a credential. To be called before the pull.
    ///
    /// # Errors
    /// When the record cannot be stored; the image must not be pulled then.
    pub fn record_pull(&self, spec: &BoxSpec) -> io::Result<Option<PrivatePull>> {
        if spec.image_credential.is_none() {
            return Ok(None);
        }
        let directory = self.directory(&spec.image);
        std::fs::create_dir_all(&directory)?;
        let unique = format!("{}{}", pulling(&spec.image), EnvironmentId::random());
        let record = directory.join(unique);
        std::fs::File::create_new(&record)?.sync_all()?;
        Ok(Some(PrivatePull { directory, record }))
    }

    /// Remembers that a pull for this box has succeeded.
    pub fn prove(&self, spec: &BoxSpec, now: Instant) {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        if proofs.len() >= MAX_PROOFS {
            proofs.retain(|_, at| now.saturating_duration_since(*at) < VALIDITY);
        }
        if proofs.len() >= MAX_PROOFS {
            tracing::warn!(
                proofs = MAX_PROOFS,
                "proofs of access to images discarded: too many"
            );
            proofs.clear();
        }
        proofs.insert(self.proof(spec), now);
    }

    fn proof(&self, spec: &BoxSpec) -> Proof {
        match &spec.image_credential {
            Some(credential) => Proof {
                owner: Some(spec.owner.clone()),
                image: image_reference::complete(&spec.image),
                credential: Some(self.hasher.hash_one(credential)),
            },
            None => public(spec),
        }
    }

    /// Whether the image may have been pulled with a credential.
    fn is_private(&self, image: &str) -> bool {
        // A pull of a tag brings the image by its digest too.
        let is_digest = image_reference::complete(image).contains('@');
        let pulling = if is_digest {
            PULLING.to_owned()
        } else {
            pulling(image)
        };
        self.has_record(image, |name| name == PRIVATE || name.starts_with(&pulling))
    }

    /// Whether a pull of this tag with a credential is running, or its outcome is unknown.
    pub fn is_pulling(&self, image: &str) -> bool {
        let pulling = pulling(image);
        self.has_record(image, |name| name.starts_with(&pulling))
    }

    /// Whether the image's repository has such a record. Records that cannot be read count as one.
    fn has_record(&self, image: &str, matches: impl Fn(&str) -> bool) -> bool {
        match std::fs::read_dir(self.directory(image)) {
            Ok(mut entries) => entries.any(|entry| {
                entry.map_or(true, |entry| matches(&entry.file_name().to_string_lossy()))
            }),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// The directory of a repository's records.
    fn directory(&self, image: &str) -> PathBuf {
        let repository = image_reference::repository(image);
        self.directory.join(record_name(&repository))
    }
}

/// The beginning of the records of pulls of this tag or digest. A tag has no `@`.
fn pulling(image: &str) -> String {
    let (complete, repository) = (
        image_reference::complete(image),
        image_reference::repository(image),
    );
    let tag_or_digest = complete.strip_prefix(&repository).unwrap_or_default();
    format!("{PULLING}{tag_or_digest}@@")
}

/// The proof of a pull without a credential.
fn public(spec: &BoxSpec) -> Proof {
    Proof {
        owner: None,
        image: image_reference::complete(&spec.image),
        credential: None,
    }
}

#[cfg(test)]
mod tests {
    use agentbox_runtime::RegistryCredential;
    use agentbox_runtime::conformance::example_spec;

    use super::*;

    fn spec(image: &str, password: Option<&str>) -> BoxSpec {
        example_spec(|spec| {
            image.clone_into(&mut spec.image);
            spec.image_credential = password.map(|password| RegistryCredential {
                username: "ada".to_owned(),
                password: password.to_owned(),
            });
        })
    }

    #[test]
    fn image_of_a_private_repository_needs_a_proof_of_each_owner() {
        let directory = tempfile::tempdir().unwrap();
        let access = ImageAccess::new(directory.path());
        let now = Instant::now();
        let image = "registry.example:5000/team/app:1";
        let owner = spec(image, Some("secret"));
        assert!(access.is_allowed(&owner, now));
        let pull = access.record_pull(&owner).unwrap().unwrap();
        // Until its outcome is known, others need a proof for this tag, and for digests.
        let digest = format!("registry.example:5000/team/app@sha256:{}", "0a".repeat(32));
        for (other, is_allowed) in [
            (spec(image, None), false),
            (spec(&digest, None), false),
            (spec("registry.example:5000/team/app:10", None), true),
        ] {
            assert_eq!(
                access.is_allowed(&other, now),
                is_allowed,
                "{}",
                other.image
            );
        }
        assert!(access.is_pulling(image));
        pull.failed().unwrap();
        assert!(!access.is_pulling(image));
        let records = std::fs::read_dir(directory.path().join(DIRECTORY)).unwrap();
        assert_eq!(records.count(), 0);
        assert!(access.is_allowed(&spec(image, None), now));
        let pull = access.record_pull(&owner).unwrap().unwrap();
        pull.succeeded().unwrap();
        access.prove(&owner, now);
        assert!(access.is_allowed(&owner, now));
        assert!(!access.is_allowed(&owner, now + VALIDITY));
        // Its record outlives this process; the proofs do not.
        let restarted = ImageAccess::new(directory.path());
        assert!(!restarted.is_allowed(&owner, now));
        let mut changed = owner.clone();
        changed.image_credential = spec(image, Some("other")).image_credential;
        for other in [
            changed,
            spec(image, None),
            spec(image, Some("secret")),
            spec("registry.example:5000/team/app:2", None),
            spec(&digest, None),
            spec("Registry.example:5000/team/app", None),
        ] {
            assert!(!access.is_allowed(&other, now), "{}", other.image);
        }
        for other in [
            spec("registry.example:5000/team", None),
            spec("registry.example:5000/team/app/sub", None),
            spec("registry.example/team/app", None),
            spec("busybox", None),
        ] {
            assert!(access.is_allowed(&other, now), "{}", other.image);
        }
    }

    #[test]
    fn pull_without_a_credential_proves_access_for_everybody() {
        let directory = tempfile::tempdir().unwrap();
        let access = ImageAccess::new(directory.path());
        let now = Instant::now();
        let pull = access.record_pull(&spec("busybox", Some("secret")));
        pull.unwrap().unwrap().succeeded().unwrap();
        assert!(
            access
                .record_pull(&spec("busybox", None))
                .unwrap()
                .is_none()
        );
        assert!(!access.is_allowed(&spec("docker.io/library/busybox", None), now));
        access.prove(&spec("busybox:latest", None), now);
        for other in [
            spec("busybox", None),
            spec("index.docker.io/busybox", Some("other")),
        ] {
            assert!(access.is_allowed(&other, now), "{other:?}");
        }
    }

    #[test]
    fn proofs_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let access = ImageAccess::new(directory.path());
        let now = Instant::now();
        for number in 0..=MAX_PROOFS {
            access.prove(&spec(&format!("a:{number}"), None), now);
        }
        assert!(access.proofs.lock().unwrap().len() <= MAX_PROOFS);
    }
}
