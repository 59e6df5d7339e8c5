//! Every field path of a kind, asked of the types themselves: what `serde` would read is what there is.
//!
//! A deserializer that has no input. Each struct tells it the names of its fields, and is given every one of them; so the
//! list cannot fall behind the types, and a test compares it with Istio's own schema.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};

use crate::resource::{self, Kind};

/// Returns the paths of all fields of a kind, messages and lists of messages themselves among them, in order.
///
/// `[]` stands for the items of a list, `{}` for the values of a map: `http[].match[].headers{}.exact`.
pub(super) fn paths(kind: Kind) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    match kind {
        Kind::VirtualService => ask::<resource::VirtualService>(&mut found),
        Kind::DestinationRule => ask::<resource::DestinationRule>(&mut found),
        Kind::ServiceEntry => ask::<resource::ServiceEntry>(&mut found),
        Kind::WorkloadEntry => ask::<resource::WorkloadEntry>(&mut found),
        Kind::WorkloadGroup => ask::<resource::WorkloadGroup>(&mut found),
        Kind::Gateway => ask::<resource::Gateway>(&mut found),
        Kind::Sidecar => ask::<resource::Sidecar>(&mut found),
        Kind::PeerAuthentication => ask::<resource::PeerAuthentication>(&mut found),
        Kind::AuthorizationPolicy => ask::<resource::AuthorizationPolicy>(&mut found),
        Kind::RequestAuthentication => ask::<resource::RequestAuthentication>(&mut found),
        Kind::Telemetry => ask::<resource::Telemetry>(&mut found),
        Kind::MeshConfig => ask::<resource::MeshConfig>(&mut found),
    }
    found
}

fn ask<T: de::DeserializeOwned>(found: &mut BTreeSet<String>) {
    let value = T::deserialize(Ask { path: String::new(), found, variant: None });
    debug_assert!(value.is_ok(), "a type that takes none of the values given here hides the fields after it");
}

/// A value that asks what it is wanted for.
struct Ask<'f> {
    path: String,
    found: &'f mut BTreeSet<String>,
    /// Name of a variant, where an enum asks for it.
    variant: Option<&'static str>,
}

impl Ask<'_> {
    fn at(&mut self, path: String) -> Ask<'_> {
        Ask { path, found: self.found, variant: None }
    }
}

/// Why no value was made. Nobody reads it.
#[derive(Debug)]
struct NoValue;

impl fmt::Display for NoValue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("no value")
    }
}

impl std::error::Error for NoValue {}

impl de::Error for NoValue {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// A text that is a duration, and base64 as well: nothing else asks for a form.
const TEXT: &str = "1m0s";

/// Reads one of its fields only; all of them at once are an error.
const ONE_OF: &str = "StringMatch";

macro_rules! plain {
    ($($name:ident => $visit:ident($($value:expr)?),)*) => {$(
        fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
            visitor.$visit($($value)?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Ask<'_> {
    type Error = NoValue;

    plain! {
        deserialize_bool => visit_bool(true),
        deserialize_i8 => visit_i8(1),
        deserialize_i16 => visit_i16(1),
        deserialize_i32 => visit_i32(1),
        deserialize_i64 => visit_i64(1),
        deserialize_u8 => visit_u8(1),
        deserialize_u16 => visit_u16(1),
        deserialize_u32 => visit_u32(1),
        deserialize_u64 => visit_u64(1),
        deserialize_f32 => visit_f32(1.0),
        deserialize_f64 => visit_f64(1.0),
        deserialize_char => visit_char('a'),
        deserialize_unit => visit_unit(),
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
        visitor.visit_str(TEXT)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
        visitor.visit_str(TEXT)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
        visitor.visit_str(TEXT)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
        visitor.visit_str(self.variant.unwrap_or(TEXT))
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
        visitor.visit_bytes(b"")
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
        visitor.visit_bytes(b"")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
        visitor.visit_some(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, NoValue> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, NoValue> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, NoValue> {
        let path = format!("{}[]", self.path);
        visitor.visit_seq(Once(Some(self.at(path))))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, NoValue> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, NoValue> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, NoValue> {
        let path = format!("{}{{}}", self.path);
        visitor.visit_map(Once(Some(self.at(path))))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NoValue> {
        self.found.extend(fields.iter().map(|field| super::below(&self.path, field)));
        let asked = if name == ONE_OF { &fields[..1] } else { fields };
        visitor.visit_map(Fields { above: self, rest: asked.iter(), current: "" })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NoValue> {
        self.variant = variants.first().copied();
        visitor.visit_enum(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoValue> {
        visitor.visit_unit()
    }
}

impl<'de> EnumAccess<'de> for Ask<'_> {
    type Error = NoValue;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), NoValue> {
        let Self { path, found, variant } = self;
        let value = seed.deserialize(Ask { path: path.clone(), found: &mut *found, variant })?;
        Ok((value, Self { path, found, variant }))
    }
}

impl<'de> de::VariantAccess<'de> for Ask<'_> {
    type Error = NoValue;

    fn unit_variant(self) -> Result<(), NoValue> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, NoValue> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, NoValue> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NoValue> {
        self.deserialize_struct("", fields, visitor)
    }
}

/// A list of one item, or a map of one entry.
struct Once<'f>(Option<Ask<'f>>);

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = NoValue;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NoValue> {
        self.0.take().map(|item| seed.deserialize(item)).transpose()
    }
}

impl<'de> MapAccess<'de> for Once<'_> {
    type Error = NoValue;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NoValue> {
        let Some(value) = &mut self.0 else { return Ok(None) };
        let path = value.path.clone();
        seed.deserialize(value.at(path)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, NoValue> {
        seed.deserialize(self.0.take().ok_or(NoValue)?)
    }
}

/// Every field of a struct.
struct Fields<'f> {
    above: Ask<'f>,
    rest: std::slice::Iter<'static, &'static str>,
    current: &'static str,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = NoValue;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NoValue> {
        let Some(name) = self.rest.next() else { return Ok(None) };
        self.current = name;
        seed.deserialize(Ask { path: String::new(), found: self.above.found, variant: Some(name) }).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, NoValue> {
        let path = super::below(&self.above.path, self.current);
        seed.deserialize(self.above.at(path))
    }
}
