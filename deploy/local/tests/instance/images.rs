//! The pulls of an instance go through its registry proxy, and the scheduler's metrics count images.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use agentbox_testing::{Options, System, eventually};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::api::{Api, small};
use crate::kills::kill;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONTENT: &str = "application/octet-stream";
/// Longer than two checks of the images' file system.
const DEADLINE: Duration = Duration::from_secs(90);

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

/// A registry that delivers the image `team/good`. Its other answers refer to `trap`: the blobs of
/// `team/redirect`, and the login of `team/realm`.
struct Registry {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
    trap: SocketAddr,
    /// The paths of the requests until now.
    requests: Mutex<Vec<String>>,
}

impl Registry {
    fn new(trap: SocketAddr) -> Self {
        // An empty archive.
        let layer = vec![0; 1_024];
        let config = json!({
            "architecture": match std::env::consts::ARCH { "aarch64" => "arm64", _ => "amd64" },
            "os": "linux",
            // As an image that is to change boxd.
            "config": {
                "Env": ["PATH=/", "AGENTBOX_BOXD_WARM=true"],
                // A containerd of an earlier run has another blob, and must request this one.
                "Labels": { "run": rand::random::<u64>().to_string() },
            },
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
        Self {
            manifest: manifest.to_string().into_bytes(),
            config,
            layer,
            trap,
            requests: Mutex::default(),
        }
    }

    /// Whether a request for a path with this beginning has arrived.
    fn was_asked(&self, beginning: &str) -> bool {
        let requests = self.requests.lock().unwrap();
        requests.iter().any(|path| path.starts_with(beginning))
    }
}

async fn serve(State(registry): State<Arc<Registry>>, uri: Uri) -> Response {
    let (path, trap) = (uri.path(), registry.trap);
    registry.requests.lock().unwrap().push(path.to_owned());
    let content = |kind: &'static str, body: &[u8]| {
        let headers = [
            ("content-type", kind.to_owned()),
            ("docker-content-digest", digest(body)),
            // Of the content, also in the answer to HEAD.
            ("content-length", body.len().to_string()),
        ];
        (headers, body.to_vec()).into_response()
    };
    if path.contains("/realm/") {
        let challenge = format!("Bearer realm=\"http://{trap}/token\"");
        let headers = [("www-authenticate", challenge)];
        (StatusCode::UNAUTHORIZED, headers).into_response()
    } else if path.contains("/manifests/") {
        content(MANIFEST, &registry.manifest)
    } else if path.contains("/redirect/") {
        let headers = [("location", format!("http://{trap}/blob"))];
        (StatusCode::TEMPORARY_REDIRECT, headers).into_response()
    } else if path.ends_with(&digest(&registry.config)) {
        content(CONTENT, &registry.config)
    } else {
        content(CONTENT, &registry.layer)
    }
}

/// Restarts the scheduler with a cluster that allows images of `registries` and always removes
/// images that no box uses.
async fn configure(system: &System, registries: &[SocketAddr]) {
    let path = system.clusters_file();
    let mut clusters: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let cluster = &mut clusters["clusters"][0];
    let registries: Vec<String> = registries.iter().map(ToString::to_string).collect();
    cluster["allowed_registries"] = json!(registries);
    cluster["containerd"]["image_gc_high_percent"] = json!(1);
    cluster["containerd"]["image_gc_low_percent"] = json!(0);
    std::fs::write(&path, clusters.to_string()).unwrap();
    kill(system, "scheduler", 0).await;
}

async fn create(api: &Api, name: &str, image: &str) -> String {
    let mut body = small(name);
    body["image"] = image.into();
    let created = api.create_as(body).await;
    created["id"].as_str().unwrap().to_owned()
}

/// The sum over a metric's lines on the scheduler's admin port.
async fn metric(system: &System, name: &str) -> f64 {
    let url = format!("{}/metrics", system.admin_url("scheduler", 0).unwrap());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    text.lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[tokio::test]
async fn pulls_reach_no_address_that_a_registry_names_and_images_are_counted() {
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let trap_address = trap.local_addr().unwrap();
    let registry = Arc::new(Registry::new(trap_address));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(serve).with_state(registry.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let exception = format!("http://{address}");
    let options = Options::default().env(
        "registry-proxy",
        "AGENTBOX_REGISTRY_EXCEPTIONS",
        exception.as_str(),
    );
    let system = System::start(options).await.unwrap();
    configure(&system, &[address, trap_address]).await;
    let api = Api::of(&system).await;

    // These before `good`, whose blobs containerd would not request again.
    for (name, image) in [
        ("redirect", format!("{address}/team/redirect:1")),
        ("realm", format!("{address}/team/realm:1")),
        // A registry that the cluster allows, and that is no exception of the proxy.
        ("direct", format!("{trap_address}/team/direct:1")),
    ] {
        let id = create(&api, name, &image).await;
        let failed = api.wait_for_status(&id, "failed").await;
        assert_eq!(failed["status_reason"], "IMAGE_PULL", "{failed}");
        let reached = trap.accept().map_err(|error| error.kind());
        assert_eq!(reached.err(), Some(ErrorKind::WouldBlock), "{image}");
    }
    assert!(registry.was_asked("/v2/team/redirect/blobs/"));
    assert!(registry.was_asked("/v2/team/realm/manifests/"));
    let refused = metric(&system, "agentbox_image_pulls_refused_total").await;
    assert!(refused >= 3.0, "{refused}");

    let image = format!("{address}/team/good:1");
    let id = create(&api, "good", &image).await;
    api.wait_for_status(&id, "running").await;
    // Of the pulls, the only one that succeeded.
    let pulled = "agentbox_environment_stage_duration_seconds_count{stage=\"pulled\"}";
    assert_eq!(metric(&system, pulled).await, 1.0);
    // The image has no program, and no variable of it is boxd's.
    let command = json!({ "command": ["nothing"] });
    let path = format!("/environments/{id}/exec");
    let (status, result) = api.once(Method::POST, &path, Some(command)).await;
    assert_eq!(status, 200, "{result}");
    assert_eq!(result["exit_code"], 127, "{result}");
    api.delete(&id).await;
    api.wait_for_status(&id, "terminated").await;
    // As if it was used long ago.
    let containerd = system.containerd.as_ref().unwrap();
    let records = containerd.image_records_dir.as_ref().unwrap();
    let old = SystemTime::now() - Duration::from_secs(3_600);
    let aged = age_files(&records.join("pulled-images"), old);
    assert!(aged > 0, "{records:?} has no record");
    eventually("the image is removed", DEADLINE, async || {
        metric(&system, "agentbox_images_removed_total").await >= 1.0
    })
    .await;
    for name in [
        "agentbox_image_removed_bytes_total",
        "agentbox_image_filesystem_bytes{state=\"used\"}",
        "agentbox_image_filesystem_bytes{state=\"available\"}",
    ] {
        assert!(metric(&system, name).await > 0.0, "{name}");
    }
    system.stop().await;
    server.abort();
}

/// Sets the time of all files below a directory; returns their number.
fn age_files(directory: &Path, time: SystemTime) -> usize {
    let mut aged = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            aged += age_files(&path, time);
        } else {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(time).unwrap();
            aged += 1;
        }
    }
    aged
}
