//! Who calls: what a person types for a workload, found among those that are registered.

use mesh_proto::explain::Ask;
use mesh_proto::value::Labels;

use crate::plan::{Locality, Plan, Workload};
use crate::world::{InstanceRef, World};

/// A caller, and how it was found.
pub(super) struct Found {
    pub(super) workload: Workload,
    pub(super) known_as: String,
    pub(super) notes: Vec<String>,
}

/// Finds the caller a question names.
pub(super) fn find(world: &World, plan: &Plan, ask: &Ask) -> Result<Found, String> {
    let mut found = named(world, plan, ask)?;
    found.workload.labels.extend(ask.labels.clone());
    Ok(found)
}

fn named(world: &World, plan: &Plan, ask: &Ask) -> Result<Found, String> {
    if ask.from.is_empty() {
        let workload = plan.node.callers.first().cloned().unwrap_or_default();
        let known_as = format!("the default caller of {}", plan.node.name);
        return Ok(Found { workload, known_as, notes: Vec::new() });
    }
    let (namespace, name) = split(&ask.from);
    let home = namespace.is_none().then(|| plan.node.callers.first()).flatten();
    let fits = |found: &InstanceRef<'_>| {
        let instance = found.instance;
        let named = instance.service == name || found.id == ask.from || found.id == name;
        named && namespace.is_none_or(|namespace| namespace == instance.namespace)
    };
    let mut instances: Vec<InstanceRef<'_>> = world.instances().filter(fits).collect();
    // Of several namespaces, the one a short name would mean.
    instances.sort_by_key(|found| {
        (home.is_none_or(|home| home.namespace != found.instance.namespace), found.host, found.id.to_owned())
    });
    if let Some(first) = instances.first() {
        return Ok(registered(world, first, &instances));
    }
    let by_account = |workload: &&Workload| {
        workload.account == name && namespace.is_none_or(|namespace| namespace == workload.namespace)
    };
    if let Some(workload) = plan.node.callers.iter().find(by_account) {
        let known_as = format!("account {} of {}", workload.account, plan.node.name);
        return Ok(Found { workload: workload.clone(), known_as, notes: Vec::new() });
    }
    if ask.any_caller {
        let namespace = namespace.or(home.map(|home| home.namespace.as_str())).unwrap_or("default");
        let workload = Workload {
            namespace: namespace.to_owned(),
            account: name.to_owned(),
            labels: Labels::new(),
            locality: Locality::default(),
        };
        let notes = if ask.labels.is_empty() {
            vec![format!(
                "no service {name} is registered: the caller has no labels (give some with --label)"
            )]
        } else {
            Vec::new()
        };
        return Ok(Found { workload, known_as: "as named".into(), notes });
    }
    Err(format!("no workload {} is registered{}", ask.from, known(world)))
}

fn registered(world: &World, found: &InstanceRef<'_>, all: &[InstanceRef<'_>]) -> Found {
    let instance = found.instance;
    let host = world.hosts.get(&found.host);
    let locality = instance.locality.clone().or_else(|| host.map(|host| host.facts.locality.clone()));
    let workload = Workload {
        namespace: instance.namespace.clone(),
        account: instance.account.clone(),
        labels: instance.labels.clone(),
        locality: Locality::parse(&locality.unwrap_or_default()),
    };
    let on = host.map_or("?", |host| host.name.as_str());
    let differ = all.iter().any(|other| {
        other.instance.labels != instance.labels || other.instance.namespace != instance.namespace
    });
    let notes = if differ {
        vec![format!(
            "{} instances of that name differ in labels or namespace; {} on {on} is taken (name its id to choose)",
            all.len(),
            found.id
        )]
    } else {
        Vec::new()
    };
    Found { workload, known_as: format!("instance {} on {on}", found.id), notes }
}

/// Splits `NAMESPACE/NAME` or `NAME.NAMESPACE`.
fn split(text: &str) -> (Option<&str>, &str) {
    if let Some((namespace, name)) = text.split_once('/') {
        return (Some(namespace), name);
    }
    match text.split_once('.') {
        Some((name, rest)) => (Some(rest.split('.').next().unwrap_or(rest)), name),
        None => (None, text),
    }
}

/// Names services to choose from.
fn known(world: &World) -> String {
    let mut names: Vec<String> = world.instances().map(|found| found.instance.service.clone()).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return "; no service is registered yet (meshctl service register)".into();
    }
    let more = names.len().saturating_sub(12);
    names.truncate(12);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(" (there are {}{more})", names.join(", "))
}
