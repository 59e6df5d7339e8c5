//! A bar for work that takes a while, on a terminal only.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Work shorter than this shows no bar.
const QUIET: Duration = Duration::from_millis(300);
/// Between two drawings.
const PERIOD: Duration = Duration::from_millis(80);
/// Work that is shown from its beginning: a megabyte of rules takes about a second.
const LARGE: u64 = 1 << 20;
/// Cells of the bar.
const WIDTH: u64 = 30;

/// A bar on standard error.
pub(crate) struct Progress {
    all: u64,
    done: u64,
    begun: Instant,
    drawn: Option<Instant>,
    shown: bool,
}

impl Progress {
    /// Begins work of so many parts.
    pub(crate) fn new(all: u64) -> Self {
        let shown = std::io::stderr().is_terminal();
        Self { all, done: 0, begun: Instant::now(), drawn: None, shown }
    }

    /// Work on `what` begins, of so many parts. Large work is shown at once: nothing is heard of it until its end.
    pub(crate) fn begin(&mut self, parts: u64, what: &str) {
        if self.shown && parts >= LARGE {
            self.draw(what);
        }
    }

    /// So many more parts are done; `what` is in the works.
    pub(crate) fn add(&mut self, parts: u64, what: &str) {
        self.done += parts;
        let due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= PERIOD);
        if !self.shown || self.begun.elapsed() < QUIET || !due {
            return;
        }
        self.draw(what);
    }

    fn draw(&mut self, what: &str) {
        self.drawn = Some(Instant::now());
        let mut err = std::io::stderr().lock();
        // Nobody sees a bar that cannot be drawn.
        let _ = write!(err, "\r\x1b[K{}", line(self.done, self.all, what));
        let _ = err.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn line(done: u64, all: u64, what: &str) -> String {
    let all = all.max(1);
    let full = (done * WIDTH / all).min(WIDTH);
    let bar = "━".repeat(usize::try_from(full).unwrap_or(0));
    let rest = " ".repeat(usize::try_from(WIDTH - full).unwrap_or(0));
    format!("{bar}{rest} {:3} %  {what}", (done * 100 / all).min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_to_its_end_and_not_beyond() {
        assert_eq!(line(0, 10, "a.yaml").trim_start(), "0 %  a.yaml");
        assert!(line(5, 10, "").contains(" 50 %"));
        assert!(line(20, 10, "").starts_with(&"━".repeat(30)));
        assert!(line(0, 0, "").contains("  0 %"));
    }
}
