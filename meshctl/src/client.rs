//! Speaks the API of a meshd over its unix socket: `POST /v1/call`, a `Request` in, a `Response` or an `ApiError` out.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_proto::api::{ApiError, ErrorCode, Request, Response};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::exit::{Failure, Result, plain};
use crate::locate::{self, Wish};
use crate::output::{Tone, paint, tell};

/// How long a plain question may take: a leader may have to be elected meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer taken, 256 MiB: a snapshot frame's bound, more than 100,000 endpoints need.
const MAX_ANSWER: usize = 256 << 20;

/// A way to one meshd.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    /// The host that is asked by way of this meshd.
    on: Option<String>,
}

/// Why there is no answer.
enum Silence {
    /// Nobody listens.
    NotThere(std::io::Error),
    /// The question went out, and no (whole) answer came back.
    Broken(String),
    /// It took too long.
    Late,
}

impl Client {
    /// Speaks to the meshd behind a socket.
    pub(crate) fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), on: None }
    }

    /// Finds the meshd the user means; says so when it is the demo's.
    pub(crate) fn find(wish: &Wish) -> Result<Self> {
        let place = locate::find(wish)?;
        if place.demo {
            tell(&paint(Tone::Dim, "(no meshd of this host's own: asking the running demo, host vm1)"));
        }
        Ok(Self { on: place.on, ..Self::at(place.socket) })
    }

    /// The same way, to another host of the mesh.
    pub(crate) fn on(&self, host: &str) -> Self {
        Self { on: Some(host.to_owned()), ..self.clone() }
    }

    /// Whether it is one host that is asked, by way of another.
    pub(crate) fn asks_another(&self) -> Option<&str> {
        self.on.as_deref()
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Asks, and takes anything but a response as failure. Findings of a refusal are told.
    pub(crate) async fn call(&self, request: &Request) -> Result<Response> {
        self.call_within(request, PATIENCE).await
    }

    /// As [`Client::call`], waiting at most this long.
    pub(crate) async fn call_within(&self, request: &Request, patience: Duration) -> Result<Response> {
        let answer = self.ask(request, patience).await?;
        answer.map_err(|error| {
            for finding in &error.findings {
                tell(&finding.to_string());
            }
            error.into()
        })
    }

    /// Asks; a refusal is a value. Asks a second time where the outcome is unknown: requests carry their key.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        patience: Duration,
    ) -> Result<std::result::Result<Response, ApiError>> {
        let first = self.exchange(request, patience).await;
        let unknown = matches!(&first, Ok(Err(error)) if error.code == ErrorCode::Unknown)
            || matches!(&first, Err(Silence::Broken(_)));
        let answer = if unknown { self.exchange(request, patience).await } else { first };
        answer.map_err(|silence| self.explain(silence, patience))
    }

    async fn exchange(
        &self,
        request: &Request,
        patience: Duration,
    ) -> std::result::Result<std::result::Result<Response, ApiError>, Silence> {
        let wrapped = self
            .on
            .as_ref()
            .map(|host| Request::On { host: host.clone(), request: Box::new(request.clone()) });
        let request = wrapped.as_ref().unwrap_or(request);
        let stream = UnixStream::connect(&self.socket).await.map_err(Silence::NotThere)?;
        match timeout(patience, exchange_on(stream, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Silence::Late),
        }
    }

    fn explain(&self, silence: Silence, patience: Duration) -> Failure {
        let socket = self.socket.display();
        Failure::no_answer(match silence {
            Silence::NotThere(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                format!(
                    "{socket}: permission denied: only root and the user meshd runs as may use it; try with sudo"
                )
            }
            Silence::NotThere(error) => format!(
                "meshd is not running here ({socket}: {}): start it with `systemctl start meshd` or `meshd run`, \
                 name another socket with --socket, or try: meshctl demo",
                plain(&error)
            ),
            Silence::Broken(why) => format!(
                "{socket}: the answer did not arrive ({why}); look at the log of meshd: journalctl -u meshd"
            ),
            Silence::Late => {
                format!("{socket}: no answer within {}", crate::words::short(patience))
            }
        })
    }
}

async fn exchange_on(
    stream: UnixStream,
    request: &Request,
) -> std::result::Result<std::result::Result<Response, ApiError>, Silence> {
    let broken = |error: &dyn std::fmt::Display| Silence::Broken(error.to_string());
    let body = serde_json::to_vec(request).map_err(|error| broken(&error))?;
    let call = http::Request::post("/v1/call")
        .header(http::header::HOST, "meshd")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let exchange = async {
        let answer = sender.send_request(call).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body =
            Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| broken(&error))?;
        read(status, &body.to_bytes())
    };
    tokio::pin!(exchange);
    // The connection has to be driven for the exchange to go on.
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

fn read(
    status: http::StatusCode,
    body: &[u8],
) -> std::result::Result<std::result::Result<Response, ApiError>, Silence> {
    if status.is_success() {
        return serde_json::from_slice(body).map(Ok).map_err(|error| {
            Silence::Broken(format!(
                "meshctl {} does not know what meshd answered ({}): use the meshctl of its version, see `meshctl version`",
                env!("CARGO_PKG_VERSION"),
                mesh_proto::exact::Unread::of(&error)
            ))
        });
    }
    serde_json::from_slice(body).map(Err).map_err(|_| {
        Silence::Broken(format!(
            "meshd answered {status}: {}",
            String::from_utf8_lossy(&body[..body.len().min(200)])
        ))
    })
}

/// Makes a failure of an answer that belongs to another question.
pub(crate) fn unexpected(response: &Response) -> Failure {
    let text = format!("{response:?}");
    let name = text.split(['(', ' ', '{']).next().unwrap_or_default();
    Failure::refused(format!(
        "meshd answered {name}, which is no answer to this: are meshctl and meshd of one version? (`meshctl version`)"
    ))
}

/// A random key under which meshd takes a request once only.
pub(crate) fn key() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

/// Takes one kind of response out of a call's answer.
macro_rules! answer {
    ($answer:expr, $pattern:pat => $value:expr) => {
        match $answer {
            $pattern => Ok($value),
            other => Err($crate::client::unexpected(&other)),
        }
    };
}
pub(crate) use answer;
