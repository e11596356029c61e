//! HTTP readiness probes.

use std::net::SocketAddr;

pub(super) fn url_of(address: SocketAddr) -> String {
    // 0.0.0.0 is an address to listen on, not one to connect to.
    if address.ip().is_unspecified() {
        format!("http://127.0.0.1:{}", address.port())
    } else {
        format!("http://{address}")
    }
}

/// Succeeds when the URL answers with a 2xx status; otherwise gives the reason.
pub(super) async fn probe(http: &reqwest::Client, url: String) -> Result<(), String> {
    match http.get(url).send().await {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => {
            let status = response.status();
            let body = response.text().await.unwrap_or_default();
            Err(format!(
                "{status} {}",
                body.chars().take(200).collect::<String>()
            ))
        }
        Err(_) => Err("it does not answer yet".to_owned()),
    }
}
