//! The requests that have one answer.

use std::time::Duration;

use agentbox_api::environment::{
    CreateEnvironment, DeleteQuery, EnvironmentBody, EnvironmentList, ListQuery, PatchEnvironment,
};
use agentbox_api::exec::{ExecBody, ExecReply};
use agentbox_api::logs::LogsReply;
use agentbox_api::user::{Login, LoginReply};
use agentbox_contracts::environment::Status;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{Attached, Error, Follow};

/// How often [`Client::wait_until`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Cheap to clone; clones share their connections. Ids are those of
/// [`EnvironmentBody::id`].
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    /// `url` is the server's, without `/api/v1`.
    ///
    /// # Errors
    /// [`Error::BaseUrl`] when it is not `http://`.
    pub fn new(url: &str) -> Result<Self, Error> {
        let base = url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") {
            return Err(Error::BaseUrl(base));
        }
        Ok(Self {
            http: reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(5))
                .build()?,
            base,
            token: None,
        })
    }

    /// With a login's token or an API key.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A client that acts as the user, and what the login answered.
    ///
    /// # Errors
    /// As every request: [`Error::Api`] with what the API answered.
    pub async fn login(&self, username: &str, password: &str) -> Result<(Self, LoginReply), Error> {
        let login = Login {
            username: username.to_owned(),
            password: password.to_owned(),
        };
        let request = self.request(Method::POST, "/auth/login").json(&login);
        let reply: LoginReply = read(send(request).await?).await?;
        Ok((self.clone().with_token(reply.token.clone()), reply))
    }

    /// # Errors
    /// As [`Client::login`].
    pub async fn create(&self, body: &CreateEnvironment) -> Result<EnvironmentBody, Error> {
        read(send(self.request(Method::POST, "/environments").json(body)).await?).await
    }

    /// # Errors
    /// As [`Client::login`].
    pub async fn get(&self, id: &str) -> Result<EnvironmentBody, Error> {
        read(send(self.request(Method::GET, &environment(id))).await?).await
    }

    /// # Errors
    /// As [`Client::login`].
    pub async fn list(&self, query: &ListQuery) -> Result<EnvironmentList, Error> {
        read(send(self.request(Method::GET, "/environments").query(query)).await?).await
    }

    /// # Errors
    /// As [`Client::login`].
    pub async fn patch(&self, id: &str, body: &PatchEnvironment) -> Result<EnvironmentBody, Error> {
        read(send(self.request(Method::PATCH, &environment(id)).json(body)).await?).await
    }

    /// Returns when the deletion is accepted, not when the box is gone.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), Error> {
        let request = self.request(Method::DELETE, &environment(id));
        send(request.query(&DeleteQuery { force })).await?;
        Ok(())
    }

    /// Looks until the environment has this status.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the status it had last; at once when it has ended in
    /// another one; as [`Client::login`].
    pub async fn wait_until(
        &self,
        id: &str,
        status: Status,
        within: Duration,
    ) -> Result<EnvironmentBody, Error> {
        let deadline = Instant::now() + within;
        let mut last = "nothing".to_owned();
        let missed = |last| Error::Deadline {
            what: format!("{id} {}", status.as_str()),
            within,
            last,
        };
        loop {
            let Ok(seen) = timeout_at(deadline, self.get(id)).await else {
                return Err(missed(last));
            };
            let seen = seen?;
            if seen.status == status {
                return Ok(seen);
            }
            last = format!("{} {:?}", seen.status.as_str(), seen.status_message);
            let over = matches!(seen.status, Status::Terminated | Status::Failed);
            if over || Instant::now() + LOOK_EVERY > deadline {
                return Err(missed(last));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits as long as the command may take.
    ///
    /// # Errors
    /// As [`Client::login`]. A command that fails is an answer.
    pub async fn exec(&self, id: &str, body: &ExecBody) -> Result<ExecReply, Error> {
        let path = format!("{}/exec", environment(id));
        read(send(self.request(Method::POST, &path).json(body)).await?).await
    }

    /// The last `tail` lines of the main command; all that are kept when `None`.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn logs(&self, id: &str, tail: Option<u64>) -> Result<LogsReply, Error> {
        read(send(self.logs_request(id, tail)).await?).await
    }

    /// The last `tail` lines and those to come.
    ///
    /// # Errors
    /// As [`Client::login`], before the stream begins.
    pub async fn follow(&self, id: &str, tail: Option<u64>) -> Result<Follow, Error> {
        let request = self.logs_request(id, tail).query(&[("follow", "true")]);
        Ok(Follow::new(send(request).await?))
    }

    /// A terminal; `query` is added to the address (see the API for what it may hold).
    ///
    /// # Errors
    /// As [`Client::login`] for a refused handshake; [`Error::WebSocket`].
    pub async fn attach(&self, id: &str, query: &[(&str, &str)]) -> Result<Attached, Error> {
        let path = format!("{}/attach", environment(id));
        let request = self.request(Method::GET, &path).query(query).build()?;
        Attached::connect(request.url().as_str(), self.token.as_deref()).await
    }

    fn logs_request(&self, id: &str, tail: Option<u64>) -> RequestBuilder {
        let request = self.request(Method::GET, &format!("{}/logs", environment(id)));
        match tail {
            Some(tail) => request.query(&[("tail", tail)]),
            None => request,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}/api/v1{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

fn environment(id: &str) -> String {
    format!("/environments/{id}")
}

async fn send(request: RequestBuilder) -> Result<Response, Error> {
    let answer = request.send().await?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    Err(Error::of_answer(status.as_u16(), &answer.bytes().await?))
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, Error> {
    Ok(serde_json::from_slice(&answer.bytes().await?)?)
}
