//! The system to measure: the one that is named, or one started for it.
//!
//! `AGENTBOX_URL`, `AGENTBOX_ADMIN_USERNAME` and `AGENTBOX_ADMIN_PASSWORD` name one, from
//! the environment or else from `.agentbox/local.env`. `AGENTBOX_CONTAINERD_SOCKET` is
//! the containerd behind it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use agentbox_client::Client;
use agentbox_local::{Options, System};
use anyhow::Context as _;

const LOCAL_ENV: &str = ".agentbox/local.env";
/// Requests a minute: out of the way of what is measured.
const NO_RATE_LIMIT: &str = "1000000";

pub struct Target {
    pub client: Client,
    pub containerd: Option<PathBuf>,
    url: String,
    system: Option<System>,
}

impl Target {
    pub async fn find() -> anyhow::Result<Self> {
        let file = tokio::fs::read_to_string(LOCAL_ENV).await;
        let file = parse(&file.unwrap_or_default());
        let value = |name: &str| std::env::var(name).ok().or_else(|| file.get(name).cloned());
        let Some(url) = value("AGENTBOX_URL") else {
            return Self::start().await;
        };
        let of = |name| value(name).with_context(|| format!("{name} is not set"));
        let (username, password) = (
            of("AGENTBOX_ADMIN_USERNAME")?,
            of("AGENTBOX_ADMIN_PASSWORD")?,
        );
        Ok(Self {
            client: log_in(&url, &username, &password).await?,
            containerd: value("AGENTBOX_CONTAINERD_SOCKET").map(PathBuf::from),
            url,
            system: None,
        })
    }

    async fn start() -> anyhow::Result<Self> {
        let mut options = Options::default();
        for category in ["AUTH", "CREATE", "EXEC", "OTHER"] {
            let name = format!("AGENTBOX_RATE_LIMIT_{category}");
            options = options.env("api-gateway", &name, NO_RATE_LIMIT);
        }
        let system = System::start(options).await?;
        let url = system.url().to_owned();
        Ok(Self {
            client: log_in(&url, &system.admin.username, &system.admin.password).await?,
            containerd: system.containerd.as_ref().map(|found| found.socket.clone()),
            url,
            system: Some(system),
        })
    }

    pub fn describe(&self) -> String {
        match self.system {
            Some(_) => "a system started for this, one replica, without rate limits".to_owned(),
            None => format!("{}, with the rate limits that it has", self.url),
        }
    }

    pub async fn stop(self) {
        if let Some(system) = self.system {
            system.stop().await;
        }
    }
}

async fn log_in(url: &str, username: &str, password: &str) -> anyhow::Result<Client> {
    let (client, _) = Client::new(url)?
        .login(username, password)
        .await
        .context("logging in")?;
    Ok(client)
}

/// `NAME=value` lines, quotes around the value dropped.
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.trim().split_once('='))
        .map(|(name, value)| {
            let value = value.trim_matches(|c| c == '"' || c == '\'');
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_env_file_gives_names_and_unquoted_values() {
        let read = parse("AGENTBOX_URL=http://a:1\nP='x=y'\n\nnothing\n");
        assert_eq!(read["AGENTBOX_URL"], "http://a:1");
        assert_eq!(read["P"], "x=y");
        assert_eq!(read.len(), 2);
    }
}
