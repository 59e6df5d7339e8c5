//! `Gateway`: a door into the mesh.
//!
//! Source: Istio API `networking/v1/gateway.proto`.

use serde::{Deserialize, Serialize};

use super::message::message;
use super::service_entry::ServicePort;
use crate::value::Labels;

message! {
    /// A door into the mesh: which hosts and ports it opens.
    pub struct Gateway {
        /// What it opens.
        pub servers: Vec<Server>,
        /// Labels of the workloads that are the door.
        pub selector: Labels,
    }

    /// One port of a gateway and the hosts behind it.
    pub struct Server {
        /// The port callers dial.
        pub port: Option<ServicePort>,
        /// The address to listen on.
        pub bind: String,
        /// The hosts: `name`, `namespace/name`, wildcards.
        pub hosts: Vec<String>,
        /// TLS towards callers.
        pub tls: Option<ServerTlsSettings>,
        /// Where traffic goes by default.
        pub default_endpoint: String,
        /// A name for statistics.
        pub name: String,
    }

    /// TLS towards callers.
    pub struct ServerTlsSettings {
        /// Whether plain HTTP is answered by a redirect to HTTPS. Default: false.
        pub https_redirect: bool,
        /// What kind. Default: TLS passes through.
        pub mode: ServerTlsMode,
        /// The file with the certificate.
        pub server_certificate: String,
        /// The file with its key.
        pub private_key: String,
        /// The file with the roots for callers' certificates.
        pub ca_certificates: String,
        /// The file with certificates taken back.
        pub ca_crl: String,
        /// A secret that holds all of them.
        pub credential_name: String,
        /// Two such secrets, for two kinds of key.
        pub credential_names: Vec<String>,
        /// A secret that holds the roots.
        pub ca_cert_credential_name: String,
        /// Two certificates by file, for two kinds of key.
        pub tls_certificates: Vec<TlsCertificate>,
        /// The names callers' certificates may show.
        pub subject_alt_names: Vec<String>,
        /// SHA-256 of the public keys callers may use.
        pub verify_certificate_spki: Vec<String>,
        /// SHA-256 of the certificates callers may use.
        pub verify_certificate_hash: Vec<String>,
        /// The oldest version of TLS. Default: 1.2.
        pub min_protocol_version: TlsProtocol,
        /// The newest version of TLS. Default: 1.3.
        pub max_protocol_version: TlsProtocol,
        /// The ciphers allowed.
        pub cipher_suites: Vec<String>,
        /// Whether callers' certificates are not checked. Default: false.
        pub insecure_skip_verify: Option<bool>,
    }

    /// A certificate by file.
    pub struct TlsCertificate {
        /// The file with the certificate.
        pub server_certificate: String,
        /// The file with its key.
        pub private_key: String,
        /// The file with the roots for callers' certificates.
        pub ca_certificates: String,
    }
}

/// What kind of TLS a gateway speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    /// None of its own: TLS passes through, chosen by SNI.
    #[default]
    Passthrough,
    /// It shows a certificate.
    Simple,
    /// Both sides show one.
    Mutual,
    /// Passes through by a name that holds the destination.
    AutoPassthrough,
    /// Both sides show the mesh's.
    IstioMutual,
    /// Callers may show one.
    OptionalMutual,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TlsProtocol {
    /// The mesh's choice.
    #[default]
    #[serde(rename = "TLS_AUTO")]
    Auto,
    /// TLS 1.0.
    #[serde(rename = "TLSV1_0")]
    V1_0,
    /// TLS 1.1.
    #[serde(rename = "TLSV1_1")]
    V1_1,
    /// TLS 1.2.
    #[serde(rename = "TLSV1_2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "TLSV1_3")]
    V1_3,
}
