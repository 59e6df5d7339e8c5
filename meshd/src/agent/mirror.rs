//! The mirror of the World on disk: what a restarted host serves from before any network answers.
//!
//! One file, `mirror.json`: a line with format and SHA-256, then the public facts as JSON. Written to a temporary
//! file, synced, renamed. A damaged file is never taken for a shorter one: it is named and put aside.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256, digest};
use mesh_core::world::{Mirrored, NotUnderstood, WholeFor, World};

/// Where the mirror is kept.
#[derive(Clone, Debug)]
pub struct Mirror {
    folder: PathBuf,
}

/// A mirror that was read.
#[derive(Debug)]
pub struct Loaded {
    /// The World, as far as it is understood here.
    pub world: World,
    /// Whether this version wrote it, and everything that servers had said is in it. What another version passed over is
    /// missing, and no delta brings it: servers are to be asked for all of it.
    pub is_whole: bool,
    /// What in it is not understood.
    pub unread: NotUnderstood,
}

/// Why a mirror cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content is not what was written.
    #[error("{path} is damaged ({why}); it was put aside as {aside}, and a server will send the World again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: String,
        /// Its new name.
        aside: PathBuf,
    },
}

/// How a mirror begins that this version knows.
pub const FORMAT: &str = "meshd-mirror 1";
const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Mirror {
    /// The mirror of the data folder `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Reads the mirror, as far as it is understood; `None` when there is none, or when it is of another mesh.
    ///
    /// # Errors
    /// [`MirrorError`]; a damaged file has been put aside.
    pub fn load(&self, mesh: &str) -> Result<Option<Loaded>, MirrorError> {
        let path = self.path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(MirrorError::Io { path, source }),
        };
        match decode(&bytes) {
            Ok(loaded) => Ok(Some(loaded).filter(|loaded| loaded.world.mesh.id == mesh)),
            Err(why) => {
                let aside = path.with_extension("damaged");
                std::fs::rename(&path, &aside)
                    .map_err(|source| MirrorError::Io { path: path.clone(), source })?;
                Err(MirrorError::Damaged { path, why, aside })
            }
        }
    }

    /// Writes the mirror, wholly or not at all; `is_whole` when everything that servers said is in it.
    ///
    /// # Errors
    /// When the folder cannot be written; the former file is still there then.
    pub fn save(&self, world: &World, is_whole: bool) -> Result<(), MirrorError> {
        let path = self.path();
        let write = || -> io::Result<()> {
            let temporary = path.with_extension("tmp");
            write_to(File::create(&temporary)?, world, is_whole)?.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| MirrorError::Io { path: path.clone(), source })
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        Path::join(&self.folder, "mirror.json")
    }
}

/// Writes fact by fact; the checksum, known at the end, goes into the room left for it in the first line.
fn write_to(file: File, world: &World, is_whole: bool) -> io::Result<File> {
    let mut out = BufWriter::new(Summing { file, sum: Context::new(&SHA256) });
    let room = "0".repeat(2 * SHA256.output_len());
    writeln!(out.get_mut().file, "{FORMAT} {room}")?;
    let whole_for = is_whole.then_some(VERSION);
    serde_json::to_writer(&mut out, &WholeFor { whole_for, facts: world.facts() })?;
    let Summing { mut file, sum } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start(FORMAT.len() as u64 + 1))?;
    file.write_all(hexadecimal(sum.finish().as_ref()).as_bytes())?;
    Ok(file)
}

/// A file, and the checksum of what is written to it.
struct Summing {
    file: File,
    sum: Context,
}

impl Write for Summing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn decode(bytes: &[u8]) -> Result<Loaded, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let (header, body) = (&bytes[..end], &bytes[end + 1..]);
    let sum = std::str::from_utf8(header)
        .ok()
        .and_then(|header| header.strip_prefix(FORMAT))
        .ok_or_else(|| format!("its first line is not {FORMAT:?} and a checksum"))?;
    if sum.trim() != hexadecimal(digest(&SHA256, body).as_ref()) {
        return Err("its checksum does not fit".into());
    }
    let loaded = if let Ok(Mirrored { world, whole_for }) = serde_json::from_slice::<Mirrored>(body) {
        let is_whole = whole_for.is_some_and(|version| version == VERSION);
        Loaded { world, is_whole, unread: NotUnderstood::default() }
    } else {
        // A newer meshd ran here before.
        let read = World::in_part(body, &World::default()).map_err(|error| error.to_string())?;
        Loaded { world: read.0, is_whole: false, unread: read.1 }
    };
    if loaded.world.mesh.id.is_empty() {
        return Err("it does not say of which mesh it is".into());
    }
    Ok(loaded)
}

fn hexadecimal(sum: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(sum)
}

#[cfg(test)]
mod tests {
    use mesh_proto::command::{Mesh, Revision};
    use mesh_proto::watch::Change;

    use super::*;

    fn world() -> World {
        let mut world = World::default();
        world.absorb_all(Revision(7), &[Change::Mesh(Mesh { id: "m".into(), ..Mesh::default() })]);
        world
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let mirror = Mirror::at(folder.path());

        assert!(mirror.load("m").expect("no mirror is fine").is_none());
        mirror.save(&world(), true).expect("saved");

        let loaded = mirror.load("m").expect("sound").expect("saved");
        assert_eq!(loaded.world, world());
        assert!(loaded.is_whole);
        mirror.save(&world(), false).expect("saved");
        assert!(!mirror.load("m").expect("sound").expect("saved").is_whole);
    }

    /// After an upgrade, what the former version passed over is not missing; after a way back, what is understood serves.
    #[test]
    fn the_mirror_of_another_version_is_used_and_not_taken_for_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let mirror = Mirror::at(folder.path());
        let fact = r#"{"mesh":{"id":"m","trust_domain":"","domain":"","roots":[],"created":1}}"#;
        for (version, facts) in
            [("0.0.9", fact.to_owned()), ("9.0.0", format!("{fact},{{\"weather\":{{}}}}"))]
        {
            let body = format!("{{\"whole_for\":\"{version}\",\"revision\":7,\"facts\":[{facts}]}}");
            let sum = hexadecimal(digest(&SHA256, body.as_bytes()).as_ref());
            std::fs::write(mirror.path(), format!("{FORMAT} {sum}\n{body}")).expect("written");

            let loaded = mirror.load("m").expect("sound").expect("of this mesh");

            assert_eq!(loaded.world.revision, Revision(7));
            assert!(!loaded.is_whole, "{version}");
            assert_eq!(loaded.unread.is_empty(), version == "0.0.9");
        }
    }

    #[test]
    fn every_released_format_is_read() {
        let released = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
        let mut versions = 0;
        for version in std::fs::read_dir(released).expect("formats").flatten() {
            let Ok(bytes) = std::fs::read(version.path().join("mirror.json")) else { continue };
            let folder = tempfile::tempdir().expect("a folder");
            let mirror = Mirror::at(folder.path());
            std::fs::write(mirror.path(), bytes).expect("written");

            let loaded = mirror.load("78559833a48a67c48a14008441c63bc4").expect("readable").expect("a World");

            assert_eq!(loaded.world.revision, Revision(5), "{version:?}");
            versions += 1;
        }
        assert!(versions > 0);
    }

    #[test]
    fn the_mirror_of_another_mesh_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let mirror = Mirror::at(folder.path());
        mirror.save(&world(), true).expect("saved");

        assert!(mirror.load("other").expect("sound").is_none());
    }

    #[test]
    fn every_changed_byte_is_noticed_and_the_file_put_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let mirror = Mirror::at(folder.path());
        mirror.save(&world(), true).expect("saved");
        let sound = std::fs::read(mirror.path()).expect("a file");
        for at in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x04;
            std::fs::write(mirror.path(), &damaged).expect("written");

            let error = mirror.load("m").expect_err("damage is noticed");

            assert!(error.to_string().contains("is damaged"), "byte {at}: {error}");
            assert!(!mirror.path().exists());
        }
        std::fs::write(mirror.path(), &sound[..sound.len() / 2]).expect("written");
        assert!(mirror.load("m").is_err(), "a torn file is noticed");
    }
}
