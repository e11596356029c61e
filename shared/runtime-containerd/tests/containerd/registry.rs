//! A registry on this machine, with one image that contains no file.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::RegistryCredential;
use agentbox_testing::paths::run_directory;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `ada:secret`.
const LOGIN: &str = "Basic YWRhOnNlY3JldA==";

/// The login that the registry demands.
pub fn login() -> RegistryCredential {
    RegistryCredential {
        username: "ada".to_owned(),
        password: "secret".to_owned(),
    }
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

struct Content {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
    /// Whether it demands the login.
    is_private: bool,
    requests: AtomicUsize,
}

/// Ends when it is dropped.
pub struct Registry {
    address: SocketAddr,
    repository: String,
    content: Arc<Content>,
    server: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    /// Starts a registry that the containerd of `deployment` reaches directly.
    pub async fn start(deployment: &str, is_private: bool) -> Self {
        // An empty archive, and a configuration of its own, so that the image is no other test's.
        let layer = vec![0; 1_024];
        let config = json!({
            "architecture": match std::env::consts::ARCH { "aarch64" => "arm64", _ => "amd64" },
            "os": "linux",
            "config": { "Env": ["PATH=/"], "Labels": { "id": EnvironmentId::random() } },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest(&layer), "size": layer.len(),
            }],
        });
        let content = Arc::new(Content {
            manifest: manifest.to_string().into_bytes(),
            config,
            layer,
            is_private,
            requests: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hosts = run_directory(deployment)
            .join("certs.d")
            .join(address.to_string());
        std::fs::create_dir_all(&hosts).unwrap();
        // containerd 1.6 ignores a file without a table of hosts.
        let server = format!("server = \"http://{address}\"\n[host.\"http://{address}\"]\n");
        std::fs::write(hosts.join("hosts.toml"), server).unwrap();
        let served = content.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let content = served.clone();
                tokio::spawn(async move { serve(stream, &content).await });
            }
        });
        Self {
            address,
            repository: format!("team/{}", EnvironmentId::random()),
            content,
            server,
        }
    }

    /// The image by its tag.
    pub fn image(&self) -> String {
        format!("{}/{}:1", self.address, self.repository)
    }

    /// The image by its digest.
    pub fn image_by_digest(&self) -> String {
        let digest = digest(&self.content.manifest);
        format!("{}/{}@{digest}", self.address, self.repository)
    }

    /// The number of requests until now.
    pub fn requests(&self) -> usize {
        self.content.requests.load(Ordering::SeqCst)
    }
}

/// Answers one request.
async fn serve(mut stream: TcpStream, content: &Content) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    content.requests.fetch_add(1, Ordering::SeqCst);
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let path = path.split('?').next().unwrap();
    let has_login = head.lines().any(|line| {
        line.split_once(": ").is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("authorization") && value == LOGIN
        })
    });
    let found = match path {
        _ if path.contains("/manifests/") => Some((MANIFEST, &content.manifest)),
        _ if path.ends_with(&digest(&content.config)) => {
            Some(("application/octet-stream", &content.config))
        }
        _ if path.ends_with(&digest(&content.layer)) => {
            Some(("application/octet-stream", &content.layer))
        }
        _ => None,
    };
    let (head, body): (String, &[u8]) = match found {
        _ if content.is_private && !has_login => (
            "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"\r\nContent-Length: 0"
                .to_owned(),
            &[],
        ),
        Some((kind, body)) => (
            format!(
                "200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {}\r\nContent-Length: {}",
                digest(body),
                body.len()
            ),
            body,
        ),
        None => ("404 Not Found\r\nContent-Length: 0".to_owned(), &[]),
    };
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).await;
    if method != "HEAD" {
        let _ = stream.write_all(body).await;
    }
    let _ = stream.shutdown().await;
}
