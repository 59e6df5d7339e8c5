//! What a host offers to the mesh: its services, their instances, ports and health checks.
//!
//! The host is the truth about its own services (three ways in: files in `services.d`, `meshctl service
//! register`, and the demo); the whole [`Registration`] of a host travels as one value, so that a host and
//! the mesh can be compared by one hash. What the mesh makes of it (names, ports united over hosts, virtual
//! addresses) is decided in `mesh-core`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::exact::Unread;
use crate::value::Labels;

/// Everything one host offers, in order of instance id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The instances by their id, which is unique on the host. Many hosts offer the same: it may be held once.
    pub instances: BTreeMap<String, Arc<Instance>>,
}

impl Registration {
    /// Reads what is understood of a registration that another version may have written; with the ids of the instances
    /// that are not, and why.
    ///
    /// A health check is left out that is not understood: only the instance's own host asks.
    ///
    /// # Errors
    /// When it is no registration of any version.
    pub fn in_part(json: &str) -> Result<(Self, Vec<(String, Unread)>), serde_json::Error> {
        #[derive(Deserialize)]
        struct Parts<'a> {
            #[serde(borrow)]
            instances: BTreeMap<String, &'a RawValue>,
        }
        let parts: Parts<'_> = serde_json::from_str(json)?;
        let (mut read, mut left_out) = (Self::default(), Vec::new());
        for (id, part) in parts.instances {
            match serde_json::from_str(part.get()).or_else(|error| without_check(part.get()).ok_or(error)) {
                Ok(instance) => drop(read.instances.insert(id, Arc::new(instance))),
                Err(error) => left_out.push((id, Unread::of(&error))),
            }
        }
        Ok((read, left_out))
    }
}

fn without_check(json: &str) -> Option<Instance> {
    let mut value: serde_json::Value = serde_json::from_str(json).ok()?;
    value.as_object_mut()?.remove("check");
    serde_json::from_value(value).ok()
}

/// One running copy of a service on one host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// Short name of the service: a DNS label such as `reviews`.
    pub service: String,
    /// The `WorkloadGroup` of its namespace that gives what the instance does not say itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Namespace of the service. Default `default`.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Service account: the last part of the SPIFFE id that the instance shows. Default `default`.
    #[serde(default = "default_account")]
    pub account: String,
    /// Labels that subsets and selectors match, for example `version: v1`.
    #[serde(default)]
    pub labels: Labels,
    /// Ports of the service and where this instance answers them.
    pub ports: Vec<PortBinding>,
    /// An address off this host: the instance then is an endpoint outside the mesh (plain, no identity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Share of traffic relative to other instances. Default 1; 0 is "no traffic".
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// `region/zone/subzone`. Default: the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// How the host finds out that the instance is well. Default: always healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthCheck>,
    /// The last word of the health check. An instance with a check begins as `Unhealthy`.
    #[serde(default)]
    pub health: Health,
}

/// One port of a service and the local socket that answers it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortBinding {
    /// Port of the *service*, which rules match on and clients dial.
    pub number: u16,
    /// Port name, Istio's convention `<protocol>[-<suffix>]`; empty is allowed.
    #[serde(default)]
    pub name: String,
    /// Declared protocol; [`Protocol::Auto`] looks at the name and, failing that, at the first bytes.
    #[serde(default)]
    pub protocol: Protocol,
    /// Where the instance listens: an address of this host, usually `127.0.0.1:PORT`.
    pub target: SocketAddr,
}

/// What is spoken on a service port.
///
/// Source: Istio "Protocol Selection" (`pkg/config/protocol`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Not declared: decided by the port's name or the first bytes.
    #[default]
    #[serde(alias = "auto", alias = "")]
    Auto,
    /// HTTP/1.1 (and HTTP/2 by prior knowledge towards meshd).
    #[serde(alias = "http")]
    Http,
    /// HTTP/2 with prior knowledge.
    #[serde(alias = "http2")]
    Http2,
    /// gRPC: HTTP/2 with gRPC's status rules.
    #[serde(alias = "grpc")]
    Grpc,
    /// gRPC-Web over HTTP/1.1.
    #[serde(rename = "GRPC-WEB", alias = "grpc-web")]
    GrpcWeb,
    /// TLS that carries HTTP, passed through by SNI.
    #[serde(alias = "https")]
    Https,
    /// TLS, passed through by SNI.
    #[serde(alias = "tls")]
    Tls,
    /// Opaque bytes.
    #[serde(alias = "tcp")]
    Tcp,
    /// MongoDB's protocol, carried as opaque bytes.
    #[serde(alias = "mongo")]
    Mongo,
    /// MySQL's protocol, carried as opaque bytes (the server speaks first).
    #[serde(rename = "MYSQL", alias = "mysql")]
    MySql,
    /// Redis' protocol, carried as opaque bytes.
    #[serde(alias = "redis")]
    Redis,
}

impl Protocol {
    /// Returns the declared protocol, else the one that the port's name says (`http-api` is HTTP), else `Auto`.
    pub fn of_port(declared: Self, name: &str) -> Self {
        if declared != Self::Auto {
            return declared;
        }
        let prefix = name.split_once('-').map_or(name, |(prefix, _)| prefix);
        if name.starts_with("grpc-web") {
            return Self::GrpcWeb;
        }
        Self::parse(prefix).unwrap_or(Self::Auto)
    }

    /// Reads a protocol in any case; `None` when it is not one of Istio's.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "mongo" => Self::Mongo,
            "mysql" => Self::MySql,
            "redis" => Self::Redis,
            _ => return None,
        })
    }

    /// Whether requests on the port are routed by HTTP rules.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether the port carries TLS that meshd does not open.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// Whether the application behind the port is spoken to in HTTP/2.
    pub fn upstream_is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "AUTO",
            Self::Http => "HTTP",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-WEB",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Mongo => "MONGO",
            Self::MySql => "MYSQL",
            Self::Redis => "REDIS",
        })
    }
}

/// How a host asks an instance whether it is well. Run by the host itself; only flips are told to the mesh.
///
/// With everything in it known or not at all: `flatten` hides from [`exact`](crate::exact) what is passed over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked.
    #[serde(flatten)]
    pub probe: Probe,
    /// Milliseconds between two probes. Default 2000; at least 100.
    #[serde(default = "default_interval_ms")]
    pub interval_ms: u64,
    /// Milliseconds until a probe counts as failed. Default 1000.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Milliseconds before the first probe. Default 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub initial_delay_ms: u64,
    /// Failures in a row that make a healthy instance unhealthy. Default 2.
    #[serde(default = "default_unhealthy_threshold")]
    pub unhealthy_threshold: u32,
    /// Successes in a row that make an unhealthy instance healthy. Default 1.
    #[serde(default = "default_healthy_threshold")]
    pub healthy_threshold: u32,
}

/// The question of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// `GET path` on the target answers 200–399.
    Http {
        /// Path and query asked for.
        path: String,
        /// Port asked; default: the first port's target.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// How else it is asked.
        #[serde(default, skip_serializing_if = "HttpAsk::is_plain")]
        ask: HttpAsk,
    },
    /// A TCP connection to the target opens.
    Tcp {
        /// Host asked instead of the target's address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// Port asked; default: the first port's target.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// `grpc.health.v1.Health/Check` answers SERVING.
    Grpc {
        /// The service asked about; empty is the whole server.
        #[serde(default)]
        service: String,
        /// Port asked; default: the first port's target.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// The command exits with 0. Run without a shell.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
    },
}

/// What an HTTP probe may say beside its path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpAsk {
    /// Host asked instead of the target's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Over TLS; whose certificate it is does not matter.
    pub https: bool,
    /// Further header fields; `Host` replaces the address.
    pub headers: Vec<(String, String)>,
}

impl HttpAsk {
    fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether an instance may get traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Well, or without a check.
    #[default]
    Healthy,
    /// Its check fails: no traffic, everywhere, at once.
    Unhealthy,
    /// Its host is stopping: no new traffic.
    Draining,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
fn default_namespace() -> String {
    "default".into()
}
fn default_account() -> String {
    "default".into()
}
fn default_weight() -> u32 {
    1
}
fn default_interval_ms() -> u64 {
    2_000
}
fn default_timeout_ms() -> u64 {
    1_000
}
fn default_unhealthy_threshold() -> u32 {
    2
}
fn default_healthy_threshold() -> u32 {
    1
}
