//! The health that the mesh is told: the word of an instance's check, and whether this host can prove who the instance is.
//!
//! An instance without a certificate cannot be reached by other hosts: their handshake would fail. So it is registered
//! as unhealthy first, and becomes healthy when its certificate is there, a moment later.

use std::collections::BTreeMap;

use mesh_core::identity::Identity;
use mesh_proto::registration::{Health, Registration};
use tokio::sync::watch;

use crate::identity::Standing;
use crate::task;

type Words = BTreeMap<String, Health>;
type Standings = BTreeMap<Identity, Standing>;

/// Follows checks and certificates, and tells the health of each instance of this host.
pub(super) fn follow(
    trust_domain: String,
    mut registration: watch::Receiver<Registration>,
    mut checks: watch::Receiver<Words>,
    mut standings: watch::Receiver<Standings>,
) -> watch::Receiver<Words> {
    let now = move |registration: &mut watch::Receiver<Registration>,
                    checks: &mut watch::Receiver<Words>,
                    standings: &mut watch::Receiver<Standings>| {
        words(
            &trust_domain,
            &registration.borrow_and_update(),
            &checks.borrow_and_update(),
            &standings.borrow_and_update(),
        )
    };
    let (sender, receiver) = watch::channel(now(&mut registration, &mut checks, &mut standings));
    task::spawn("health", async move {
        loop {
            let changed = tokio::select! {
                changed = registration.changed() => changed,
                changed = checks.changed() => changed,
                changed = standings.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let words = now(&mut registration, &mut checks, &mut standings);
            sender.send_if_modified(|last| {
                let is_news = *last != words;
                *last = words;
                is_news
            });
        }
    });
    receiver
}

/// The check's word where there is one; unhealthy, whatever it says, while the instance has no certificate.
fn words(trust_domain: &str, registration: &Registration, checks: &Words, standings: &Standings) -> Words {
    let mut words = checks.clone();
    for (id, instance) in &registration.instances {
        let identity = Identity::workload(trust_domain, &instance.namespace, &instance.account);
        let certified = identity.is_ok_and(|identity| {
            standings.get(&identity).is_some_and(|standing| standing.validity.is_some())
        });
        if !certified && instance.address.is_none() {
            words.insert(id.clone(), Health::Unhealthy);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use mesh_core::identity::lifetime::Validity;

    use super::*;

    fn registration() -> Registration {
        serde_json::from_str(
            r#"{"instances": {"reviews": {"service": "reviews", "account": "books", "ports": []},
                "far": {"service": "far", "address": "198.18.0.9", "ports": []}}}"#,
        )
        .expect("a registration")
    }

    fn certified(account: &str) -> Standings {
        let now = SystemTime::UNIX_EPOCH;
        let validity = Some(Validity { not_before: now, not_after: now + Duration::from_secs(1) });
        let identity = Identity::workload("mesh.test", "default", account).expect("an identity");
        Standings::from([(identity, Standing { validity, failures: 0, error: None })])
    }

    #[test]
    fn an_instance_is_unhealthy_until_its_host_can_prove_who_it_is() {
        let before = words("mesh.test", &registration(), &Words::new(), &certified("other"));
        let after = words("mesh.test", &registration(), &Words::new(), &certified("books"));

        assert_eq!(before, Words::from([("reviews".into(), Health::Unhealthy)]));
        assert!(after.is_empty(), "no check and a certificate: healthy");
    }

    #[test]
    fn the_checks_word_stays_when_the_certificate_is_there() {
        let checks = Words::from([("reviews".into(), Health::Unhealthy)]);
        assert_eq!(words("mesh.test", &registration(), &checks, &certified("books")), checks);
    }
}
