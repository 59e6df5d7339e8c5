//! From the text of `meshd.toml` to [`Config`]: every key once, in the order of the file, then what must fit together.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::plan::Workload;
use mesh_proto::finding::Finding;
use mesh_proto::registration::Protocol;
use toml::de::{DeTable, DeValue};

use super::document::{Document, Read, Section, Value, choice, flag, list, number, optional, parsed};
use super::keys::KEYS;
use super::words::{self, absolute_path, host_and_port, host_name, label, labels, locality, socket_address};
use super::{
    AccessLog, Acme, Advertise, Challenge, Config, Dns, Host, Intercept, InterceptMode, Limits, Listen,
    Listener, Log, LogFormat, Ordered, Overrides, Proxy, Services, StandsFor, Tap, Transport, Voter,
};

/// Let's Encrypt's bound.
const MOST_NAMES: usize = 100;
/// A day: no time limit of a connection makes sense beyond it.
const DAY_SECONDS: u64 = 86_400;

pub(super) fn config(file: &str, text: &str, overrides: &Overrides) -> Result<Config, Vec<Finding>> {
    let (mut document, root) = Document::parse(file, text);
    let Some(mut root) = root else { return Err(document.into_findings()) };
    let mut tables = Tables { document: &mut document, root: &mut root };
    let host = host(&mut tables, overrides);
    let listen = listen(&mut tables, overrides);
    let intercept = intercept(&mut tables);
    let dns = dns(&mut tables);
    let proxy = proxy(&mut tables);
    let limits = limits(&mut tables);
    let acme = acme(&mut tables);
    let services = tables.table("services", |t| Services { directory: t.get("directory", absolute_path) });
    let log = tables.table("log", |t| Log {
        level: t.get("level", parsed(words::log_level)),
        format: t.get(
            "format",
            choice(&[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)]),
        ),
    });
    let listeners = listeners(&mut document, &mut root, &host.workload);
    root.finish(&mut document);
    clashes(&mut document, &listen, &listeners);
    let config = Config { host, listen, listeners, intercept, dns, proxy, limits, acme, services, log };
    let findings = document.into_findings();
    if findings.is_empty() { Ok(config) } else { Err(findings) }
}

fn host(tables: &mut Tables<'_, '_>, overrides: &Overrides) -> Host {
    tables.table("host", |t| {
        let name = t.get("name", optional(parsed(host_name)));
        let data: PathBuf = t.get("data", absolute_path);
        let locality = t.get("locality", parsed(locality));
        Host {
            name: name.unwrap_or_else(kernel_host_name),
            data: overrides.data.clone().unwrap_or(data),
            advertise: t.get("advertise", optional(parsed(advertise))),
            labels: t.get("labels", labels),
            voter: t.get(
                "voter",
                choice(&[("auto", Voter::Auto), ("never", Voter::Never), ("prefer", Voter::Prefer)]),
            ),
            workload: t.table("workload", |t| Workload {
                namespace: t.get("namespace", parsed(label)),
                account: t.get("account", parsed(words::account)),
                labels: t.get("labels", labels),
                locality: locality.clone(),
            }),
            locality,
        }
    })
}

fn listen(tables: &mut Tables<'_, '_>, overrides: &Overrides) -> Listen {
    tables.table("listen", |t| {
        let socket_given = t.has("socket");
        let socket = t.get("socket", absolute_path);
        Listen {
            mesh: t.get("mesh", parsed(socket_address)),
            outbound: t.get("outbound", list(parsed(socket_address))),
            inbound: t.get("inbound", list(parsed(socket_address))),
            admin: t.get("admin", optional(parsed(loopback_address))),
            metrics: t.get("metrics", list(parsed(socket_address))),
            dns: t.get("dns", list(parsed(socket_address))),
            http_proxy: t.get("http_proxy", optional(parsed(socket_address))),
            socket: match &overrides.data {
                Some(data) if !socket_given => data.join("meshd.sock"),
                _ => socket,
            },
        }
    })
}

fn intercept(tables: &mut Tables<'_, '_>) -> Intercept {
    tables.table("intercept", |t| {
        let mut exclude_ports = t.get("exclude_ports", list(number(1..=u16::MAX)));
        exclude_ports.push(22);
        exclude_ports.sort_unstable();
        exclude_ports.dedup();
        Intercept {
            mode: t.get(
                "mode",
                choice(&[
                    ("auto", InterceptMode::Auto),
                    ("on", InterceptMode::On),
                    ("off", InterceptMode::Off),
                ]),
            ),
            mark: t.get("mark", number(1..=u32::MAX)),
            exclude_ports,
            exclude_cidrs: t.get("exclude_cidrs", list(parsed(range))),
            exclude_uids: t.get("exclude_uids", list(number(0..=u32::MAX))),
            inbound: t.get("inbound", flag),
            dns: t.get("dns", flag),
        }
    })
}

fn dns(tables: &mut Tables<'_, '_>) -> Dns {
    tables.table("dns", |t| Dns {
        upstreams: t.get("upstreams", list(parsed(resolver))),
        timeout: t.millis("timeout_ms", 100, 5_000),
        ttl: t.seconds("ttl_seconds", 0, DAY_SECONDS),
    })
}

fn proxy(tables: &mut Tables<'_, '_>) -> Proxy {
    tables.table("proxy", |t| Proxy {
        workers: t.get("workers", number(0..=1_024)),
        transport: t.get("transport", choice(&[("tcp", Transport::Tcp), ("quic", Transport::Quic)])),
        drain: t.seconds("drain_seconds", 0, DAY_SECONDS),
        access_log: t.get(
            "access_log",
            choice(&[("off", AccessLog::Off), ("text", AccessLog::Text), ("json", AccessLog::Json)]),
        ),
        proxy_header_from: t.get("proxy_header_from", list(parsed(range))),
        tap: t.get("tap", choice(&[("off", Tap::Off), ("redacted", Tap::Redacted), ("all", Tap::All)])),
    })
}

fn limits(tables: &mut Tables<'_, '_>) -> Limits {
    tables.table("limits", |t| Limits {
        head: t.seconds("head_seconds", 1, DAY_SECONDS),
        idle: t.seconds("idle_seconds", 1, DAY_SECONDS),
        sniff: t.millis("sniff_ms", 1, 60_000),
        head_bytes: t.get("head_bytes", number(4_096..=1 << 20)),
        headers: t.get("headers", number(16..=10_000)),
        uri_bytes: t.get("uri_bytes", number(256..=1 << 20)),
        http2_streams: t.get("http2_streams", number(1..=1 << 20)),
        hop_streams: t.get("hop_streams", number(16..=1 << 20)),
        http2_control_frames: t.get("http2_control_frames", number(10..=1 << 20)),
        body: t.seconds("body_seconds", 1, DAY_SECONDS),
        body_rate: t.get("body_rate", number(1..=1 << 30)),
        connections: t.get("connections", number(0..=1 << 24)),
        connections_per_source: t.get("connections_per_source", number(0..=1 << 24)),
        hops: t.get("hops", number(1..=250)),
        memory_bytes: t.get("memory_bytes", number(0..=1 << 50)),
    })
}

fn acme(tables: &mut Tables<'_, '_>) -> Option<Acme> {
    tables.table("acme", |t| {
        let directory = t.get("directory", optional(parsed(authority)));
        let acme = Acme {
            directory: directory.clone().unwrap_or_default(),
            contact: t.get("contact", list(parsed(contact))),
            agree_to_terms: t.get("agree_to_terms", flag),
            roots: t.get("roots", optional(absolute_path)),
            challenge: t.get(
                "challenge",
                choice(&[
                    ("auto", Challenge::Auto),
                    ("http-01", Challenge::Http),
                    ("tls-alpn-01", Challenge::Tls),
                ]),
            ),
            certificates: t.rows("certificate", ordered),
        };
        let mut names = BTreeSet::new();
        if let Some(twice) = acme.certificates.iter().find(|one| !names.insert(&one.secret)) {
            let message = format!("secret {:?} is ordered twice", twice.secret);
            t.document.error("ordered-twice", "acme.certificate", message);
        }
        if directory.is_none() && !acme.certificates.is_empty() {
            let message = "certificates are ordered from nobody; write the URL of the authority";
            t.document.error("missing-key", "acme.directory", message);
        }
        if directory.is_some() && !cfg!(feature = "acme") {
            let message = "this meshd was built without ACME (cargo feature acme)";
            t.document.error("not-built", "acme.directory", message);
        }
        directory.map(|_| acme)
    })
}

fn ordered<'t>(document: &mut Document<'t>, row: &mut Section<'t>) -> Option<Ordered> {
    let secret = row.require(document, "secret", parsed(secret));
    let names = row.require(document, "names", list(parsed(certified)))?;
    if !(1..=MOST_NAMES).contains(&names.len()) {
        let message = format!("a certificate is for 1 to {MOST_NAMES} names, not {}", names.len());
        document.error("invalid-value", &row.path_of("names"), message);
        return None;
    }
    Some(Ordered { secret: secret?, names })
}

fn listeners<'t>(document: &mut Document<'t>, root: &mut Section<'t>, default: &Workload) -> Vec<Listener> {
    let rows = root.sections(document, "listener");
    rows.into_iter().filter_map(|row| listener(document, row, default)).collect()
}

fn listener<'t>(document: &mut Document<'t>, mut row: Section<'t>, default: &Workload) -> Option<Listener> {
    let address = row.require(document, "address", parsed(socket_address));
    let both = row.has("service_port") && row.has("to");
    let neither = !row.has("service_port") && !row.has("to");
    let port = row.take(document, "service_port", number(1..=u16::MAX));
    let to = row.take(document, "to", parsed(host_and_port));
    let protocol = row.take(
        document,
        "protocol",
        choice(&[
            ("auto", Protocol::Auto),
            ("http", Protocol::Http),
            ("tcp", Protocol::Tcp),
            ("tls", Protocol::Tls),
        ]),
    );
    let workload = match row.section(document, "workload") {
        Some(section) => words::workload(document, section, default),
        None => default.clone(),
    };
    if both || neither {
        let message = "needs exactly one of service_port (the Host of a request says which service) and to";
        document.error("listener-target", &row.path, message);
    }
    row.finish(document);
    let stands_for = match (port, to) {
        (Some(port), _) => StandsFor::ServicePort(port),
        (None, Some((host, port))) => StandsFor::Service { host, port },
        (None, None) => return None,
    };
    Some(Listener { address: address?, stands_for, protocol: protocol.unwrap_or_default(), workload })
}

/// Reports each address that two keys claim.
fn clashes(document: &mut Document<'_>, listen: &Listen, listeners: &[Listener]) {
    let mut claims: Vec<(String, SocketAddr)> = vec![("listen.mesh".into(), listen.mesh)];
    let mut claim = |key: &str, addresses: &[SocketAddr]| {
        claims.extend(addresses.iter().map(|address| (key.to_owned(), *address)));
    };
    claim("listen.outbound", &listen.outbound);
    claim("listen.inbound", &listen.inbound);
    claim("listen.admin", listen.admin.as_slice());
    claim("listen.metrics", &listen.metrics);
    claim("listen.dns", &listen.dns);
    claim("listen.http_proxy", listen.http_proxy.as_slice());
    for (at, listener) in listeners.iter().enumerate() {
        claim(&format!("listener[{at}].address"), &[listener.address]);
    }
    for (at, (key, address)) in claims.iter().enumerate() {
        if let Some((other, taken)) = claims[..at].iter().find(|(_, taken)| collide(*taken, *address)) {
            let message = format!("{address} is taken by {other} ({taken})");
            document.error("address-clash", key, message);
        }
    }
}

fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    // Port 0 asks the kernel for a free one.
    let same_port = a.port() == b.port() && a.port() != 0;
    let any_of = |any: IpAddr, other: IpAddr| any.is_unspecified() && any.is_ipv4() == other.is_ipv4();
    same_port && (a.ip() == b.ip() || any_of(a.ip(), b.ip()) || any_of(b.ip(), a.ip()))
}

/// The tables of a file, entered one by one.
struct Tables<'d, 't> {
    document: &'d mut Document<'t>,
    root: &'d mut Section<'t>,
}

impl<'t> Tables<'_, 't> {
    fn table<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Table<'_, 't>) -> T) -> T {
        let section = self.root.section(self.document, name);
        Table::enter(self.document, name.to_owned(), section, read)
    }
}

/// One table, whose absent keys have the defaults of [`KEYS`].
struct Table<'d, 't> {
    document: &'d mut Document<'t>,
    path: String,
    section: Option<Section<'t>>,
}

impl<'t> Table<'_, 't> {
    fn enter<T>(
        document: &mut Document<'t>,
        path: String,
        section: Option<Section<'t>>,
        read: impl FnOnce(&mut Table<'_, 't>) -> T,
    ) -> T {
        let mut table = Table { document, path, section };
        let value = read(&mut table);
        if let Some(section) = table.section {
            section.finish(table.document);
        }
        value
    }

    fn get<T>(&mut self, name: &'static str, read: impl Fn(&Value<'_>) -> Read<T>) -> T {
        let given = self.section.as_mut().and_then(|it| it.take(self.document, name, &read));
        given.unwrap_or_else(|| default(&self.path, name, read))
    }

    fn seconds(&mut self, name: &'static str, least: u64, most: u64) -> Duration {
        Duration::from_secs(self.get(name, number(least..=most)))
    }

    fn millis(&mut self, name: &'static str, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.get(name, number(least..=most)))
    }

    /// Reads each table of a list (`[[table.name]]`).
    fn rows<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&mut Document<'t>, &mut Section<'t>) -> Option<T>,
    ) -> Vec<T> {
        let Some(section) = &mut self.section else { return Vec::new() };
        let rows = section.sections(self.document, name);
        let one = |mut row: Section<'t>| {
            let found = read(self.document, &mut row);
            row.finish(self.document);
            found
        };
        rows.into_iter().filter_map(one).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.section.as_ref().is_some_and(|section| section.has(name))
    }

    fn table<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Table<'_, 't>) -> T) -> T {
        let section = self.section.as_mut().and_then(|it| it.section(self.document, name));
        Table::enter(self.document, format!("{}.{name}", self.path), section, read)
    }
}

fn default<T>(table: &str, name: &str, read: impl Fn(&Value<'_>) -> Read<T>) -> T {
    let key = KEYS
        .iter()
        .find(|key| key.table == table && key.name == name)
        .unwrap_or_else(|| unreachable!("{table}.{name} stands in KEYS: a test reads every key"));
    let line = format!("value = {}", key.default);
    let parsed = DeTable::parse(&line).ok();
    let value = parsed.and_then(|table| table.into_inner().remove("value"));
    value
        .and_then(|value: toml::Spanned<DeValue<'_>>| read(&value).ok())
        .unwrap_or_else(|| unreachable!("the default of {table}.{name} is valid: a test reads every key"))
}

fn advertise(text: &str) -> Result<Advertise, String> {
    let whole = text.parse::<SocketAddr>().map(|it| Advertise { ip: it.ip(), port: Some(it.port()) });
    let advertise = whole.or_else(|_| words::ip_address(text).map(|ip| Advertise { ip, port: None }))?;
    if advertise.ip.is_unspecified() || advertise.port == Some(0) {
        return Err(format!("{text:?} cannot be dialled by other hosts; write the address they reach"));
    }
    Ok(advertise)
}

fn loopback_address(text: &str) -> Result<SocketAddr, String> {
    let address = socket_address(text)?;
    if !address.ip().is_loopback() {
        return Err(format!("{text:?} is not a loopback address; the admin port never leaves the host"));
    }
    Ok(address)
}

fn range(text: &str) -> Result<IpNet, String> {
    let single = |_| words::ip_address(text).map(IpNet::from);
    let range = text.parse::<IpNet>().or_else(single);
    range
        .map(|it| it.trunc())
        .map_err(|_| format!("{text:?} is not an address range such as \"10.1.0.0/16\""))
}

fn authority(text: &str) -> Result<String, String> {
    let uri = text.parse::<http::Uri>().ok();
    match uri.filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some()) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!(
            "{text:?} is not the URL of a directory, such as \"https://ca.example.com/directory\""
        )),
    }
}

fn contact(text: &str) -> Result<String, String> {
    let is_url = text.split_once(':').is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
    if is_url { Ok(text.to_owned()) } else { Err(format!("{text:?} is no URL; write \"mailto:{text}\"")) }
}

fn secret(text: &str) -> Result<String, String> {
    if !mesh_proto::secret::is_name(text) {
        return Err(format!(
            "{text:?} is no name of a secret: letters, digits, '-', '_' and '.' make one, and it begins with no '.'"
        ));
    }
    Ok(text.to_owned())
}

/// A name that an authority can see to lead here.
fn certified(text: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err(format!(
            "{text:?} is a wildcard, which an authority sees in DNS only (dns-01): name each host, or put a certificate of yours into the secret"
        ));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("{text:?} is an address; certificates are ordered for names"));
    }
    host_name(text)
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| format!("{text:?} is not IP or IP:PORT of a resolver"))
}

fn kernel_host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    host_name(&name).unwrap_or_else(|_| "localhost".to_owned())
}
