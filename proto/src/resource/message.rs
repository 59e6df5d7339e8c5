//! One macro: a struct that is one of Istio's messages.

/// Declares structs that read and write Istio's JSON and YAML.
///
/// Every field is optional on reading (absent means the type's default, as in proto3; what must be present is for
/// `validate` to say), left out on writing when it holds its default, and named in camel case. Unknown fields are
/// errors. A function cannot do this: serde's attributes would stand on each of some four hundred fields.
macro_rules! message {
    ($(
        $(#[$about:meta])*
        pub struct $name:ident {
            $( $(#[$field_about:meta])* pub $field:ident: $kind:ty, )*
        }
    )*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            $(
                $(#[$field_about])*
                #[serde(skip_serializing_if = "crate::resource::message::is_default")]
                pub $field: $kind,
            )*
        }
    )*};
}

pub(super) use message;

/// Whether a field need not be written.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads a port that is a condition: 0 is none, as in protobuf.
pub(super) fn port<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    let port: Option<u16> = serde::Deserialize::deserialize(from)?;
    Ok(port.filter(|port| *port != 0))
}
