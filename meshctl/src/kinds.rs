//! Kinds as people type them: `vs`, `virtualservice`, `VirtualServices`.

use mesh_proto::resource::{Kind, ObjectKey};

use crate::exit::{Failure, Result};

/// Istio's short names. Source: `shortNames` of Istio's CRDs.
const SHORT: &[(&str, &str)] = &[
    ("vs", "VirtualService"),
    ("dr", "DestinationRule"),
    ("se", "ServiceEntry"),
    ("we", "WorkloadEntry"),
    ("wg", "WorkloadGroup"),
    ("gw", "Gateway"),
    ("sc", "Sidecar"),
    ("pa", "PeerAuthentication"),
    ("ap", "AuthorizationPolicy"),
    ("ra", "RequestAuthentication"),
    ("telemetry", "Telemetry"),
    ("mc", "MeshConfig"),
];

/// Reads a kind in any case, singular, plural or short.
pub(crate) fn kind(text: &str) -> Result<Kind> {
    let wanted = text.to_ascii_lowercase();
    let full = SHORT.iter().find(|(short, _)| *short == wanted).map(|(_, full)| *full);
    Kind::ALL
        .iter()
        .copied()
        .find(|kind| {
            let name = kind.name();
            full == Some(name) || name.eq_ignore_ascii_case(&wanted) || plural(name) == wanted
        })
        .ok_or_else(|| Failure::usage(format!("there is no kind {text:?}; {}", hint(&wanted))))
}

/// Writes a key as kubectl does: `virtualservice default/reviews`.
pub(crate) fn lower(key: &ObjectKey) -> String {
    format!("{} {}/{}", key.kind.name().to_ascii_lowercase(), key.namespace, key.name)
}

/// Returns Istio's short name of a kind, such as `vs`.
pub(crate) fn short(kind: Kind) -> &'static str {
    SHORT.iter().find(|(_, full)| *full == kind.name()).map_or("", |(short, _)| *short)
}

fn plural(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    match lower.strip_suffix('y') {
        // gateway → gateways, but policy → policies.
        Some(stem) if !stem.ends_with(['a', 'e', 'o']) => format!("{stem}ies"),
        _ => format!("{lower}s"),
    }
}

fn hint(wanted: &str) -> String {
    let near = Kind::ALL
        .iter()
        .map(|kind| (strsim::damerau_levenshtein(wanted, &kind.name().to_ascii_lowercase()), *kind))
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((distance, kind)) if distance <= 4 => format!("did you mean {} ({})?", kind.name(), short(kind)),
        _ => {
            let all: Vec<_> =
                Kind::ALL.iter().map(|kind| format!("{} ({})", kind.name(), short(*kind))).collect();
            format!("kinds are: {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_short_long_and_plural() {
        for text in ["vs", "VS", "virtualservice", "VirtualService", "virtualservices"] {
            assert_eq!(kind(text).expect(text), Kind::VirtualService);
        }
        assert_eq!(kind("se").expect("se"), Kind::ServiceEntry);
        assert_eq!(kind("serviceentries").expect("plural"), Kind::ServiceEntry);
    }

    #[test]
    fn a_slip_of_the_pen_gets_a_suggestion() {
        let failure = kind("virtualservce").expect_err("no such kind");

        assert_eq!(failure.message, "there is no kind \"virtualservce\"; did you mean VirtualService (vs)?");
    }
}
