//! Lines of access logs that a worker has to write, and those that it has written and not handed over yet.
//!
//! Requests that ended are written sixteen at once: what writes a line is more than a processor keeps at hand while it
//! serves requests, and to fetch it for each costs more than the line. Then many lines are handed over at once: to pass each
//! to another thread, and to wake that, would cost more, too. They wait for 64 KiB, as in Envoy, or for a second (there:
//! ten). The memory of records goes round.

use std::cell::RefCell;
use std::sync::Arc;

use mesh_core::expression;
use mesh_core::plan::{Logging, Telling, WantedHeaders};

use super::access_log::Gathered;
use super::{AccessLog, Record, line};

/// The lines of one worker.
#[derive(Debug)]
pub struct Lines {
    log: AccessLog,
    ended: RefCell<Ended>,
    /// Records whose memory the next ones take.
    #[expect(clippy::vec_box, reason = "they go from hand to hand")]
    spare: RefCell<Vec<Box<Record>>>,
    gathered: RefCell<Vec<Gathered>>,
}

/// What ended and is not written yet.
#[derive(Debug, Default)]
struct Ended {
    /// Whose logs the records are for.
    telling: Option<Arc<Telling>>,
    #[expect(clippy::vec_box, reason = "they go from hand to hand")]
    records: Vec<Box<Record>>,
}

impl Lines {
    /// Gathers lines for a log.
    pub fn new(log: AccessLog) -> Self {
        Self { log, ended: RefCell::default(), spare: RefCell::default(), gathered: RefCell::default() }
    }

    /// Returns this host's own log, where it has one, and the headers that it wants.
    pub fn own(&self) -> Option<(&Arc<Logging>, &WantedHeaders)> {
        self.log.own()
    }

    /// Begins a record.
    pub fn record(&self, host: &Arc<str>) -> Box<Record> {
        self.spare.borrow_mut().pop().unwrap_or_else(|| Box::new(Record::new(host.clone(), 0)))
    }

    /// Takes the memory of a record of which no line is wanted.
    pub fn give_back(&self, record: Box<Record>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE {
            spare.extend(record.forgotten());
        }
    }

    /// Takes over what ended: its lines, for the logs of its rules and for this host's own, are written with others.
    pub fn tell(&self, telling: Option<&Arc<Telling>>, record: Box<Record>) {
        let mut ended = self.ended.borrow_mut();
        let is_same = match (&ended.telling, telling) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            self.write(&mut ended);
            ended.telling = telling.cloned();
        }
        ended.records.push(record);
        if ended.records.len() >= AT_ONCE {
            self.write(&mut ended);
        }
    }

    /// Writes and hands over what there is. Called once a second.
    pub fn flush(&self) {
        let mut ended = self.ended.borrow_mut();
        self.write(&mut ended);
        // Rules that are gone are not kept.
        *ended = Ended::default();
        let gathered = std::mem::take(&mut *self.gathered.borrow_mut());
        gathered
            .into_iter()
            .filter(|gathered| gathered.lines > 0)
            .for_each(|gathered| self.log.hand_over(gathered));
    }

    fn write(&self, ended: &mut Ended) {
        let mut gathered = self.gathered.borrow_mut();
        let own = self.log.own().map(|(own, _)| own);
        for record in ended.records.drain(..) {
            let of_rules = ended.telling.iter().flat_map(|telling| &telling.logs);
            for logging in of_rules.chain(own) {
                self.line(logging, &record, &mut gathered);
            }
            self.give_back(record);
        }
    }

    /// Adds the line of a record, where the filter lets it.
    fn line(&self, logging: &Logging, record: &Record, all: &mut Vec<Gathered>) {
        if !logging.filter.as_ref().is_none_or(|filter| expression::holds(filter, record)) {
            return;
        }
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
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Records that are written at once.
const AT_ONCE: usize = 16;
/// Records whose memory is kept; as many again may be under way.
const SPARE: usize = 2 * AT_ONCE;
/// Bytes that are handed over at once. Source: Envoy's `file_flush_min_size_kb`.
const FULL: usize = 64 * 1_024;
/// Room for the line that fills it.
const SLACK: usize = 2 * 1_024;
/// What lines begin with: most workers have few.
const FIRST: usize = 1_024;
