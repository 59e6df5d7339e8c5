//! A file of services, in the form of `/etc/meshd/services.d`, read for `service register -f`.
//!
//! meshd reads the folder itself and checks more (addresses of its host, for example); it checks what it is sent, too.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use mesh_proto::registration::{Health, HealthCheck, HttpAsk, Instance, PortBinding, Probe, Protocol};
use mesh_proto::value::Labels;
use serde::Deserialize;

use super::flags::{HEALTHY_THRESHOLD, UNHEALTHY_THRESHOLD, default_id, member_of};
use crate::exit::{Exit, Failure, Result, plain};
use crate::words::duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    service: Vec<toml::Spanned<Service>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    name: Option<String>,
    group: Option<String>,
    namespace: Option<String>,
    #[serde(default = "default_word")]
    account: String,
    #[serde(default)]
    labels: Labels,
    #[serde(default = "one")]
    weight: u32,
    locality: Option<String>,
    address: Option<IpAddr>,
    id: Option<String>,
    #[serde(default)]
    port: Vec<Port>,
    check: Option<Check>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    number: u16,
    #[serde(default)]
    name: String,
    #[serde(default)]
    protocol: String,
    target: Option<Target>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Target {
    Port(u16),
    Address(SocketAddr),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    http: Option<String>,
    tcp: Option<bool>,
    grpc: Option<String>,
    command: Option<Vec<String>>,
    port: Option<u16>,
    interval: Option<String>,
    timeout: Option<String>,
    unhealthy_threshold: Option<u32>,
    healthy_threshold: Option<u32>,
}

fn default_word() -> String {
    "default".into()
}

fn one() -> u32 {
    1
}

/// Reads the instances of a file by their id.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, Instance>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Unreadable, format!("{}: {}", path.display(), plain(&error))))?;
    parse(&path.display().to_string(), &text)
}

fn parse(name: &str, text: &str) -> Result<BTreeMap<String, Instance>> {
    let wrong = |offset: usize, message: &str| {
        let (line, column) = place(text, offset);
        Failure::refused(format!("{name}:{line}:{column}: {message}; nothing was registered"))
    };
    let file: File = toml::from_str(text)
        .map_err(|error| wrong(error.span().map_or(0, |span| span.start), error.message().trim_end()))?;
    let mut instances = BTreeMap::new();
    for service in file.service {
        let at = service.span().start;
        let (id, instance) = instance(service.into_inner()).map_err(|message| wrong(at, &message))?;
        if instances.contains_key(&id) {
            return Err(wrong(at, &format!("a second instance {id}; give each an id of its own")));
        }
        instances.insert(id, instance);
    }
    if instances.is_empty() {
        return Err(wrong(0, "no [[service]] in it"));
    }
    Ok(instances)
}

fn instance(service: Service) -> std::result::Result<(String, Instance), String> {
    let home = service.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let ports = service
        .port
        .into_iter()
        .map(|port| binding(port, home))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let (namespace, group) = member_of(service.group.as_deref(), service.namespace.as_deref())?;
    let name = service.name.or_else(|| group.clone()).ok_or("a service needs a name, or a group")?;
    if ports.is_empty() && group.is_none() {
        return Err(format!("{name} needs at least one port: add [[service.port]] with number = …"));
    }
    let check = service.check.map(health_check).transpose()?;
    let id = service.id.unwrap_or_else(|| default_id(&name, &namespace, &service.labels));
    let instance = Instance {
        service: name,
        group,
        namespace,
        account: service.account,
        labels: service.labels,
        ports,
        address: service.address,
        weight: service.weight,
        locality: service.locality,
        health: if check.is_some() { Health::Unhealthy } else { Health::Healthy },
        check,
    };
    Ok((id, instance))
}

fn binding(port: Port, home: IpAddr) -> std::result::Result<PortBinding, String> {
    let protocol = match port.protocol.as_str() {
        "" | "auto" => Protocol::Auto,
        other => Protocol::parse(other)
            .ok_or_else(|| format!("{other:?} is no protocol (http, http2, grpc, tls, tcp …)"))?,
    };
    let target = match port.target {
        None => SocketAddr::new(home, port.number),
        Some(Target::Port(number)) => SocketAddr::new(home, number),
        Some(Target::Address(address)) => address,
    };
    Ok(PortBinding { number: port.number, name: port.name, protocol, target })
}

fn health_check(check: Check) -> std::result::Result<HealthCheck, String> {
    let port = check.port;
    let probes: Vec<Probe> = [
        check.http.map(|path| Probe::Http { path, port, ask: HttpAsk::default() }),
        check.tcp.filter(|on| *on).map(|_| Probe::Tcp { host: None, port }),
        check.grpc.map(|service| Probe::Grpc { service, port }),
        check.command.map(|argv| Probe::Command { argv }),
    ]
    .into_iter()
    .flatten()
    .collect();
    let [probe] = <[Probe; 1]>::try_from(probes).map_err(|probes| {
        format!("check needs exactly one of http, tcp, grpc and command; has {}", probes.len())
    })?;
    let millis = |text: Option<String>, default: u64| match text {
        None => Ok(default),
        Some(text) => duration(&text)
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
            .map_err(|error| format!("check: {text:?} {error}")),
    };
    Ok(HealthCheck {
        initial_delay_ms: 0,
        probe,
        interval_ms: millis(check.interval, 2_000)?,
        timeout_ms: millis(check.timeout, 1_000)?,
        unhealthy_threshold: check.unhealthy_threshold.unwrap_or(UNHEALTHY_THRESHOLD),
        healthy_threshold: check.healthy_threshold.unwrap_or(HEALTHY_THRESHOLD),
    })
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_read_whole() {
        let instances = parse("services.toml", include_str!("../../../../examples/two-hosts/services.toml"))
            .expect("reads");

        let instance = &instances["reviews-v1"];
        assert_eq!(instance.account, "bookinfo-reviews");
        assert_eq!(instance.ports[0].target.to_string(), "127.0.0.1:8081");
        assert_eq!(instance.check.as_ref().map(|check| check.interval_ms), Some(2_000));
        assert_eq!(instance.health, Health::Unhealthy);
    }

    #[test]
    fn errors_tell_line_and_column() {
        let failure = parse("s.toml", "[[service]]\nname = \"a\"\nnmae = 1\n").expect_err("unknown key");

        assert!(failure.message.starts_with("s.toml:3:1: unknown field `nmae`"), "{failure}");
        assert!(failure.message.ends_with("; nothing was registered"), "{failure}");
    }

    #[test]
    fn a_service_without_a_port_says_what_to_add() {
        let failure = parse("s.toml", "[[service]]\nname = \"a\"\n").expect_err("no port");

        assert!(failure.message.contains("a needs at least one port: add [[service.port]]"), "{failure}");
    }

    #[test]
    fn two_instances_need_two_ids() {
        let one = "[[service]]\nname = \"a\"\n[[service.port]]\nnumber = 80\n";

        let failure = parse("s.toml", &one.repeat(2)).expect_err("twice");

        assert!(failure.message.starts_with("s.toml:5:"), "{failure}");
    }
}
