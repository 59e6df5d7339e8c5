//! The terminal as a canvas: alternate screen in, and out again whatever happens.

use std::io::{self, IsTerminal};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::style::{Color, Modifier, Style};
use ratatui::{DefaultTerminal, Frame};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output::Tone;

/// How often keys are looked for: a tenth of a second feels immediate.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// An open canvas. Dropping it gives the terminal back; a panic does, too (`ratatui::try_init` sets a hook).
pub(crate) struct Screen {
    terminal: DefaultTerminal,
    stop: Signals,
}

impl Screen {
    /// Takes the terminal.
    pub(crate) fn open() -> io::Result<Self> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(io::Error::other("standard input or output is not a terminal"));
        }
        let stop = Signals::new()?;
        Ok(Self { terminal: ratatui::try_init()?, stop })
    }

    /// Draws one picture. A terminal that has gone away is noticed by the signal that comes with it.
    pub(crate) fn draw(&mut self, view: impl FnOnce(&mut Frame<'_>)) {
        let _ = self.terminal.draw(view);
    }

    /// Returns when the user wants to leave: `q`, Ctrl-C, Esc, or a signal. Cancel safe.
    pub(crate) async fn leave_asked(&mut self) {
        let mut looks = tokio::time::interval(KEYS_EVERY);
        loop {
            tokio::select! {
                () = self.stop.any() => return,
                _ = looks.tick() => if leave_pressed() { return },
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn leave_pressed() -> bool {
    while matches!(event::poll(Duration::ZERO), Ok(true)) {
        let Ok(Event::Key(key)) = event::read() else { continue };
        let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        let leaves = control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
        if leaves && key.kind == KeyEventKind::Press {
            return true;
        }
    }
    false
}

/// The signals that mean "end": interrupt, terminate, hang-up.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Begins to listen.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns at the first of them. Cancel safe.
    pub(crate) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// The style of a tone on the canvas.
pub(crate) fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Warn => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        Tone::Dim => Style::new().add_modifier(Modifier::DIM),
    }
}
