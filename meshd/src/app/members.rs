//! Members of `WorkloadGroup`s among what this host offers: filled in as the groups say now.
//!
//! What a group gives is decided in `core::groups`; here it is asked again whenever the offer or the World changes.

use std::sync::Arc;

use mesh_core::groups;
use mesh_proto::registration::Registration;
use tokio::sync::watch;

use crate::agent::Published;
use crate::task;

/// Follows offer and World, and tells what is to be registered. Must be called within a runtime.
pub(super) fn follow(
    mut offered: watch::Receiver<Registration>,
    mut published: watch::Receiver<Arc<Published>>,
    locality: String,
) -> watch::Receiver<Registration> {
    let mut told = Vec::new();
    let mut fill = move |offered: &Registration, published: &Published| {
        let (filled, problems) = groups::fill(&published.world, offered, &locality);
        // Before anything is known of the mesh, no group is there.
        if published.world.revision.0 > 0 {
            for problem in problems.iter().filter(|problem| !told.contains(*problem)) {
                tracing::warn!(problem, "a member of a WorkloadGroup is not registered");
            }
            told = problems;
        }
        filled
    };
    let first = fill(&offered.borrow_and_update(), &published.borrow_and_update());
    let (sender, filled) = watch::channel(first);
    task::spawn("members", async move {
        loop {
            tokio::select! {
                changed = offered.changed() => if changed.is_err() { return },
                changed = published.changed() => if changed.is_err() { return },
            }
            let now = fill(&offered.borrow_and_update(), &published.borrow_and_update());
            sender.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
    });
    filled
}

#[cfg(test)]
mod tests {
    use mesh_core::world::World;
    use mesh_proto::command::Revision;
    use mesh_proto::registration::Instance;
    use mesh_proto::watch::Stored;

    use super::*;

    fn published(version: &str) -> Arc<Published> {
        let group = format!(
            "{{apiVersion: networking.istio.io/v1, kind: WorkloadGroup, metadata: {{name: vms}}, \
             spec: {{template: {{ports: {{http: 80}}, labels: {{version: {version}}}}}}}}}"
        );
        let mut world = World::default();
        world.revision = Revision(1);
        let (documents, _) = mesh_proto::yaml::read("group.yaml", &group);
        for document in documents {
            let stored = Stored { object: document.object, created: Revision(1), changed: Revision(1) };
            world.resources.insert(stored.object.key(), Arc::new(stored));
        }
        Arc::new(Published { world: Arc::new(world), ..Published::default() })
    }

    #[tokio::test]
    async fn a_member_appears_with_its_group_and_follows_it() {
        let member: Instance = serde_json::from_value(serde_json::json!({
            "service": "vms", "group": "vms", "ports": [],
        }))
        .unwrap();
        let registration = Registration { instances: [("vms".to_owned(), Arc::new(member))].into() };
        let (_offer, offered) = watch::channel(registration);
        let (publish, now) = watch::channel(Arc::<Published>::default());
        let mut filled = follow(offered, now, String::new());
        assert!(filled.borrow().instances.is_empty());
        for version in ["v1", "v2"] {
            publish.send_replace(published(version));
            let there = filled.wait_for(|filled| {
                filled.instances.get("vms").is_some_and(|member| member.labels["version"] == version)
            });
            there.await.unwrap();
        }
    }
}
