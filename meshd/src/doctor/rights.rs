//! Whether the user of the unit may read what meshd reads at its start, and write what it keeps: root who looks may always.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesh_proto::look::{Check, Grade};
use rustix::process::geteuid;

use super::unit::Unit;
use super::{Patient, as_root, output_of};

/// Judges for the unit's user; nothing where no unit runs meshd, or root does.
pub(super) fn check(patient: &Patient, unit: Option<&Unit>) -> Vec<Check> {
    let Some(name) = unit.map(Unit::user).filter(|name| *name != "root") else { return Vec::new() };
    let Some(user) = User::find(name) else {
        return vec![Check::new(
            Grade::Error,
            "user",
            format!("the user {name}, as whom the unit runs meshd, does not exist"),
            "meshd does not start (systemd says 217/USER)",
            "install the package again: it makes the user",
        )];
    };
    let data = &patient.config.host.data;
    let mut kept = Denied::default();
    kept.look(&user, data, Need::Write, DEEPEST);
    let mut read = Denied::default();
    for path in &patient.reads {
        read.look(&user, path, Need::Read, 1);
    }
    let read_fix = |first: &Path| format!("chmod -R o+rX {}", first.display());
    let checks: Vec<Check> = [
        kept.tell(name, "meshd keeps its keys and the mesh's state there", |_| {
            format!("chown -R {name}: {}", data.display())
        }),
        read.tell(name, "meshd does not start, or does without it", read_fix),
    ]
    .into_iter()
    .flatten()
    .collect();
    if checks.is_empty() {
        return vec![Check::good("rights", format!("{name} may read and write what meshd needs"))];
    }
    checks
}

/// A user, by numbers.
#[derive(Clone, Debug)]
struct User {
    id: u32,
    groups: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Read,
    Write,
}

impl User {
    fn find(name: &str) -> Option<Self> {
        let numbers = |flag| output_of("id", &[flag, name]).ok();
        let groups = numbers("-G")?.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect();
        Some(Self { id: numbers("-u")?.trim().parse().ok()?, groups })
    }

    /// Reads the bits of a file as the kernel does; lists beside them (ACLs) are not looked at.
    fn may(&self, need: Need, file: &Metadata) -> bool {
        let shift = match file {
            file if file.uid() == self.id => 6,
            file if self.groups.contains(&file.gid()) => 3,
            _ => 0,
        };
        let bits = if need == Need::Write { 0o6 } else { 0o4 } | u32::from(file.is_dir());
        (file.mode() >> shift) & bits == bits
    }
}

/// What a user may not.
#[derive(Default)]
struct Denied {
    first: Option<PathBuf>,
    count: usize,
    seen: usize,
    hidden: Option<io::Error>,
}

impl Denied {
    /// Looks at a file, or at a folder and what is in it.
    fn look(&mut self, user: &User, path: &Path, need: Need, depth: usize) {
        self.seen += 1;
        let file = match std::fs::symlink_metadata(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.hidden = Some(error),
        };
        if !file.is_symlink() && !user.may(need, &file) {
            self.count += 1;
            self.first.get_or_insert_with(|| path.to_owned());
        }
        if !file.is_dir() || depth == 0 {
            return;
        }
        match std::fs::read_dir(path) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    if self.seen < MOST {
                        self.look(user, &entry.path(), need, depth - 1);
                    }
                }
            }
            Err(error) => self.hidden = Some(error),
        }
    }

    fn tell(self, name: &str, why: &str, fix: impl FnOnce(&Path) -> String) -> Option<Check> {
        let Some(first) = self.first else {
            let what = || as_root(&format!("whether {name} may use what meshd needs cannot be told"));
            return self.hidden.filter(|_| !geteuid().is_root()).map(|_| Check::skipped("rights", what()));
        };
        let more = if self.count > 1 { format!(" and {} more", self.count - 1) } else { String::new() };
        let what =
            format!("{}{more} may not be used by {name}, as whom the unit runs meshd", first.display());
        Some(Check::new(Grade::Error, "rights", what, why, fix(&first)))
    }
}

/// Certificates of workloads, secrets by name: two folders down.
const DEEPEST: usize = 4;
/// Files that are looked at; a host has some hundreds.
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_user_may_not_is_counted_and_the_first_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for (name, mode) in [("host.json", 0o600), ("mirror.json", 0o644)] {
            std::fs::write(at(name), "").expect("written");
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).expect("set");
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
        let owner = std::fs::metadata(folder.path()).expect("is there");
        let told = |user: &User, need| {
            let mut denied = Denied::default();
            denied.look(user, folder.path(), need, DEEPEST);
            denied
                .tell("meshd", "why", |first| first.display().to_string())
                .map(|check| (check.grade, check.what))
        };
        let itself = User { id: owner.uid(), groups: vec![] };
        let stranger = User { id: owner.uid() + 1, groups: vec![owner.gid() + 1] };

        assert_eq!(told(&itself, Need::Write), None);
        let (grade, what) = told(&stranger, Need::Read).expect("one file is closed");
        assert!(grade == Grade::Error && what.contains("host.json may not be used by meshd"), "{what}");
        let (_, what) = told(&stranger, Need::Write).expect("none may be written");
        assert!(what.contains(" and 2 more"), "{what}");
    }
}
