//! The form of a file of cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mesh_proto::explain::Ask;
use mesh_proto::registration::{Instance, Protocol};
use mesh_proto::value::Labels;
use serde::Deserialize;

use crate::cmd::explain::of_url;
use crate::offline::{http_port, instance};

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// Rules: files and folders, from where this file is.
    #[serde(default)]
    rules: Vec<PathBuf>,
    #[serde(default)]
    services: Services,
    /// Namespace of objects that name none.
    #[serde(default = "default_namespace")]
    pub(super) namespace: String,
    pub(super) cases: Vec<Case>,
}

fn default_namespace() -> String {
    "default".into()
}

/// Files of services, or services in place.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Services {
    Files(Vec<PathBuf>),
    InPlace(BTreeMap<String, Service>),
}

impl Default for Services {
    fn default() -> Self {
        Self::Files(Vec::new())
    }
}

/// A service by `NAME` or `NAME.NAMESPACE`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    port: Option<u16>,
    #[serde(default)]
    ports: BTreeMap<u16, String>,
    #[serde(default)]
    versions: Vec<String>,
    #[serde(default)]
    labels: Labels,
}

/// A case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    #[serde(default)]
    name: String,
    when: When,
    pub(super) then: Then,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    url: String,
    #[serde(default = "get")]
    method: String,
    #[serde(default)]
    headers: BTreeMap<String, Lines>,
    #[serde(default)]
    from: String,
    #[serde(default)]
    labels: Labels,
    port: Option<u16>,
}

fn get() -> String {
    "GET".into()
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Lines {
    One(String),
    Several(Vec<String>),
}

/// What is expected. Only what is written is compared.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Then {
    /// Shares in percent, by subset, host, `host:port` or `host/subset`.
    pub(super) to: Option<BTreeMap<String, f64>>,
    /// The status, where the mesh itself answers.
    pub(super) status: Option<u16>,
    /// `location` of a redirect.
    pub(super) location: Option<String>,
    /// Body of an answer of the rule.
    pub(super) body: Option<String>,
    /// Path and query as sent on.
    pub(super) path: Option<String>,
    /// Host as sent on.
    pub(super) host: Option<String>,
    /// Headers that rules set or add.
    pub(super) headers: Option<BTreeMap<String, String>>,
    /// Headers that rules remove.
    pub(super) without_headers: Option<Vec<String>>,
    /// The timeout, such as `2s`; `none`.
    pub(super) timeout: Option<String>,
    /// Attempts beyond the first.
    pub(super) retries: Option<u32>,
    /// Aborts: status and share in percent.
    pub(super) abort: Option<BTreeMap<u16, f64>>,
    /// Delays: time and share in percent.
    pub(super) delay: Option<BTreeMap<String, f64>>,
    /// Copies: where to and share in percent.
    pub(super) mirror: Option<BTreeMap<String, f64>>,
    /// The rule that applies: its name, or `http[0]`, or `NAMESPACE/NAME http[0]`.
    pub(super) rule: Option<String>,
}

impl File {
    /// The files that the cases are about.
    pub(super) fn paths(&self, home: &Path) -> Vec<PathBuf> {
        let services = match &self.services {
            Services::Files(files) => files.as_slice(),
            Services::InPlace(_) => &[],
        };
        self.rules.iter().chain(services).map(|path| home.join(path)).collect()
    }

    /// The services told in place; `None`: there are none.
    pub(super) fn instances(&self) -> Result<Option<BTreeMap<String, Instance>>, String> {
        let Services::InPlace(services) = &self.services else { return Ok(None) };
        let mut all = BTreeMap::new();
        for (name, service) in services {
            service.add(name, &self.namespace, &mut all)?;
        }
        Ok(Some(all))
    }
}

impl Service {
    fn add(&self, name: &str, home: &str, all: &mut BTreeMap<String, Instance>) -> Result<(), String> {
        let (short, namespace) = name.split_once('.').unwrap_or((name, home));
        let mut ports: Vec<_> = self.port.iter().map(|port| http_port(*port, *port)).collect();
        for (number, protocol) in &self.ports {
            let protocol = Protocol::parse(protocol).ok_or_else(|| {
                format!("services.{name}.ports.{number}: {protocol:?} is no protocol (http, grpc, tcp …)")
            })?;
            ports.push(mesh_proto::registration::PortBinding {
                protocol,
                name: String::new(),
                ..http_port(*number, *number)
            });
        }
        if ports.is_empty() {
            return Err(format!("services.{name} needs a port: add port: 9080"));
        }
        let versions = if self.versions.is_empty() { vec![String::new()] } else { self.versions.clone() };
        for version in versions {
            let mut labels = self.labels.clone();
            labels.insert_missing("app".into(), || short.to_owned());
            let id = if version.is_empty() { name.to_owned() } else { format!("{name}-{version}") };
            if !version.is_empty() {
                labels.insert("version".into(), version);
            }
            all.insert(id, instance(short, namespace, labels, ports.clone()));
        }
        Ok(())
    }
}

impl Case {
    pub(super) fn name(&self) -> String {
        if self.name.is_empty() {
            format!("{} {}", self.when.method, self.when.url)
        } else {
            self.name.clone()
        }
    }

    pub(super) fn ask(&self) -> Result<Ask, String> {
        let when = &self.when;
        let mut ask = of_url(&when.method, &when.url)?;
        for (name, lines) in &when.headers {
            let lines = match lines {
                Lines::One(line) => std::slice::from_ref(line),
                Lines::Several(lines) => lines,
            };
            ask.headers.extend(lines.iter().map(|line| (name.clone(), line.clone())));
        }
        ask.from.clone_from(&when.from);
        ask.labels.clone_from(&when.labels);
        ask.port = when.port;
        ask.any_caller = true;
        Ok(ask)
    }
}
