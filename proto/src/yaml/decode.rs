//! Turns a tree into types without stopping at the first mistake.
//!
//! The types themselves say what fields there are (serde tells a deserializer), so no second list of names can go
//! stale. A field nobody knows is reported and skipped; a value of the wrong type is reported and its default taken.
//! Where a type refuses a value itself (a duration), the value is left out and the reading begun again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

use super::nearest;
use super::tree::{Key, Node, Position, Value, join, shorten};

/// A mistake of form.
#[derive(Debug)]
pub(super) struct Slip {
    pub(super) code: &'static str,
    pub(super) at: Position,
    pub(super) path: String,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// The code of a field nobody knows.
pub(super) const UNKNOWN_FIELD: &str = "unknown-field";

/// Reads `node`, which stands at `path`, by `seed`.
///
/// Returns the value if anything could be made of it, and every mistake.
pub(super) fn decode<'de, S>(
    seed: &S,
    path: &str,
    key: Option<&'de Key>,
    node: &'de Node,
) -> (Option<S::Value>, Vec<Slip>)
where
    S: DeserializeSeed<'de> + Clone,
{
    let mut refused = Vec::new();
    let mut left_out = BTreeSet::new();
    // Each round finds one more value that its type refuses.
    for _ in 0..MOST_ROUNDS {
        let notes = Notes { slips: RefCell::default(), left_out: &left_out };
        let from = Decoder { node, key, path: &Path::Root(path), notes: &notes };
        let result = seed.clone().deserialize(from);
        let mut slips = notes.slips.into_inner();
        match result {
            Ok(value) => {
                slips.append(&mut refused);
                slips.sort_by_key(|slip| slip.at);
                return (Some(value), slips);
            }
            Err(error) => {
                let place =
                    error.place.unwrap_or(Place { at: node.place(key), path: path.to_owned(), node: None });
                refused.push(Slip {
                    code: "invalid-value",
                    at: place.at,
                    path: place.path,
                    message: error.message,
                    hint: None,
                });
                match place.node {
                    Some(address) if left_out.insert(address) => {}
                    _ => {
                        refused.append(&mut slips);
                        break;
                    }
                }
            }
        }
    }
    refused.sort_by_key(|slip| slip.at);
    (None, refused)
}

/// How many values that their types refuse are found in one document.
const MOST_ROUNDS: usize = 32;

/// What is noticed in one round.
struct Notes<'de> {
    slips: RefCell<Vec<Slip>>,
    /// Addresses of nodes that their types refused.
    left_out: &'de BTreeSet<usize>,
}

impl Notes<'_> {
    /// Keeps a mistake, made only while there are few enough to be read.
    fn push(&self, slip: impl FnOnce() -> Slip) {
        let mut slips = self.slips.borrow_mut();
        if slips.len() < super::MAX_FINDINGS {
            slips.push(slip());
        }
    }

    fn skips(&self, node: &Node) -> bool {
        self.left_out.contains(&address(node))
    }
}

/// Returns a number without fraction as an integer; `None` where a float does not tell neighbours apart any more.
#[expect(clippy::cast_possible_truncation, reason = "at most 2^53, and it has no fraction")]
fn whole(value: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (value.abs() <= EXACT).then_some(value as i64)
}

fn address(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}

/// Where a decoder stands; only written out for messages.
enum Path<'p> {
    Root(&'p str),
    Name(&'p Self, &'p str),
    Index(&'p Self, usize),
}

impl Path<'_> {
    fn text(&self) -> String {
        match self {
            Self::Root(path) => (*path).to_owned(),
            Self::Name(parent, name) => join(&parent.text(), name),
            Self::Index(parent, index) => format!("{}[{index}]", parent.text()),
        }
    }
}

/// Why a type refused a value.
#[derive(Debug)]
pub(super) struct Refusal {
    message: String,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    at: Position,
    path: String,
    node: Option<usize>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), place: None }
    }
}

#[derive(Clone, Copy)]
struct Decoder<'de, 'p> {
    node: &'de Node,
    key: Option<&'de Key>,
    path: &'p Path<'p>,
    notes: &'p Notes<'p>,
}

impl Decoder<'_, '_> {
    fn place(&self) -> Position {
        self.node.place(self.key)
    }

    fn note(&self, code: &'static str, message: String, hint: Option<String>) {
        self.notes.push(|| Slip { code, at: self.place(), path: self.path.text(), message, hint });
    }

    fn wrong(&self, wanted: &str, hint: Option<&str>) {
        let message = format!("must be {wanted}, not {}", self.node.describe());
        self.note("wrong-type", message, hint.map(ToOwned::to_owned));
    }

    /// Says where a refusal happened, if nobody deeper has.
    fn placed(&self, mut refusal: Refusal) -> Refusal {
        refusal.place.get_or_insert_with(|| Place {
            at: self.place(),
            path: self.path.text(),
            node: Some(address(self.node)),
        });
        refusal
    }

    fn number<T>(&self, least: &str, most: &str) -> T
    where
        T: TryFrom<u64> + TryFrom<i64> + Default,
    {
        let value = match self.numeric() {
            Some(Value::Unsigned(value)) => T::try_from(value).ok(),
            Some(Value::Signed(value)) => T::try_from(value).ok(),
            // `5e1` and `50.0` are 50 in JSON, which is what Istio's types are read from.
            Some(Value::Float(value)) if value.fract() == 0.0 => {
                whole(value).and_then(|value| T::try_from(value).ok())
            }
            _ => {
                self.wrong("a whole number", None);
                return T::default();
            }
        };
        value.unwrap_or_else(|| {
            self.wrong(&format!("a number from {least} to {most}"), None);
            T::default()
        })
    }

    /// The value where it is a number, also one in quotes: protobuf's JSON writes large ones so, and takes them all.
    fn numeric(&self) -> Option<Value> {
        match &self.node.value {
            value @ (Value::Unsigned(_) | Value::Signed(_) | Value::Float(_)) => Some(value.clone()),
            Value::Text(text) if text.bytes().all(|byte| !byte.is_ascii_whitespace()) => {
                let number: serde_json::Number = serde_json::from_str(text).ok()?;
                let signed = || number.as_i64().map(Value::Signed);
                number
                    .as_u64()
                    .map(Value::Unsigned)
                    .or_else(signed)
                    .or_else(|| number.as_f64().map(Value::Float))
            }
            _ => None,
        }
    }

    fn text_hint(&self) -> Option<&'static str> {
        match self.node.value {
            Value::Bool(_) | Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) => {
                Some("write it in quotes")
            }
            Value::Null => Some("write \"\" for an empty text"),
            _ => None,
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $kind:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
            visitor.$visit(self.number::<$kind>(&$kind::MIN.to_string(), &$kind::MAX.to_string()))
        }
    )*};
}

impl<'de> Deserializer<'de> for Decoder<'de, '_> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
        .map_err(|refusal| self.placed(refusal))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let value = if let Value::Bool(value) = self.node.value {
            value
        } else {
            self.wrong("true or false", None);
            false
        };
        visitor.visit_bool(value)
    }

    numbers! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
    }

    #[expect(clippy::cast_precision_loss, reason = "percentages; nobody writes 2^53 of them")]
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let value = match self.numeric() {
            Some(Value::Unsigned(value)) => value as f64,
            Some(Value::Signed(value)) => value as f64,
            Some(Value::Float(value)) => value,
            _ => {
                self.wrong("a number", None);
                0.0
            }
        };
        visitor.visit_f64(value)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_f64(visitor)
    }

    /// Types with a form of their own read by `deserialize_str` and may refuse the text; a plain `String` takes any.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let result = match &self.node.value {
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::Unsigned(number) => visitor.visit_str(&number.to_string()),
            _ => Err(de::Error::custom(format!("must be text, not {}", self.node.describe()))),
        };
        result.map_err(|refusal| self.placed(refusal))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let Value::Text(text) = &self.node.value else {
            self.wrong("text", self.text_hint());
            return visitor.visit_str("");
        };
        visitor.visit_borrowed_str(text)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let Value::List(items) = &self.node.value else {
            self.wrong("a list", Some("put \"- \" in front of each item"));
            return visitor.visit_seq(Items { parent: self, all: &[], index: 0 });
        };
        visitor.visit_seq(Items { parent: self, all: items, index: 0 })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.entries(None, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        self.entries(Some(fields), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let fallback = variants.first().copied().unwrap_or_default();
        let Value::Text(text) = &self.node.value else {
            self.wrong(&format!("one of {}", variants.join(", ")), None);
            return visitor.visit_enum(Variant(fallback));
        };
        if let Some(variant) = variants.iter().find(|variant| **variant == &**text) {
            return visitor.visit_enum(Variant(variant));
        }
        let hint = nearest(text, variants.iter().copied()).map(|name| format!("did you mean {name}?"));
        let message = format!("{:?} is not one of {}", shorten(text), variants.join(", "));
        self.note("unknown-value", message, hint);
        visitor.visit_enum(Variant(fallback))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

impl<'de> Decoder<'de, '_> {
    fn entries<V: Visitor<'de>>(
        self,
        fields: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let Value::Map(entries) = &self.node.value else {
            let hint = matches!(self.node.value, Value::Null).then_some("write {} for an empty one");
            self.wrong("a map", hint);
            return visitor.visit_map(Entries {
                parent: self,
                fields,
                rest: &[],
                next: None,
                seen: BTreeSet::new(),
            });
        };
        visitor.visit_map(Entries { parent: self, fields, rest: entries, next: None, seen: BTreeSet::new() })
    }
}

struct Items<'de, 'p> {
    parent: Decoder<'de, 'p>,
    all: &'de [Node],
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        while let Some(node) = self.all.get(self.index) {
            let path = Path::Index(self.parent.path, self.index);
            self.index += 1;
            if self.parent.notes.skips(node) {
                continue;
            }
            let child = Decoder { node, key: None, path: &path, notes: self.parent.notes };
            return seed.deserialize(child).map(Some).map_err(|refusal| child.placed(refusal));
        }
        Ok(None)
    }
}

struct Entries<'de, 'p> {
    parent: Decoder<'de, 'p>,
    /// The fields of a struct; none for a map with any keys.
    fields: Option<&'static [&'static str]>,
    rest: &'de [(Key, Node)],
    next: Option<&'de (Key, Node)>,
    /// A key that comes twice is reported elsewhere; the first counts.
    seen: BTreeSet<&'de str>,
}

impl<'de> Entries<'de, '_> {
    /// Whether an entry is to be read; reports a field nobody knows.
    fn wants(&mut self, key: &'de Key, node: &'de Node) -> bool {
        if !self.seen.insert(&key.name) || self.parent.notes.skips(node) {
            return false;
        }
        let Some(fields) = self.fields else { return true };
        if fields.contains(&&*key.name) {
            // An empty field is an absent one, as in Kubernetes.
            return !matches!(node.value, Value::Null);
        }
        self.parent.notes.push(|| {
            let hint = match nearest(&key.name, fields.iter().copied()) {
                Some(name) => Some(format!("did you mean {name:?}?")),
                None if fields.is_empty() => None,
                None => Some(format!("there is {}", list(fields))),
            };
            Slip {
                code: UNKNOWN_FIELD,
                at: key.at,
                path: join(&self.parent.path.text(), &key.name),
                message: "unknown field".to_owned(),
                hint,
            }
        });
        false
    }
}

/// Names at most a dozen.
fn list(names: &[&str]) -> String {
    const MOST: usize = 12;
    match names.len() {
        0..=MOST => names.join(", "),
        _ => format!("{}, …", names[..MOST].join(", ")),
    }
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        while let Some((entry, rest)) = self.rest.split_first() {
            self.rest = rest;
            let (key, node) = entry;
            if self.wants(key, node) {
                self.next = Some(entry);
                let path = Path::Name(self.parent.path, &key.name);
                let at = Decoder { node, key: Some(key), path: &path, notes: self.parent.notes };
                let result = seed.deserialize(KeyDecoder(&key.name));
                return result.map(Some).map_err(|refusal| at.placed(refusal));
            }
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Refusal> {
        let Some((key, node)) = self.next.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let path = Path::Name(self.parent.path, &key.name);
        let child = Decoder { node, key: Some(key), path: &path, notes: self.parent.notes };
        seed.deserialize(child).map_err(|refusal| child.placed(refusal))
    }
}

/// A key: text, or a number where the type asks for one (ports).
struct KeyDecoder<'de>(&'de str);

impl<'de> Deserializer<'de> for KeyDecoder<'de> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0.parse() {
            Ok(number) => visitor.visit_u16(number),
            Err(_) => Err(de::Error::custom(format!("the key {:?} must be a port number", shorten(self.0)))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// A unit variant by name.
struct Variant(&'static str);

impl<'de> EnumAccess<'de> for Variant {
    type Error = Refusal;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Refusal> {
        let name: StrDeserializer<'_, Refusal> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = Refusal;

    fn unit_variant(self) -> Result<(), Refusal> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Refusal> {
        Err(de::Error::custom("only a name is expected here"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Refusal> {
        Err(de::Error::custom("only a name is expected here"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Refusal> {
        Err(de::Error::custom("only a name is expected here"))
    }
}
