//! The settings of the whole mesh, defaults put in.

use std::time::Duration;

use mesh_proto::command::Revision;
use mesh_proto::resource::{
    Kind, MESH_CONFIG_NAME, MeshConfig, NormalizationType, ObjectKey, OutboundTrafficPolicyMode,
    ROOT_NAMESPACE, Spec,
};

use crate::plan::{Normalization, UnknownHosts};
use crate::world::World;

/// What holds for the whole mesh.
pub(crate) struct Settings<'a> {
    /// The object, where there is one.
    pub(crate) config: Option<&'a MeshConfig>,
    /// The revision of its last change.
    pub(crate) revision: Revision,
}

impl<'a> Settings<'a> {
    /// Reads them from the World.
    pub(crate) fn of(world: &'a World) -> Self {
        let key = ObjectKey::new(Kind::MeshConfig, ROOT_NAMESPACE, MESH_CONFIG_NAME);
        match world.resources.get(&key).map(|stored| (&stored.object.spec, stored.changed)) {
            Some((Spec::MeshConfig(config), revision)) => Self { config: Some(config), revision },
            _ => Self { config: None, revision: Revision(0) },
        }
    }

    /// The namespace whose rules hold everywhere.
    pub(crate) fn root_namespace(&self) -> &'a str {
        let named = self.config.map(|config| config.root_namespace.as_str());
        named.filter(|name| !name.is_empty()).unwrap_or(ROOT_NAMESPACE)
    }

    /// What happens to traffic for unknown hosts.
    pub(crate) fn unknown_hosts(&self) -> UnknownHosts {
        match self.config.map(MeshConfig::outbound_mode) {
            Some(OutboundTrafficPolicyMode::RegistryOnly) => UnknownHosts::Refuse,
            _ => UnknownHosts::Allow,
        }
    }

    /// How paths are brought to one form.
    pub(crate) fn paths(&self) -> Normalization {
        let set = self.config.and_then(|config| config.path_normalization.as_ref());
        match set.map(|set| set.normalization) {
            None | Some(NormalizationType::Default | NormalizationType::Base) => Normalization::Base,
            Some(NormalizationType::None) => Normalization::None,
            Some(NormalizationType::MergeSlashes) => Normalization::MergeSlashes,
            Some(NormalizationType::DecodeAndMergeSlashes) => Normalization::DecodeAndMergeSlashes,
        }
    }

    /// The time for the first bytes on a port whose protocol nobody declared; 0 is as the host is set.
    pub(crate) fn sniff(&self) -> Option<Duration> {
        let set = self.config.and_then(|config| config.protocol_detection_timeout);
        set.map(mesh_proto::value::Duration::get).filter(|time| !time.is_zero())
    }

    /// How often names are asked for whose answer does not say. Default 60 s, Istio's.
    pub(crate) fn dns_refresh(&self) -> Duration {
        let set = self.config.and_then(|config| config.dns_refresh_rate);
        set.map(mesh_proto::value::Duration::get)
            .filter(|rate| !rate.is_zero())
            .unwrap_or(Duration::from_mins(1))
    }

    /// The time for making a connection. Default 10 s, Istio's.
    pub(crate) fn connect_timeout(&self) -> Duration {
        let set = self.config.and_then(|config| config.connect_timeout);
        set.map_or(Duration::from_secs(10), mesh_proto::value::Duration::get)
    }
}
