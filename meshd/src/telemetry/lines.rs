//! Lines of access logs that a worker has written and not handed over yet.
//!
//! Each worker writes its own lines, while what they tell of is at hand, and hands many over at once: to pass each request
//! to another thread, and to wake that, would cost more than the line.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::expression;
use mesh_core::plan::{Logging, WantedHeaders};

use super::access_log::Gathered;
use super::{AccessLog, Record, line};

/// The lines of one worker.
#[derive(Debug)]
pub struct Lines {
    log: AccessLog,
    gathered: RefCell<Vec<Gathered>>,
    /// Whether somebody was told to hand them over.
    is_due: Cell<bool>,
}

impl Lines {
    /// How long lines may gather.
    pub const GATHER: Duration = Duration::from_millis(20);

    /// Gathers lines for a log.
    pub fn new(log: AccessLog) -> Self {
        Self { log, gathered: RefCell::default(), is_due: Cell::new(false) }
    }

    /// Returns this host's own log, where it has one, and the headers that it wants.
    pub fn own(&self) -> Option<(&Arc<Logging>, &WantedHeaders)> {
        self.log.own()
    }

    /// Adds the line of a record, where the filter lets it. `true`: [`Self::flush`] must be called after [`Self::GATHER`],
    /// and nobody was told so yet.
    #[must_use]
    pub fn write(&self, logging: &Logging, record: &Record) -> bool {
        if !logging.filter.as_ref().is_none_or(|filter| expression::holds(filter, record)) {
            return false;
        }
        let mut all = self.gathered.borrow_mut();
        let target = &logging.target;
        let at = all.iter().position(|gathered| gathered.path == target.path).unwrap_or_else(|| {
            let (path, text) = (target.path.clone(), String::with_capacity(FIRST));
            all.push(Gathered { path, text, lines: 0 });
            all.len() - 1
        });
        let gathered = &mut all[at];
        line::write(&target.format, record, &mut gathered.text);
        gathered.lines += 1;
        if gathered.text.len() >= FULL {
            let full = all.swap_remove(at);
            self.log.hand_over(full);
        }
        !self.is_due.replace(true)
    }

    /// Hands over what was gathered.
    pub fn flush(&self) {
        self.is_due.set(false);
        self.gathered.borrow_mut().drain(..).for_each(|gathered| self.log.hand_over(gathered));
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Bytes that are handed over at once.
const FULL: usize = 32 * 1_024;
/// What lines begin with: most workers have few.
const FIRST: usize = 1_024;
