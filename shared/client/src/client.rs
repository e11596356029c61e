//! The requests that have one answer, and the opening of what is followed.

use std::future::Future;
use std::time::Duration;

use agentbox_api::environment::{
    CreateEnvironment, DeleteQuery, EnvironmentBody, EnvironmentList, ListQuery, PatchEnvironment,
};
use agentbox_api::event::EventBody;
use agentbox_api::exec::{ExecBody, ExecReply};
use agentbox_api::logs::LogsReply;
use agentbox_api::user::{Login, LoginReply};
use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use crate::sse::Sse;
use crate::{Attached, Error, Events, Follow};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A whole answer, or the head of one that streams.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Beyond a command's own timeout; more than the server allows itself.
const EXEC_GRACE: Duration = Duration::from_secs(60);

/// Cheap to clone; clones share their connections.
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
                .connect_timeout(CONNECT_WITHIN)
                .tcp_nodelay(true)
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
    pub async fn get(&self, id: &EnvironmentId) -> Result<EnvironmentBody, Error> {
        read(send(self.request(Method::GET, &environment(id))).await?).await
    }

    /// # Errors
    /// As [`Client::login`].
    pub async fn list(&self, query: &ListQuery) -> Result<EnvironmentList, Error> {
        read(send(self.request(Method::GET, "/environments").query(query)).await?).await
    }

    /// # Errors
    /// As [`Client::login`].
    pub async fn patch(
        &self,
        id: &EnvironmentId,
        body: &PatchEnvironment,
    ) -> Result<EnvironmentBody, Error> {
        read(send(self.request(Method::PATCH, &environment(id)).json(body)).await?).await
    }

    /// Returns when the deletion is accepted, not when the box is gone.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn delete(&self, id: &EnvironmentId, force: bool) -> Result<(), Error> {
        let request = self.request(Method::DELETE, &environment(id));
        send(request.query(&DeleteQuery { force })).await?;
        Ok(())
    }

    /// What has happened to an environment, and what happens.
    ///
    /// # Errors
    /// As [`Client::login`], before the stream begins.
    pub async fn events(&self, id: &EnvironmentId) -> Result<Events, Error> {
        let path = format!("{}/events", environment(id));
        let request = self.stream(&path).query(&[("follow", "true")]);
        Ok(Events(open(request).await?))
    }

    /// Waits for the event of this status, which comes even if it is past.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the status it had last; at once when it has ended in
    /// another one; as [`Client::events`].
    pub async fn wait_until(
        &self,
        id: &EnvironmentId,
        status: Status,
        within: Duration,
    ) -> Result<EventBody, Error> {
        let deadline = Instant::now() + within;
        let mut last = "nothing".to_owned();
        let missed = |last| Error::Deadline {
            what: format!("{id} {}", status.as_str()),
            within,
            last,
        };
        let Ok(events) = timeout_at(deadline, self.events(id)).await else {
            return Err(missed(last));
        };
        let mut events = events?;
        loop {
            let Ok(next) = timeout_at(deadline, events.next()).await else {
                return Err(missed(last));
            };
            let Some(seen) = next? else {
                return Err(missed(last));
            };
            if seen.status == status {
                return Ok(seen);
            }
            last = format!("{} {:?}", seen.status.as_str(), seen.status_message);
            if matches!(seen.status, Status::Terminated | Status::Failed) {
                return Err(missed(last));
            }
        }
    }

    /// Waits as long as the command may take.
    ///
    /// # Errors
    /// As [`Client::login`]. A command that fails is an answer.
    pub async fn exec(&self, id: &EnvironmentId, body: &ExecBody) -> Result<ExecReply, Error> {
        let path = format!("{}/exec", environment(id));
        let within = Duration::from_secs(body.timeout).saturating_add(EXEC_GRACE);
        let request = self.request(Method::POST, &path).timeout(within);
        read(send(request.json(body)).await?).await
    }

    /// The last `tail` lines of the main command; all that are kept when `None`.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn logs(&self, id: &EnvironmentId, tail: Option<u64>) -> Result<LogsReply, Error> {
        let request = self.request(Method::GET, &logs(id));
        read(send(request.query(&tail_query(tail))).await?).await
    }

    /// The last `tail` lines and those to come.
    ///
    /// # Errors
    /// As [`Client::login`], before the stream begins.
    pub async fn follow(&self, id: &EnvironmentId, tail: Option<u64>) -> Result<Follow, Error> {
        let request = self.stream(&logs(id)).query(&[("follow", "true")]);
        Ok(Follow(open(request.query(&tail_query(tail))).await?))
    }

    /// A terminal; `query` is added to the address (see the API for what it may hold).
    ///
    /// # Errors
    /// As [`Client::login`] for a refused handshake; [`Error::WebSocket`].
    pub async fn attach(
        &self,
        id: &EnvironmentId,
        query: &[(&str, &str)],
    ) -> Result<Attached, Error> {
        let path = format!("{}/attach", environment(id));
        let request = self.stream(&path).query(query).build()?;
        Attached::connect(request.url().as_str(), self.token.as_deref()).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.endless(method, path).timeout(ANSWER_WITHIN)
    }

    /// Of an answer that may go on for ever; see [`open`].
    fn stream(&self, path: &str) -> RequestBuilder {
        self.endless(Method::GET, path)
    }

    fn endless(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}/api/v1{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

fn environment(id: &EnvironmentId) -> String {
    format!("/environments/{id}")
}

fn logs(id: &EnvironmentId) -> String {
    format!("{}/logs", environment(id))
}

fn tail_query(tail: Option<u64>) -> Vec<(&'static str, u64)> {
    tail.map(|tail| ("tail", tail)).into_iter().collect()
}

/// `step`, or that it did not happen in time.
pub(crate) async fn within<T>(what: &str, step: impl Future<Output = T>) -> Result<T, Error> {
    timeout(ANSWER_WITHIN, step)
        .await
        .map_err(|_| Error::Deadline {
            what: what.to_owned(),
            within: ANSWER_WITHIN,
            last: "nothing".to_owned(),
        })
}

async fn open(request: RequestBuilder) -> Result<Sse, Error> {
    Ok(Sse::new(within("a stream", send(request)).await??))
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
