//! The calls of CRI's image service.

use std::time::Duration;

use agentbox_runtime::RegistryCredential;
use k8s_cri::v1::{
    AuthConfig, Image, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    ListImagesRequest, PullImageRequest, RemoveImageRequest,
};

use super::error::{CriError, ignore_not_found};
use super::{Cri, call};

impl Cri {
    /// The directory with the writable layers of containers.
    pub async fn storage_directory(&self) -> Result<Option<String>, CriError> {
        let request = ImageFsInfoRequest {};
        let answer = call(
            "ImageFsInfo",
            self.deadline,
            self.images.clone().image_fs_info(request),
        )
        .await?;
        let first = answer.image_filesystems.into_iter().next();
        Ok(first.and_then(|usage| usage.fs_id).map(|id| id.mountpoint))
    }

    /// Every image that containerd has.
    pub async fn images(&self) -> Result<Vec<Image>, CriError> {
        let request = ListImagesRequest { filter: None };
        let mut client = self.images.clone();
        let answer = call("ListImages", self.deadline, client.list_images(request)).await?;
        Ok(answer.images)
    }

    /// Removes an image with all its names.
    pub async fn remove_image(&self, id: &str) -> Result<(), CriError> {
        let image = ImageSpec {
            image: id.to_owned(),
            ..Default::default()
        };
        let request = RemoveImageRequest { image: Some(image) };
        let mut client = self.images.clone();
        let removed = call("RemoveImage", self.deadline, client.remove_image(request)).await;
        ignore_not_found(removed.map(|_| ()))
    }

    /// An image that containerd has; the `info` contains its configuration.
    pub async fn image(&self, name: &str) -> Result<Option<ImageStatusResponse>, CriError> {
        let image = ImageSpec {
            image: name.to_owned(),
            ..Default::default()
        };
        let request = ImageStatusRequest {
            image: Some(image),
            verbose: true,
        };
        let mut client = self.images.clone();
        let status = call("ImageStatus", self.deadline, client.image_status(request)).await?;
        Ok(status.image.is_some().then_some(status))
    }

    pub async fn pull_image(
        &self,
        name: &str,
        credential: Option<&RegistryCredential>,
        deadline: Duration,
    ) -> Result<(), CriError> {
        let image = ImageSpec {
            image: name.to_owned(),
            ..Default::default()
        };
        let request = PullImageRequest {
            image: Some(image),
            auth: credential.map(|credential| AuthConfig {
                username: credential.username.clone(),
                password: credential.password.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut client = self.images.clone();
        call("PullImage", deadline, client.pull_image(request))
            .await
            .map(|_| ())
    }
}
