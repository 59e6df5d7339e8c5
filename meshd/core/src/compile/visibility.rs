//! Who sees a service or a rule: `exportTo`.
//!
//! Source: Istio `visibility.Instance`: `.` is the own namespace, `*` everybody, `~` nobody, else a namespace's name.

use mesh_proto::resource::MeshConfig;

use super::mesh::Settings;

/// Whether something of namespace `home`, exported to `export_to`, is seen from namespace `from`.
pub(crate) fn sees(export_to: &[String], home: &str, from: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|to| match to.as_str() {
            "*" => true,
            "." => home == from,
            "~" => false,
            name => name == from,
        })
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
