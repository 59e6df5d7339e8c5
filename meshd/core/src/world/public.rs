//! The public facts as a stream: written from a World and read into one, fact by fact, without a second copy.
//!
//! The form is that of [`PublicWorld`](mesh_proto::watch::PublicWorld).

use std::fmt;
use std::sync::Arc;

use mesh_proto::command::{HostId, Mesh, Revision};
use mesh_proto::registration::Registration;
use mesh_proto::resource::ObjectKey;
use mesh_proto::watch::{Change, Host, Stored};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Private, World};

/// The public facts of a World, to be written.
pub struct Facts<'a>(&'a World);

/// A mirror, to be written: the public facts, and the version of meshd that has understood all of them, if it has.
#[derive(Serialize)]
pub struct WholeFor<'a> {
    /// The version; another one may understand more of what servers said, and asks them anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_for: Option<&'a str>,
    /// The facts.
    #[serde(flatten)]
    pub facts: Facts<'a>,
}

/// A mirror that was read.
#[derive(Debug, Default)]
pub struct Mirrored {
    /// The facts.
    pub world: World,
    /// What version of meshd says that they are all.
    pub whole_for: Option<String>,
}

/// Everything of a World, to be written as a snapshot; [`ReadSnapshot`] reads it.
#[derive(Serialize)]
pub struct Whole<'a> {
    public: Facts<'a>,
    private: &'a Private,
}

impl World {
    /// Returns everything, to be written as a snapshot.
    pub fn whole(&self) -> Whole<'_> {
        Whole { public: self.facts(), private: &self.private }
    }

    /// Returns the facts that every host may see, to be written in the form of a `PublicWorld`.
    pub fn facts(&self) -> Facts<'_> {
        Facts(self)
    }
}

/// A [`Change`] that borrows.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Fact<'a> {
    Mesh(&'a Mesh),
    Host { id: HostId, host: &'a Host },
    Registration { host: HostId, registration: &'a Registration },
    Resource { key: &'a ObjectKey, stored: &'a Stored },
    VirtualAddress { host: &'a str, index: u16 },
}

impl Serialize for Facts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut whole = serializer.serialize_struct("PublicWorld", 2)?;
        whole.serialize_field("revision", &self.0.revision)?;
        whole.serialize_field("facts", &Each(self.0))?;
        whole.end()
    }
}

struct Each<'a>(&'a World);

impl Serialize for Each<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let world = self.0;
        let hosts = world.hosts.iter().map(|(id, host)| Fact::Host { id: *id, host });
        let registrations = world
            .registrations
            .iter()
            .map(|(host, registration)| Fact::Registration { host: *host, registration });
        let resources = world.resources.iter().map(|(key, stored)| Fact::Resource { key, stored });
        let addresses =
            world.addresses.iter().map(|(host, index)| Fact::VirtualAddress { host, index: *index });
        let mesh = std::iter::once(Fact::Mesh(&world.mesh));
        serializer.collect_seq(mesh.chain(hosts).chain(registrations).chain(resources).chain(addresses))
    }
}

/// Reads a mirror: public facts, taken in one by one.
impl<'de> Deserialize<'de> for World {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ReadMirror(None).deserialize(deserializer).map(|mirrored| mirrored.world)
    }
}

impl<'de> Deserialize<'de> for Mirrored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ReadMirror(None).deserialize(deserializer)
    }
}

/// Reads a mirror, leaning on what is known.
struct ReadMirror(Option<Arc<World>>);

impl<'de> DeserializeSeed<'de> for ReadMirror {
    type Value = Mirrored;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Mirrored, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ReadMirror {
    type Value = Mirrored;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a World: its revision and its facts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Mirrored, A::Error> {
        let (mut world, mut whole_for) = (World::default(), None);
        world.lean_on(self.0);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "revision" => world.revision = map.next_value::<Revision>()?,
                "facts" => map.next_value_seed(TakingIn(&mut world))?,
                "whole_for" => whole_for = map.next_value()?,
                // A newer version may say more.
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Mirrored { world, whole_for })
    }
}

/// Reads what [`World::whole`] wrote: a World that leans on the one that is known, if any ([`World::lean_on`]).
pub struct ReadSnapshot(pub Option<Arc<World>>);

impl<'de> DeserializeSeed<'de> for ReadSnapshot {
    type Value = World;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<World, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ReadSnapshot {
    type Value = World;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a snapshot: public and private facts")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<World, A::Error> {
        let (mut public, mut private) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "public" => public = Some(map.next_value_seed(ReadMirror(self.0.take()))?),
                "private" => private = Some(map.next_value()?),
                // Who must not miss what a newer version says reads it by `mesh_proto::exact`.
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let missing = <A::Error as serde::de::Error>::missing_field;
        let Mirrored { world: public, .. } = public.ok_or_else(|| missing("public"))?;
        let mut world = World { private: private.ok_or_else(|| missing("private"))?, ..public };
        world.name_by_held_texts();
        Ok(world)
    }
}

/// Takes facts into a World.
struct TakingIn<'w>(&'w mut World);

impl<'de> DeserializeSeed<'de> for TakingIn<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for TakingIn<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("facts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut facts: A) -> Result<(), A::Error> {
        while let Some(fact) = facts.next_element::<Change>()? {
            self.0.absorb(&fact);
        }
        Ok(())
    }
}
