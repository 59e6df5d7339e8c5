//! A host as a member of a `WorkloadGroup`: the registration that `meshd join --group` leaves behind.

use std::path::Path;

use mesh_proto::registration::{Health, Instance};
use mesh_proto::value::Labels;

use super::{file, folder_of, write};

/// A member that says nothing but its group.
#[derive(Clone, Debug)]
pub struct Member {
    id: String,
    instance: Instance,
}

/// Reads `[NAMESPACE/]NAME` of a group.
///
/// # Errors
/// With the reason, when that is no name of one.
pub fn member(group: &str) -> Result<Member, String> {
    let (namespace, name) = file::group(group)?;
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    let id = file::default_id(&name, &namespace, None);
    let instance = Instance {
        service: name.clone(),
        group: Some(name),
        namespace,
        account: "default".to_owned(),
        labels: Labels::new(),
        ports: Vec::new(),
        address: None,
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    };
    Ok(Member { id, instance })
}

impl Member {
    /// Writes the registration where those of `meshctl service register` are.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&self, data: &Path) -> std::io::Result<()> {
        let path = folder_of(data).join(format!("{}.toml", self.id));
        write(&path, &file::to_toml(&self.id, &self.instance))
    }
}
