//! Services: what the registrations of all hosts come to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use mesh_proto::api::ApiError;
use mesh_proto::command::HostId;
use mesh_proto::registration::{Health, Instance, PortBinding, Registration};
use mesh_proto::watch::Change;
use serde::{Deserialize, Serialize};

use super::{Done, World};

/// A registered service: its short name and namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Short name.
    pub name: String,
}

impl ServiceName {
    /// Returns the service an instance belongs to.
    pub fn of(instance: &Instance) -> Self {
        Self { namespace: instance.namespace.clone(), name: instance.service.clone() }
    }

    /// Returns the fully qualified host name, `NAME.NAMESPACE.svc.DOMAIN`.
    pub fn fqdn(&self, domain: &str) -> String {
        format!("{}.{}.svc.{domain}", self.name, self.namespace)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// An instance and the host it runs on.
#[derive(Clone, Copy, Debug)]
pub struct InstanceRef<'a> {
    /// Its host.
    pub host: HostId,
    /// Its id on that host.
    pub id: &'a str,
    /// It.
    pub instance: &'a Instance,
}

impl World {
    /// Returns every instance of every host, in order of host and id.
    pub fn instances(&self) -> impl Iterator<Item = InstanceRef<'_>> {
        self.registrations.iter().flat_map(|(host, registration)| {
            registration.instances.iter().map(move |(id, instance)| InstanceRef { host: *host, id, instance })
        })
    }

    /// Tells why an instance of `host` contradicts what other hosts have registered, if it does: the same port
    /// of the same service under another name or protocol.
    pub fn contradiction(&self, host: HostId, instance: &Instance) -> Option<String> {
        let is_same_service =
            |other: &Instance| other.service == instance.service && other.namespace == instance.namespace;
        self.instances()
            .filter(|other| other.host != host && is_same_service(other.instance))
            .find_map(|other| {
                instance.ports.iter().find_map(|port| {
                    let theirs = other.instance.ports.iter().find(|theirs| theirs.number == port.number)?;
                    (declared(theirs) != declared(port)).then(|| {
                        format!(
                            "port {} of {} is {} on host {} (instance {}), but {} here: use the same name and protocol",
                            port.number,
                            ServiceName::of(instance),
                            described(theirs),
                            self.hosts.get(&other.host).map_or("?", |host| host.name.as_str()),
                            other.id,
                            described(port),
                        )
                    })
                })
            })
    }

    pub(super) fn register(
        &mut self,
        host: HostId,
        registration: &Registration,
    ) -> Result<(Done, Vec<Change>), ApiError> {
        self.known_host(host)?;
        let mut taken = Registration::default();
        let mut refused = BTreeMap::new();
        for (id, instance) in &registration.instances {
            match self.contradiction(host, instance) {
                Some(reason) => drop(refused.insert(id.clone(), reason)),
                None => drop(taken.instances.insert(id.clone(), instance.clone())),
            }
        }
        if self.registrations.get(&host).is_some_and(|present| **present == taken)
            || (taken.instances.is_empty() && !self.registrations.contains_key(&host))
        {
            return Ok((Done::Registered(refused), Vec::new()));
        }
        let names: BTreeSet<String> = taken
            .instances
            .values()
            .map(|instance| ServiceName::of(instance).fqdn(&self.mesh.domain))
            .collect();
        let mut changes = self.give_addresses(names);
        let registration = (!taken.instances.is_empty()).then_some(taken);
        changes.push(Change::Registration { host, registration });
        Ok((Done::Registered(refused), self.write(changes)))
    }

    pub(super) fn flip_health(
        &mut self,
        host: HostId,
        flips: &BTreeMap<String, Health>,
    ) -> Result<(Done, Vec<Change>), ApiError> {
        self.known_host(host)?;
        let Some(present) = self.registrations.get(&host) else {
            return Ok((Done::Ok, Vec::new()));
        };
        let mut registration = Registration::clone(present);
        for (id, health) in flips {
            if let Some(instance) = registration.instances.get_mut(id) {
                Arc::make_mut(instance).health = *health;
            }
        }
        if **present == registration {
            return Ok((Done::Ok, Vec::new()));
        }
        Ok((Done::Ok, self.write(vec![Change::Registration { host, registration: Some(registration) }])))
    }
}

fn declared(port: &PortBinding) -> (&str, mesh_proto::registration::Protocol) {
    (&port.name, port.protocol)
}

fn described(port: &PortBinding) -> String {
    match port.name.as_str() {
        "" => port.protocol.to_string(),
        name => format!("{name} ({})", port.protocol),
    }
}
