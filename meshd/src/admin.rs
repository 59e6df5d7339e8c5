//! How people and programs on this host ask meshd: the unix socket that meshctl uses, and two HTTP ports.
//!
//! The socket takes every [`Request`] as `POST /v1/call`; the kernel says who calls, and only uid 0 and the uid meshd
//! runs as may. The ports (15000 admin, 15020 and 15090 metrics, all on loopback) only read and show no secret. What a
//! request does is decided elsewhere: this module knows HTTP and permissions.

use std::convert::Infallible;
use std::fs::Permissions;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_proto::api::{ApiError, ErrorCode, Request, Response};
use mesh_proto::exact::exactly;
use tokio::net::{TcpListener, UnixListener};

use crate::drain::Draining;
use crate::listeners::Listeners;
use crate::task;

mod pages;

pub use pages::{Page, Pages};

/// Answers requests; the author is who asks, such as `uid 0`.
pub type Handler = Arc<dyn Fn(Request, String) -> Answer + Send + Sync>;
/// What a [`Handler`] returns.
pub type Answer = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;

/// Largest request taken: 1,000 objects of a transaction and then some.
const MAX_REQUEST_BYTES: usize = 8 << 20;

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another meshd answers there.
    #[error(
        "{0} is held by another meshd that runs already; stop that one, or set listen.socket to another path"
    )]
    Taken(PathBuf),
    /// It cannot be made.
    #[error("{path}: {source}; the folder must exist and be writable for meshd (listen.socket)")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the unix socket, in place of one that nobody answers on any more.
///
/// # Errors
/// [`SocketError`].
pub async fn bind_socket(path: &Path, listeners: &Listeners) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Io { path: path.into(), source };
    if let Some(given) = listeners.unix(path) {
        return UnixListener::from_std(given).map_err(failed);
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(SocketError::Taken(path.into()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    listeners.hold_unix(path, &listener);
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// Serves the unix socket until draining begins.
pub async fn serve_socket(listener: UnixListener, handler: Handler, mut draining: Draining) {
    let own = rustix::process::geteuid().as_raw();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => { back_off(&error).await; continue }
            },
            () = draining.started() => return,
        };
        let Ok(caller) = stream.peer_cred() else { continue };
        let allowed = caller.uid() == 0 || caller.uid() == own;
        let handler = handler.clone();
        task::spawn("admin socket", async move {
            let author = format!("uid {}", caller.uid());
            let service = service_fn(move |request| call(request, handler.clone(), author.clone(), allowed));
            serve_connection(stream, service).await;
        });
    }
}

/// Serves a port that only reads until draining begins.
pub async fn serve_port(listener: TcpListener, pages: Pages, mut draining: Draining) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => { back_off(&error).await; continue }
            },
            () = draining.started() => return,
        };
        let pages = pages.clone();
        task::spawn("admin port", async move {
            let service = service_fn(move |request| {
                let pages = pages.clone();
                async move { Ok::<_, Infallible>(pages::answer(&request, &pages).await) }
            });
            serve_connection(stream, service).await;
        });
    }
}

async fn serve_connection<S>(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, service: S)
where
    S: hyper::service::HttpService<Incoming, ResBody = Full<Bytes>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "admin connection ended");
    }
}

/// Answers one call on the socket.
async fn call(
    request: http::Request<Incoming>,
    handler: Handler,
    author: String,
    allowed: bool,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let answer = match read(request, allowed, &author).await {
        Ok(request) => handler(request, author).await,
        Err(refusal) => Err(refusal),
    };
    Ok(match answer {
        Ok(response) => json(StatusCode::OK, &response),
        Err(error) => json(status_of(error.code), &error),
    })
}

async fn read(request: http::Request<Incoming>, allowed: bool, author: &str) -> Result<Request, ApiError> {
    let refuse = |code, message: String| ApiError { code, message, findings: Vec::new() };
    if !allowed {
        let message = format!(
            "{author} may not use this socket: run the command as root, or as the user meshd runs as"
        );
        return Err(refuse(ErrorCode::Forbidden, message));
    }
    if request.method() != Method::POST || request.uri().path() != "/v1/call" {
        let message =
            format!("{} {} is not served here: POST /v1/call is", request.method(), request.uri().path());
        return Err(refuse(ErrorCode::NotFound, message));
    }
    let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect().await;
    let body = body
        .map_err(|error| refuse(ErrorCode::Invalid, format!("the request could not be read: {error}")))?
        .to_bytes();
    exactly(&body).map_err(|why| {
        let version = env!("CARGO_PKG_VERSION");
        refuse(
            ErrorCode::Invalid,
            format!(
                "not a request that meshd {version} knows ({why}); are meshctl and the running meshd of one version? After an \
                 upgrade: systemctl reload meshd"
            ),
        )
    })
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> http::Response<Full<Bytes>> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = http::Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// Returns the HTTP status that says the same as an error code.
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Invalid => StatusCode::BAD_REQUEST,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Conflict => StatusCode::CONFLICT,
        ErrorCode::NoQuorum | ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Unknown | ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// Waits a little after a failed accept: with no descriptor left, the next try fails at once too.
async fn back_off(error: &io::Error) {
    tracing::warn!(%error, "admin connection not accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests;
