//! Callers whose certificate proves nothing: each is told by an alert, and why stands in what the log is given.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};

use super::*;

/// A caller's own certificate, by a mesh that both ends trust.
type Shown = Box<dyn Fn(&Mesh) -> Arc<CertifiedKey>>;

fn shown(uris: &'static [&'static str], change: impl Fn(&mut CertificateParams) + 'static) -> Shown {
    let uris: Vec<String> = uris.iter().map(|&uri| uri.to_owned()).collect();
    Box::new(move |mesh| mesh.custom(&uris, &change))
}

fn too_long() -> Shown {
    Box::new(|mesh| {
        let (first, issuer) = authority("a", &mesh.root_issuer);
        let (second, issuer) = authority("b", &issuer);
        let above = vec![second, first, mesh.intermediate.clone(), mesh.root.clone()];
        certify(&issuer, above, &[PRODUCTPAGE.to_owned()], |_| {})
    })
}

const PRODUCTPAGE: &str = "spiffe://mesh.test/ns/default/sa/productpage";
const ELSEWHERE: &str = "spiffe://other.test/ns/default/sa/productpage";

/// Bad input 53, row by row: what is shown, what the caller is told, what the log is told.
fn rows() -> Vec<(&'static str, Shown, &'static str, &'static str)> {
    let hour = Duration::from_hours(1);
    let (old, new) = (SystemTime::now() - hour, SystemTime::now() + hour);
    let server_only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let unwelcome = "our identity is not welcome there";
    let by_clock = "expired or not yet valid";
    vec![
        ("another trust domain", shown(&[ELSEWHERE], |_| {}), unwelcome, "other.test"),
        ("expired", shown(&[PRODUCTPAGE], move |p| p.not_after = old.into()), by_clock, "expired"),
        (
            "not yet valid",
            shown(&[PRODUCTPAGE], move |p| p.not_before = new.into()),
            by_clock,
            "valid only in",
        ),
        ("two URIs", shown(&[PRODUCTPAGE, PRODUCTPAGE], |_| {}), unwelcome, "alternative names"),
        ("no name", shown(&[], |_| {}), unwelcome, "no URI"),
        ("another use", shown(&[PRODUCTPAGE], server_only), "not for this use", "not for this use"),
        ("a chain of five", too_long(), unwelcome, "5 certificates"),
        ("revoked", shown(&[PRODUCTPAGE], |_| {}), unwelcome, "is revoked"),
    ]
}

#[tokio::test]
async fn each_bad_certificate_is_told_to_its_caller_and_named_in_the_log() {
    for transport in BOTH {
        for (name, shown, told, logged) in rows() {
            let change = |serving: &Arc<Credentials>, calling: &Arc<Credentials>| {
                let mesh = Mesh::new();
                serving.trust().set_roots(vec![mesh.root.clone()]).expect("a root");
                calling.trust().set_roots(vec![mesh.root.clone()]).expect("a root");
                show(serving, "reviews", mesh.certify(&workload("reviews")));
                show(calling, "productpage", shown(&mesh));
                if name == "revoked" {
                    let identities = [workload("productpage")].into();
                    serving.trust().set_denied(Denied { identities, ..Denied::default() });
                }
            };

            let (client, server) = attempt(transport, change, reviews()).await;

            let (client, server) = (client.unwrap_err(), server.unwrap_err());
            assert!(client.contains(told), "{transport:?} {name}: the caller is told {client:?}");
            assert!(server.contains(logged), "{transport:?} {name}: the log says {server:?}");
        }
    }
}
