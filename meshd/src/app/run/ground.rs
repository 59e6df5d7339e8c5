//! What is known before anything listens.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use data_encoding::BASE64;
use mesh_core::identity::Identity;
use mesh_core::plan::{Locality, Node, Workload};
use rustls::pki_types::CertificateDer;

use super::super::logging::Levels;
use super::super::state::HostState;
use super::super::{NeedsPerson, entrances};
use crate::config::{Config, RESTORE_OR_REJOIN, Source};
use crate::drain::{self, Drain};
use crate::identity::HostKeys;
use crate::telemetry::Stats;
use crate::transport::{Credentials, Dialer, SocketOptions, Trust};

/// How this process began.
pub(super) struct Begun {
    pub(super) source: Source,
    /// The file as it was.
    pub(super) text: String,
    pub(super) log: Levels,
}

/// What this host is, and what everything else of it is built on.
pub(super) struct Ground {
    pub(super) config: Config,
    pub(super) state: HostState,
    pub(super) began: Instant,
    pub(super) keys: Arc<HostKeys>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) dialer: Dialer,
    pub(super) stats: Arc<Stats>,
    pub(super) drain: Drain,
    pub(super) draining: drain::Draining,
}

impl Ground {
    pub(super) fn new(config: Config, state: HostState) -> Result<Self> {
        let keys = HostKeys::open(&config.host.data)?.with_context(|| {
            let data = config.host.data.display();
            NeedsPerson(format!("host.key and wrap.key are missing from {data}; {RESTORE_OR_REJOIN}"))
        })?;
        let roots: Vec<CertificateDer<'static>> = state
            .mesh
            .roots
            .iter()
            .map(|root| BASE64.decode(root.as_bytes()).map(Into::into))
            .collect::<Result<_, _>>()
            .with_context(|| {
                NeedsPerson(format!("the mesh's roots in host.json are damaged; {RESTORE_OR_REJOIN}"))
            })?;
        let credentials = Credentials::new(Trust::new(&state.mesh.trust_domain, roots)?);
        let dialer = Dialer::new(credentials.clone(), socket_options(&config));
        let workers = entrances::workers(&config);
        let (drain, draining) = drain::channel();
        Ok(Self {
            config,
            state,
            began: Instant::now(),
            keys: Arc::new(keys),
            credentials,
            dialer,
            stats: Arc::new(Stats::new(workers)),
            drain,
            draining,
        })
    }

    pub(super) fn own_identity(&self) -> Result<Identity> {
        Ok(Identity::host(&self.state.mesh.trust_domain, &self.state.id.to_string())?)
    }

    /// Returns who this host is; the callers are in the order that [`entrances`] counts on.
    pub(super) fn node(&self) -> Node {
        let (config, state) = (&self.config, &self.state);
        let mut callers: Vec<Workload> = vec![config.host.workload.clone()];
        for listener in &config.listeners {
            if !callers.contains(&listener.workload) {
                callers.push(listener.workload.clone());
            }
        }
        Node {
            host: state.id,
            name: state.name.clone(),
            trust_domain: state.mesh.trust_domain.clone(),
            domain: state.mesh.domain.clone(),
            locality: Locality::clone(&config.host.locality),
            labels: config.host.labels.clone(),
            callers,
        }
    }
}

/// The mark on every outgoing socket: interception lets it pass.
pub(super) fn socket_options(config: &Config) -> SocketOptions {
    SocketOptions { mark: Some(config.intercept.mark) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use aws_lc_rs::digest::{SHA256, digest};
    use mesh_core::identity::lifetime::LEAF;
    use serde::Deserialize;

    use super::*;
    use crate::identity::seal::{Passphrase, unseal_as_host, unseal_with_passphrase};
    use crate::server::ca::Authority;

    /// What a folder of identity meant to the release that wrote it; of its files, read with openssl.
    #[derive(Deserialize)]
    struct Meant {
        /// Seconds since 1970 at which all of it was valid: certificates end, the folder does not.
        at: u64,
        identity: String,
        host_key: String,
        wrap_key: String,
        root_sha256: String,
        recovery_passphrase: String,
    }

    fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// A copy with the rights that meshd gives and demands, which git does not keep.
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().flatten() {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &to);
                continue;
            }
            std::fs::copy(entry.path(), &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    fn is_the_same_host(released: &Path) {
        let meant: Meant = json(&released.join("meant.json"));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(meant.at);
        let data = tempfile::tempdir().unwrap();
        copy(released, data.path());
        let mut config = Config::default();
        config.host.data = data.path().to_owned();
        let state = HostState::load(data.path()).unwrap().unwrap();

        let ground = Ground::new(config, state).unwrap();

        assert_eq!(ground.own_identity().unwrap().to_string(), meant.identity);
        assert_eq!(BASE64.encode(&ground.keys.public_key()), meant.host_key);
        assert_eq!(BASE64.encode(&ground.keys.wrap_public_key()), meant.wrap_key);
        let roots = ground.credentials.trust().roots();
        let [root] = roots.certificates.as_slice() else { panic!("one root") };
        assert_eq!(data_encoding::HEXLOWER.encode(digest(&SHA256, root).as_ref()), meant.root_sha256);

        // The issuer lives on: its key opens with this host's, and with what a person wrote down, and belongs to the root.
        let sealed: BTreeMap<String, String> = json(&released.join("sealed_root.json"));
        let by_host = unseal_as_host(&sealed["1"], &ground.keys).unwrap();
        let passphrase = Passphrase::parse(&meant.recovery_passphrase).unwrap();
        let by_person = unseal_with_passphrase(&sealed["recovery"], &passphrase).unwrap();
        assert_eq!(by_host.reveal(), by_person.reveal());
        let domain = ground.credentials.trust().domain();
        let authority = Authority::from_root(domain, by_host, root.clone(), at).unwrap();
        let identity = ground.own_identity().unwrap();
        authority.sign(&ground.keys.request().unwrap(), &identity, LEAF, at).unwrap();
    }

    /// `tests/formats/README.md` says what is there. The certificates are read in `identity::rotation`.
    #[test]
    fn every_released_folder_of_identity_is_still_the_same_host_with_the_same_root() {
        let released = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
        let mut versions = 0;
        for version in std::fs::read_dir(released).unwrap().flatten() {
            let folder = version.path().join("identity");
            if folder.is_dir() {
                is_the_same_host(&folder);
                versions += 1;
            }
        }
        assert!(versions > 0);
    }
}
