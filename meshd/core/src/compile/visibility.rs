//! Who sees a service or a rule: `exportTo`.
//!
//! Source: Istio `visibility.Instance`: `.` is the own namespace, `*` everybody, `~` nobody, else a namespace's name;
//! `PushContext.initServiceRegistry`, `initVirtualServices`: `*` outweighs all others, `~` all but `*`.

use mesh_proto::resource::MeshConfig;

use super::mesh::Settings;

/// Whether something of namespace `home`, exported to `export_to`, is seen from namespace `from`.
pub(crate) fn sees(export_to: &[String], home: &str, from: &str) -> bool {
    match reach(export_to) {
        Reach::Everybody => true,
        Reach::Nobody => false,
        Reach::Some => export_to.iter().any(|to| if to == "." { home == from } else { to == from }),
    }
}

/// Whether a namespace sees both of two things, each with what it is exported to and its own namespace.
pub(crate) fn meet((one, home): (&[String], &str), (other, other_home): (&[String], &str)) -> bool {
    let names = |export_to: &[String], home: &str| -> Vec<String> {
        export_to.iter().map(|to| if to == "." { home.to_owned() } else { to.clone() }).collect()
    };
    match (reach(one), reach(other)) {
        (Reach::Nobody, _) | (_, Reach::Nobody) => false,
        (Reach::Everybody, _) | (_, Reach::Everybody) => true,
        (Reach::Some, Reach::Some) => {
            let others = names(other, other_home);
            names(one, home).iter().any(|name| others.contains(name))
        }
    }
}

/// How near something is to a namespace: what is its own goes first, then what is exported to it by name, then what
/// everybody sees.
///
/// Source: Istio `SelectVirtualServices`, `servicesExportedToNamespace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nearness {
    /// Exported to its own namespace alone or by name.
    Own,
    /// Exported to this namespace by name.
    Named,
    /// Exported to everybody.
    Public,
}

/// Returns how near something that is seen from a namespace is to it.
pub(crate) fn nearness(export_to: &[String], home: &str, from: &str) -> Nearness {
    match reach(export_to) {
        Reach::Everybody | Reach::Nobody => Nearness::Public,
        Reach::Some if home == from => Nearness::Own,
        Reach::Some => Nearness::Named,
    }
}

/// Whether everybody sees it.
pub(crate) fn is_public(export_to: &[String]) -> bool {
    matches!(reach(export_to), Reach::Everybody)
}

enum Reach {
    Everybody,
    Nobody,
    Some,
}

fn reach(export_to: &[String]) -> Reach {
    let has = |wanted: &str| export_to.iter().any(|to| to == wanted);
    match () {
        () if export_to.is_empty() || has("*") => Reach::Everybody,
        () if has("~") => Reach::Nobody,
        () => Reach::Some,
    }
}

/// Returns `export_to`, or the mesh's default where it is empty.
pub(crate) fn or_default<'a>(
    export_to: &'a [String],
    mesh: &Settings<'a>,
    default: impl Fn(&'a MeshConfig) -> &'a Vec<String>,
) -> &'a [String] {
    match mesh.config {
        Some(config) if export_to.is_empty() => default(config),
        _ => export_to,
    }
}
