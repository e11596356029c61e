//! Chromium, driven over the DevTools protocol (<https://chromedevtools.github.io/devtools-protocol/>).

use std::process::Stdio;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::{TIMEOUT, eventually};

/// Without a sandbox, because the tests run as root, and without requests of its own.
const FLAGS: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-port=0",
];

/// A browser with a new profile. It ends when this value is dropped, and when this process ends.
pub struct Browser {
    process: Child,
    port: u16,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser that resolves the names of hosts by these rules (`--host-resolver-rules`).
    pub async fn start(rules: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "chromium"])
            .args(FLAGS)
            .arg(format!("--host-resolver-rules={rules}"))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let file = profile.path().join("DevToolsActivePort");
        let port = eventually("Chromium, which `make test-browser` installs", async || {
            let text = std::fs::read_to_string(&file).ok()?;
            let (port, _) = text.split_once('\n')?;
            port.parse::<u16>().ok()
        })
        .await;
        Self {
            process,
            port,
            _profile: profile,
        }
    }

    /// Opens an empty page in a tab of its own. Pages share their cookies.
    pub async fn page(&self) -> Page {
        let address = format!("http://127.0.0.1:{}/json/new?about:blank", self.port);
        let created = reqwest::Client::new().put(address).send().await.unwrap();
        let created: Value = created.json().await.unwrap();
        let address = created["webSocketDebuggerUrl"].as_str().unwrap();
        let (socket, _) = connect_async(address).await.unwrap();
        Page { socket, last: 0 }
    }

    pub async fn stop(mut self) {
        self.process.kill().await.unwrap();
    }
}

pub struct Page {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The number of the last call.
    last: u64,
}

impl Page {
    async fn try_call(&mut self, method: &str, parameters: Value) -> Result<Value, Value> {
        self.last += 1;
        let number = self.last;
        let call = json!({"id": number, "method": method, "params": parameters});
        let call = Message::text(call.to_string());
        self.socket.send(call).await.unwrap();
        let answer = timeout(TIMEOUT, async {
            loop {
                let message = self.socket.next().await.expect("the page is open");
                if let Message::Text(text) = message.unwrap() {
                    let message: Value = serde_json::from_str(text.as_str()).unwrap();
                    if message["id"] == number {
                        return message;
                    }
                }
            }
        })
        .await
        .expect("an answer of Chromium in time");
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].clone()),
        }
    }

    /// Calls a method of the protocol.
    pub async fn call(&mut self, method: &str, parameters: Value) -> Value {
        let answer = self.try_call(method, parameters).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_run(&mut self, script: &str) -> Result<Value, Value> {
        let parameters = json!({
            "expression": script,
            "awaitPromise": true,
            "returnByValue": true,
            "userGesture": true,
        });
        let answer = self.try_call("Runtime.evaluate", parameters).await?;
        match answer.get("exceptionDetails") {
            Some(thrown) => Err(thrown.clone()),
            None => Ok(answer["result"]["value"].clone()),
        }
    }

    /// Runs a script in the page, as after a click of its user, and returns its value, or that of its
    /// promise.
    pub async fn run(&mut self, script: &str) -> Value {
        let value = self.try_run(script).await;
        value.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until a script has this value.
    pub async fn until(&mut self, script: &str, expected: Value) {
        let what = format!("{script} is {expected}");
        agentbox_testing::eventually(&what, TIMEOUT, async || {
            // While a page is replaced it runs no script.
            self.try_run(script).await.as_ref() == Ok(&expected)
        })
        .await;
    }

    /// Opens an address, also one that answers with an error.
    pub async fn open(&mut self, address: &str) {
        let opened = self.call("Page.navigate", json!({"url": address})).await;
        assert!(opened.get("errorText").is_none(), "{address}: {opened}");
    }
}
