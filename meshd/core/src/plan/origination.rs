//! TLS towards applications that are no hop of the mesh: what a `DestinationRule` asks of it.

use std::sync::Arc;

/// TLS towards an application.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UpstreamTls {
    /// None.
    #[default]
    Disable,
    /// The mesh's own certificates were asked for (`ISTIO_MUTUAL`). Hops have them anyway, and tell the server name to
    /// a gateway; an endpoint that is reached without a hop must show one itself.
    Mesh(Arc<TlsOrigination>),
    /// The server is checked; with a certificate of ours it is mutual (`SIMPLE`, `MUTUAL`).
    Originate(Arc<TlsOrigination>),
}

/// How TLS is begun towards an application.
///
/// Source: Istio `ClientTLSSettings`, `constructUpstreamTLS`, `setAutoSniAndAutoSanValidation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsOrigination {
    /// The server name to ask for; empty: the request's Host.
    pub sni: String,
    /// Whether the certificate must be for the request's Host: unless `sni` or names are given.
    pub check_host: bool,
    /// Names of which the certificate must have one; empty: any will do.
    pub subject_alt_names: Vec<String>,
    /// Whether we show a certificate (`MUTUAL`).
    pub mutual: bool,
    /// Where certificates, key and roots are.
    pub material: TlsMaterial,
    /// File of certificates taken back; empty: none.
    pub ca_crl: String,
    /// Do not check the certificate at all.
    pub insecure_skip_verify: bool,
}

/// Where the certificates, the key and the roots of TLS are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TlsMaterial {
    /// In files of the calling host.
    Files {
        /// Roots; empty: those of the system.
        ca_certificates: String,
        /// Our chain; empty without `MUTUAL`.
        client_certificate: String,
        /// Its key.
        private_key: String,
    },
    /// In a secret of the calling host (`credentialName`).
    Secret(String),
    /// The caller's certificate of the mesh, and the mesh's roots.
    Mesh,
}

impl Default for TlsMaterial {
    fn default() -> Self {
        let none = String::new;
        Self::Files { ca_certificates: none(), client_certificate: none(), private_key: none() }
    }
}

impl TlsOrigination {
    /// Returns the server name for a connection to `host`, as an application calls it: lower case, without port.
    ///
    /// `None` where none can be said: a wildcard stands for no server.
    pub fn server_name<'a>(&'a self, host: &'a str) -> Option<&'a str> {
        let name = if self.sni.is_empty() { host.trim_matches(['[', ']']) } else { &self.sni };
        (!name.is_empty() && !name.starts_with('*')).then_some(name)
    }
}
