//! What the ports show: readiness, metrics, what the Plan of this host does, and the page for people ([`ui`]).
//!
//! The admin port listens on loopback, where every web page that a person of this host opens could reach it under a name
//! of its own (DNS rebinding): what the mesh is like is told only to those who ask for a loopback name.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use mesh_proto::api::{Get, PlanFilter, Request, Scope};
use mesh_proto::command::Batch;

use super::{Handler, json, status_of};
use crate::telemetry::Exposition;

mod ui;

/// What the ports are answered from.
#[derive(Clone)]
pub struct Pages {
    /// Whether the data plane has a Plan; if not, why.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What is counted, as text.
    pub metrics: Arc<dyn Fn(Exposition) -> String + Send + Sync>,
    /// Answers the reads; `None` on the metrics ports.
    pub reads: Option<Handler>,
}

/// A page: status, type, text.
pub struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

/// Paths of the admin port, for those who ask without a browser.
const INDEX: &str = "meshd, read-only admin port. In a browser: a page with the map of calls\n
/ready                        200 when the data plane has a Plan
/metrics                      Prometheus (also /stats/prometheus)
/routes?host=NAME&port=N      what requests do
/clusters?host=NAME           what may be sent to
/endpoints?host=NAME          where, and how it fares
/services                     every service of the mesh
/resources                    every resource, as this host knows it
/findings                     what is strange about the resources
/status                       hosts, roles, leader, revisions
/history                      the last changes of resources
/stats?scope=host|mesh        counters of this host, or of all that answer
/version
/help                         this list\n";

/// Answers a request to a port.
pub(super) async fn answer<B>(request: &http::Request<B>, pages: &Pages) -> http::Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "this port only reads: change things with meshctl\n")
            .into();
    }
    match request.uri().path() {
        "/ready" | "/healthz/ready" => match (pages.ready)() {
            Ok(()) => text(StatusCode::OK, "ready\n").into(),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into(),
        },
        "/metrics" | "/stats/prometheus" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            let exposition = Exposition::of_accept(accept);
            let body = (pages.metrics)(exposition).into();
            Page { status: StatusCode::OK, content_type: exposition.content_type(), body }.into()
        }
        path => match &pages.reads {
            None => not_found(path),
            Some(_) if !is_asked_as_loopback(request.headers()) => {
                let why =
                    "ask for this port as localhost or 127.0.0.1: another name may be a web page's trick\n";
                text(StatusCode::MISDIRECTED_REQUEST, why).into()
            }
            Some(_) if path == "/help" || (path == "/" && !ui::wants_page(request.headers())) => {
                text(StatusCode::OK, INDEX).into()
            }
            Some(reads) => match ui::file(path) {
                Some(page) => page,
                None => read(path, request.uri().query().unwrap_or(""), reads).await,
            },
        },
    }
}

/// Whether `Host` is a loopback address or `localhost`: no name that somebody else's DNS could answer.
fn is_asked_as_loopback(headers: &HeaderMap) -> bool {
    let Some(Ok(host)) = headers.get(header::HOST).map(HeaderValue::to_str) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn read(path: &str, query: &str, reads: &Handler) -> http::Response<Full<Bytes>> {
    let value = |name: &str| {
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    let filter =
        || PlanFilter { host: value("host"), port: value("port").and_then(|port| port.parse().ok()) };
    let request = match path {
        "/routes" => Request::Routes(filter()),
        "/clusters" => Request::Clusters(filter()),
        "/endpoints" => Request::Endpoints(filter()),
        "/services" => Request::Services,
        "/resources" => Request::Get(Get { stale: true, ..Get::default() }),
        "/findings" => Request::Analyze(Batch::default()),
        "/status" => Request::Status,
        "/history" => Request::History { limit: HISTORY },
        "/stats" => {
            let scope = if value("scope").as_deref() == Some("mesh") { Scope::Mesh } else { Scope::Host };
            Request::Stats { scope }
        }
        "/version" => Request::Version,
        _ => return not_found(path),
    };
    match reads(request, "admin port".into()).await {
        Ok(response) => json(StatusCode::OK, &response),
        Err(error) => json(status_of(error.code), &error),
    }
}

fn not_found(path: &str) -> http::Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, format!("{path} is not here; see /\n")).into()
}

fn text(status: StatusCode, body: impl Into<String>) -> Page {
    Page { status, content_type: "text/plain; charset=utf-8", body: body.into().into() }
}

impl From<Page> for http::Response<Full<Bytes>> {
    fn from(page: Page) -> Self {
        let mut response = Self::new(Full::new(page.body));
        *response.status_mut() = page.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(page.content_type));
        response
    }
}

/// Changes that `/history` tells of.
const HISTORY: usize = 50;
