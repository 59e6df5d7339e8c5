//! The access log: lines that workers have gathered ([`Lines`](super::Lines)) go through a bounded queue to a thread of
//! their own.
//!
//! When a disk does not keep up, lines are dropped and counted: traffic never waits for its log. A file that was moved away
//! or removed (logrotate) is opened anew within a second.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::plan::{LogTarget, Logging, WantedHeaders};
use mesh_proto::log_format::LogFormat;

/// How the lines of this host's own log are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Envoy's default format.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// The end of a file, made where it is not there.
    File(PathBuf),
}

/// Writes access logs: this host's own, and those that rules ask for. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: SyncSender<Gathered>,
    own: Option<(Arc<Logging>, Arc<WantedHeaders>)>,
    // After the queue: who drops the last sender waits for the thread.
    _end: Arc<End>,
}

/// Lines of one file.
#[derive(Debug)]
pub(super) struct Gathered {
    /// Which; `None`: standard output.
    pub(super) path: Option<String>,
    /// Whole lines.
    pub(super) text: Vec<u8>,
    /// How many.
    pub(super) lines: u64,
}

/// Waits for the thread to write what is left.
#[derive(Debug)]
struct End(Mutex<Receiver<()>>);

impl Drop for End {
    fn drop(&mut self) {
        let ended = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A disk that hangs does not keep the program from ending.
        let _ = ended.recv_timeout(LAST_LINES);
    }
}

/// Lines dropped so far, of all logs of this process.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns how many lines were dropped.
pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

impl AccessLog {
    /// Starts the thread that writes. It ends when the last clone is dropped.
    ///
    /// # Errors
    /// When there can be no thread, or the file of this host's own log cannot be opened.
    pub fn start(format: Format, sink: &Sink) -> io::Result<Self> {
        let path = match sink {
            Sink::Stdout => None,
            Sink::File(path) => {
                open(path)?;
                Some(path.to_string_lossy().into_owned())
            }
        };
        let format = match format {
            Format::Text => LogFormat::envoy(),
            Format::Json => LogFormat::json(),
        };
        let own = Logging { target: LogTarget { path, format }, filter: None };
        let mut wanted = WantedHeaders::default();
        wanted.add(&own);
        Ok(Self { own: Some((Arc::new(own), Arc::new(wanted))), ..Self::for_rules()? })
    }

    /// Starts the thread that writes what rules ask for, and nothing else.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn for_rules() -> io::Result<Self> {
        let (queue, records) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("meshd-access-log".to_owned());
        let (at_end, end) = sync_channel(0);
        thread.spawn(move || {
            // Dropped when the thread has ended.
            let _at_end: SyncSender<()> = at_end;
            Writer::default().run(&records);
        })?;
        Ok(Self { queue, own: None, _end: Arc::new(End(Mutex::new(end))) })
    }

    /// Returns this host's own log, where it has one, and the headers that it wants.
    pub fn own(&self) -> Option<(&Arc<Logging>, &WantedHeaders)> {
        self.own.as_ref().map(|(logging, wanted)| (logging, &**wanted))
    }

    /// Writes lines soon; drops them, counted, when the queue is full.
    pub(super) fn hand_over(&self, gathered: Gathered) {
        let lines = gathered.lines;
        if self.queue.try_send(gathered).is_err() {
            DROPPED.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Every file that is written.
#[derive(Default)]
struct Writer(HashMap<String, LogFile>);

struct LogFile {
    file: Option<File>,
    /// Device and inode of what is open.
    inode: (u64, u64),
    looked: Instant,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Gathered>) {
        while let Ok(gathered) = queue.recv() {
            let Gathered { path, text, lines } = gathered;
            let written = match path {
                None => io::stdout().lock().write_all(&text),
                Some(path) => self.0.entry(path.clone()).or_default().write(&path, &text),
            };
            if written.is_err() {
                DROPPED.fetch_add(lines, Ordering::Relaxed);
            }
            // Rules change: a file that nobody writes any more is closed.
            self.0.retain(|_, file| file.looked.elapsed() < CLOSED_AFTER);
        }
    }
}

impl Default for LogFile {
    fn default() -> Self {
        Self { file: None, inode: (0, 0), looked: Instant::now() }
    }
}

impl LogFile {
    fn write(&mut self, path: &str, lines: &[u8]) -> io::Result<()> {
        if self.looked.elapsed() >= LOOK_EVERY || self.inode == (0, 0) {
            self.look(path);
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let written = file.write_all(lines);
        if let Err(error) = &written {
            self.fail(path, error);
        }
        written
    }

    /// Opens the file where it is not open, or another stands in its place.
    fn look(&mut self, path: &str) {
        self.looked = Instant::now();
        let there = std::fs::metadata(path).ok().map(|facts| (facts.dev(), facts.ino()));
        if self.file.is_some() && there == Some(self.inode) {
            return;
        }
        match open(Path::new(path)).and_then(|file| Ok((file.metadata()?, file))) {
            Ok((facts, file)) => {
                self.inode = (facts.dev(), facts.ino());
                self.file = Some(file);
            }
            Err(error) => self.fail(path, &error),
        }
    }

    fn fail(&mut self, path: &str, error: &io::Error) {
        tracing::warn!(path, %error, "cannot write the access log; its lines are dropped until it can be opened");
        self.file = None;
        // Not again before a second has passed.
        self.inode = (u64::MAX, u64::MAX);
    }
}

/// What may wait: 8 MB, or some seconds of a busy proxy.
const QUEUE: usize = 128;
/// How long the end of the program waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// A file is looked at with a line that comes a second after the last look: one that was not has had no line.
const CLOSED_AFTER: Duration = Duration::from_mins(10);
/// How often it is looked whether a file is still the one that is open.
const LOOK_EVERY: Duration = Duration::from_secs(1);
