//! Lines of access logs that a worker has written and not handed over yet.
//!
//! Each worker writes its own lines, while what they tell of is at hand, and hands many over at once: to pass each request
//! to another thread, and to wake that, would cost more than the line. They wait for 64 KiB, as in Envoy, or for a second
//! (there: ten).

use std::cell::RefCell;
use std::sync::Arc;

use mesh_core::expression;
use mesh_core::plan::{Logging, WantedHeaders};

use super::access_log::Gathered;
use super::{AccessLog, Record, line};

/// The lines of one worker.
#[derive(Debug)]
pub struct Lines {
    log: AccessLog,
    gathered: RefCell<Vec<Gathered>>,
}

impl Lines {
    /// Gathers lines for a log.
    pub fn new(log: AccessLog) -> Self {
        Self { log, gathered: RefCell::default() }
    }

    /// Returns this host's own log, where it has one, and the headers that it wants.
    pub fn own(&self) -> Option<(&Arc<Logging>, &WantedHeaders)> {
        self.log.own()
    }

    /// Adds the line of a record, where the filter lets it.
    pub fn write(&self, logging: &Logging, record: &Record) {
        if !logging.filter.as_ref().is_none_or(|filter| expression::holds(filter, record)) {
            return;
        }
        let mut all = self.gathered.borrow_mut();
        let target = &logging.target;
        let at = all.iter().position(|gathered| gathered.path == target.path).unwrap_or_else(|| {
            let (path, text) = (target.path.clone(), Vec::with_capacity(FIRST));
            all.push(Gathered { path, text, lines: 0 });
            all.len() - 1
        });
        let gathered = &mut all[at];
        line::write(&target.format, record, &mut gathered.text);
        gathered.lines += 1;
        if gathered.text.len() >= FULL {
            // Who has filled it fills another.
            let (path, text) = (target.path.clone(), Vec::with_capacity(FULL + SLACK));
            self.log.hand_over(std::mem::replace(gathered, Gathered { path, text, lines: 0 }));
        }
    }

    /// Hands over what was gathered. Called once a second.
    pub fn flush(&self) {
        let gathered = std::mem::take(&mut *self.gathered.borrow_mut());
        gathered
            .into_iter()
            .filter(|gathered| gathered.lines > 0)
            .for_each(|gathered| self.log.hand_over(gathered));
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Bytes that are handed over at once. Source: Envoy's `file_flush_min_size_kb`.
const FULL: usize = 64 * 1_024;
/// Room for the line that fills it.
const SLACK: usize = 2 * 1_024;
/// What lines begin with: most workers have few.
const FIRST: usize = 1_024;
