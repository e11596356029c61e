//! The cluster's registry: on the node, with a login, for images that are not imported.

use std::io;
use std::path::{Path, PathBuf};

use agentbox_testing::endpoint::kubernetes::ClusterAddresses;
use agentbox_testing::private_file;
use serde_json::{Value, json};

use super::api::SYSTEM_NAMESPACE;
use super::configuration::{Files, WriteError};

const USER: &str = "agentbox";
/// The name of the Secret with the login, in the services' namespace.
pub(crate) const SECRET: &str = "registry";

/// The path of a Docker client's `config.json` with the login.
pub(crate) fn login(run: &Path) -> PathBuf {
    run.join("registry/config.json")
}

pub(crate) fn configuration(files: &Files) -> PathBuf {
    files.at("registry/server.json")
}

/// Writes the configuration of the server and of its clients. Images are kept in `storage`.
pub(crate) fn write(
    files: &Files,
    addresses: &ClusterAddresses,
    storage: &Path,
) -> Result<(), WriteError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WriteError::File { path, source }
    };
    let address = addresses.registry().to_string();
    let password = hex::encode(rand::random::<[u8; 16]>());
    let users = files.at("registry/htpasswd");
    // The lowest cost, because a random password needs no slow hash.
    let hash = bcrypt::hash(&password, 4).map_err(io::Error::other);
    let line = format!("{USER}:{}\n", hash.map_err(failed(&users))?);
    let server = json!({
        "version": "0.1",
        "log": { "level": "warn" },
        "storage": { "filesystem": { "rootdirectory": storage }, "delete": { "enabled": true } },
        "http": { "addr": address, "secret": hex::encode(rand::random::<[u8; 16]>()) },
        "auth": { "htpasswd": { "realm": "agentbox", "path": users } },
    });
    let client =
        json!({ "auths": { (address.clone()): { "username": USER, "password": password } } });
    let hosts = files.at("certs.d").join(&address).join("hosts.toml");
    for (path, text) in [
        (users.clone(), line),
        (configuration(files), server.to_string()),
        (login(&files.at("")), client.to_string()),
        (hosts, format!("server = \"http://{address}\"\n")),
    ] {
        let directory = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory).map_err(failed(directory))?;
        private_file::write(&path, text.as_bytes()).map_err(failed(&path))?;
    }
    std::fs::create_dir_all(storage).map_err(failed(storage))
}

/// The Secret with the login, for Pods, with its path in the API.
pub(crate) fn secret(run: &Path) -> Result<(String, Value), WriteError> {
    let path = login(run);
    let text = std::fs::read_to_string(&path);
    let login = text.map_err(|source| WriteError::File { path, source })?;
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": { "name": SECRET, "namespace": SYSTEM_NAMESPACE },
        "stringData": { ".dockerconfigjson": login },
    });
    let path = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/{SECRET}");
    Ok((path, object))
}
