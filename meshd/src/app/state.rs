//! Who this host is in its mesh: written by `init` and `join`, read by `run`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mesh_proto::command::{Bootstrap, HostId, Mesh};
use serde::{Deserialize, Serialize};

use super::NeedsPerson;
use crate::config::RESTORE_OR_REJOIN;

/// The file in the data folder.
const FILE: &str = "host.json";
/// The format written; a newer one is refused.
const FORMAT: u32 = 1;

/// The host of `meshd init`.
pub(super) const FIRST_HOST: HostId = HostId(1);

/// What `init` or `join` found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HostState {
    /// Format of this file.
    format: u32,
    /// This host's id.
    pub(super) id: HostId,
    /// Its name.
    pub(super) name: String,
    /// Where others reach its mesh port.
    pub(super) address: SocketAddr,
    /// The mesh it belongs to.
    pub(super) mesh: Mesh,
    /// Servers to turn to.
    pub(super) servers: BTreeMap<HostId, SocketAddr>,
    /// Whether it may keep the mesh's state: then it runs a server, which waits to be made a voter.
    pub(super) may_serve: bool,
    /// Whether its server has begun a Raft log: one that is gone must not be begun anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    has_log: bool,
    /// On the first host, until its server has begun: the mesh's first facts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bootstrap: Option<Bootstrap>,
}

/// What a host is in the control plane when it begins.
pub(super) enum Standing {
    /// The first of its mesh.
    First(Box<Bootstrap>),
    /// May become a voter.
    MayServe,
    /// Follows.
    Agent,
}

impl HostState {
    /// Puts together what is to be written.
    pub(super) fn new(
        id: HostId,
        name: &str,
        address: SocketAddr,
        mesh: Mesh,
        servers: BTreeMap<HostId, SocketAddr>,
        standing: Standing,
    ) -> Self {
        let (may_serve, bootstrap) = match standing {
            Standing::First(bootstrap) => (true, Some(*bootstrap)),
            Standing::MayServe => (true, None),
            Standing::Agent => (false, None),
        };
        Self {
            format: FORMAT,
            id,
            name: name.to_owned(),
            address,
            mesh,
            servers,
            may_serve,
            has_log: false,
            bootstrap,
        }
    }

    /// Reads the state; `None` when this host is in no mesh yet.
    pub(super) fn load(data: &Path) -> Result<Option<Self>> {
        let path = data.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| {
            NeedsPerson(format!("{} is damaged ({error}); {RESTORE_OR_REJOIN}", path.display()))
        })?;
        if state.format > FORMAT {
            bail!(NeedsPerson(format!(
                "{} was written by a newer meshd (format {}, this one knows {FORMAT}): install that version again",
                path.display(),
                state.format
            )));
        }
        Ok(Some(state))
    }

    /// Whether this host has had a Raft log. 0.1.0 did not write it down: the first host has one once the mesh has begun.
    pub(super) fn has_log(&self) -> bool {
        self.has_log || (self.id == FIRST_HOST && self.may_serve && self.bootstrap.is_none())
    }

    /// The same, once its server has a log.
    pub(super) fn logged(self) -> Self {
        Self { has_log: true, ..self }
    }

    /// The same, once the mesh has begun.
    pub(super) fn begun(self) -> Self {
        Self { bootstrap: None, ..self }
    }

    /// Writes the state, wholly or not at all.
    pub(super) fn save(&self, data: &Path) -> Result<()> {
        let path = data.join(FILE);
        let write = || -> io::Result<()> {
            let temporary = path.with_extension("tmp");
            let mut file =
                File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(data)?.sync_all()
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

/// Refuses a host that is in a mesh already.
pub(super) fn refuse_second_mesh(data: &Path) -> Result<()> {
    if let Some(state) = HostState::load(data)? {
        bail!(
            "this host is in mesh {} already, as {} (id {}); to begin anew, stop meshd and remove {}",
            &state.mesh.id[..state.mesh.id.len().min(8)],
            state.name,
            state.id,
            data.display()
        );
    }
    Ok(())
}

/// Holds the data folder for this process alone.
#[derive(Debug)]
pub(super) struct FolderLock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

impl FolderLock {
    /// Takes the folder.
    ///
    /// # Errors
    /// When another meshd holds it, or it cannot be written.
    pub(super) fn take(data: &Path) -> Result<Self> {
        let path: PathBuf = data.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("opening {}; meshd must be able to write there", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(std::fs::TryLockError::WouldBlock) => {
                bail!(
                    "another meshd uses {} already; each needs a folder of its own (--data)",
                    data.display()
                )
            }
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("locking {}", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_released_format_is_read() {
        let released = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
        let mut versions = 0;
        for version in std::fs::read_dir(released).unwrap().flatten() {
            let Some(state) =
                version.path().is_dir().then(|| HostState::load(&version.path()).unwrap().unwrap())
            else {
                continue;
            };
            assert_eq!((state.name.as_str(), state.id), ("vm1", HostId(1)), "{version:?}");
            versions += 1;
        }
        assert!(versions > 0);
    }

    #[test]
    fn a_host_knows_that_it_has_had_a_log_also_by_the_file_of_an_older_version() {
        let known: HostState =
            serde_json::from_str(include_str!("../../tests/formats/0.1.0/host.json")).unwrap();
        let agent = HostState { may_serve: false, ..known.clone() };
        let second = HostState { id: HostId(2), ..known.clone() };

        assert!(known.has_log() && !agent.has_log() && !second.has_log());
        let folder = tempfile::tempdir().unwrap();
        second.logged().save(folder.path()).unwrap();
        assert!(HostState::load(folder.path()).unwrap().unwrap().has_log());
    }

    #[test]
    fn a_newer_format_needs_a_person() {
        let folder = tempfile::tempdir().unwrap();
        let known = include_str!("../../tests/formats/0.1.0/host.json");
        std::fs::write(folder.path().join(FILE), known.replace("\"format\": 1", "\"format\": 99")).unwrap();

        let error = HostState::load(folder.path()).unwrap_err();

        assert!(error.is::<NeedsPerson>() && error.to_string().contains("newer meshd (format 99"), "{error}");
        assert_eq!(super::super::run_exit_code(&error), 78);
    }
}
