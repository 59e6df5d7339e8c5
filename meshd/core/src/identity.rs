//! Who is who: SPIFFE names, how long a certificate lives, and when to renew it.
//!
//! Decides nothing about keys or sockets: a name is text, a life is two times. The names are Istio's
//! (`spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`), so that `principals` of a policy work unchanged; hosts and
//! people have forms of their own. Parsing is strict, and what is accepted prints back byte for byte.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub mod lifetime;
pub mod sni;

#[cfg(test)]
mod tests;

/// The longest identity accepted, in bytes.
///
/// Source: SPIFFE-ID section 2.3, which asks implementations to support exactly this many.
pub const MAX_URI_BYTES: usize = 2048;

/// A name that a certificate proves.
///
/// Made by [`Identity::from_str`] or by the checked constructors; the order is that of the variants, then of
/// the fields, so that maps keyed by it print the same everywhere. In JSON it is the URI as a string.
///
/// Source: SPIFFE-ID section 2; Istio's form of a workload's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// A service: `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    Workload {
        /// The mesh's trust domain.
        trust_domain: String,
        /// Istio's namespace: a DNS label.
        namespace: String,
        /// The service account.
        account: String,
    },
    /// A host of the mesh: `spiffe://DOMAIN/host/ID`.
    Host {
        /// The mesh's trust domain.
        trust_domain: String,
        /// The host's id.
        id: String,
    },
    /// A person or a script: `spiffe://DOMAIN/admin/NAME`.
    Admin {
        /// The mesh's trust domain.
        trust_domain: String,
        /// The person's or script's name.
        name: String,
    },
}

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text does not begin with `spiffe://`.
    #[error("an identity begins with \"spiffe://\"")]
    Scheme,
    /// The text is longer than [`MAX_URI_BYTES`].
    #[error("an identity has at most {MAX_URI_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The trust domain is empty or has a byte that does not belong there.
    #[error("trust domain \"{0}\" is not made of dot-separated labels of a-z, 0-9, '-' and '_'")]
    TrustDomain(String),
    /// The path has none of the three forms.
    #[error("path \"{0}\" is none of /ns/NAMESPACE/sa/ACCOUNT, /host/ID and /admin/NAME")]
    Path(String),
    /// A segment of the path is empty, too long, or has a byte that does not belong there.
    #[error("{what} \"{text}\" {why}")]
    Segment {
        /// Which segment: namespace, account, host id, admin name.
        what: &'static str,
        /// The segment as it stood there, cut to 64 characters and escaped.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Identity {
    /// Names a workload, after checking each part.
    pub fn workload(trust_domain: &str, namespace: &str, account: &str) -> Result<Self, IdentityError> {
        Ok(Self::Workload {
            trust_domain: trust_domain_of(trust_domain)?,
            namespace: label("namespace", namespace)?,
            account: name("service account", account)?,
        })
    }

    /// Names a host, after checking each part.
    pub fn host(trust_domain: &str, id: &str) -> Result<Self, IdentityError> {
        Ok(Self::Host { trust_domain: trust_domain_of(trust_domain)?, id: name("host id", id)? })
    }

    /// Names a person or a script, after checking each part.
    pub fn admin(trust_domain: &str, admin: &str) -> Result<Self, IdentityError> {
        Ok(Self::Admin { trust_domain: trust_domain_of(trust_domain)?, name: name("admin name", admin)? })
    }

    /// Returns the trust domain.
    pub fn trust_domain(&self) -> &str {
        match self {
            Self::Workload { trust_domain, .. }
            | Self::Host { trust_domain, .. }
            | Self::Admin { trust_domain, .. } => trust_domain,
        }
    }

    /// Tells whether this names the workload of a namespace and an account, in whatever trust domain.
    pub fn is_workload_of(&self, home: &str, name: &str) -> bool {
        matches!(self, Self::Workload { namespace, account, .. } if namespace == home && account == name)
    }

    /// Returns trust domain, namespace and account of a workload; `None` for all others.
    pub fn workload_names(&self) -> Option<(&str, &str, &str)> {
        match self {
            Self::Workload { trust_domain, namespace, account } => Some((trust_domain, namespace, account)),
            Self::Host { .. } | Self::Admin { .. } => None,
        }
    }

    /// Returns what Istio calls the principal: the URI without `spiffe://`.
    pub fn principal(&self) -> String {
        self.to_string().split_off(SCHEME.len())
    }

    /// Tells whether this names a host.
    pub fn is_host(&self) -> bool {
        matches!(self, Self::Host { .. })
    }

    /// Tells whether this names a workload.
    pub fn is_workload(&self) -> bool {
        matches!(self, Self::Workload { .. })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload { trust_domain, namespace, account } => {
                write!(f, "{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}")
            }
            Self::Host { trust_domain, id } => write!(f, "{SCHEME}{trust_domain}/host/{id}"),
            Self::Admin { trust_domain, name } => write!(f, "{SCHEME}{trust_domain}/admin/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_URI_BYTES {
            return Err(IdentityError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError::Scheme)?;
        let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        trust_domain_of(domain)?;
        let segments: Vec<&str> = path.split('/').collect();
        match segments.as_slice() {
            ["ns", namespace, "sa", account] => Self::workload(domain, namespace, account),
            ["host", id] => Self::host(domain, id),
            ["admin", name] => Self::admin(domain, name),
            _ => Err(IdentityError::Path(shown(&rest[domain.len()..]))),
        }
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Checks the text of a trust domain.
///
/// Stricter than SPIFFE-ID section 2.1 in that labels are not empty, so that `a..b` and a trailing dot, which
/// DNS would read as another name, cannot occur.
pub fn trust_domain_of(text: &str) -> Result<String, IdentityError> {
    let label_is_sound = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    if text.len() <= MAX_NAME_BYTES && text.split('.').all(label_is_sound) {
        return Ok(text.to_owned());
    }
    Err(IdentityError::TrustDomain(shown(text)))
}

/// Checks a DNS label: Kubernetes' rule for the name of a namespace.
fn label(what: &'static str, text: &str) -> Result<String, IdentityError> {
    if text.len() > MAX_LABEL_BYTES {
        return Err(segment(what, text, "has more than 63 characters"));
    }
    if text.bytes().any(|b| matches!(b, b'.' | b'_')) {
        return Err(segment(what, text, "may hold a-z, 0-9 and '-' only"));
    }
    name(what, text)
}

/// Checks one segment: what SPIFFE allows, in lower case, and never `.` or `..`.
fn name(what: &'static str, text: &str) -> Result<String, IdentityError> {
    let bytes = text.as_bytes();
    let is_word = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    let why = if bytes.is_empty() {
        "is empty"
    } else if bytes.len() > MAX_NAME_BYTES {
        "has more than 253 characters"
    } else if !bytes.iter().all(|b| is_word(b) || matches!(b, b'-' | b'_' | b'.')) {
        "may hold a-z, 0-9, '-', '_' and '.' only"
    } else if !bytes.first().is_some_and(is_word) || !bytes.last().is_some_and(is_word) {
        "does not begin and end with a letter or a digit"
    } else {
        return Ok(text.to_owned());
    };
    Err(segment(what, text, why))
}

fn segment(what: &'static str, text: &str, why: &'static str) -> IdentityError {
    IdentityError::Segment { what, text: shown(text), why }
}

/// Makes text of a stranger fit for a log line: escaped, at most 64 characters.
fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_default).collect()
}

const SCHEME: &str = "spiffe://";
/// The longest DNS label (RFC 1035, section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;
/// Kubernetes' limit for names that are DNS subdomains.
const MAX_NAME_BYTES: usize = 253;
