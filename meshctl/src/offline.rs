//! A mesh made of files: rules from YAML, services from TOML or assumed, for commands that need no meshd.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mesh_core::sketch;
use mesh_core::world::World;
use mesh_proto::registration::{Health, Instance, PortBinding, Protocol};
use mesh_proto::resource::{Destination, Object, Spec};
use mesh_proto::value::Labels;

use crate::cmd::service_file;
use crate::exit::{Exit, Failure, Result};
use crate::rules::Rules;

/// Where a file of services says so.
const MARK: &str = "[[service]]";
/// The most folders within folders.
const MAX_DEPTH: usize = 16;

/// Instances of each host, by the host's name.
pub(crate) type Hosts = BTreeMap<String, BTreeMap<String, Instance>>;

/// What the files say.
#[derive(Default)]
pub(crate) struct Files {
    /// Rules, with their findings.
    pub(crate) rules: Rules,
    /// Services.
    pub(crate) hosts: Hosts,
    /// Whether the services are assumed: no file names any.
    pub(crate) assumed: bool,
    /// The port of assumed services for which the rules name none. Default 80.
    pub(crate) usual_port: Option<u16>,
    /// Whether services that rules only send to are assumed as well: no, where a slip of the pen shall be found.
    pub(crate) assume_destinations: bool,
}

impl Files {
    /// Reads rules and services from files and folders.
    ///
    /// # Errors
    /// A file that cannot be read, or services that make no sense. What is wrong with rules is in their findings.
    pub(crate) fn read(paths: &[PathBuf], namespace: &str) -> Result<Self> {
        let (mut rules, mut services) = (Vec::new(), Vec::new());
        for path in paths {
            sort(path, 0, true, &mut rules, &mut services)?;
        }
        let mut files = Self::default();
        if !rules.is_empty() {
            files.rules = Rules::read(&rules, namespace)?;
        }
        for path in services {
            files.add_services(&name_of(&path), service_file::read(&path)?);
        }
        Ok(files)
    }

    /// Adds the instances of a host.
    pub(crate) fn add_services(&mut self, host: &str, instances: BTreeMap<String, Instance>) {
        let mut name = host.to_owned();
        let mut number = 2;
        while self.hosts.contains_key(&name) {
            name = format!("{host}-{number}");
            number += 1;
        }
        self.hosts.insert(name, instances);
    }

    /// Makes the World; assumes the services that rules name where no file has any.
    pub(crate) fn world(&mut self) -> Result<World> {
        let objects: Vec<Object> = self.rules.all.iter().map(|rule| rule.object.clone()).collect();
        if self.hosts.is_empty() {
            self.hosts = assume(&objects, self.usual_port.unwrap_or(80), self.assume_destinations);
            self.assumed = !self.hosts.is_empty();
        }
        sketch::of_files(&self.hosts, objects).map_err(Failure::refused)
    }
}

/// Sorts files into rules and services. In folders a TOML file counts only if it has services: `meshd.toml` has not.
fn sort(
    path: &Path,
    depth: usize,
    named: bool,
    rules: &mut Vec<PathBuf>,
    services: &mut Vec<PathBuf>,
) -> Result {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if path.is_dir() {
        if depth > MAX_DEPTH {
            let message = format!("{}: more than {MAX_DEPTH} folders deep", path.display());
            return Err(Failure::new(Exit::Unreadable, message));
        }
        let unreadable = |error: std::io::Error| Failure::unreadable(path, &error);
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            entries.push(entry.map_err(unreadable)?.path());
        }
        entries.sort();
        return entries.iter().try_for_each(|entry| sort(entry, depth + 1, false, rules, services));
    }
    let has_services = || std::fs::read_to_string(path).is_ok_and(|text| text.contains(MARK));
    if extension == "toml" {
        if named || has_services() {
            services.push(path.to_owned());
        }
    } else if named || crate::rules::is_rules(path) {
        rules.push(path.to_owned());
    }
    Ok(())
}

/// The file's name without its end: the host whose services it tells.
fn name_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| "host".into(), |stem| stem.to_string_lossy().into_owned())
}

/// A service that rules name.
#[derive(Default)]
struct Named {
    ports: BTreeSet<u16>,
    /// By name of the subset, its labels.
    subsets: BTreeMap<String, Labels>,
}

/// Makes the services that rules speak of: on the ports they name (else the usual one), a healthy instance for each subset.
fn assume(objects: &[Object], usual_port: u16, destinations_too: bool) -> Hosts {
    let mut found: BTreeMap<(String, String), Named> = BTreeMap::new();
    let declared: BTreeSet<&String> = objects
        .iter()
        .filter_map(|object| match &object.spec {
            Spec::ServiceEntry(entry) => Some(&entry.hosts),
            _ => None,
        })
        .flatten()
        .collect();
    // DestinationRules first: what they name is a service, whoever sends there.
    let first = |object: &&Object| !matches!(object.spec, Spec::DestinationRule(_));
    let mut ordered: Vec<&Object> = objects.iter().collect();
    ordered.sort_by_key(first);
    for object in ordered {
        let home = &object.metadata.namespace;
        let mut name = |host: &String, port: Option<u16>, only_if_known: bool| {
            let Some(key) = service_of(host, home).filter(|_| !declared.contains(host)) else { return };
            if !only_if_known || found.contains_key(&key) {
                found.entry(key).or_default().ports.extend(port);
            }
        };
        match &object.spec {
            Spec::VirtualService(rule) => {
                rule.hosts.iter().for_each(|host| name(host, None, false));
                for to in destinations(rule) {
                    name(&to.host, to.port.map(|port| port.number), !destinations_too);
                }
            }
            Spec::DestinationRule(rule) => {
                name(&rule.host, None, false);
                let Some(named) = service_of(&rule.host, home).and_then(|key| found.get_mut(&key)) else {
                    continue;
                };
                let subsets = rule.subsets.iter().map(|subset| (subset.name.clone(), subset.labels.clone()));
                named.subsets.extend(subsets);
            }
            _ => {}
        }
    }
    let instances: BTreeMap<String, Instance> = found
        .into_iter()
        .flat_map(|((service, namespace), named)| instances(&service, &namespace, named, usual_port))
        .collect();
    if instances.is_empty() { Hosts::new() } else { Hosts::from([(sketch::ASSUMED.to_owned(), instances)]) }
}

fn destinations(rule: &mesh_proto::resource::VirtualService) -> impl Iterator<Item = &Destination> {
    let http = rule.http.iter().flat_map(|http| {
        let to = http.route.iter().filter_map(|to| to.destination.as_ref());
        let mirrors = http.mirrors.iter().filter_map(|mirror| mirror.destination.as_ref());
        to.chain(mirrors).chain(http.mirror.as_deref())
    });
    let tcp = rule.tcp.iter().flat_map(|tcp| tcp.route.iter().filter_map(|to| to.destination.as_ref()));
    let tls = rule.tls.iter().flat_map(|tls| tls.route.iter().filter_map(|to| to.destination.as_ref()));
    http.chain(tcp).chain(tls)
}

/// The service a host name stands for: `reviews`, or `reviews.shop.svc.cluster.local`.
fn service_of(host: &str, home: &str) -> Option<(String, String)> {
    match host.split_once('.') {
        None if !host.is_empty() && host != "*" => Some((host.to_owned(), home.to_owned())),
        Some((name, rest)) if name != "*" => {
            let namespace = rest.strip_suffix(".svc.cluster.local")?;
            (!namespace.contains('.')).then(|| (name.to_owned(), namespace.to_owned()))
        }
        _ => None,
    }
}

fn instances(service: &str, namespace: &str, named: Named, usual_port: u16) -> Vec<(String, Instance)> {
    let ports = if named.ports.is_empty() { BTreeSet::from([usual_port]) } else { named.ports };
    let ports: Vec<PortBinding> = ports.into_iter().map(|number| http_port(number, number)).collect();
    let mut subsets = named.subsets;
    if subsets.is_empty() {
        subsets.insert(String::new(), Labels::new());
    }
    let make = |(subset, mut labels): (String, Labels)| {
        labels.insert_missing("app".into(), || service.to_owned());
        let id = if subset.is_empty() {
            format!("{service}.{namespace}")
        } else {
            format!("{service}-{subset}.{namespace}")
        };
        (id, instance(service, namespace, labels, ports.clone()))
    };
    subsets.into_iter().map(make).collect()
}

/// A port that speaks HTTP.
pub(crate) fn http_port(number: u16, target: u16) -> PortBinding {
    PortBinding {
        number,
        name: "http".into(),
        protocol: Protocol::Http,
        target: (std::net::Ipv4Addr::LOCALHOST, target).into(),
    }
}

/// A healthy instance, whose account is named as its service.
pub(crate) fn instance(service: &str, namespace: &str, labels: Labels, ports: Vec<PortBinding>) -> Instance {
    Instance {
        service: service.to_owned(),
        group: None,
        namespace: namespace.to_owned(),
        account: service.to_owned(),
        labels,
        ports,
        address: None,
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    }
}
