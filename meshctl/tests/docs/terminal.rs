//! A terminal that a program under test draws on: a pseudo terminal, and what stands on its screen.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Wide enough for the longest command that a view shows.
const COLUMNS: u16 = 240;
const ROWS: u16 = 50;

/// A program on a terminal of its own. Dropping it kills the program.
pub(crate) struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<Screen>>,
}

impl Terminal {
    /// Starts a program with a terminal as its input, output and controlling terminal.
    pub(crate) fn start(program: &Path, configure: impl FnOnce(&mut Command)) -> std::io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        tcsetwinsize(&master, Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 })?;
        let side: OwnedFd = ioctl_tiocgptpeer(&master, flags)?;
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program).env("TERM", "xterm-256color").env_remove("NO_COLOR");
        configure(&mut command);
        command.stdin(side.try_clone()?).stdout(Stdio::from(side.try_clone()?)).stderr(side);
        let child = command.spawn()?;
        drop(command);
        let keys = File::from(master);
        let (mut output, screen) = (keys.try_clone()?, Arc::new(Mutex::new(Screen::default())));
        let drawn = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Fails when nobody holds the other side any more.
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                lock(&drawn).take(&bytes[..length]);
            }
        });
        Ok(Self { child, keys, screen })
    }

    /// The process id of the program.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Presses keys.
    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("an open terminal");
    }

    /// The lines on the screen, without the blanks at their ends.
    pub(crate) fn lines(&self) -> Vec<String> {
        lock(&self.screen).lines()
    }

    /// Waits until `found` finds something on the screen.
    pub(crate) fn until<T>(&self, limit: Duration, what: &str, found: impl Fn(&[String]) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            let lines = self.lines();
            if let Some(value) = found(&lines) {
                return value;
            }
            assert!(began.elapsed() < limit, "never on the screen: {what}\n{}", lines.join("\n"));
            std::thread::sleep(Duration::from_millis(20)); // between two looks; what is seen decides
        }
    }

    /// Waits for the program's end; returns its exit code and whether it gave the terminal back as it was.
    pub(crate) fn end(mut self, limit: Duration) -> (Option<i32>, bool) {
        let began = Instant::now();
        while self.child.try_wait().expect("its state").is_none() {
            assert!(began.elapsed() < limit, "the program does not end\n{}", self.lines().join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        }
        let code = self.child.wait().expect("its state").code();
        let began = Instant::now();
        let given_back = || {
            let screen = lock(&self.screen);
            screen.was_alternate && !screen.is_alternate
        };
        while !given_back() && began.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        (code, given_back())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(screen: &Mutex<Screen>) -> MutexGuard<'_, Screen> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As much of ECMA-48 as views use: where the cursor goes, what is cleared, letters. Colours are let go.
#[derive(Default)]
struct Screen {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Bytes of a sequence or a letter that is not complete yet.
    pending: Vec<u8>,
    was_alternate: bool,
    is_alternate: bool,
}

impl Screen {
    fn take(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while let Some(used) = self.step(rest) {
            rest = &rest[used..];
        }
        self.pending = rest.to_vec();
    }

    /// Carries out what stands at the beginning; `None` where it is not complete.
    fn step(&mut self, bytes: &[u8]) -> Option<usize> {
        match *bytes.first()? {
            0x1b if *bytes.get(1)? == b'[' => {
                let end = bytes[2..].iter().position(|byte| (0x40..=0x7e).contains(byte))? + 2;
                self.control(std::str::from_utf8(&bytes[2..end]).unwrap_or_default(), bytes[end]);
                Some(end + 1)
            }
            0x1b => Some(2),
            b'\r' => {
                self.column = 0;
                Some(1)
            }
            b'\n' => {
                self.row += 1;
                Some(1)
            }
            0..0x20 => Some(1),
            first => {
                let length = match first {
                    0..0x80 => 1,
                    0xc0..0xe0 => 2,
                    0xe0..0xf0 => 3,
                    _ => 4,
                };
                let letter =
                    std::str::from_utf8(bytes.get(..length)?).ok().and_then(|text| text.chars().next());
                self.put(letter.unwrap_or('?'));
                Some(length)
            }
        }
    }

    fn put(&mut self, letter: char) {
        if self.cells.len() <= self.row {
            self.cells.resize(self.row + 1, Vec::new());
        }
        let line = &mut self.cells[self.row];
        if line.len() <= self.column {
            line.resize(self.column + 1, ' ');
        }
        line[self.column] = letter;
        self.column += 1;
    }

    fn control(&mut self, parameters: &str, kind: u8) {
        let number = |index: usize| parameters.split(';').nth(index)?.parse::<usize>().ok();
        match kind {
            b'H' | b'f' => {
                self.row = number(0).unwrap_or(1).saturating_sub(1);
                self.column = number(1).unwrap_or(1).saturating_sub(1);
            }
            b'C' => self.column += number(0).unwrap_or(1),
            b'J' => self.cells.clear(),
            b'K' => {
                if let Some(line) = self.cells.get_mut(self.row) {
                    line.truncate(self.column);
                }
            }
            b'h' | b'l' if parameters == "?1049" => {
                self.is_alternate = kind == b'h';
                self.was_alternate |= self.is_alternate;
                self.cells.clear();
            }
            _ => {}
        }
    }

    fn lines(&self) -> Vec<String> {
        self.cells.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned()).collect()
    }
}

#[test]
fn what_is_drawn_is_read_wherever_it_is_cut() {
    let drawn = "\x1b[?1049h\x1b[2J\x1b[1;3Hv1 \x1b[38;5;2m90.0 %\x1b[0m\x1b[2;1H━━╸\x1b[1;6H5";
    for cut in 0..=drawn.len() {
        let mut screen = Screen::default();
        let (first, rest) = drawn.as_bytes().split_at(cut);
        screen.take(first);
        screen.take(rest);
        assert_eq!(screen.lines(), ["  v1 50.0 %", "━━╸"], "cut at {cut}");
        assert!(screen.is_alternate);
    }
}
