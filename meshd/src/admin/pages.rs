//! What the ports show: readiness, metrics, and what the Plan of this host does.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use mesh_proto::api::{Get, PlanFilter, Request, Scope};

use super::{Handler, json, status_of};

/// What the ports are answered from.
#[derive(Clone)]
pub struct Pages {
    /// Whether the data plane has a Plan; if not, why.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Prometheus' text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Answers the reads; `None` on the metrics ports.
    pub reads: Option<Handler>,
}

/// A page: status, type, text.
pub struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

/// Paths of the admin port, for its first page.
const INDEX: &str = "meshd, read-only admin port\n
/ready                        200 when the data plane has a Plan
/metrics                      Prometheus (also /stats/prometheus)
/routes?host=NAME&port=N      what requests do
/clusters?host=NAME           what may be sent to
/endpoints?host=NAME          where, and how it fares
/services                     every service of the mesh
/resources                    every resource, as this host knows it
/stats                        counters of this host
/version\n";

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
            let content_type = "text/plain; version=0.0.4; charset=utf-8";
            Page { status: StatusCode::OK, content_type, body: (pages.metrics)().into() }.into()
        }
        path => match &pages.reads {
            Some(_) if path == "/" => text(StatusCode::OK, INDEX).into(),
            Some(reads) => read(path, request.uri().query().unwrap_or(""), reads).await,
            None => not_found(path),
        },
    }
}

async fn read(path: &str, query: &str, reads: &Handler) -> http::Response<Full<Bytes>> {
    let filter = || {
        let value = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        PlanFilter { host: value("host"), port: value("port").and_then(|port| port.parse().ok()) }
    };
    let request = match path {
        "/routes" => Request::Routes(filter()),
        "/clusters" => Request::Clusters(filter()),
        "/endpoints" => Request::Endpoints(filter()),
        "/services" => Request::Services,
        "/resources" => Request::Get(Get { stale: true, ..Get::default() }),
        "/stats" => Request::Stats { scope: Scope::Host },
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
