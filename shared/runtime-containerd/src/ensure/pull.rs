//! Pulls the image of a box.

use std::time::{Duration, Instant, SystemTime};

use agentbox_contracts::ErrorChain;
use agentbox_runtime::image_pull::public_cause;
use agentbox_runtime::metrics::{Stage, stage_completed};
use agentbox_runtime::{BoxSpec, FailureReason, IMAGE_PULL, RuntimeError, image_reference};

use crate::box_state::Failure;
use crate::context::Context;
use crate::cri::CriError;
use crate::error::io_failure;
use crate::image::{self, PullFailure};
use crate::metrics;

impl Context {
    /// Whether the image is missing, or its owner has yet to prove access to it.
    pub(super) async fn needs_pull(&self, spec: &BoxSpec) -> Result<bool, RuntimeError> {
        let name = image_reference::complete(&spec.image);
        // From now on the image is not removed.
        self.pulled_images
            .touch(&name, SystemTime::now())
            .map_err(|error| io_failure("record of an image", &error))?;
        let Some(status) = self.cri.image(&name).await? else {
            self.pulled_images
                .record(&name, SystemTime::now())
                .map_err(|error| io_failure("record of an image", &error))?;
            return Ok(true);
        };
        // The records in this order, because a pull that succeeds makes the second one before it
        // removes the first.
        let is_imported = !image::was_pulled(&status, &name)
            && !self.image_access.is_pulling(&name)
            && !self.pulled_images.contains(&name);
        Ok(!is_imported && !self.image_access.is_allowed(spec, Instant::now()))
    }

    pub(super) async fn pull(&self, spec: &BoxSpec) -> Result<Result<(), Failure>, RuntimeError> {
        let image = spec.image.as_str();
        let deadline = Duration::from_secs(self.config.image_pull_deadline_s);
        let not_recorded = |error: std::io::Error| io_failure("record of a private image", &error);
        let private = self.image_access.record_pull(spec).map_err(not_recorded)?;
        let name = image_reference::complete(image);
        let credential = spec.image_credential.as_ref();
        let begun = Instant::now();
        let pulled = tokio::select! {
            pulled = self.cri.pull_image(&name, credential, deadline) => pulled,
            () = self.wait_until_full() => {
                tracing::error!(image, "a pull was ended: the file system of images is full");
                metrics::pull_refused(image::NO_SPACE);
                return Err(RuntimeError::Cluster {
                    operation: IMAGE_PULL,
                    message: image::no_space(image),
                });
            }
        };
        let Err(error) = pulled else {
            stage_completed(Stage::Pulled, begun.elapsed());
            // Again: after a long pull the collection may have removed the record.
            self.pulled_images
                .record(&name, SystemTime::now())
                .map_err(|error| io_failure("record of an image", &error))?;
            if let Some(private) = private {
                private.succeeded().map_err(not_recorded)?;
            }
            self.image_access.prove(spec, Instant::now());
            return Ok(Ok(()));
        };
        // After another error containerd may still finish the pull.
        if let (Some(private), CriError::Refused { .. }) = (private, &error) {
            private.failed().map_err(not_recorded)?;
        }
        tracing::warn!(image, error = %ErrorChain(&error), "an image could not be pulled");
        match image::classify_pull(image, &error, deadline) {
            PullFailure::Final(message) => {
                metrics::pull_refused(public_cause(error.message()));
                Ok(Err(Failure {
                    reason: FailureReason::ImagePull,
                    message,
                }))
            }
            PullFailure::Transient(message) => Err(RuntimeError::Cluster {
                operation: IMAGE_PULL,
                message,
            }),
        }
    }
}
