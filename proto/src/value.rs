//! The small values inside Istio's messages, each with the text form Istio reads and writes.

mod duration;
pub mod grpc;
mod small_map;

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use duration::{Duration, DurationError};
pub use small_map::SmallMap;

/// Labels of a workload or of an object; ordered, so that every host sees one order.
pub type Labels = SmallMap<String, String>;

/// A share in percent, 0.0 to 100.0, with fractions down to a ten-thousandth of a percent.
///
/// Source: Istio `Percent`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Percent {
    /// The share in percent.
    pub value: f64,
}

impl Percent {
    /// Returns the share in parts per million, cut to a whole number as Istio does: 0.00001 % is 0.
    ///
    /// Values outside 0 to 100 and `NaN` are brought to the nearest end (`NaN` to 0).
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=1_000_000 before the cast; cutting is Istio's rule"
    )]
    pub fn per_million(self) -> u32 {
        (self.value * 10_000.0).clamp(0.0, 1_000_000.0) as u32
    }
}

/// Names one port of a service by number.
///
/// Source: Istio `PortSelector`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PortSelector {
    /// The port; 0 is refused by validation.
    pub number: u16,
}

/// How a text is compared. Case-sensitive unless the field that holds it says otherwise.
///
/// Source: Istio `StringMatch`: a map with one of `exact`, `prefix`, `regex`, or with none of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "StringMatchFields", into = "StringMatchFields")]
pub enum StringMatch {
    /// The whole text.
    Exact(String),
    /// The beginning of the text, byte for byte.
    Prefix(String),
    /// An RE2 expression that covers the whole text.
    Regex(String),
    /// `{}`: anything, as long as it is there.
    Present,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename = "StringMatch", deny_unknown_fields, default)]
struct StringMatchFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    exact: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
}

impl TryFrom<StringMatchFields> for StringMatch {
    type Error = &'static str;

    fn try_from(fields: StringMatchFields) -> Result<Self, Self::Error> {
        match (fields.exact, fields.prefix, fields.regex) {
            (Some(text), None, None) => Ok(Self::Exact(text)),
            (None, Some(text), None) => Ok(Self::Prefix(text)),
            (None, None, Some(text)) => Ok(Self::Regex(text)),
            (None, None, None) => Ok(Self::Present),
            _ => Err("only one of exact, prefix and regex may be set"),
        }
    }
}

impl From<StringMatch> for StringMatchFields {
    fn from(value: StringMatch) -> Self {
        let mut fields = Self::default();
        match value {
            StringMatch::Exact(text) => fields.exact = Some(text),
            StringMatch::Prefix(text) => fields.prefix = Some(text),
            StringMatch::Regex(text) => fields.regex = Some(text),
            StringMatch::Present => {}
        }
        fields
    }
}

/// Bytes, written as base64 in YAML and JSON (protobuf's form of `bytes`).
///
/// Standard and URL-safe alphabets are read, with or without padding; the standard one is written.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Base64(pub Vec<u8>);

impl fmt::Debug for Base64 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Base64({} bytes)", self.0.len())
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&data_encoding::BASE64.encode(&self.0))
    }
}

impl FromStr for Base64 {
    type Err = Base64Error;

    fn from_str(text: &str) -> Result<Self, Base64Error> {
        let plain = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
        data_encoding::BASE64_NOPAD.decode(plain.as_bytes()).map(Self).map_err(|_| Base64Error)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Parsed::new("bytes as base64"))
    }
}

/// A text that is no base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be base64")]
pub struct Base64Error;

/// Reads a value by its text form.
struct Parsed<T> {
    wanted: &'static str,
    kind: PhantomData<T>,
}

impl<T> Parsed<T> {
    const fn new(wanted: &'static str) -> Self {
        Self { wanted, kind: PhantomData }
    }
}

impl<T> Visitor<'_> for Parsed<T>
where
    T: FromStr<Err: fmt::Display>,
{
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.wanted)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}
