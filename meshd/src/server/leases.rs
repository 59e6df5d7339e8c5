//! Who is alive, and what hosts say of themselves.
//!
//! The server that holds a host's stream notes what it hears ([`Heard`]) and tells the leader: at once
//! when something changed, once a second otherwise. The leader keeps the leases ([`Keeper`]) and puts
//! into the log only what changed. Nothing here outlives a restart: a new leader hears everything
//! again within a second, and starts all leases at full length.

mod heard;
mod keeper;

pub(super) use self::heard::{Extent, Heard};
pub(super) use self::keeper::{Acknowledged, Keeper};

#[cfg(test)]
mod tests;
