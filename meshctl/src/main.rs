//! `meshctl`, the hand of the mesh: reads what was typed, asks a meshd, shows the answer.
//!
//! It decides nothing about traffic. Rules are read and checked here before anything is sent; all else is meshd's.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments of arguments are help texts: their brackets are syntax"
)]

mod cli;
mod client;
mod cmd;
mod demo;
mod exit;
mod kinds;
mod locate;
mod offline;
mod output;
mod progress;
mod rules;
mod screen;
mod words;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::output::{Tone, paint, tell};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // One thread: a child with a parent-death signal hangs on the thread that made it, and this one lives longest.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(cmd::run(cli)),
        Err(error) => {
            Err(exit::Failure::new(Exit::NoAnswer, format!("cannot start: {}", exit::plain(&error))))
        }
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                tell(&format!("{} {failure}", paint(Tone::Bad, "error:")));
            }
            failure.exit.into()
        }
    }
}

/// Prints clap's message; help and version are no errors.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
}
