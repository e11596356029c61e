//! The cluster's registry: on the node, behind a login, for images that are not imported.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::api::SYSTEM_NAMESPACE;
use super::configuration::{Files, WriteError};
use super::node::Addresses;
use crate::secrets::write_private;

const PORT: u16 = 5_000;
const USER: &str = "agentbox";
/// The Secret with the login, in our services' namespace.
pub(crate) const SECRET: &str = "registry";

pub(crate) fn address(addresses: &Addresses) -> SocketAddr {
    (addresses.node, PORT).into()
}

/// A Docker client's configuration that logs in.
pub(crate) fn login(run: &Path) -> PathBuf {
    run.join("registry/config.json")
}

pub(crate) fn configuration(files: &Files) -> PathBuf {
    files.at("registry/server.json")
}

/// What the server and its clients read. The images themselves go into `storage`.
pub(crate) fn write(
    files: &Files,
    addresses: &Addresses,
    storage: &Path,
) -> Result<(), WriteError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WriteError::File { path, source }
    };
    let address = address(addresses).to_string();
    let password = hex::encode(rand::random::<[u8; 16]>());
    let users = files.at("registry/htpasswd");
    // The password is random: a slow hash would protect nothing.
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
        write_private(&path, text.as_bytes()).map_err(failed(&path))?;
    }
    std::fs::create_dir_all(storage).map_err(failed(storage))
}

/// The login as Pods use it, with its place in the API.
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
