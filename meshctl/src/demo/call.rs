//! Calls over HTTP/1.1 with connections kept open, as an application makes them.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::services::PORT;
use super::story::USER_HEADER;

/// How long an answer may take: far longer than any rule of the examples lets it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer taken.
const MAX_ANSWER: usize = 64 << 10;
/// The most idle connections kept.
const MAX_IDLE: usize = 64;

/// Calls services of the mesh through one address: the listener of a host's meshd.
pub(crate) struct Caller {
    through: SocketAddr,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    connections: Mutex<JoinSet<()>>,
}

/// An answer, and the version of reviews behind it if it tells.
pub(crate) type Answer = (StatusCode, Bytes);

impl Caller {
    /// Makes a caller without connections.
    pub(crate) fn new(through: SocketAddr) -> Self {
        Self { through, idle: Mutex::default(), connections: Mutex::default() }
    }

    /// Asks a service for a path; the error is a sentence.
    pub(crate) async fn get(&self, service: &str, path: &str, user: Option<&str>) -> Result<Answer, String> {
        self.exchange(service, path, user).await.map(|(parts, body)| (parts.status, body))
    }

    /// As [`Caller::get`], with the head of the answer.
    pub(crate) async fn exchange(
        &self,
        service: &str,
        path: &str,
        user: Option<&str>,
    ) -> Result<(http::response::Parts, Bytes), String> {
        let request = request(service, path, user)?;
        timeout(PATIENCE, self.send(request))
            .await
            .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
    }

    async fn send(
        &self,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<(http::response::Parts, Bytes), String> {
        // An idle connection may close in the very moment it is taken; hyper then gives the request back.
        while let Some(mut sender) = self.take_idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return self.finish(sender, response).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().to_string()),
                },
            }
        }
        let stream =
            TcpStream::connect(self.through).await.map_err(|error| format!("{}: {error}", self.through))?;
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        self.drive(connection);
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        self.finish(sender, response).await
    }

    async fn finish(
        &self,
        sender: SendRequest<Empty<Bytes>>,
        response: http::Response<Incoming>,
    ) -> Result<(http::response::Parts, Bytes), String> {
        let (parts, body) = response.into_parts();
        let body =
            Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?.to_bytes();
        if let Ok(mut idle) = self.idle.lock()
            && idle.len() < MAX_IDLE
            && !sender.is_closed()
        {
            idle.push(sender);
        }
        Ok((parts, body))
    }

    /// Moves the bytes of a connection until it ends; its error is told to the sender as well.
    fn drive(&self, connection: http1::Connection<TokioIo<TcpStream>, Empty<Bytes>>) {
        if let Ok(mut connections) = self.connections.lock() {
            while connections.try_join_next().is_some() {}
            connections.spawn(async { drop(connection.await) });
        }
    }

    fn take_idle(&self) -> Option<SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.lock().ok()?;
        // Freed by `finish` before hyper is ready for the next request: the others wait less.
        while let Some(sender) = idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }
}

fn request(service: &str, path: &str, user: Option<&str>) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(path).header(header::HOST, format!("{service}:{PORT}"));
    if let Some(user) = user {
        request = request.header(USER_HEADER, user);
    }
    request.body(Empty::new()).map_err(|error| error.to_string())
}
