//! metrics-server as the API server's extension: the keys by which it believes the API
//! server, and where the API server finds it.

use serde_json::{Value, json};

use super::configuration::Files;
use super::node::{self, Addresses};
use crate::tool::{Tool, ToolError};

pub(crate) const PORT: u16 = 4_443;
/// Who the API server is to its extensions.
pub(crate) const CALLER: &str = "front-proxy-client";
const NAMESPACE: &str = "kube-system";
const NAME: &str = "metrics-server";

/// A certificate of the API server as a caller, and the authority that signed it.
pub(crate) async fn write_keys(files: &Files) -> Result<(), ToolError> {
    let new = |name: &str, subject: &str| {
        let subject = format!("/CN={subject}");
        let key = files.at(&format!("certificates/{name}.key"));
        let certificate = files.at(&format!("certificates/{name}.crt"));
        Tool::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "3650", "-newkey", "ec"])
            .args([
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-subj",
                &subject,
            ])
            .args(["-keyout".as_ref(), key.as_path()])
            .args(["-out".as_ref(), certificate.as_path()])
    };
    new("callers", "agentbox-callers").run().await?;
    new("caller", CALLER)
        .args([
            "-CA".as_ref(),
            files.at("certificates/callers.crt").as_path(),
        ])
        .args([
            "-CAkey".as_ref(),
            files.at("certificates/callers.key").as_path(),
        ])
        .run()
        .await?;
    Ok(())
}

/// Each object with its place in the API.
pub(crate) fn objects(addresses: &Addresses) -> Vec<(String, Value)> {
    let metadata = json!({ "name": NAME, "namespace": NAMESPACE });
    vec![
        (
            format!("/api/v1/namespaces/{NAMESPACE}/services/{NAME}"),
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": { "ports": [{ "name": "https", "port": 443, "targetPort": PORT }] },
            }),
        ),
        (
            format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{NAME}"),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": NAME, "namespace": NAMESPACE,
                    "labels": { "kubernetes.io/service-name": NAME },
                },
                "addressType": "IPv4",
                "ports": [{ "name": "https", "port": PORT }],
                "endpoints": [{
                    "addresses": [addresses.node], "conditions": { "ready": true },
                    "nodeName": node::NAME,
                }],
            }),
        ),
        (
            "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io".to_owned(),
            json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": { "name": "v1beta1.metrics.k8s.io" },
                "spec": {
                    "group": "metrics.k8s.io", "version": "v1beta1",
                    "groupPriorityMinimum": 100, "versionPriority": 100,
                    // It signs its own certificate.
                    "insecureSkipTLSVerify": true,
                    "service": { "name": NAME, "namespace": NAMESPACE },
                },
            }),
        ),
    ]
}
