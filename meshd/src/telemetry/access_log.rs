//! The access log: lines that go through a bounded queue to a thread of their own.
//!
//! When a disk does not keep up, lines are dropped and counted: traffic never waits for its log. A file that was moved away
//! or removed (logrotate) is opened anew within a second. The thread sleeps for a moment after each gathering: to be woken
//! for every line would cost a busy proxy more than the lines do.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::expression;
use mesh_core::plan::{LogTarget, Logging, WantedHeaders};
use mesh_proto::log_format::LogFormat;

use super::{Record, line};

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
    queue: SyncSender<Line>,
    own: Option<(Arc<Logging>, Arc<WantedHeaders>)>,
    // After the queue: who drops the last sender waits for the thread.
    _end: Arc<End>,
}

/// What is to be written, and how.
type Line = (Arc<Logging>, Arc<Record>);

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

    /// Writes a record soon, where the filter lets it; drops it, counted, when the queue is full.
    pub fn write(&self, logging: &Arc<Logging>, record: &Arc<Record>) {
        let is_wanted = logging.filter.as_ref().is_none_or(|filter| expression::holds(filter, &**record));
        if is_wanted && self.queue.try_send((logging.clone(), record.clone())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Every file that is written.
#[derive(Default)]
struct Writer {
    files: HashMap<String, LogFile>,
    stdout: Option<BufWriter<io::Stdout>>,
    /// The line that is being written.
    line: String,
}

struct LogFile {
    out: Option<BufWriter<File>>,
    /// Device and inode of what is open.
    inode: (u64, u64),
    looked: Instant,
}

impl Writer {
    /// Flushes whenever the queue is empty, so that lines are seen soon and bursts are cheap.
    fn run(mut self, records: &Receiver<Line>) {
        while let Ok(first) = records.recv() {
            let mut next = Some(first);
            while let Some((logging, record)) = next {
                let mut line = std::mem::take(&mut self.line);
                line.clear();
                line::write(&logging.target.format, &record, &mut line);
                self.write(logging.target.path.as_deref(), line.as_bytes());
                self.line = line;
                next = records.try_recv().ok();
            }
            self.flush();
            std::thread::sleep(GATHER);
        }
    }

    fn write(&mut self, path: Option<&str>, line: &[u8]) {
        let written = match path {
            None => self.stdout.get_or_insert_with(|| BufWriter::new(io::stdout())).write_all(line),
            Some(path) => {
                if !self.files.contains_key(path) {
                    self.files.insert(path.to_owned(), LogFile::default());
                }
                self.files.get_mut(path).map_or(Ok(()), |file| file.write(path, line))
            }
        };
        if written.is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&mut self) {
        if let Some(stdout) = &mut self.stdout {
            let _ = stdout.flush();
        }
        // Rules change: a file that nobody writes any more is closed.
        self.files.retain(|_, file| file.looked.elapsed() < CLOSED_AFTER);
        for (path, file) in &mut self.files {
            if let Some(Err(error)) = file.out.as_mut().map(BufWriter::flush) {
                file.fail(path, &error);
            }
        }
    }
}

impl Default for LogFile {
    fn default() -> Self {
        Self { out: None, inode: (0, 0), looked: Instant::now() }
    }
}

impl LogFile {
    fn write(&mut self, path: &str, line: &[u8]) -> io::Result<()> {
        let is_due = self.looked.elapsed() >= LOOK_EVERY;
        if is_due || self.inode == (0, 0) {
            self.look(path);
        }
        match &mut self.out {
            Some(out) => out.write_all(line),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Opens the file where it is not open, or another stands in its place.
    fn look(&mut self, path: &str) {
        self.looked = Instant::now();
        let there = std::fs::metadata(path).ok().map(|facts| (facts.dev(), facts.ino()));
        if self.out.is_some() && there == Some(self.inode) {
            return;
        }
        if let Some(Err(error)) = self.out.take().map(|mut out| out.flush()) {
            self.fail(path, &error);
        }
        match open(Path::new(path)).and_then(|file| Ok((file.metadata()?, file))) {
            Ok((facts, file)) => {
                self.inode = (facts.dev(), facts.ino());
                self.out = Some(BufWriter::new(file));
            }
            Err(error) => self.fail(path, &error),
        }
    }

    fn fail(&mut self, path: &str, error: &io::Error) {
        tracing::warn!(path, %error, "cannot write the access log; its lines are dropped until it can be opened");
        self.out = None;
        // Not again before a second has passed.
        self.inode = (u64::MAX, u64::MAX);
    }
}

/// Lines that may wait: about a tenth of a second of a busy proxy, and many times what comes during [`GATHER`].
const QUEUE: usize = 8_192;
/// How long lines gather after others were written.
const GATHER: Duration = Duration::from_millis(5);
/// How long the end of the program waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// A file is looked at with a line that comes a second after the last look: one that was not has had no line.
const CLOSED_AFTER: Duration = Duration::from_mins(10);
/// How often it is looked whether a file is still the one that is open.
const LOOK_EVERY: Duration = Duration::from_secs(1);
