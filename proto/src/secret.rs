//! Secrets of one host: what `meshctl secret` hands to the meshd of its host, and what is told of them.
//!
//! They are the host's, like its keys: they cross a unix socket and nothing else, and no answer holds a key.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::command::Timestamp;

/// Whether a text can be the name of a secret, which is the name of a folder: letters, digits, `-`, `_` and `.` make one
/// of at most 253 (a DNS name, as in Kubernetes), and it begins with no `.`.
pub fn is_name(text: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(sound)
}

/// A secret as it is put in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSecret {
    /// What rules call it (`credentialName`).
    pub name: String,
    /// Whether it stands in the place of one that is there. What is not given then stays.
    pub replaces: Replaces,
    /// Its files: `tls.crt`, `tls.key`, `ca.crt`, `ca.crl`, as in Kubernetes' `kubernetes.io/tls`.
    pub files: BTreeMap<String, Hidden>,
}

/// Whether a secret stands in the place of one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replaces {
    /// It is new; one of its name is a conflict.
    Nothing,
    /// One of its name must be there.
    Another,
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hidden({} bytes)", self.0.len())
    }
}

/// A secret as it may be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretView {
    /// What rules call it.
    pub name: String,
    /// Its files, by name.
    pub files: Vec<String>,
    /// The names of its certificate, the subject where it has no others.
    pub names: Vec<String>,
    /// Who signed its certificate.
    pub issuer: String,
    /// SHA-256 of its certificate, hexadecimal.
    pub sha256: String,
    /// From when on its certificate is valid.
    pub not_before: Option<Timestamp>,
    /// Until when its certificate is valid; of roots alone, the first that ends.
    pub not_after: Option<Timestamp>,
    /// When it is ordered anew (ACME), if nothing goes wrong; `None`: nobody orders it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<Timestamp>,
    /// Which rules of this host use it.
    pub used_by: Vec<String>,
    /// Why it cannot be used, or not for much longer.
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_printed() {
        let files = [("tls.key".to_owned(), Hidden("hunter2".to_owned()))].into();
        let secret = NewSecret { name: "shop".to_owned(), replaces: Replaces::Nothing, files };
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
