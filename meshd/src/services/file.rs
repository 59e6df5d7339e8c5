//! One file of `services.d`: from text to instances and back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_proto::finding::Finding;
use mesh_proto::registration::{Health, HealthCheck, HttpAsk, Instance, PortBinding, Probe, Protocol};
use toml::de::DeValue;

use crate::config::document::{Document, Read, Section, Value, flag, list, number, parsed, text};
use crate::config::words::{account, ip_address, is_on_this_host, label, labels, locality, socket_address};

/// An instance as a file gives it, with the places to point at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) file: String,
    pub(super) id: String,
    /// Path of its table, such as `service[1]`.
    pub(super) path: String,
    pub(super) at: Option<(u32, u32)>,
    /// Line and column of each port.
    pub(super) ports_at: Vec<Option<(u32, u32)>>,
    pub(super) instance: Instance,
}

/// Reads a file: its instances, or everything that is wrong with it.
pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Entry>, Vec<Finding>> {
    let (mut document, root) = Document::parse(file, text);
    let mut entries = Vec::new();
    if let Some(mut root) = root {
        for section in root.sections(&mut document, "service") {
            entries.extend(service(file, &mut document, section));
        }
        root.finish(&mut document);
    }
    let findings = document.into_findings();
    if findings.is_empty() { Ok(entries) } else { Err(findings) }
}

fn service<'t>(file: &str, document: &mut Document<'t>, mut section: Section<'t>) -> Option<Entry> {
    let group = section.take(document, "group", parsed(group));
    let service = match &group {
        // A member that says nothing else is an instance of a service of the group's name.
        Some((_, name)) => {
            Some(section.take(document, "name", parsed(label)).unwrap_or_else(|| name.clone()))
        }
        None => section.require(document, "name", parsed(label)),
    };
    let or_default = |word: Option<String>| word.unwrap_or_else(|| "default".into());
    let namespace = section.take(document, "namespace", parsed(label));
    let home = group.as_ref().and_then(|(namespace, _)| namespace.clone());
    if let (Some(own), Some(home)) = (&namespace, &home)
        && own != home
    {
        let message = format!("the group is of namespace {home}, and so are its members: {own} is another");
        document.error("group-namespace", &section.path_of("namespace"), message);
    }
    let namespace = or_default(namespace.or(home));
    let account_name = or_default(section.take(document, "account", parsed(account)));
    let labels = section.take(document, "labels", labels).unwrap_or_default();
    let weight = section.take(document, "weight", number(0..=1_000_000)).unwrap_or(1);
    let locality = section.take(document, "locality", parsed(locality)).filter(|it| !it.is_empty());
    let address = section.take(document, "address", parsed(ip_address));
    let id = section.take(document, "id", parsed(account));
    let (ports, ports_at) = ports(document, &mut section, address, group.is_some());
    let check = section.section(document, "check").and_then(|table| check(document, table));
    let path = section.path.clone();
    section.finish(document);

    let service = service?;
    let version = labels.get("version").map(String::as_str);
    let id = id.unwrap_or_else(|| default_id(&service, &namespace, version));
    let health = if check.is_some() { Health::Unhealthy } else { Health::Healthy };
    let instance = Instance {
        service,
        group: group.map(|(_, name)| name),
        namespace,
        account: account_name,
        labels,
        ports,
        address: address.filter(|address| !is_on_this_host(*address)),
        weight,
        locality: locality.map(|it| it.to_string()),
        check,
        health,
    };
    Some(Entry { file: file.to_owned(), id, at: document.position(&path), path, ports_at, instance })
}

/// Reads `NAME` or `NAMESPACE/NAME` of a `WorkloadGroup`.
pub(super) fn group(text: &str) -> Result<(Option<String>, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) => Ok((Some(label(namespace)?), label(name)?)),
        None => Ok((None, label(text)?)),
    }
}

/// The id of an instance that gives none: what tells the instances of one host apart in most cases.
pub(super) fn default_id(service: &str, namespace: &str, version: Option<&str>) -> String {
    let mut id = service.to_owned();
    if let Some(version) = version.filter(|version| account(version).is_ok()) {
        id = format!("{id}-{version}");
    }
    if namespace == "default" { id } else { format!("{id}.{namespace}") }
}

type Places = Vec<Option<(u32, u32)>>;

fn ports<'t>(
    document: &mut Document<'t>,
    service: &mut Section<'t>,
    address: Option<IpAddr>,
    is_member: bool,
) -> (Vec<PortBinding>, Places) {
    if !service.has("port") && !is_member {
        let path = service.path_of("port");
        document.error(
            "missing-key",
            &path,
            "a service needs at least one port: add [[service.port]] with number = …",
        );
    }
    let mut ports: Vec<PortBinding> = Vec::new();
    let mut places = Vec::new();
    for row in service.sections(document, "port") {
        let path = row.path.clone();
        let Some(port) = port(document, row, address) else { continue };
        if ports.iter().any(|other| other.number == port.number) {
            let message = format!("port {} stands twice in this service", port.number);
            document.error("duplicate-port", &format!("{path}.number"), message);
        }
        places.push(document.position(&path));
        ports.push(port);
    }
    (ports, places)
}

fn port<'t>(
    document: &mut Document<'t>,
    mut row: Section<'t>,
    address: Option<IpAddr>,
) -> Option<PortBinding> {
    let number_key = row.require(document, "number", number(1..=u16::MAX));
    let name = row.take(document, "name", parsed(port_name)).unwrap_or_default();
    let protocol = row.take(document, "protocol", parsed(protocol)).unwrap_or_default();
    let own = address.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let target = row.take(document, "target", |value| target(value, own));
    let path = row.path_of("target");
    row.finish(document);
    let target = target.unwrap_or(SocketAddr::new(own, number_key?));
    let expected = address.filter(|address| !is_on_this_host(*address));
    match expected {
        Some(address) if target.ip() != address => {
            let message = format!("{target} is not on {address}, the address of this service");
            document.error("target-address", &path, message);
        }
        None if target.ip().is_unspecified() || !is_on_this_host(target.ip()) => {
            let message = format!(
                "{target} is not an address of this host; write the one where the service listens, \
                 or give the service an address for an endpoint outside the mesh"
            );
            document.error("target-address", &path, message);
        }
        _ => {}
    }
    Some(PortBinding { number: number_key?, name, protocol, target })
}

fn target(value: &Value<'_>, own: IpAddr) -> Read<SocketAddr> {
    match value.get_ref() {
        DeValue::Integer(_) => number(1..=u16::MAX)(value).map(|port| SocketAddr::new(own, port)),
        _ => parsed(socket_address)(value),
    }
}

fn port_name(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { label(text) }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    if text.is_empty() || text.eq_ignore_ascii_case("auto") {
        return Ok(Protocol::Auto);
    }
    Protocol::parse(text).ok_or_else(|| {
        format!("{text:?} is not auto, http, http2, grpc, grpc-web, https, tls, tcp, mongo, mysql or redis")
    })
}

fn check<'t>(document: &mut Document<'t>, mut table: Section<'t>) -> Option<HealthCheck> {
    let port = table.take(document, "port", number(1..=u16::MAX));
    let given: Vec<&str> =
        ["http", "tcp", "grpc", "command"].into_iter().filter(|key| table.has(key)).collect();
    let http = table.take(document, "http", parsed(path)).map(|path| Probe::Http {
        path,
        port,
        ask: HttpAsk::default(),
    });
    let tcp = table.take(document, "tcp", flag).filter(|on| *on).map(|_| Probe::Tcp { host: None, port });
    let grpc = table.take(document, "grpc", text).map(|service| Probe::Grpc { service, port });
    let command = table.take(document, "command", list(text));
    let command = command.filter(|argv| !argv.is_empty()).map(|argv| Probe::Command { argv });
    let interval = table.take(document, "interval", parsed(|text: &str| span(text, 100, 3_600_000)));
    let timeout = table.take(document, "timeout", parsed(|text: &str| span(text, 1, 60_000)));
    let unhealthy = table.take(document, "unhealthy_threshold", number(1..=100));
    let healthy = table.take(document, "healthy_threshold", number(1..=100));
    let path = table.path.clone();
    table.finish(document);
    if given.len() != 1 {
        let found = if given.is_empty() { "none".to_owned() } else { given.join(" and ") };
        let message = format!("needs exactly one of http, tcp, grpc and command; has {found}");
        document.error("check-probe", &path, message);
        return None;
    }
    let Some(probe) = http.or(tcp).or(grpc).or(command) else {
        document.error("check-probe", &path, format!("{} asks nothing", given.join("")));
        return None;
    };
    Some(HealthCheck {
        initial_delay_ms: 0,
        probe,
        interval_ms: interval.unwrap_or(2_000),
        timeout_ms: timeout.unwrap_or(1_000),
        unhealthy_threshold: unhealthy.unwrap_or(2),
        healthy_threshold: healthy.unwrap_or(1),
    })
}

fn path(text: &str) -> Result<String, String> {
    match text.parse::<http::uri::PathAndQuery>() {
        Ok(_) if text.starts_with('/') => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not a path such as \"/health\"")),
    }
}

/// Reads a span such as `2s` or `500ms`, in milliseconds.
fn span(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let span: mesh_proto::value::Duration =
        text.parse().map_err(|error: mesh_proto::value::DurationError| error.to_string())?;
    let millis = u64::try_from(span.get().as_millis()).unwrap_or(u64::MAX);
    if !(least..=most).contains(&millis) {
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        return Err(format!("must lie between {least:?} and {most:?}, is {text:?}"));
    }
    Ok(millis)
}

/// Returns the text of a file with one instance; [`parse`] reads it back to the same.
pub(super) fn to_toml(id: &str, instance: &Instance) -> String {
    let mut service = toml::Table::new();
    let mut put = |key: &str, value: toml::Value| service.insert(key.to_owned(), value);
    put("name", instance.service.clone().into());
    put("namespace", instance.namespace.clone().into());
    put("account", instance.account.clone().into());
    put("id", id.into());
    if let Some(group) = &instance.group {
        put("group", group.clone().into());
    }
    put("weight", i64::from(instance.weight).into());
    if !instance.labels.is_empty() {
        let labels = instance.labels.iter().map(|(key, value)| (key.clone(), value.clone().into()));
        put("labels", toml::Value::Table(labels.collect()));
    }
    if let Some(locality) = &instance.locality {
        put("locality", locality.clone().into());
    }
    if let Some(address) = instance.address {
        put("address", address.to_string().into());
    }
    if !instance.ports.is_empty() {
        put("port", toml::Value::Array(instance.ports.iter().map(port_table).collect()));
    }
    if let Some(check) = &instance.check {
        put("check", check_table(check));
    }
    let mut root = toml::Table::new();
    root.insert("service".into(), toml::Value::Array(vec![service.into()]));
    format!("# Written by meshctl service register; meshctl service deregister {id} removes it.\n{root}")
}

fn port_table(port: &PortBinding) -> toml::Value {
    let mut table = toml::Table::new();
    table.insert("number".into(), i64::from(port.number).into());
    table.insert("name".into(), port.name.clone().into());
    table.insert("protocol".into(), port.protocol.to_string().to_ascii_lowercase().into());
    table.insert("target".into(), port.target.to_string().into());
    table.into()
}

fn check_table(check: &HealthCheck) -> toml::Value {
    let mut table = toml::Table::new();
    let (key, value, port): (&str, toml::Value, Option<u16>) = match &check.probe {
        Probe::Http { path, port, .. } => ("http", path.clone().into(), *port),
        Probe::Tcp { port, .. } => ("tcp", true.into(), *port),
        Probe::Grpc { service, port } => ("grpc", service.clone().into(), *port),
        Probe::Command { argv } => ("command", argv.clone().into(), None),
    };
    table.insert(key.into(), value);
    if let Some(port) = port {
        table.insert("port".into(), i64::from(port).into());
    }
    table.insert("interval".into(), format!("{}ms", check.interval_ms).into());
    table.insert("timeout".into(), format!("{}ms", check.timeout_ms).into());
    table.insert("unhealthy_threshold".into(), i64::from(check.unhealthy_threshold).into());
    table.insert("healthy_threshold".into(), i64::from(check.healthy_threshold).into());
    table.into()
}
