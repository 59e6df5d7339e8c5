//! Who is at one end of a call, as telemetry names it.

use std::sync::Arc;

use crate::identity::Identity;
use mesh_proto::value::Labels;

/// Who is at one end of a call. Cheap to clone; the default is somebody unknown.
///
/// One text, so that it can be held by every endpoint, and told to the other end of a hop as it is: the fields in the order
/// of [`Field`], with `/` between them.
///
/// Source: Istio's `WorkloadMetadataObject`. differs: a workload is named by its service account, unless the label
/// `service.istio.io/workload-name` names it: there are no Deployments here; the cluster is the trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Party(Option<Arc<str>>);

/// One thing that is known of a [`Party`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Trust domain of its certificate, also the name of its cluster.
    TrustDomain,
    /// Namespace.
    Namespace,
    /// Service account.
    Account,
    /// Workload.
    Workload,
    /// Label `app`, may be empty.
    App,
    /// Label `version`, may be empty.
    Version,
    /// Canonical service.
    Service,
    /// Canonical revision; `latest` where nothing says it.
    Revision,
}

const FIELDS: usize = 8;
/// No text of a peer is read that is longer.
const MOST_BYTES: usize = 1_024;

impl Party {
    /// Names a workload by what it is registered as.
    pub fn new(trust_domain: &str, namespace: &str, account: &str, labels: &Labels) -> Self {
        let label = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| labels.get(*name))
                .map(String::as_str)
                .filter(|text| !text.is_empty())
        };
        let workload = label(&["service.istio.io/workload-name"]).unwrap_or(account);
        let service = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let revision =
            label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        Self::of_fields([
            trust_domain,
            namespace,
            account,
            workload,
            label(&["app"]).unwrap_or_default(),
            label(&["version"]).unwrap_or_default(),
            service.unwrap_or(workload),
            revision.unwrap_or("latest"),
        ])
    }

    /// Names whoever a certificate names, of whom nothing else is known. A host is no workload: nobody.
    pub fn of_identity(identity: &Identity) -> Self {
        match identity.workload_names() {
            Some((trust_domain, namespace, account)) => {
                Self::new(trust_domain, namespace, account, &Labels::new())
            }
            None => Self::default(),
        }
    }

    /// Reads what a peer says about itself. What its certificate proves counts more; what cannot be read, nothing.
    pub fn told(text: &str, identity: &Identity) -> Self {
        let proven = Self::of_identity(identity);
        let fields: Vec<&str> = text.split('/').collect();
        let is_sound = text.len() <= MOST_BYTES && fields.len() == FIELDS && text.bytes().all(is_plain);
        let Some((trust_domain, namespace, account)) = identity.workload_names().filter(|_| is_sound) else {
            return proven;
        };
        let proven = [trust_domain, namespace, account];
        let told = &fields[proven.len()..];
        Self::of_fields(std::array::from_fn(|at| *proven.get(at).unwrap_or_else(|| &told[at - proven.len()])))
    }

    fn of_fields(fields: [&str; FIELDS]) -> Self {
        let clean = |c: char| if c == '/' || !u8::try_from(c).is_ok_and(is_plain) { '_' } else { c };
        let mut text = String::with_capacity(fields.iter().map(|field| field.len() + 1).sum());
        for (at, field) in fields.into_iter().enumerate() {
            if at > 0 {
                text.push('/');
            }
            text.extend(field.chars().map(clean));
        }
        Self(Some(text.into()))
    }

    /// Returns one thing that is known; `None`: it is not.
    pub fn get(&self, field: Field) -> Option<&str> {
        self.0.as_deref()?.split('/').nth(field as usize).filter(|text| !text.is_empty())
    }

    /// Returns the text that the other end of a hop is told; empty for somebody unknown.
    pub fn text(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether nothing is known.
    pub fn is_unknown(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the SPIFFE id.
    pub fn principal(&self) -> Option<String> {
        let [domain, namespace, account] =
            [Field::TrustDomain, Field::Namespace, Field::Account].map(|field| self.get(field));
        Some(format!("spiffe://{}/ns/{}/sa/{}", domain?, namespace?, account?))
    }
}

/// What may stand in the text of a peer: nothing that a label would have to escape.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn canonical_names_come_from_the_labels_that_istio_reads() {
        let plain = Party::new("mesh.test", "shop", "reviews", &Labels::new());
        let labelled =
            Party::new("mesh.test", "shop", "reviews", &labels(&[("app", "books"), ("version", "v2")]));
        let named = labels(&[
            ("service.istio.io/workload-name", "reviews-v3"),
            ("service.istio.io/canonical-name", "canonical"),
            ("app", "books"),
        ]);
        let named = Party::new("mesh.test", "shop", "reviews", &named);

        let all = |party: &Party| {
            [Field::Workload, Field::App, Field::Version, Field::Service, Field::Revision]
                .map(|field| party.get(field).unwrap_or("-").to_owned())
        };
        assert_eq!(all(&plain), ["reviews", "-", "-", "reviews", "latest"]);
        assert_eq!(all(&labelled), ["reviews", "books", "v2", "books", "v2"]);
        assert_eq!(all(&named), ["reviews-v3", "books", "-", "canonical", "latest"]);
        assert_eq!(plain.principal().as_deref(), Some("spiffe://mesh.test/ns/shop/sa/reviews"));
    }

    #[test]
    fn what_a_peer_says_cannot_change_what_its_certificate_proves() {
        let identity = Identity::workload("mesh.test", "shop", "web").expect("an identity");
        let told = Party::new("evil.test", "kube-system", "admin", &labels(&[("version", "v7")]));

        let heard = Party::told(told.text(), &identity);

        assert_eq!(heard.principal().as_deref(), Some("spiffe://mesh.test/ns/shop/sa/web"));
        assert_eq!(heard.get(Field::Version), Some("v7"));
        for text in ["", "a/b", "a/b/c/d/e/f/g/h\"", &"x".repeat(2_000)] {
            assert_eq!(Party::told(text, &identity), Party::of_identity(&identity), "{text}");
        }
    }
}
