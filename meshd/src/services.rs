//! The services of this host: reads `services.d`, watches it, and offers one [`Registration`].
//!
//! Two folders: the operator's (`services.directory`) and `DATA/services.d`, into which a [`Desk`] writes for
//! `meshctl service register`. A file that cannot be read keeps its last good content; a file that is deleted takes
//! its services along. What the mesh makes of the registration is decided in `core::world`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::finding::Finding;
use mesh_proto::registration::{Instance, Registration};
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};

use crate::drain::Draining;
use file::Entry;

pub use desk::Desk;

mod desk;
mod file;

#[cfg(test)]
mod tests;

/// What this host offers, and what is wrong with the files that say so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Every instance that is in order.
    pub registration: Registration,
    /// Everything that is not, each with file, line and column.
    pub findings: Vec<Finding>,
    /// The file of each instance, by id.
    pub files: BTreeMap<String, String>,
}

/// Why a service was not registered or deregistered.
#[derive(Debug)]
enum RegisterError {
    /// What was asked for cannot be, or contradicts what is registered.
    Refused(Vec<Finding>),
    /// The file of the registration cannot be written or removed.
    File { path: PathBuf, source: std::io::Error },
}

/// The folders of services, and what their files last said.
#[derive(Debug)]
pub struct Folders {
    paths: Vec<PathBuf>,
    last_good: BTreeMap<PathBuf, Vec<Entry>>,
    accepted: BTreeSet<(String, String)>,
}

impl Folders {
    /// Names the operator's folder and the data folder; nothing is read yet.
    pub fn new(directory: &Path, data: &Path) -> Self {
        let paths = vec![directory.to_owned(), folder_of(data)];
        Self { paths, last_good: BTreeMap::new(), accepted: BTreeSet::new() }
    }

    /// Reads all files now. Absent folders are empty.
    pub fn read(&mut self) -> Offer {
        let mut findings = Vec::new();
        let mut good = BTreeMap::new();
        for folder in &self.paths {
            for path in files(folder, &mut findings) {
                match read_file(&path) {
                    Ok(entries) => drop(good.insert(path, entries)),
                    Err(wrong) => {
                        findings.extend(wrong);
                        if let Some(before) = self.last_good.remove(&path) {
                            good.insert(path, before);
                        }
                    }
                }
            }
        }
        self.last_good = good;
        self.merge(findings)
    }

    /// Puts the instances of all files together. Who was accepted before comes first: a new file never takes the
    /// id or port of a running service.
    fn merge(&mut self, mut findings: Vec<Finding>) -> Offer {
        let mut entries: Vec<&Entry> = self.last_good.values().flatten().collect();
        let key = |entry: &Entry| (entry.file.clone(), entry.id.clone());
        entries.sort_by_key(|entry| !self.accepted.contains(&key(entry)));
        let mut owners = Owners::default();
        for entry in entries {
            match owners.conflicts(entry) {
                wrong if wrong.is_empty() => owners.add(entry),
                wrong => findings.extend(wrong),
            }
        }
        self.accepted = owners.ids.values().map(|entry| key(entry)).collect();
        let files = owners.ids.iter().map(|(id, entry)| ((*id).to_owned(), entry.file.clone())).collect();
        let instances =
            owners.ids.into_iter().map(|(id, entry)| (id.to_owned(), entry.instance.clone().into()));
        Offer { registration: Registration { instances: instances.collect() }, findings, files }
    }
}

/// Who has which id and which local port.
#[derive(Default)]
struct Owners<'e> {
    ids: BTreeMap<&'e str, &'e Entry>,
    ports: BTreeMap<u16, &'e Entry>,
}

impl<'e> Owners<'e> {
    fn conflicts(&self, entry: &Entry) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(owner) = self.ids.get(entry.id.as_str()) {
            let path = format!("{}.id", entry.path);
            let message = format!("id {:?} is taken by {}", entry.id, owner.place());
            let finding = Finding::error("duplicate-id", path, message);
            findings.push(placed(finding, entry, entry.at).with_hint("give one of them another id"));
        }
        for (at, port) in entry.instance.ports.iter().enumerate().filter(|_| entry.is_here()) {
            let Some(owner) = self.ports.get(&port.target.port()) else { continue };
            let path = format!("{}.port[{at}].target", entry.path);
            let message =
                format!("port {} is the target of {:?} ({})", port.target.port(), owner.id, owner.place());
            let finding = Finding::error("target-taken", path, message);
            findings.push(placed(finding, entry, entry.ports_at.get(at).copied().flatten()));
        }
        findings
    }

    fn add(&mut self, entry: &'e Entry) {
        self.ids.insert(&entry.id, entry);
        if entry.is_here() {
            let targets = entry.instance.ports.iter().map(|port| port.target.port());
            self.ports.extend(targets.map(|port| (port, entry)));
        }
    }
}

impl Entry {
    fn is_here(&self) -> bool {
        self.instance.address.is_none()
    }

    fn place(&self) -> String {
        match self.at {
            Some((line, column)) => format!("{}:{line}:{column}", self.file),
            None => self.file.clone(),
        }
    }
}

/// Reads the folders again whenever something changes in them, until draining begins.
///
/// Findings are logged once, when they appear. Where the system cannot watch a folder (it is not there yet), it is
/// read every [`UNWATCHED`].
async fn follow(mut folders: Folders, outlets: Outlets, changed: Arc<Notify>, mut draining: Draining) {
    let mut watchers = Watchers { changed: changed.clone(), watched: BTreeMap::new() };
    loop {
        // Watched before it is read, so that no change falls between the two.
        let all_watched = watchers.watch(&folders.paths);
        let offer;
        (folders, offer) = match tokio::task::spawn_blocking(move || {
            let offer = folders.read();
            (folders, offer)
        })
        .await
        {
            Ok(read) => read,
            // meshd ends before it has begun to serve: what ended it is told elsewhere.
            Err(error) if error.is_cancelled() => return,
            Err(error) => return tracing::error!(%error, "services are no longer read"),
        };
        outlets.publish(offer);
        let rest = if all_watched { WATCHED } else { UNWATCHED };
        tokio::select! {
            () = changed.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(rest) => {}
            () = draining.started() => return,
        }
    }
}

/// Where what was read goes.
struct Outlets {
    offers: watch::Sender<Arc<Offer>>,
    registration: watch::Sender<Registration>,
}

impl Outlets {
    fn publish(&self, offer: Offer) {
        let last = self.offers.borrow().clone();
        if *last == offer {
            return;
        }
        for finding in offer.findings.iter().filter(|finding| !last.findings.contains(finding)) {
            tracing::warn!(%finding, "service file");
        }
        self.registration.send_if_modified(|registration| {
            let changed = *registration != offer.registration;
            if changed {
                tracing::info!(instances = offer.registration.instances.len(), "services of this host");
                registration.clone_from(&offer.registration);
            }
            changed
        });
        self.offers.send_replace(Arc::new(offer));
    }
}

/// The watches of the system, one for each folder that exists.
struct Watchers {
    changed: Arc<Notify>,
    watched: BTreeMap<PathBuf, notify::RecommendedWatcher>,
}

impl Watchers {
    /// Watches the folders that are not watched yet. Returns whether all are.
    fn watch(&mut self, folders: &[PathBuf]) -> bool {
        // A folder that was deleted takes its watch along.
        self.watched.retain(|folder, _| folder.is_dir());
        for folder in folders {
            if self.watched.contains_key(folder) || !folder.is_dir() {
                continue;
            }
            match self.start(folder) {
                Ok(watcher) => drop(self.watched.insert(folder.clone(), watcher)),
                Err(error) => tracing::debug!(folder = %folder.display(), %error, "folder is not watched"),
            }
        }
        self.watched.len() == folders.len()
    }

    fn start(&self, folder: &Path) -> notify::Result<notify::RecommendedWatcher> {
        let changed = self.changed.clone();
        // Reading a file is an event too, and would make an endless loop.
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                changed.notify_one();
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

/// Checks an instance against what is offered, and returns the file that registers it.
fn prepare(
    data: &Path,
    id: &str,
    instance: &Instance,
    offered: &Offer,
) -> Result<(PathBuf, String), RegisterError> {
    let path = file_of(data, id)?;
    let name = path.display().to_string();
    let text = file::to_toml(id, instance);
    let without_places = |findings: Vec<Finding>| findings.into_iter().map(without_place).collect();
    let entries = file::parse(&name, &text).map_err(|wrong| RegisterError::Refused(without_places(wrong)))?;
    let others: Vec<Entry> = offered
        .registration
        .instances
        .iter()
        .filter(|(other, _)| *other != id || offered.files.get(*other) != Some(&name))
        .map(|(other, instance)| registered(other, instance, offered))
        .collect();
    let mut owners = Owners::default();
    for other in &others {
        owners.add(other);
    }
    let wrong: Vec<Finding> = entries.iter().flat_map(|entry| owners.conflicts(entry)).collect();
    if !wrong.is_empty() {
        return Err(RegisterError::Refused(without_places(wrong)));
    }
    Ok((path, text))
}

fn registered(id: &str, instance: &Instance, offered: &Offer) -> Entry {
    Entry {
        file: offered.files.get(id).cloned().unwrap_or_default(),
        id: id.to_owned(),
        path: "service[0]".into(),
        at: None,
        ports_at: Vec::new(),
        instance: instance.clone(),
    }
}

/// Whoever registers from the command line has not seen the file that meshd would write.
fn without_place(mut finding: Finding) -> Finding {
    (finding.file, finding.line, finding.column) = (None, None, None);
    finding
}

fn folder_of(data: &Path) -> PathBuf {
    data.join("services.d")
}

fn file_of(data: &Path, id: &str) -> Result<PathBuf, RegisterError> {
    // The id becomes a file name: only a word may.
    crate::config::words::account(id)
        .map_err(|why| RegisterError::Refused(vec![Finding::error("invalid-value", "id", why)]))?;
    Ok(folder_of(data).join(format!("{id}.toml")))
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let new = path.with_extension("toml.new");
    let mut file = std::fs::File::create(&new)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(folder)?.sync_all()
}

fn files(folder: &Path, findings: &mut Vec<Finding>) -> Vec<PathBuf> {
    let listed = match std::fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                findings.push(unreadable(folder, &error));
            }
            return Vec::new();
        }
    };
    let paths = listed.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| is_service_file(path)).collect();
    files.sort();
    files
}

/// Hidden files are editors' own.
fn is_service_file(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    path.extension().is_some_and(|extension| extension == "toml") && !hidden
}

fn read_file(path: &Path) -> Result<Vec<Entry>, Vec<Finding>> {
    let length = std::fs::metadata(path).map_err(|error| vec![unreadable(path, &error)])?.len();
    if length > MAX_FILE_BYTES {
        let message = format!("has {length} bytes; at most {MAX_FILE_BYTES} are read");
        return Err(vec![at_file(Finding::error("file-too-large", "", message), path)]);
    }
    let text = std::fs::read_to_string(path).map_err(|error| vec![unreadable(path, &error)])?;
    file::parse(&path.display().to_string(), &text)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Finding {
    at_file(Finding::error("file-unreadable", "", format!("cannot be read: {error}")), path)
}

fn at_file(mut finding: Finding, path: &Path) -> Finding {
    finding.file = Some(path.display().to_string());
    finding
}

fn placed(mut finding: Finding, entry: &Entry, at: Option<(u32, u32)>) -> Finding {
    finding.file = Some(entry.file.clone());
    (finding.line, finding.column) = at.unzip();
    finding
}

/// Editors write in several steps: what comes within this time is read once.
const SETTLE: Duration = Duration::from_millis(50);
/// How often folders are read that the system cannot watch.
const UNWATCHED: Duration = Duration::from_secs(2);
/// How often watched folders are read all the same: an overflowing event queue loses events.
const WATCHED: Duration = Duration::from_mins(1);
/// A service takes about 300 bytes: room for thousands, and a bound on what a wrong link can make us read.
const MAX_FILE_BYTES: u64 = 1 << 20;
