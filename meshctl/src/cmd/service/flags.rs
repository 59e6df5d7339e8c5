//! Instances from the flags of `service register`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_proto::registration::{Health, HealthCheck, HttpAsk, Instance, PortBinding, Probe, Protocol};
use mesh_proto::value::Labels;

use crate::cli::RegisterArgs;
use crate::exit::{Failure, Result};

/// Failures in a row that make an instance unhealthy, and successes that make it healthy: `proto`'s defaults.
pub(super) const UNHEALTHY_THRESHOLD: u32 = 2;
pub(super) const HEALTHY_THRESHOLD: u32 = 1;
/// The longest a check may take; less where the interval is shorter.
const CHECK_TIMEOUT_MS: u64 = 1_000;
/// The shortest interval between checks, see `HealthCheck::interval_ms`.
const LEAST_INTERVAL_MS: u64 = 100;

/// Reads what is to be registered.
pub(super) fn instances(args: &RegisterArgs) -> Result<BTreeMap<String, Instance>> {
    if let Some(file) = &args.filename {
        return super::file::read(file);
    }
    let (namespace, group) = member_of(args.group.as_deref(), args.namespace.as_deref())
        .map_err(|why| Failure::usage(format!("--group: {why}")))?;
    let name = args.name.clone().or_else(|| group.clone()).unwrap_or_default();
    let labels = labels(&args.labels)?;
    let check = check(args)?;
    let mut ports = Vec::new();
    for text in &args.ports {
        ports.push(port(text, args.address)?);
    }
    let id = args.id.clone().unwrap_or_else(|| default_id(&name, &namespace, &labels));
    let instance = Instance {
        service: name,
        group,
        namespace,
        account: args.account.clone(),
        labels,
        ports,
        address: args.address,
        weight: args.weight,
        locality: args.locality.clone(),
        health: if check.is_some() { Health::Unhealthy } else { Health::Healthy },
        check,
    };
    Ok(BTreeMap::from([(id, instance)]))
}

/// Reads `[NAMESPACE/]NAME` of a `WorkloadGroup`; returns the namespace of its member, and its name.
pub(super) fn member_of(
    group: Option<&str>,
    namespace: Option<&str>,
) -> std::result::Result<(String, Option<String>), String> {
    let (home, name) = match group.map(|text| text.split_once('/').ok_or(text)) {
        None => (None, None),
        Some(Ok((home, name))) => (Some(home), Some(name)),
        Some(Err(name)) => (None, Some(name)),
    };
    if let (Some(home), Some(namespace)) = (home, namespace)
        && home != namespace
    {
        return Err(format!(
            "the group is of namespace {home}, and so are its members: {namespace} is another"
        ));
    }
    Ok((home.or(namespace).unwrap_or("default").to_owned(), name.map(str::to_owned)))
}

pub(super) fn default_id(name: &str, namespace: &str, labels: &Labels) -> String {
    let mut id = name.to_owned();
    if let Some(version) = labels.get("version") {
        id.push('-');
        id.push_str(version);
    }
    if namespace != "default" {
        id.push('.');
        id.push_str(namespace);
    }
    id
}

fn labels(texts: &[String]) -> Result<Labels> {
    let mut labels = Labels::new();
    for text in texts {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
            Failure::usage(format!("--label {text}: must be KEY=VALUE, such as version=v1"))
        })?;
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::usage(format!("--label {text}: {key} is given twice")));
        }
    }
    Ok(labels)
}

/// Reads `NUMBER[:NAME[:TARGET]]`; the target is a port, or `ADDRESS:PORT` (`[::1]:80` for IPv6).
fn port(text: &str, address: Option<IpAddr>) -> Result<PortBinding> {
    let wrong = |what: &str| {
        Failure::usage(format!(
            "--port {text}: {what}; must be NUMBER[:NAME[:TARGET]], such as 9080:http:127.0.0.1:8081"
        ))
    };
    let mut parts = text.splitn(3, ':');
    let number = parts.next().and_then(|number| number.parse().ok()).filter(|number| *number > 0);
    let number: u16 = number.ok_or_else(|| wrong("the number is not a port (1 to 65535)"))?;
    let name = parts.next().unwrap_or_default().to_owned();
    let home = address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let target = match parts.next() {
        None => SocketAddr::new(home, number),
        Some(target) => match target.parse::<u16>() {
            Ok(port) => SocketAddr::new(home, port),
            Err(_) => {
                target.parse().map_err(|_| wrong("the target is neither a port nor an address:port"))?
            }
        },
    };
    Ok(PortBinding { number, protocol: Protocol::of_port(Protocol::Auto, &name), name, target })
}

fn check(args: &RegisterArgs) -> Result<Option<HealthCheck>> {
    let probe = if let Some(path) = &args.check_http {
        if !path.starts_with('/') {
            return Err(Failure::usage(format!("--check-http {path}: must be a path, such as /health")));
        }
        Probe::Http { path: path.clone(), port: None, ask: HttpAsk::default() }
    } else if args.check_tcp {
        Probe::Tcp { host: None, port: None }
    } else if let Some(service) = &args.check_grpc {
        Probe::Grpc { service: service.clone(), port: None }
    } else if let Some(command) = &args.check_command {
        let argv: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
        if argv.is_empty() {
            return Err(Failure::usage("--check-command: names no program"));
        }
        Probe::Command { argv }
    } else {
        return Ok(None);
    };
    let interval_ms = u64::try_from(args.check_interval.as_millis()).unwrap_or(u64::MAX);
    if interval_ms < LEAST_INTERVAL_MS {
        return Err(Failure::usage(format!("--check-interval: must be at least {LEAST_INTERVAL_MS}ms")));
    }
    Ok(Some(HealthCheck {
        initial_delay_ms: 0,
        probe,
        interval_ms,
        timeout_ms: CHECK_TIMEOUT_MS.min(interval_ms),
        unhealthy_threshold: UNHEALTHY_THRESHOLD,
        healthy_threshold: HEALTHY_THRESHOLD,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_port_may_stand_for_all_of_it() {
        let binding = port("9080", None).expect("reads");

        assert_eq!((binding.number, binding.target.to_string()), (9080, "127.0.0.1:9080".into()));
        assert_eq!(binding.protocol, Protocol::Auto);
    }

    #[test]
    fn name_and_target_of_a_port_can_be_given() {
        let binding = port("9080:grpc-api:8081", None).expect("reads");
        assert_eq!(binding.target.to_string(), "127.0.0.1:8081");
        assert_eq!(binding.protocol, Protocol::Grpc);

        let binding = port("80:http:[::1]:8080", None).expect("reads");
        assert_eq!(binding.target.to_string(), "[::1]:8080");

        let binding = port("80::127.0.0.2:8080", None).expect("reads");
        assert_eq!((binding.name.as_str(), binding.target.to_string()), ("", "127.0.0.2:8080".into()));
    }

    #[test]
    fn a_wrong_port_says_what_is_wrong_and_what_is_right() {
        let failure = port("0:http", None).expect_err("no port");

        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(
            failure.message,
            "--port 0:http: the number is not a port (1 to 65535); must be NUMBER[:NAME[:TARGET]], such as \
             9080:http:127.0.0.1:8081"
        );
    }

    #[test]
    fn the_default_id_tells_name_version_and_foreign_namespace() {
        let labels = Labels::from([("version".to_owned(), "v2".to_owned())]);

        assert_eq!(default_id("reviews", "default", &labels), "reviews-v2");
        assert_eq!(default_id("reviews", "shop", &Labels::new()), "reviews.shop");
    }
}
