//! Small services in the shape of Istio's bookinfo, served from the demo's own process.
//!
//! productpage asks reviews, reviews v2 and v3 ask ratings. Each calls through the meshd of its own host (an explicit
//! listener on port 9080 of the host's address), and is reached through it: stop that meshd, and its traffic stops.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_proto::registration::{Health, HealthCheck, HttpAsk, Instance, PortBinding, Probe, Protocol};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::call::Caller;
use super::folder::HOSTS;
use super::story::{PATH, USER_HEADER};

/// The service port of every service, as in bookinfo.
pub(crate) const PORT: u16 = 9080;
/// The header in which productpage tells which version of reviews it was served by.
pub(crate) const VERSION_HEADER: &str = "x-reviews-version";
/// Milliseconds between two health checks: short, so that the demo starts and reacts fast.
const CHECK_EVERY_MS: u64 = 500;

/// What an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Productpage,
    Reviews,
    Ratings,
}

/// An instance of the demo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Role {
    /// Its id, unique in the demo.
    pub(crate) id: &'static str,
    /// Its host.
    pub(crate) host: &'static str,
    service: &'static str,
    version: &'static str,
    part: Part,
}

const fn role(
    id: &'static str,
    host: usize,
    service: &'static str,
    version: &'static str,
    part: Part,
) -> Role {
    Role { id, host: HOSTS[host], service, version, part }
}

/// All instances. Of v1, v2 and ratings there are two, so that one may go away.
pub(crate) const ROLES: [Role; 8] = [
    role("productpage-v1", 0, "productpage", "v1", Part::Productpage),
    role("reviews-v1-a", 1, "reviews", "v1", Part::Reviews),
    role("reviews-v1-b", 1, "reviews", "v1", Part::Reviews),
    role("reviews-v2-a", 2, "reviews", "v2", Part::Reviews),
    role("reviews-v2-b", 1, "reviews", "v2", Part::Reviews),
    role("reviews-v3-a", 2, "reviews", "v3", Part::Reviews),
    role("ratings-v1-a", 1, "ratings", "v1", Part::Ratings),
    role("ratings-v1-b", 2, "ratings", "v1", Part::Ratings),
];

/// An instance with its socket, not yet served.
pub(crate) struct Bound {
    role: Role,
    listener: std::net::TcpListener,
    address: SocketAddr,
    through: SocketAddr,
}

/// Binds a socket for every instance, each on the address of its host.
pub(crate) fn bind(address_of: impl Fn(&str) -> IpAddr) -> io::Result<Vec<Bound>> {
    ROLES
        .iter()
        .map(|role| {
            let ip = address_of(role.host);
            let listener = std::net::TcpListener::bind((ip, 0))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Bound { role: *role, listener, address, through: SocketAddr::new(ip, PORT) })
        })
        .collect()
}

/// What a host registers for its instances.
pub(crate) fn registration(bound: &[Bound], host: &str) -> BTreeMap<String, Instance> {
    let on_host = bound.iter().filter(|bound| bound.role.host == host);
    on_host.map(|bound| (bound.role.id.to_owned(), instance(bound))).collect()
}

/// The service account of a service, as bookinfo names it.
pub(crate) fn account(service: &str) -> String {
    format!("bookinfo-{service}")
}

fn instance(bound: &Bound) -> Instance {
    let labels = [("app", bound.role.service), ("version", bound.role.version)];
    Instance {
        service: bound.role.service.into(),
        group: None,
        namespace: "default".into(),
        account: account(bound.role.service),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ports: vec![PortBinding {
            number: PORT,
            name: "http".into(),
            protocol: Protocol::Http,
            target: bound.address,
        }],
        address: None,
        weight: 1,
        locality: None,
        check: Some(HealthCheck {
            initial_delay_ms: 0,
            probe: Probe::Http { path: "/health".into(), port: None, ask: HttpAsk::default() },
            interval_ms: CHECK_EVERY_MS,
            timeout_ms: CHECK_EVERY_MS,
            unhealthy_threshold: 2,
            healthy_threshold: 1,
        }),
        health: Health::Unhealthy,
    }
}

/// Serves all instances until dropped.
pub(crate) async fn serve(all: Vec<Bound>) -> io::Result<()> {
    let mut instances = JoinSet::new();
    for bound in all {
        let listener = TcpListener::from_std(bound.listener)?;
        let served = Arc::new(Served { role: bound.role, caller: Caller::new(bound.through) });
        instances.spawn(accept(listener, served));
    }
    while instances.join_next().await.is_some() {}
    Ok(())
}

struct Served {
    role: Role,
    caller: Caller,
}

async fn accept(listener: TcpListener, served: Arc<Served>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, Arc::clone(&served)))),
                // No descriptor free, for example: others may be given back in a moment.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, served: Arc<Served>) {
    let _ = stream.set_nodelay(true);
    let answer = service_fn(move |request| {
        let served = Arc::clone(&served);
        async move { Ok::<_, Infallible>(served.answer(&request).await) }
    });
    // An error is the end of this connection and of nothing else.
    let _ =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), answer).await;
}

impl Served {
    async fn answer(&self, request: &http::Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/health" {
            return text(StatusCode::OK, "well\n");
        }
        let user = request.headers().get(USER_HEADER).and_then(|user| user.to_str().ok());
        match self.role.part {
            Part::Productpage => self.page(user).await,
            Part::Reviews => self.reviews(user).await,
            Part::Ratings => {
                json_of(StatusCode::OK, &json!({ "ratings": { "Reviewer1": 5, "Reviewer2": 4 } }))
            }
        }
    }

    async fn page(&self, user: Option<&str>) -> Response<Full<Bytes>> {
        match self.caller.get("reviews", PATH, user).await {
            Ok((status, body)) if status.is_success() => {
                let reviews: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let version = reviews["version"].as_str().unwrap_or_default().to_owned();
                let mut page = json_of(
                    StatusCode::OK,
                    &json!({ "productpage": "The Comedy of Errors", "reviews": reviews }),
                );
                if let Ok(version) = version.parse() {
                    page.headers_mut().insert(VERSION_HEADER, version);
                }
                page
            }
            Ok((status, body)) => {
                failed("reviews", &format!("{status}: {}", String::from_utf8_lossy(&body).trim()))
            }
            Err(error) => failed("reviews", &error),
        }
    }

    async fn reviews(&self, user: Option<&str>) -> Response<Full<Bytes>> {
        let mut reviews =
            json!({ "version": self.role.version, "instance": self.role.id, "host": self.role.host });
        // v1 shows no stars, as in bookinfo.
        if self.role.version != "v1" {
            match self.caller.get("ratings", "/ratings/0", user).await {
                Ok((status, body)) if status.is_success() => {
                    let ratings: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                    reviews["ratings"] = ratings["ratings"].clone();
                }
                Ok((status, body)) => {
                    return failed(
                        "ratings",
                        &format!("{status}: {}", String::from_utf8_lossy(&body).trim()),
                    );
                }
                Err(error) => return failed("ratings", &error),
            }
        }
        json_of(StatusCode::OK, &reviews)
    }
}

fn failed(whom: &str, why: &str) -> Response<Full<Bytes>> {
    text(StatusCode::BAD_GATEWAY, &format!("{whom} answered {why}\n"))
}

fn json_of(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = text(status, &format!("{value}\n"));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_owned())));
    *response.status_mut() = status;
    response
}
