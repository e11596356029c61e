//! Where a program listens, and whether it answers.

use std::net::SocketAddr;

pub(super) fn url_of(address: SocketAddr) -> String {
    // 0.0.0.0 is where to listen, not where to go.
    if address.ip().is_unspecified() {
        format!("http://127.0.0.1:{}", address.port())
    } else {
        format!("http://{address}")
    }
}

pub(super) async fn answers(http: &reqwest::Client, url: String) -> Result<(), String> {
    match http.get(url).send().await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => {
            let status = answer.status();
            let said = answer.text().await.unwrap_or_default();
            Err(format!(
                "{status} {}",
                said.chars().take(200).collect::<String>()
            ))
        }
        Err(_) => Err("it does not answer yet".to_owned()),
    }
}
