//! Builds all parts in order, lets them meet, and stops them in reverse.
//!
//! The parts know only `core`'s types and the tools they are handed; whatever needs two of them is here: which request
//! goes to whom ([`requests`]), who signs ([`notary`]), what follows a new Plan ([`follow`]).

mod begin;
mod carrier;
mod entrances;
mod examine;
mod follow;
mod handover;
mod logging;
mod looking;
mod measures;
mod members;
mod names;
mod notary;
mod orders;
mod requests;
mod run;
mod signer;
mod standing;
mod state;
mod watchdog;

pub use begin::{Init, Join, exit_code, init, join};
pub use examine::doctor;
pub use logging::tell_error;
pub use run::{Cleanup, cleanup, run};

use crate::identity::files::FileError;
use crate::intercept::InterceptError;
use crate::server::OpenError;

/// What the next try would meet again: a person must put it right first.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NeedsPerson(String);

/// Exit code of `meshd run`. 78 (`EX_CONFIG` of sysexits.h) where trying again is of no use: the unit does not.
pub fn run_exit_code(error: &anyhow::Error) -> u8 {
    let needs_person = error.is::<NeedsPerson>()
        || error.is::<crate::config::ConfigError>()
        || error.downcast_ref().is_some_and(FileError::needs_person)
        || error.downcast_ref().is_some_and(OpenError::needs_person)
        || error.downcast_ref().is_some_and(InterceptError::needs_person);
    if needs_person { EX_CONFIG } else { exit_code(error) }
}

const EX_CONFIG: u8 = 78;

/// Prints to standard output; a closed pipe is no error.
///
/// # Errors
/// When standard output cannot be written for another reason.
pub fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
