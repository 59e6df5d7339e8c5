//! The power to sign: opens the root key that was sealed for this host, once it has been made a server.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use data_encoding::BASE64;
use mesh_core::identity::Identity;
use mesh_core::identity::lifetime::LEAF;
use mesh_proto::api::SignRequest;
use mesh_proto::command::HostId;
use rustls::pki_types::CertificateDer;

use crate::identity::HostKeys;
use crate::identity::seal::{seal_for_host, unseal_as_host};
use crate::server::ca::Authority;
use crate::server::{Notary, Server};
use crate::transport::Secret;

/// Signs and seals with this host's keys.
pub(super) struct HostNotary {
    id: HostId,
    keys: Arc<HostKeys>,
    server: OnceLock<Weak<Server>>,
    authority: Mutex<Option<Arc<Authority>>>,
}

impl HostNotary {
    pub(super) fn new(id: HostId, keys: Arc<HostKeys>) -> Self {
        Self { id, keys, server: OnceLock::new(), authority: Mutex::default() }
    }

    /// Tells where the sealed key is to be found.
    pub(super) fn attach(&self, server: &Arc<Server>) {
        // Set once, right after the server was made.
        drop(self.server.set(Arc::downgrade(server)));
    }

    /// Certifies a key of this host itself; `None` when this host cannot sign.
    pub(super) fn sign_own(
        &self,
        identity: &Identity,
        csr: &[u8],
    ) -> Option<Result<Vec<CertificateDer<'static>>, String>> {
        let authority = self.authority().ok()?;
        Some(authority.sign(csr, identity, LEAF, SystemTime::now()).map_err(|error| error.to_string()))
    }

    fn authority(&self) -> Result<Arc<Authority>, String> {
        let mut known = self.authority.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(authority) = &*known {
            return Ok(authority.clone());
        }
        let (root_key, domain, root) = self.open_root()?.ok_or("this host holds no key to sign with")?;
        let authority = Authority::from_root(&domain, root_key, root, SystemTime::now());
        let authority = Arc::new(authority.map_err(|error| error.to_string())?);
        *known = Some(authority.clone());
        Ok(authority)
    }

    /// Returns root key, trust domain and root certificate; `None` when the key is not sealed for this host.
    fn open_root(&self) -> Result<Option<(Secret, String, CertificateDer<'static>)>, String> {
        let Some(server) = self.server.get().and_then(Weak::upgrade) else { return Ok(None) };
        let world = server.world();
        let Some(sealed) = world.private.sealed_root.get(&self.id.to_string()) else { return Ok(None) };
        let root_key = unseal_as_host(sealed, &self.keys).map_err(|error| error.to_string())?;
        let root = world.mesh.roots.first().ok_or("the mesh has no root certificate")?;
        let root = BASE64.decode(root.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Some((root_key, world.mesh.trust_domain.clone(), root.into())))
    }
}

impl Notary for HostNotary {
    fn sign(&self, requests: &[SignRequest]) -> Result<Vec<Vec<String>>, String> {
        let authority = self.authority()?;
        requests
            .iter()
            .map(|request| {
                let identity: Identity = request.identity.parse().map_err(|error| format!("{error}"))?;
                let csr = BASE64
                    .decode(request.csr.as_bytes())
                    .map_err(|error| format!("the CSR is no base64: {error}"))?;
                let chain = authority
                    .sign(&csr, &identity, LEAF, SystemTime::now())
                    .map_err(|error| error.to_string())?;
                Ok(chain.iter().map(|certificate| BASE64.encode(certificate)).collect())
            })
            .collect()
    }

    fn seal_root(&self, wrap_key: &str) -> Result<Option<String>, String> {
        let Some((root_key, ..)) = self.open_root()? else { return Ok(None) };
        let wrap_key = BASE64.decode(wrap_key.as_bytes()).map_err(|error| error.to_string())?;
        let wrap_key: [u8; 32] = wrap_key.try_into().map_err(|_| "a wrap key has 32 bytes")?;
        seal_for_host(&root_key, &wrap_key).map(Some).map_err(|error| error.to_string())
    }
}
