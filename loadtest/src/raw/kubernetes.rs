//! The same Kubernetes, asked as `kubectl run` and `kubectl exec` ask it.
//!
//! A raw box is one Pod in the namespace `default`, made and then watched until it is
//! Running: the same image, limits and requests as a box; without a namespace of its own,
//! network policy, boxd and everything around them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::runtime::wait::delete::delete_and_finalize;
use kube::{Client, Config, ResourceExt as _};
use serde_json::json;
use tokio::time::timeout;

use super::{CONTAINER, Names, Raw, RawBox, WITHIN};
use crate::boxes::IMAGE;

/// The exec API's channel on which a command's end is told.
const STATUS_CHANNEL: u8 = 3;
/// Only our namespaces have it.
const OURS: &str = "agentbox.dev/deployment";
const LOOK: Duration = Duration::from_millis(50);

pub struct Kubernetes {
    client: Client,
    pods: Api<Pod>,
    run: u32,
}

impl Kubernetes {
    pub async fn connect(kubeconfig: &Path) -> anyhow::Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let version = timeout(WITHIN, client.apiserver_version()).await;
        version
            .context("the API server does not answer")?
            .context("asking the API server")?;
        Ok(Self {
            pods: Api::namespaced(client.clone(), "default"),
            client,
            run: std::process::id(),
        })
    }

    /// The requests are the limits divided by the driver's `cpu_overcommit` and
    /// `memory_overcommit`.
    fn pod(name: &str) -> anyhow::Result<Pod> {
        let pod = json!({
            "metadata": { "name": name },
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [{
                    "name": CONTAINER,
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "900"],
                    "resources": {
                        "limits": { "cpu": "1", "memory": "64Mi", "ephemeral-storage": "64Mi" },
                        "requests": { "cpu": "50m", "memory": "16Mi", "ephemeral-storage": "0" },
                    },
                    "securityContext": { "allowPrivilegeEscalation": false },
                }],
            },
        });
        Ok(serde_json::from_value(pod)?)
    }

    async fn run(&self, pod: &Pod) -> anyhow::Result<()> {
        let made = self.pods.create(&PostParams::default(), pod).await?;
        let this = WatchParams::default().fields(&format!("metadata.name={}", made.name_any()));
        // From the create's own version: no change is missed.
        let version = made.resource_version().unwrap_or_default();
        let mut changes = self.pods.watch(&this, &version).await?.boxed();
        while let Some(change) = changes.try_next().await? {
            let pod = match change {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod,
                WatchEvent::Deleted(_) => bail!("the Pod is gone"),
                WatchEvent::Error(status) => bail!("watching the Pod: {}", status.message),
                WatchEvent::Bookmark(_) => continue,
            };
            match pod.status.and_then(|status| status.phase).as_deref() {
                Some("Running") => return Ok(()),
                Some(ended @ ("Failed" | "Succeeded")) => bail!("the Pod is {ended}"),
                _ => {}
            }
        }
        bail!("the watch ended")
    }

    async fn delete(&self, name: &str) {
        let ordinary = DeleteParams::default();
        let gone = delete_and_finalize(self.pods.clone(), name, &ordinary);
        let outcome = timeout(WITHIN, gone).await.context("it takes too long");
        if let Err(error) = outcome.and_then(|outcome| Ok(outcome?)) {
            println!("the Pod {name} may be left: {error:#}");
        }
    }

    /// Until the command's status arrives. `kube`'s own reader of the channels can hang.
    async fn attach(&self, raw: &RawBox) -> anyhow::Result<Duration> {
        let whole = AttachParams::default().container(&raw.container);
        let request = Request::new(self.pods.resource_url()).exec(&raw.pod, ["true"], &whole)?;
        let began = Instant::now();
        let mut messages = self.client.connect(request).await?.into_stream();
        while let Some(message) = messages.next().await {
            let message = message?.into_data();
            if let Some((&STATUS_CHANNEL, status)) = message.split_first() {
                let took = began.elapsed();
                let _ = messages.close(None).await;
                return succeeded(status).map(|()| took);
            }
        }
        bail!("the connection ended without a status")
    }
}

fn succeeded(status: &[u8]) -> anyhow::Result<()> {
    let status: Status = serde_json::from_slice(status)?;
    let message = status.message.unwrap_or_default();
    ensure!(status.status.as_deref() == Some("Success"), "{message}");
    Ok(())
}

#[async_trait]
impl Raw for Kubernetes {
    fn names(&self) -> Names {
        Names {
            create: "raw Pod",
            exec: "raw exec API",
        }
    }

    async fn create(&self, name: &str) -> anyhow::Result<(RawBox, Duration)> {
        let name = format!("{name}-{}", self.run);
        let pod = Self::pod(&name)?;
        let began = Instant::now();
        let running = timeout(WITHIN, self.run(&pod)).await;
        let took = began.elapsed();
        if let Err(error) = running
            .context("it does not run")
            .and_then(|running| running)
        {
            self.delete(&name).await;
            return Err(error);
        }
        let container = CONTAINER.to_owned();
        let pod = name;
        Ok((RawBox { pod, container }, took))
    }

    async fn exec(&self, raw: &RawBox) -> anyhow::Result<Duration> {
        let answer = timeout(WITHIN, self.attach(raw)).await;
        answer.context("the command does not end")?
    }

    async fn remove(&self, raw: RawBox) {
        self.delete(&raw.pod).await;
    }

    /// A box has ended when its Pod is gone: its namespace goes behind that.
    async fn settle(&self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let ours = ListParams::default().labels(OURS);
        let settled = async {
            loop {
                let all = namespaces.list(&ours).await?;
                let is_going = |one: &Namespace| one.metadata.deletion_timestamp.is_some();
                if !all.iter().any(is_going) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let outcome = timeout(WITHIN, settled).await.context("they do not go");
        if let Err(error) = outcome.and_then(|outcome| outcome) {
            println!("namespaces of ended boxes: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_ends_with_1_is_a_failure_in_the_api_servers_words() {
        assert!(succeeded(br#"{"metadata":{},"status":"Success"}"#).is_ok());
        let failed = br#"{"metadata":{},"status":"Failure","reason":"NonZeroExitCode",
            "message":"command terminated with non-zero exit code"}"#;
        let error = succeeded(failed).unwrap_err();
        assert!(error.to_string().contains("non-zero"), "{error}");
    }
}
