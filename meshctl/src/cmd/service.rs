//! `meshctl service`: what this host offers, and what the mesh has.

pub(crate) mod file;
mod flags;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mesh_proto::api::{InstanceView, Request, Response, ServiceView};
use mesh_proto::command::Liveness;
use mesh_proto::registration::{Health, Instance};

use super::status::own_name;
use crate::cli::RegisterArgs;
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::output::{Columns, Format, Tone, say, show};
use crate::words::count;

/// Runs `service register`.
pub(crate) async fn register(args: &RegisterArgs, client: impl Fn() -> Result<Client>) -> Result<Exit> {
    let instances = flags::instances(args)?;
    let mut lines = String::new();
    for (id, instance) in &instances {
        let _ = writeln!(lines, "instance {id} of {}/{} registered", instance.namespace, instance.service);
    }
    register_instances(&client()?, instances).await?;
    say(&lines)?;
    Ok(Exit::Done)
}

/// Adds instances to the registration of the host that answers.
pub(crate) async fn register_instances(client: &Client, instances: BTreeMap<String, Instance>) -> Result {
    client.call(&Request::Register { instances }).await.map(drop)
}

/// Runs `service deregister`: each name is the id of an instance here, or a service with instances here.
pub(crate) async fn deregister(names: Vec<String>, client: &Client) -> Result<Exit> {
    let services = services(client).await?;
    let here = own_name(client).await;
    let mut ids = Vec::new();
    for name in names {
        let found = ids_of(&name, &services, here.as_deref());
        if found.is_empty() {
            return Err(Failure::refused(format!(
                "{name} is neither an instance of this host nor a service with one; `meshctl service list` shows \
                 what there is"
            )));
        }
        ids.extend(found);
    }
    ids.sort();
    ids.dedup();
    client.call(&Request::Deregister { ids: ids.clone() }).await?;
    say(&format!("{} withdrawn: {}\n", count(ids.len(), "instance"), ids.join(", ")))?;
    Ok(Exit::Done)
}

/// Runs `service list`.
pub(crate) async fn list(format: Format, client: &Client) -> Result<Exit> {
    let services = services(client).await?;
    show(format, &services, || table(&services))?;
    Ok(Exit::Done)
}

async fn services(client: &Client) -> Result<Vec<ServiceView>> {
    let answer = client.call(&Request::Services).await?;
    answer!(answer, Response::Services(services) => services)
}

fn ids_of(name: &str, services: &[ServiceView], here: Option<&str>) -> Vec<String> {
    let instances = |service: &ServiceView| -> Vec<String> {
        let on_here = |instance: &&InstanceView| here.is_none_or(|here| instance.on == here);
        service.instances.iter().filter(on_here).map(|instance| instance.id.clone()).collect()
    };
    let all: Vec<String> = services.iter().flat_map(instances).collect();
    if all.iter().any(|id| id == name) {
        return vec![name.to_owned()];
    }
    let is_named = |service: &&ServiceView| {
        service.host == name || service.host.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
    };
    services.iter().filter(is_named).flat_map(instances).collect()
}

fn table(services: &[ServiceView]) -> String {
    let mut columns = Columns::new(["SERVICE", "PORTS", "INSTANCE", "ON", "LABELS", "HEALTH", "TARGET"]);
    for service in services {
        let ports: Vec<_> =
            service.ports.iter().map(|(number, name, protocol)| port(*number, name, protocol)).collect();
        if service.instances.is_empty() {
            columns.toned([
                (service.host.clone(), Tone::Plain),
                (ports.join(" "), Tone::Plain),
                ("none".into(), Tone::Warn),
                (String::new(), Tone::Plain),
                (String::new(), Tone::Plain),
                (String::new(), Tone::Plain),
                (service.origin.clone(), Tone::Dim),
            ]);
        }
        for (index, instance) in service.instances.iter().enumerate() {
            let first = index == 0;
            let labels: Vec<_> =
                instance.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            columns.toned([
                (if first { service.host.clone() } else { "\"".into() }, Tone::Plain),
                (if first { ports.join(" ") } else { "\"".into() }, Tone::Plain),
                (instance.id.clone(), Tone::Plain),
                (instance.on.clone(), Tone::Plain),
                (labels.join(","), Tone::Plain),
                health(instance),
                (instance.targets.join(" "), Tone::Dim),
            ]);
        }
    }
    columns.render("no services yet; `meshctl service register NAME --port PORT` offers one")
}

fn port(number: u16, name: &str, protocol: &str) -> String {
    if name.is_empty() || name.eq_ignore_ascii_case(protocol) {
        format!("{number}/{}", protocol.to_ascii_lowercase())
    } else {
        format!("{number}/{}({name})", protocol.to_ascii_lowercase())
    }
}

fn health(instance: &InstanceView) -> (String, Tone) {
    match (instance.liveness, instance.health) {
        (Liveness::Gone, _) => ("host gone".into(), Tone::Bad),
        (Liveness::Left, _) => ("host stopped".into(), Tone::Dim),
        (_, Health::Unhealthy) => ("unhealthy".into(), Tone::Bad),
        (_, Health::Draining) => ("draining".into(), Tone::Warn),
        (Liveness::Suspect, Health::Healthy) => ("host suspect".into(), Tone::Warn),
        (Liveness::Live, Health::Healthy) => ("healthy".into(), Tone::Good),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, on: &str, health: Health) -> InstanceView {
        InstanceView {
            id: id.into(),
            on: on.into(),
            account: "default/reviews".into(),
            targets: vec!["127.0.0.1:8081".into()],
            labels: mesh_proto::value::Labels::from([("version".into(), "v1".into())]),
            health,
            liveness: Liveness::Live,
        }
    }

    fn services_() -> Vec<ServiceView> {
        vec![ServiceView {
            host: "reviews.default.svc.cluster.local".into(),
            origin: "mesh".into(),
            addresses: Vec::new(),
            ports: vec![(9080, "http".into(), "HTTP".into())],
            instances: vec![
                instance("reviews-v1", "vm1", Health::Healthy),
                instance("reviews-v1", "vm2", Health::Unhealthy),
            ],
        }]
    }

    #[test]
    fn the_list_groups_instances_under_their_service() {
        let text = anstream::adapter::strip_str(&table(&services_())).to_string();

        assert_eq!(
            text,
            "\
SERVICE                            PORTS      INSTANCE    ON   LABELS      HEALTH     TARGET
reviews.default.svc.cluster.local  9080/http  reviews-v1  vm1  version=v1  healthy    127.0.0.1:8081
\"                                  \"          reviews-v1  vm2  version=v1  unhealthy  127.0.0.1:8081
"
        );
    }

    #[test]
    fn a_service_name_stands_for_its_instances_on_this_host() {
        assert_eq!(ids_of("reviews", &services_(), Some("vm2")), ["reviews-v1"]);
        assert_eq!(ids_of("reviews-v1", &services_(), Some("vm2")), ["reviews-v1"]);
        assert!(ids_of("reviews", &services_(), Some("vm9")).is_empty());
        assert!(ids_of("rev", &services_(), None).is_empty());
    }
}
