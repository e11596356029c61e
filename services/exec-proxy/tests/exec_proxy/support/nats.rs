//! The NATS server, with the users and permissions that it has in production.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use agentbox_contracts::permissions::{SERVICES, for_service};

use super::eventually;

const PASSWORD: &str = "a-test-password";

pub struct Nats {
    port: u16,
    process: Child,
    _store: tempfile::TempDir,
}

static SHARED: Mutex<Weak<Nats>> = Mutex::new(Weak::new());

/// The server that the tests running now share; it ends with the last of them.
pub async fn shared() -> Arc<Nats> {
    let nats = {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let nats = Arc::new(Nats::spawn());
            *shared = Arc::downgrade(&nats);
            nats
        })
    };
    eventually("NATS listens", Duration::from_secs(10), async || {
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, nats.port))
            .await
            .is_ok()
    })
    .await;
    nats
}

impl Nats {
    fn spawn() -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let store = tempfile::tempdir().unwrap();
        let users: Vec<serde_json::Value> = SERVICES
            .iter()
            .map(|service| {
                let allowed = for_service(service).unwrap();
                serde_json::json!({
                    "user": service,
                    "password": PASSWORD,
                    "permissions": { "publish": allowed.publish, "subscribe": allowed.subscribe },
                })
            })
            .collect();
        let config = serde_json::json!({
            "listen": format!("127.0.0.1:{port}"),
            "jetstream": { "store_dir": store.path() },
            "authorization": { "users": users },
        });
        let path = store.path().join("nats.conf");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(config.to_string().as_bytes()).unwrap();
        let program = std::env::var_os("AGENTBOX_NATS_SERVER")
            .map_or_else(|| PathBuf::from("nats-server"), PathBuf::from);
        let process = Command::new(&program)
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self {
            port,
            process,
            _store: store,
        }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn credentials(&self, service: &str) -> (String, String) {
        (service.to_owned(), PASSWORD.to_owned())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
