//! What all workers may use together: memory and descriptors. Short of either, new work is refused, so that what is
//! under way, the admin socket and the links between servers go on.
//!
//! Memory is what the kernel says this process holds, asked anew after every [`LOOK_AFTER`] bytes taken in and once a
//! second. differs: Envoy has an overload manager that does the same, which Istio leaves off.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed};

/// How much memory is left of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Left {
    /// Enough.
    Plenty,
    /// Nothing new is begun, nothing is remembered for a retry.
    Little,
    /// Large bodies are cut.
    Nothing,
}

/// The memory that this process may use.
#[derive(Debug)]
pub(crate) struct Memory {
    most: usize,
    left: AtomicU8,
    told: AtomicBool,
    /// `/proc/self/statm`; without it nothing is ever short.
    source: Option<File>,
}

impl Memory {
    /// `most` bytes; 0: four fifths of what its cgroup or the machine has.
    pub(crate) fn new(most: usize) -> Self {
        let most = if most == 0 { allowed() / 5 * 4 } else { most };
        let memory = Self {
            most,
            left: AtomicU8::new(0),
            told: AtomicBool::new(false),
            source: File::open(STATM).ok(),
        };
        memory.look();
        memory
    }

    /// Asks the kernel how much is used.
    pub(crate) fn look(&self) {
        let Some(used) = self.source.as_ref().and_then(resident) else { return };
        let left = match () {
            () if used >= self.most / 20 * 19 => Left::Nothing,
            () if used >= self.most / 20 * 17 => Left::Little,
            () => Left::Plenty,
        };
        self.left.store(left as u8, Relaxed);
        let is_short = left != Left::Plenty;
        if self.told.swap(is_short, Relaxed) != is_short {
            if is_short {
                tracing::warn!(
                    used,
                    most = self.most,
                    "short of memory: new requests are refused (limits.memory_bytes)"
                );
            } else {
                tracing::info!(used, most = self.most, "memory is enough again");
            }
        }
    }

    /// Returns the bytes in use, and those that may be.
    pub(crate) fn numbers(&self) -> (usize, usize) {
        (self.source.as_ref().and_then(resident).unwrap_or(0), self.most)
    }

    fn left(&self) -> Left {
        match self.left.load(Relaxed) {
            0 => Left::Plenty,
            1 => Left::Little,
            _ => Left::Nothing,
        }
    }
}

/// What one worker has taken in since anyone looked at the memory. Atomic only because hyper wants what it reads from
/// to be `Send`.
#[derive(Debug)]
pub(crate) struct Intake {
    memory: Arc<Memory>,
    since: AtomicUsize,
}

impl Intake {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        Self { memory, since: AtomicUsize::new(0) }
    }

    /// Bytes came in, or something that costs as many.
    pub(crate) fn took(&self, bytes: usize) {
        let since = self.since.load(Relaxed) + bytes;
        if since < LOOK_AFTER {
            return self.since.store(since, Relaxed);
        }
        self.look();
    }

    /// Looks at the memory now.
    pub(crate) fn look(&self) {
        self.since.store(0, Relaxed);
        self.memory.look();
    }

    pub(crate) fn left(&self) -> Left {
        self.memory.left()
    }

    /// Whether nothing new may be begun.
    pub(crate) fn is_short(&self) -> bool {
        self.left() != Left::Plenty
    }
}

/// Reads how many bytes of memory this process holds.
fn resident(statm: &File) -> Option<usize> {
    let mut text = [0; 128];
    let count = statm.read_at(&mut text, 0).ok()?;
    let pages = std::str::from_utf8(&text[..count]).ok()?.split(' ').nth(1)?;
    Some(pages.parse::<usize>().ok()? * rustix::param::page_size())
}

/// Returns the memory that this process may have: the least of the machine's and its control groups'.
fn allowed() -> usize {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine_of(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups.lines().filter_map(|line| group_limit(line, Path::new("/sys/fs/cgroup")));
    groups.chain(machine).min().unwrap_or(usize::MAX)
}

fn machine_of(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}

/// Finds the least limit of a group named by a line of `/proc/self/cgroup` and of those it lies in. Source: cgroups(7).
fn group_limit(line: &str, root: &Path) -> Option<usize> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, file) = match controllers {
        "" => (root.to_owned(), "memory.max"),
        names if names.split(',').any(|name| name == "memory") => {
            (root.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let own = root.join(path.trim_start_matches('/'));
    let folders = own.ancestors().take_while(|folder| folder.starts_with(&root));
    folders.filter_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()).min()
}

/// The descriptors that connections may use: what the limit of open files leaves beside those held back for the admin
/// socket, links between servers and files.
#[derive(Debug)]
pub(crate) struct Descriptors {
    most: usize,
    open: AtomicUsize,
    accepted: AtomicUsize,
}

/// One descriptor, given back when dropped.
#[derive(Debug)]
pub(crate) struct Descriptor {
    of: Arc<Descriptors>,
    is_accepted: bool,
}

impl Descriptors {
    /// Reads the limit; what is open already is not available.
    pub(crate) fn new() -> Arc<Self> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self::of(limit.saturating_sub(open + HELD_BACK))
    }

    fn of(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(LEAST), open: AtomicUsize::new(0), accepted: AtomicUsize::new(0) })
    }

    /// Returns how many are in use, and how many may be.
    pub(crate) fn numbers(&self) -> (usize, usize) {
        (self.open.load(Relaxed), self.most)
    }

    /// How many connections of callers there is room for: each carried one takes two descriptors.
    pub(crate) fn affordable(&self) -> usize {
        self.most / 2
    }

    /// Takes one for a connection of a caller, at most half of all.
    pub(crate) fn accept(self: &Arc<Self>) -> Option<Descriptor> {
        let before = self.accepted.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        let descriptor = Descriptor { of: self.clone(), is_accepted: true };
        (before < self.affordable()).then_some(descriptor)
    }

    /// Takes one for a connection to an endpoint.
    pub(crate) fn connect(self: &Arc<Self>) -> Option<Descriptor> {
        let before = self.open.fetch_add(1, Relaxed);
        let descriptor = Descriptor { of: self.clone(), is_accepted: false };
        (before < self.most).then_some(descriptor)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.of.open.fetch_sub(1, Relaxed);
        if self.is_accepted {
            self.of.accepted.fetch_sub(1, Relaxed);
        }
    }
}

const STATM: &str = "/proc/self/statm";
/// Taken in between two looks at the memory: a look costs about 2 µs, and what comes meanwhile is overshoot.
const LOOK_AFTER: usize = 1 << 20;
/// What an open connection costs without a byte: its task, buffers and watch.
pub(crate) const CONNECTION_BYTES: usize = 32 * 1024;
/// What is carried of an answer before it counts as large.
pub(crate) const LARGE_BODY: u64 = 64 * 1024;
/// The same of a request. Less: each of many requests under way may still bring that much when nothing is left.
pub(crate) const LARGE_UPLOAD: u64 = 8 * 1024;
/// Descriptors that connections must leave.
const HELD_BACK: usize = 64;
/// Descriptors that connections may have however few there are.
const LEAST: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_a_group_and_those_around_it_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        };
        write("a/memory.max", "134217728\n");
        write("a/b/memory.max", "max\n");
        write("memory/x/memory.limit_in_bytes", "67108864\n");
        let limit = |line| group_limit(line, root.path());

        assert_eq!(limit("0::/a/b"), Some(128 << 20));
        assert_eq!(limit("4:memory:/x/y"), Some(64 << 20));
        assert_eq!(limit("3:cpuset:/a"), None);
        assert_eq!(limit("0::/"), None);
    }

    #[test]
    fn memory_that_is_used_up_is_short() {
        let all = Intake::new(Arc::new(Memory::new(usize::MAX)));
        let none = Intake::new(Arc::new(Memory::new(1)));

        assert_eq!((all.left(), all.is_short()), (Left::Plenty, false));
        assert_eq!((none.left(), none.is_short()), (Left::Nothing, true));
    }

    #[test]
    fn callers_leave_half_of_the_descriptors_to_endpoints() {
        let all = Descriptors::of(40);
        let accepted: Vec<_> = std::iter::from_fn(|| all.accept()).collect();
        let connected: Vec<_> = std::iter::from_fn(|| all.connect()).collect();

        assert_eq!((accepted.len(), connected.len()), (20, 20));
        drop(accepted);
        assert!(all.accept().is_some());
    }
}
