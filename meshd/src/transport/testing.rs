//! What tests of links share: a small authority that can also err, and hosts made from it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::identity::{Identity, lifetime};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::socket::{Share, bind_udp, listen_tcp};
use super::{Credentials, Dialer, Listener, QuicListener, QuicOptions, SocketOptions, Trust, provider};

pub(crate) const DOMAIN: &str = "mesh.test";

/// A mesh's root and one intermediate.
pub(crate) struct Mesh {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) root_issuer: Issuer<'static, KeyPair>,
    pub(crate) intermediate: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let params = ca("root");
        let root = params.self_signed(&key).expect("root").into();
        let root_issuer = Issuer::new(params, key);
        let (intermediate, issuer) = authority("intermediate", &root_issuer);
        Self { root, root_issuer, intermediate, issuer }
    }

    pub(crate) fn trust(&self) -> Arc<Trust> {
        Trust::new(DOMAIN, vec![self.root.clone()]).expect("a sound root")
    }

    pub(crate) fn certify(&self, identity: &Identity) -> Arc<CertifiedKey> {
        self.custom(&[identity.to_string()], |_| {})
    }

    /// Signs a CSR for a day, as a voter would.
    pub(crate) fn sign(
        &self,
        csr: &[u8],
        identity: &Identity,
        now: SystemTime,
    ) -> Vec<CertificateDer<'static>> {
        let request = CertificateSigningRequestParams::from_der(&csr.into()).expect("a sound CSR");
        let mut params = leaf(&[identity.to_string()]);
        params.not_before = now.into();
        params.not_after = (now + lifetime::LEAF).into();
        let leaf = params.signed_by(&request.public_key, &self.issuer).expect("leaf");
        vec![leaf.into(), self.intermediate.clone()]
    }

    /// Certifies these URIs after a test has had its way with the parameters.
    pub(crate) fn custom(
        &self,
        uris: &[String],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Arc<CertifiedKey> {
        certify(&self.issuer, vec![self.intermediate.clone()], uris, change)
    }
}

pub(crate) fn certify(
    issuer: &Issuer<'static, KeyPair>,
    above: Vec<CertificateDer<'static>>,
    uris: &[String],
    change: impl FnOnce(&mut CertificateParams),
) -> Arc<CertifiedKey> {
    let key = KeyPair::generate().expect("key");
    let mut params = leaf(uris);
    change(&mut params);
    let leaf = params.signed_by(&key, issuer).expect("leaf").into();
    let chain = std::iter::once(leaf).chain(above).collect();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Arc::new(CertifiedKey::from_der(chain, key, provider()).expect("a pair"))
}

fn leaf(uris: &[String]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names =
        uris.iter().map(|uri| SanType::URI(uri.clone().try_into().expect("ASCII"))).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// Makes an authority under another one.
pub(crate) fn authority(
    name: &str,
    above: &Issuer<'static, KeyPair>,
) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("key");
    let params = ca(name);
    let certificate = params.signed_by(&key, above).expect("intermediate").into();
    (certificate, Issuer::new(params, key))
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

pub(crate) fn workload(account: &str) -> Identity {
    Identity::workload(DOMAIN, "default", account).expect("a sound account")
}

pub(crate) fn host(id: &str) -> Identity {
    Identity::host(DOMAIN, id).expect("a sound id")
}

pub(crate) const REVIEWS: &str = "outbound_.9080_._.reviews.default.svc.cluster.local";

/// A host that proves itself as `id`, and serves and calls as the accounts.
pub(crate) fn credentials(mesh: &Mesh, id: &str, accounts: &[&str]) -> Arc<Credentials> {
    let credentials = Credentials::new(mesh.trust());
    let own = host(id);
    credentials.install(&own, mesh.certify(&own));
    credentials.set_host(&own);
    for account in accounts {
        let identity = workload(account);
        credentials.install(&identity, mesh.certify(&identity));
    }
    credentials
}

/// Credentials of a host that serves reviews.
pub(crate) fn reviews_host(mesh: &Mesh) -> Arc<Credentials> {
    let credentials = credentials(mesh, "2", &["reviews"]);
    credentials.set_sni(HashMap::from([(REVIEWS.to_owned(), workload("reviews"))]));
    credentials
}

pub(crate) fn dialer(credentials: &Arc<Credentials>) -> Dialer {
    Dialer::new(credentials.clone(), SocketOptions::default())
}

pub(crate) fn tcp(credentials: &Arc<Credentials>) -> Listener {
    let socket = listen_tcp(loopback(0), Share::Alone).expect("a port");
    Listener::new(socket, credentials).expect("a listener")
}

pub(crate) fn quic(credentials: &Arc<Credentials>, port: u16, options: &QuicOptions) -> QuicListener {
    let socket = bind_udp(loopback(port), Share::Alone).expect("a port");
    QuicListener::new(socket, credentials, options).expect("a listener")
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
