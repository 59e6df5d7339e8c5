//! Stories about machines that boot: Debian with systemd as PID 1, the package installed by apt, the unit as shipped.
//!
//! Each machine is a booted `systemd-nspawn` container in a network namespace of its own, over one base tree that
//! debootstrap makes once. What a machine is given at first is done by the scripts of `examples/vagrant/provision`, so
//! that those are proven. Needs root, debootstrap and systemd-nspawn, and no systemd on the machine outside. They run when
//! `MESH_MACHINES=require` asks for them (`.ci/machines` does); else every story says `SKIPPED`.

mod bad_input;
mod base;
mod firewalls;
mod machine;
mod mesh;
mod package;
mod pages;
mod rpm;
mod standing;
mod upgrade;

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;

pub(crate) use machine::Machines;

/// Runs a story on booted machines, one story at a time; says so where that cannot be.
pub(crate) fn on_machines(name: &str, count: u8, story: impl FnOnce(&Machines) -> Result<()>) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn: MutexGuard<'_, ()> = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if std::env::var_os("MESH_MACHINES").is_none() {
        eprintln!("SKIPPED: {name}: machines boot when MESH_MACHINES=require asks for them");
        return;
    }
    if let Some(why) = base::missing() {
        panic!("MESH_MACHINES asks for this story: {why}");
    }
    let machines = match Machines::boot(count) {
        Ok(machines) => machines,
        Err(error) => panic!("{name}: the machines do not boot: {error:#}"),
    };
    if let Err(error) = story(&machines) {
        panic!("{name}: {error:#}\n{}", machines.journals());
    }
}
