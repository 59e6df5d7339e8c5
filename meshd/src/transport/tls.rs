//! What this host trusts, what it can prove, and the TLS configurations made of both.
//!
//! TLS 1.3 only, X25519MLKEM768 preferred, no early data. Roots, certificates and the table of server names are each
//! one `ArcSwap`: a change takes effect for new handshakes and touches no open connection. Resumed sessions are
//! checked again by the caller (see [`super::verify`]), because TLS itself does not.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_core::identity::Identity;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ClientConfig, ServerConfig, SignatureScheme};

use super::verify::{
    Callers, CertificateFault, ClientVerifier, Expect, MAX_CHAIN, Proven, ServerVerifier, Told,
};

/// What a connection to the mesh port is for; named by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A data hop that carries opaque connections, one after another. TCP only.
    Lane,
    /// A data hop: HTTP/2.
    Hop,
    /// Control traffic: frames.
    Control,
    /// A host that wants to join: frames, no client certificate. TCP only.
    Join,
}

impl Protocol {
    /// All, in the order in which a server prefers them.
    pub const ALL: [Self; 4] = [Self::Lane, Self::Hop, Self::Control, Self::Join];

    /// Returns the name in ALPN.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Lane => b"meshd-lane/1",
            Self::Hop => b"h2",
            Self::Control => b"meshd-control/1",
            Self::Join => b"meshd-join/1",
        }
    }

    /// Finds the protocol of a name in ALPN.
    pub fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.alpn() == name)
    }

    /// Picks the protocol of a connection from all names its client offers.
    fn chosen<'a>(offered: Option<impl Iterator<Item = &'a [u8]>>) -> Option<Self> {
        let offered: Vec<Self> = offered?.take(16).filter_map(Self::of).collect();
        Self::ALL.into_iter().find(|p| offered.contains(p))
    }
}

/// The cryptography of every handshake: aws-lc-rs with X25519MLKEM768 first, and the cipher that costs this host least.
///
/// AES-128-GCM where the processor knows AES, as browsers and Envoy have it: fewer rounds than AES-256. ChaCha20
/// elsewhere. The server takes the first that its client names.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let cheapest = if knows_aes() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
        } else {
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        };
        // Stable: the others keep their order.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != cheapest);
        Arc::new(provider)
    });
    &PROVIDER
}

fn knows_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The roots this host trusts, and the trust domain its peers must be of.
#[derive(Debug)]
pub struct Trust {
    domain: String,
    roots: ArcSwap<Roots>,
    denied: ArcSwap<Denied>,
}

/// The roots of the mesh: usually one, two while the root rotates.
#[derive(Debug, Default)]
pub struct Roots {
    /// The certificates.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The same, as rustls-webpki wants them.
    pub(super) anchors: Vec<TrustAnchor<'static>>,
}

/// Who is refused although the certificate is in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Identities, whatever certificate they show.
    pub identities: BTreeSet<Identity>,
    /// Serial numbers, big-endian.
    pub serials: BTreeSet<Vec<u8>>,
}

impl Trust {
    /// Trusts `roots` for identities of `domain`.
    ///
    /// Fails with [`CertificateFault::Malformed`] where a root is not a certificate.
    pub fn new(domain: &str, roots: Vec<CertificateDer<'static>>) -> Result<Arc<Self>, CertificateFault> {
        Ok(Arc::new(Self {
            domain: domain.to_owned(),
            roots: ArcSwap::from_pointee(Roots::new(roots)?),
            denied: ArcSwap::default(),
        }))
    }

    /// Replaces the roots; new handshakes only.
    pub fn set_roots(&self, roots: Vec<CertificateDer<'static>>) -> Result<(), CertificateFault> {
        self.roots.store(Arc::new(Roots::new(roots)?));
        Ok(())
    }

    /// Replaces the list of those who are refused; new handshakes only.
    pub fn set_denied(&self, denied: Denied) {
        self.denied.store(Arc::new(denied));
    }

    /// Returns the roots trusted now.
    pub fn roots(&self) -> Arc<Roots> {
        self.roots.load_full()
    }

    /// Returns the trust domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub(super) fn is_denied(&self, proven: &Proven) -> bool {
        let denied = self.denied.load();
        denied.identities.contains(&proven.identity) || denied.serials.contains(&proven.serial)
    }
}

impl Roots {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, CertificateFault> {
        let anchor = |root| webpki::anchor_from_trusted_cert(root).map(|a| a.to_owned());
        let anchors = certificates
            .iter()
            .map(anchor)
            .collect::<Result<_, _>>()
            .map_err(|_| CertificateFault::Malformed)?;
        Ok(Self { certificates, anchors })
    }
}

/// What this host can prove: a certified key for each of its identities.
#[derive(Debug)]
pub struct Credentials {
    trust: Arc<Trust>,
    keys: ArcSwap<HashMap<Identity, Arc<CertifiedKey>>>,
    host: ArcSwapOption<Identity>,
    names: ArcSwap<HashMap<String, Identity>>,
    sessions: ArcSwap<ServerSessionMemoryCache>,
}

impl Credentials {
    /// Holds nothing yet.
    pub fn new(trust: Arc<Trust>) -> Arc<Self> {
        Arc::new(Self {
            trust,
            keys: ArcSwap::default(),
            host: ArcSwapOption::empty(),
            names: ArcSwap::default(),
            sessions: ArcSwap::new(ServerSessionMemoryCache::new(MAX_SESSIONS)),
        })
    }

    /// Shows `key` for `identity` from the next handshake on.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the key is handed over, but the swap may need to run twice"
    )]
    pub fn install(&self, identity: &Identity, key: Arc<CertifiedKey>) {
        self.keys.rcu(|keys| {
            let mut keys = HashMap::clone(keys);
            keys.insert(identity.clone(), key.clone());
            keys
        });
        self.forget_sessions();
    }

    /// Shows nothing for `identity` any more.
    pub fn remove(&self, identity: &Identity) {
        self.keys.rcu(|keys| {
            let mut keys = HashMap::clone(keys);
            keys.remove(identity);
            keys
        });
        self.forget_sessions();
    }

    /// Returns what is shown for `identity` now.
    pub fn get(&self, identity: &Identity) -> Option<Arc<CertifiedKey>> {
        self.keys.load().get(identity).cloned()
    }

    /// Returns all identities that can be proven now.
    pub fn identities(&self) -> BTreeSet<Identity> {
        self.keys.load().keys().cloned().collect()
    }

    /// Names the host's own identity, which control traffic shows.
    pub fn set_host(&self, identity: &Identity) {
        self.host.store(Some(Arc::new(identity.clone())));
    }

    /// Returns the host's own identity.
    pub fn host(&self) -> Option<Arc<Identity>> {
        self.host.load_full()
    }

    /// Sets which identity each server name of a data hop shows: the port's owner. Others are refused.
    ///
    /// Names are compared without case.
    pub fn set_sni(&self, names: HashMap<String, Identity>) {
        let names = names.into_iter().map(|(name, identity)| (name.to_ascii_lowercase(), identity)).collect();
        if **self.names.load() == names {
            return;
        }
        self.names.store(Arc::new(names));
        self.forget_sessions();
    }

    /// Returns the identity that a server name shows.
    pub fn owner(&self, sni: &str) -> Option<Identity> {
        let names = self.names.load();
        names.get(sni).or_else(|| names.get(&sni.to_ascii_lowercase())).cloned()
    }

    /// Returns what this host trusts.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Makes the next handshake of every client a full one: a resumed session would show what was shown before.
    fn forget_sessions(&self) {
        self.sessions.store(ServerSessionMemoryCache::new(MAX_SESSIONS));
    }

    fn host_key(&self) -> Option<Arc<CertifiedKey>> {
        self.get(&*self.host()?)
    }

    /// Returns the host's key with the roots appended, for a client that knows only their pin.
    fn host_key_with_roots(&self) -> Option<Arc<CertifiedKey>> {
        let key = self.host_key()?;
        let mut chain = key.cert.clone();
        chain.extend(self.trust.roots().certificates.iter().cloned());
        chain.truncate(MAX_CHAIN);
        Some(Arc::new(CertifiedKey::new(chain, key.key.clone())))
    }
}

/// The server side of the mesh port: one configuration for each protocol.
#[derive(Debug, Clone)]
pub(super) struct ServerConfigs {
    lane: Arc<ServerConfig>,
    hop: Arc<ServerConfig>,
    control: Arc<ServerConfig>,
    join: Arc<ServerConfig>,
}

impl ServerConfigs {
    pub(super) fn new(credentials: &Arc<Credentials>) -> Self {
        use Protocol::{Control, Hop, Join, Lane};
        let config =
            |callers, protocols| Arc::new(server_config(credentials, callers, protocols, Told::default()));
        Self {
            lane: config(Some(Callers::Hop), &[Lane]),
            hop: config(Some(Callers::Hop), &[Hop]),
            control: config(Some(Callers::Control), &[Control]),
            join: config(None, &[Join]),
        }
    }

    /// Chooses by the first bytes of a connection.
    ///
    /// Where no protocol of ours is offered, the strictest configuration lets TLS say so to the client.
    pub(super) fn choose(&self, hello: &ClientHello<'_>) -> (Option<Protocol>, Arc<ServerConfig>) {
        let protocol = Protocol::chosen(hello.alpn());
        let config = match protocol {
            Some(Protocol::Lane) => &self.lane,
            Some(Protocol::Hop) | None => &self.hop,
            Some(Protocol::Control) => &self.control,
            Some(Protocol::Join) => &self.join,
        };
        (protocol, config.clone())
    }
}

/// Makes the server side of one QUIC connection: hops and control traffic in one, since QUIC cannot choose after the
/// first packet.
///
/// No tickets: its connections are long, and a resumed one could not be told from a full one.
pub(super) fn quic_server_config(credentials: &Arc<Credentials>) -> (Arc<ServerConfig>, Told) {
    let told = Told::default();
    let protocols = [Protocol::Hop, Protocol::Control];
    let mut config = server_config(credentials, Some(Callers::Any), &protocols, told.clone());
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    (Arc::new(config), told)
}

fn server_config(
    credentials: &Arc<Credentials>,
    callers: Option<Callers>,
    protocols: &[Protocol],
    told: Told,
) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc-rs has TLS 1.3 suites");
    let builder = match callers {
        Some(callers) => builder.with_client_cert_verifier(Arc::new(ClientVerifier {
            trust: credentials.trust.clone(),
            callers,
            told,
        })),
        None => builder.with_no_client_auth(),
    };
    let resolver = Arc::new(ServerKeys(credentials.clone()));
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = protocols.iter().map(|p| p.alpn().to_vec()).collect();
    config.session_storage = Arc::new(Sessions(credentials.clone()));
    config.max_early_data_size = 0;
    config
}

/// Makes the client side of one (protocol, own identity, expected peer); sessions are remembered within it.
///
/// Resumption is bound to it: a session made under one expectation can never serve another.
pub(super) fn client_config(
    trust: &Arc<Trust>,
    key: Option<Arc<CertifiedKey>>,
    expect: &Expect,
    protocol: Protocol,
    told: Told,
) -> ClientConfig {
    let verifier = Arc::new(ServerVerifier { trust: trust.clone(), expect: expect.clone(), told });
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc-rs has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(ClientKey(key))),
        None => builder.with_no_client_auth(),
    };
    // A peer that knows no lanes chooses the hop, which says so.
    let offered: &[Protocol] =
        if protocol == Protocol::Lane { &[Protocol::Lane, Protocol::Hop] } else { &[protocol] };
    config.alpn_protocols = offered.iter().map(|protocol| protocol.alpn().to_vec()).collect();
    config.resumption = match protocol {
        Protocol::Lane | Protocol::Hop => Resumption::in_memory_sessions(MAX_NAMES),
        Protocol::Control | Protocol::Join => Resumption::disabled(),
    };
    config.enable_early_data = false;
    config
}

/// Shows the certificate that fits what the client asked for.
#[derive(Debug)]
struct ServerKeys(Arc<Credentials>);

impl ResolvesServerCert for ServerKeys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match Protocol::chosen(hello.alpn())? {
            Protocol::Lane | Protocol::Hop => self.0.get(&self.0.owner(hello.server_name()?)?),
            Protocol::Control => self.0.host_key(),
            Protocol::Join => self.0.host_key_with_roots(),
        }
    }
}

/// Shows one certificate: a client's configuration is made anew when its key is renewed.
#[derive(Debug)]
pub(super) struct ClientKey(pub(super) Arc<CertifiedKey>);

impl ResolvesClientCert for ClientKey {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The server's memory of sessions, emptied whenever credentials change.
#[derive(Debug)]
struct Sessions(Arc<Credentials>);

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.0.sessions.load().put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.sessions.load().get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.sessions.load().take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// How many sessions a host remembers for its clients; two tickets go out with each full handshake.
const MAX_SESSIONS: usize = 1024;
/// How many server names a client remembers sessions of, for each configuration.
const MAX_NAMES: usize = 32;
