//! The same Kubernetes, with the requests of `kubectl run` and `kubectl exec`.
//!
//! A raw box is one Pod in the namespace `default`, watched until it is Running. It has the
//! image, limits and requests of a box, but no namespace of its own, no network policy and no
//! boxd.

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

use super::{CONTAINER, DEADLINE, IMAGE, Names, Raw, RawBox};

/// The exec API's channel for the command's exit status.
const STATUS_CHANNEL: u8 = 3;
/// The label of every box's namespace.
const DEPLOYMENT_LABEL: &str = "agentbox.dev/deployment";
const POLL_INTERVAL: Duration = Duration::from_millis(50);

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
        let version = timeout(DEADLINE, client.apiserver_version()).await;
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
    fn pod(name: &str, cpus: u32) -> anyhow::Result<Pod> {
        let requested_cpu = format!("{}m", cpus * 50);
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
                        "limits": { "cpu": cpus.to_string(), "memory": "64Mi", "ephemeral-storage": "64Mi" },
                        "requests": { "cpu": requested_cpu, "memory": "16Mi", "ephemeral-storage": "0" },
                    },
                    "securityContext": { "allowPrivilegeEscalation": false },
                }],
            },
        });
        Ok(serde_json::from_value(pod)?)
    }

    async fn run(&self, pod: &Pod) -> anyhow::Result<()> {
        let made = self.pods.create(&PostParams::default(), pod).await?;
        let one_pod = WatchParams::default().fields(&format!("metadata.name={}", made.name_any()));
        // From the version of the create, so that no change is missed.
        let version = made.resource_version().unwrap_or_default();
        let mut changes = self.pods.watch(&one_pod, &version).await?.boxed();
        while let Some(change) = changes.try_next().await? {
            let pod = match change {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod,
                WatchEvent::Deleted(_) => bail!("the Pod was deleted"),
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
        let deletion = delete_and_finalize(self.pods.clone(), name, &ordinary);
        let outcome = timeout(DEADLINE, deletion)
            .await
            .context("the deadline was exceeded");
        if let Err(error) = outcome.and_then(|outcome| Ok(outcome?)) {
            println!("the Pod {name} was not removed: {error:#}");
        }
    }

    /// Runs `true` until its status arrives. It reads the WebSocket itself, because `kube`'s reader
    /// of the channels can hang.
    async fn exec_true(&self, raw: &RawBox) -> anyhow::Result<Duration> {
        let params = AttachParams::default().container(&raw.container);
        let request = Request::new(self.pods.resource_url()).exec(&raw.pod, ["true"], &params)?;
        let started = Instant::now();
        let mut messages = self.client.connect(request).await?.into_stream();
        while let Some(message) = messages.next().await {
            let message = message?.into_data();
            if let Some((&STATUS_CHANNEL, status)) = message.split_first() {
                let took = started.elapsed();
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

    async fn create(&self, name: &str, cpus: u32) -> anyhow::Result<(RawBox, Duration)> {
        let name = format!("{name}-{}", self.run);
        let pod = Self::pod(&name, cpus)?;
        let started = Instant::now();
        let running = timeout(DEADLINE, self.run(&pod)).await;
        let took = started.elapsed();
        if let Err(error) = running
            .context("the Pod does not run")
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
        let reply = timeout(DEADLINE, self.exec_true(raw)).await;
        reply.context("the command does not end")?
    }

    async fn remove(&self, raw: RawBox) {
        self.delete(&raw.pod).await;
    }

    /// Waits for the deletion of namespaces, which continues after the end of their boxes.
    async fn wait_idle(&self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let ours = ListParams::default().labels(DEPLOYMENT_LABEL);
        let idle = async {
            loop {
                let all = namespaces.list(&ours).await?;
                let is_terminating = |one: &Namespace| one.metadata.deletion_timestamp.is_some();
                if !all.iter().any(is_terminating) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let outcome = timeout(DEADLINE, idle)
            .await
            .context("the deadline was exceeded");
        if let Err(error) = outcome.and_then(|outcome| outcome) {
            println!("namespaces of ended boxes are not deleted: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_command_is_an_error_with_the_api_servers_message() {
        assert!(succeeded(br#"{"metadata":{},"status":"Success"}"#).is_ok());
        let failed = br#"{"metadata":{},"status":"Failure","reason":"NonZeroExitCode",
            "message":"command terminated with non-zero exit code"}"#;
        let error = succeeded(failed).unwrap_err();
        assert!(error.to_string().contains("non-zero"), "{error}");
    }
}
