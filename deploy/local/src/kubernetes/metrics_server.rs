//! metrics-server as an extension of the API server: the keys with which the API server
//! authenticates to it, and the objects by which the API server finds it.

use agentbox_testing::endpoint::kubernetes::ClusterAddresses;
use agentbox_testing::tool::{Tool, ToolError};
use serde_json::{Value, json};

use super::configuration::Files;
use super::node;

pub(crate) const PORT: u16 = 4_443;
/// The common name of the API server's client certificate.
pub(crate) const CLIENT_NAME: &str = "front-proxy-client";
/// The file names of the client certificate and of its authority.
pub(crate) const CLIENT: &str = "front-proxy-client";
pub(crate) const CLIENT_CA: &str = "front-proxy-ca";
const NAMESPACE: &str = "kube-system";
const NAME: &str = "metrics-server";

/// Writes a client certificate of the API server and the certificate of its authority.
pub(crate) async fn write_keys(files: &Files) -> Result<(), ToolError> {
    let new = |name: &str, subject: &str| {
        let subject = format!("/CN={subject}");
        let key = files.key(name);
        let certificate = files.certificate(name);
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
    new(CLIENT_CA, "agentbox-front-proxy-ca").run().await?;
    new(CLIENT, CLIENT_NAME)
        .args(["-CA".as_ref(), files.certificate(CLIENT_CA).as_path()])
        .args(["-CAkey".as_ref(), files.key(CLIENT_CA).as_path()])
        .run()
        .await?;
    Ok(())
}

/// Each object with its path in the API.
pub(crate) fn objects(addresses: &ClusterAddresses) -> Vec<(String, Value)> {
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
                    // Its certificate is self-signed.
                    "insecureSkipTLSVerify": true,
                    "service": { "name": NAME, "namespace": NAMESPACE },
                },
            }),
        ),
    ]
}
