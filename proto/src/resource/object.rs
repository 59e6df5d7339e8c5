//! What every object has: kind, name, namespace, labels; and the one type that holds any kind.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::message::message;
use super::{
    AuthorizationPolicy, DestinationRule, Gateway, MeshConfig, PeerAuthentication, RequestAuthentication,
    ServiceEntry, Sidecar, Telemetry, VirtualService, WorkloadEntry, WorkloadGroup,
};
use crate::value::Labels;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Where requests go.
    VirtualService,
    /// How a service is reached.
    DestinationRule,
    /// A service known by hand.
    ServiceEntry,
    /// An instance known by hand.
    WorkloadEntry,
    /// What self-registering instances have in common.
    WorkloadGroup,
    /// A door into the mesh.
    Gateway,
    /// What a workload listens on and may reach.
    Sidecar,
    /// Whether callers must use mutual TLS.
    PeerAuthentication,
    /// Who may call what.
    AuthorizationPolicy,
    /// Whose tokens count.
    RequestAuthentication,
    /// What is measured, logged and traced.
    Telemetry,
    /// What holds for the whole mesh.
    MeshConfig,
}

impl Kind {
    /// All kinds, in order.
    pub const ALL: &[Self] = &[
        Self::VirtualService,
        Self::DestinationRule,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::WorkloadGroup,
        Self::Gateway,
        Self::Sidecar,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::Telemetry,
        Self::MeshConfig,
    ];

    /// Returns the name users write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::Gateway => "Gateway",
            Self::Sidecar => "Sidecar",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::Telemetry => "Telemetry",
            Self::MeshConfig => "MeshConfig",
        }
    }

    /// Returns the API group, such as `networking.istio.io`.
    pub const fn group(self) -> &'static str {
        match self {
            Self::VirtualService
            | Self::DestinationRule
            | Self::ServiceEntry
            | Self::WorkloadEntry
            | Self::WorkloadGroup
            | Self::Gateway
            | Self::Sidecar => "networking.istio.io",
            Self::PeerAuthentication | Self::AuthorizationPolicy | Self::RequestAuthentication => {
                "security.istio.io"
            }
            Self::Telemetry => "telemetry.istio.io",
            // Istio keeps these settings in a file of its package `istio.mesh.v1alpha1`.
            Self::MeshConfig => "mesh.istio.io",
        }
    }

    /// Returns the versions that are read, newest first.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::VirtualService
            | Self::DestinationRule
            | Self::ServiceEntry
            | Self::WorkloadEntry
            | Self::WorkloadGroup
            | Self::Gateway
            | Self::Sidecar => &["v1", "v1beta1", "v1alpha3"],
            Self::PeerAuthentication | Self::AuthorizationPolicy | Self::RequestAuthentication => {
                &["v1", "v1beta1"]
            }
            Self::Telemetry => &["v1", "v1alpha1"],
            Self::MeshConfig => &["v1alpha1"],
        }
    }

    /// Returns the `apiVersion` that is written: the newest.
    pub fn api_version(self) -> String {
        format!("{}/{}", self.group(), self.versions()[0])
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// A text that names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind {0:?}")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| UnknownKind(text.chars().take(80).collect()))
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

message! {
    /// What an object is called.
    pub struct ObjectMeta {
        /// The name, unique for kind and namespace.
        pub name: Arc<str>,
        /// The namespace.
        pub namespace: Arc<str>,
        /// Labels, for selecting objects.
        pub labels: Labels,
        /// Notes that meshd does not read.
        pub annotations: Labels,
        /// The revision the object was last changed at, set by the mesh. An `apply` that carries one is refused where
        /// the object has changed since.
        #[serde(with = "revision")]
        pub resource_version: Option<u64>,
    }
}

/// What names an object: there is at most one for each key.
///
/// Its text, also in JSON, is `VirtualService default/reviews`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// Makes a key.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// A text that is no [`ObjectKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// The first word is no kind.
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    /// Not of the form `KIND NAMESPACE/NAME`.
    #[error("an object is named KIND NAMESPACE/NAME, such as \"VirtualService default/reviews\"")]
    Form,
}

impl FromStr for ObjectKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let (kind, rest) = text.split_once(' ').ok_or(ParseKeyError::Form)?;
        let (namespace, name) = rest.split_once('/').ok_or(ParseKeyError::Form)?;
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(ParseKeyError::Form);
        }
        Ok(Self::new(kind.parse()?, namespace, name))
    }
}

impl Serialize for ObjectKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What an object says, by kind. Each is held apart: objects are many, and of very different size.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Spec {
    /// Where requests go.
    VirtualService(Box<VirtualService>),
    /// How a service is reached.
    DestinationRule(Box<DestinationRule>),
    /// A service known by hand.
    ServiceEntry(Box<ServiceEntry>),
    /// An instance known by hand.
    WorkloadEntry(Box<WorkloadEntry>),
    /// What self-registering instances have in common.
    WorkloadGroup(Box<WorkloadGroup>),
    /// A door into the mesh.
    Gateway(Box<Gateway>),
    /// What a workload listens on and may reach.
    Sidecar(Box<Sidecar>),
    /// Whether callers must use mutual TLS.
    PeerAuthentication(Box<PeerAuthentication>),
    /// Who may call what.
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    /// Whose tokens count.
    RequestAuthentication(Box<RequestAuthentication>),
    /// What is measured, logged and traced.
    Telemetry(Box<Telemetry>),
    /// What holds for the whole mesh.
    MeshConfig(Box<MeshConfig>),
}

impl Spec {
    /// Returns the kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::VirtualService(_) => Kind::VirtualService,
            Self::DestinationRule(_) => Kind::DestinationRule,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::WorkloadGroup(_) => Kind::WorkloadGroup,
            Self::Gateway(_) => Kind::Gateway,
            Self::Sidecar(_) => Kind::Sidecar,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::Telemetry(_) => Kind::Telemetry,
            Self::MeshConfig(_) => Kind::MeshConfig,
        }
    }

    /// Reads what an object of a known kind says.
    pub fn read<'de, D: Deserializer<'de>>(kind: Kind, from: D) -> Result<Self, D::Error> {
        Ok(match kind {
            Kind::VirtualService => Self::VirtualService(Deserialize::deserialize(from)?),
            Kind::DestinationRule => Self::DestinationRule(Deserialize::deserialize(from)?),
            Kind::ServiceEntry => Self::ServiceEntry(Deserialize::deserialize(from)?),
            Kind::WorkloadEntry => Self::WorkloadEntry(Deserialize::deserialize(from)?),
            Kind::WorkloadGroup => Self::WorkloadGroup(Deserialize::deserialize(from)?),
            Kind::Gateway => Self::Gateway(Deserialize::deserialize(from)?),
            Kind::Sidecar => Self::Sidecar(Deserialize::deserialize(from)?),
            Kind::PeerAuthentication => Self::PeerAuthentication(Deserialize::deserialize(from)?),
            Kind::AuthorizationPolicy => Self::AuthorizationPolicy(Deserialize::deserialize(from)?),
            Kind::RequestAuthentication => Self::RequestAuthentication(Deserialize::deserialize(from)?),
            Kind::Telemetry => Self::Telemetry(Deserialize::deserialize(from)?),
            Kind::MeshConfig => Self::MeshConfig(Deserialize::deserialize(from)?),
        })
    }
}

impl<'de> DeserializeSeed<'de> for Kind {
    type Value = Spec;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Spec, D::Error> {
        Spec::read(self, from)
    }
}

/// An object: any kind, with its name.
///
/// Written as `apiVersion` (the newest), `kind`, `metadata`, `spec`.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// What it is called.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: Spec,
}

impl Object {
    /// Returns the kind.
    pub const fn kind(&self) -> Kind {
        self.spec.kind()
    }

    /// Returns what names the object.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.kind(), self.metadata.namespace.clone(), self.metadata.name.clone())
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("apiVersion", &self.kind().api_version())?;
        map.serialize_entry("kind", &self.kind())?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.serialize_entry("spec", &self.spec)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object with kind, metadata and spec")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let (mut kind, mut metadata, mut spec, mut early) = (None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match (key.as_str(), kind) {
                ("apiVersion", _) => drop(map.next_value::<String>()?),
                ("kind", _) => kind = Some(map.next_value::<Kind>()?),
                ("metadata", _) => metadata = Some(map.next_value()?),
                ("spec", Some(kind)) => spec = Some(map.next_value_seed(kind)?),
                // Our own writer puts the kind first; others may not.
                ("spec", None) => early = Some(map.next_value::<serde_json::Value>()?),
                (other, _) => {
                    return Err(de::Error::unknown_field(other, &["apiVersion", "kind", "metadata", "spec"]));
                }
            }
        }
        let kind: Kind = kind.ok_or_else(|| de::Error::missing_field("kind"))?;
        let metadata = metadata.ok_or_else(|| de::Error::missing_field("metadata"))?;
        let spec = match (spec, early) {
            (Some(spec), _) => spec,
            (None, Some(value)) => Spec::read(kind, value).map_err(de::Error::custom)?,
            (None, None) => return Err(de::Error::missing_field("spec")),
        };
        Ok(Object { metadata, spec })
    }
}

/// A revision is written as text, as Kubernetes writes `resourceVersion`, and read as text.
mod revision {
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::ref_option, reason = "serde asks for this signature")]
    pub(super) fn serialize<S: Serializer>(revision: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match revision {
            Some(revision) => serializer.collect_str(revision),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        let text: Option<String> = Deserialize::deserialize(from)?;
        text.filter(|text| !text.is_empty())
            .map(|text| {
                text.parse().map_err(|_| de::Error::custom("must be a revision of the mesh, such as \"42\""))
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests;
