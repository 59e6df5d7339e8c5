//! Builds all parts in order, lets them meet, and stops them in reverse.
//!
//! The parts know only `core`'s types and the tools they are handed; whatever needs two of them is here: which request
//! goes to whom ([`requests`]), who signs ([`notary`]), what follows a new Plan ([`follow`]).

mod begin;
mod carrier;
mod entrances;
mod follow;
mod logging;
mod members;
mod names;
mod notary;
mod requests;
mod run;
mod signer;
mod standing;
mod state;

pub use begin::{Init, Join, exit_code, init, join};
pub use run::{cleanup, run};

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
