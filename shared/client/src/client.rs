//! The client: requests with one response, and requests that open a stream.

use std::future::Future;
use std::time::Duration;

use agentbox_api::environment::{
    CreateEnvironment, DeleteQuery, EnvironmentBody, EnvironmentList, ListQuery, PatchEnvironment,
};
use agentbox_api::event::EventBody;
use agentbox_api::exec::{ExecBody, ExecReply};
use agentbox_api::execution::{ExecutionBody, StartExecution};
use agentbox_api::logs::LogsReply;
use agentbox_api::user::{Login, LoginReply};
use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use crate::sse::Sse;
use crate::{AttachSession, Error, EventStream, ExecutionOutput, LogStream};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The deadline of a response, or of the head of a streamed one.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Added to a command's own timeout. It is longer than the grace that the server adds.
const EXEC_GRACE: Duration = Duration::from_secs(60);

/// A client of one server. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    /// Makes a client; `url` is the server's URL without `/api/v1`.
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
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .build()?,
            base,
            token: None,
        })
    }

    /// Authenticates with a login's token or an API key.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Logs in; returns a client with the new token, and the reply.
    ///
    /// # Errors
    /// [`Error::Api`] with the API's error, or the request's failure.
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
        read(send(self.request(Method::GET, &environment_path(id))).await?).await
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
        let request = self.request(Method::PATCH, &environment_path(id));
        read(send(request.json(body)).await?).await
    }

    /// Returns when the deletion is accepted, not when the box is gone.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn delete(&self, id: &EnvironmentId, force: bool) -> Result<(), Error> {
        let request = self.request(Method::DELETE, &environment_path(id));
        send(request.query(&DeleteQuery { force })).await?;
        Ok(())
    }

    /// Follows an environment's events, from its first one.
    ///
    /// # Errors
    /// As [`Client::login`], before the stream begins.
    pub async fn events(&self, id: &EnvironmentId) -> Result<EventStream, Error> {
        let path = format!("{}/events", environment_path(id));
        let request = self.stream_request(&path).query(&[("follow", "true")]);
        Ok(EventStream(open(request).await?))
    }

    /// Waits until the environment has this status, or had it before. Returns the event of it.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the last status, after `within` or as soon as the environment has
    /// ended with another status; otherwise as [`Client::events`].
    pub async fn wait_until(
        &self,
        id: &EnvironmentId,
        status: Status,
        within: Duration,
    ) -> Result<EventBody, Error> {
        let deadline = Instant::now() + within;
        let mut last = "nothing".to_owned();
        let not_reached = |last| Error::Deadline {
            what: format!("{id} {}", status.as_str()),
            within,
            last,
        };
        let Ok(events) = timeout_at(deadline, self.events(id)).await else {
            return Err(not_reached(last));
        };
        let mut events = events?;
        loop {
            let Ok(next) = timeout_at(deadline, events.next()).await else {
                return Err(not_reached(last));
            };
            let Some(seen) = next? else {
                return Err(not_reached(last));
            };
            if seen.status == status {
                return Ok(seen);
            }
            last = format!("{} {:?}", seen.status.as_str(), seen.status_message);
            if matches!(seen.status, Status::Terminated | Status::Failed) {
                return Err(not_reached(last));
            }
        }
    }

    /// Runs a command and waits for its result, at most its own timeout and a grace.
    ///
    /// # Errors
    /// As [`Client::login`]. A failed command is a reply, not an error.
    pub async fn exec(&self, id: &EnvironmentId, body: &ExecBody) -> Result<ExecReply, Error> {
        let path = format!("{}/exec", environment_path(id));
        let timeout = body.timeout.duration().unwrap_or_default();
        let within = timeout.saturating_add(EXEC_GRACE);
        let request = self.request(Method::POST, &path).timeout(within);
        read(send(request.json(body)).await?).await
    }

    /// Starts an execution.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn start_execution(
        &self,
        id: &EnvironmentId,
        body: &StartExecution,
    ) -> Result<ExecutionBody, Error> {
        let request = self.request(Method::POST, &executions_path(id));
        read(send(request.json(body)).await?).await
    }

    /// Follows the output of an execution, from its beginning to its end.
    ///
    /// # Errors
    /// As [`Client::login`], before the stream begins.
    pub async fn follow_output(
        &self,
        id: &EnvironmentId,
        execution: &str,
    ) -> Result<ExecutionOutput, Error> {
        let path = format!("{}/{execution}/output", executions_path(id));
        let request = self.stream_request(&path).query(&[("follow", "true")]);
        Ok(ExecutionOutput(open(request).await?))
    }

    /// The last `tail` lines of the main command; all kept lines when `None`.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn logs(&self, id: &EnvironmentId, tail: Option<u64>) -> Result<LogsReply, Error> {
        let request = self.request(Method::GET, &logs_path(id));
        read(send(request.query(&tail_query(tail))).await?).await
    }

    /// Follows the log: the last `tail` lines, then new ones.
    ///
    /// # Errors
    /// As [`Client::login`], before the stream begins.
    pub async fn follow(&self, id: &EnvironmentId, tail: Option<u64>) -> Result<LogStream, Error> {
        let request = self
            .stream_request(&logs_path(id))
            .query(&[("follow", "true")]);
        Ok(LogStream(open(request.query(&tail_query(tail))).await?))
    }

    /// Attaches to a command; `query` holds the API's query parameters.
    ///
    /// # Errors
    /// As [`Client::login`] for a refused handshake; [`Error::WebSocket`].
    pub async fn attach(
        &self,
        id: &EnvironmentId,
        query: &[(&str, &str)],
    ) -> Result<AttachSession, Error> {
        let path = format!("{}/attach", environment_path(id));
        let request = self.stream_request(&path).query(query).build()?;
        AttachSession::connect(request.url().as_str(), self.token.as_deref()).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_without_timeout(method, path)
            .timeout(RESPONSE_TIMEOUT)
    }

    /// A request whose response may be endless; see [`open`].
    fn stream_request(&self, path: &str) -> RequestBuilder {
        self.request_without_timeout(Method::GET, path)
    }

    pub(crate) fn request_without_timeout(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}/api/v1{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

pub(crate) fn environment_path(id: &EnvironmentId) -> String {
    format!("/environments/{id}")
}

fn logs_path(id: &EnvironmentId) -> String {
    format!("{}/logs", environment_path(id))
}

fn executions_path(id: &EnvironmentId) -> String {
    format!("{}/executions", environment_path(id))
}

fn tail_query(tail: Option<u64>) -> Vec<(&'static str, u64)> {
    tail.map(|tail| ("tail", tail)).into_iter().collect()
}

/// Awaits `operation` for at most the response timeout. `what` names it in the error.
pub(crate) async fn with_timeout<T>(
    what: &str,
    operation: impl Future<Output = T>,
) -> Result<T, Error> {
    timeout(RESPONSE_TIMEOUT, operation)
        .await
        .map_err(|_| Error::Deadline {
            what: what.to_owned(),
            within: RESPONSE_TIMEOUT,
            last: "nothing".to_owned(),
        })
}

async fn open(request: RequestBuilder) -> Result<Sse, Error> {
    Ok(Sse::new(with_timeout("a stream", send(request)).await??))
}

pub(crate) async fn send(request: RequestBuilder) -> Result<Response, Error> {
    let response = request.send().await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(Error::from_response(
        status.as_u16(),
        &response.bytes().await?,
    ))
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    Ok(serde_json::from_slice(&response.bytes().await?)?)
}
