//! Whether the user of the unit may read what meshd reads at its start, and write what it keeps: root who looks may always.
//! And whether somebody else may by a list beside the bits of a file (a POSIX ACL), which `ls` does not show.

mod acl;

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesh_proto::look::{Check, Grade};
use rustix::process::geteuid;

use self::acl::{Acl, Whom};
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

/// Names those whom a list lets into the data folder, or lets change what meshd reads at its start.
pub(super) fn check_lists(patient: &Patient, unit: Option<&Unit>) -> Vec<Check> {
    let user = unit.and_then(|unit| User::find(unit.user())).map(|user| user.id);
    let mut kept = Guests::of(user, READ | WRITE);
    kept.look(&patient.config.host.data, DEEPEST);
    let mut read = Guests::of(user, WRITE);
    for path in &patient.reads {
        read.look(path, 1);
    }
    let checks = [
        kept.tell("who reads the keys there can act as this host"),
        read.tell("who changes it decides what meshd does"),
    ];
    checks.into_iter().flatten().collect()
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

    /// Reads the bits of a file, and the list beside them if there is one, as the kernel does.
    fn may(&self, need: Need, file: &Metadata, list: Option<&Acl>) -> bool {
        let bits = if need == Need::Write { READ | WRITE } else { READ } | u32::from(file.is_dir());
        if let Some(list) = list {
            return list.lets(self.id, &self.groups, (file.uid(), file.gid()), bits);
        }
        let shift = match file {
            file if file.uid() == self.id => 6,
            file if self.groups.contains(&file.gid()) => 3,
            _ => 0,
        };
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
        if !file.is_symlink() && !user.may(need, &file, Acl::of(path).as_ref()) {
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

/// Whom lists let in who is neither the owner, nor root, nor the user of the unit.
struct Guests {
    user: Option<u32>,
    bits: u32,
    first: Option<(PathBuf, u32, Vec<Whom>)>,
    count: usize,
    seen: usize,
}

impl Guests {
    fn of(user: Option<u32>, bits: u32) -> Self {
        Self { user, bits, first: None, count: 0, seen: 0 }
    }

    /// Looks at a file, or at a folder and what is in it; what cannot be looked at is another check's to tell.
    fn look(&mut self, path: &Path, depth: usize) {
        self.seen += 1;
        let Ok(file) = std::fs::symlink_metadata(path) else { return };
        if file.is_symlink() {
            return;
        }
        let known = [Some(0), Some(file.uid()), self.user];
        let mut guests = Acl::of(path).map(|list| list.guests(self.bits)).unwrap_or_default();
        guests.retain(|guest| !matches!(guest, Whom::User(id) if known.contains(&Some(*id))));
        if !guests.is_empty() {
            self.count += 1;
            self.first.get_or_insert_with(|| (path.to_owned(), file.mode() & 0o777, guests));
        }
        if !file.is_dir() || depth == 0 {
            return;
        }
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if self.seen < MOST {
                self.look(&entry.path(), depth - 1);
            }
        }
    }

    fn tell(self, why: &str) -> Option<Check> {
        let (first, mode, guests) = self.first?;
        let guests: Vec<String> = guests.iter().map(ToString::to_string).collect();
        let verb = if self.bits & READ == 0 { "write" } else { "read or write" };
        let more =
            if self.count > 1 { format!(", and {} more have one", self.count - 1) } else { String::new() };
        let what = format!(
            "the access list (ACL) of {} lets {} {verb} it, which its mode {mode:04o} does not show{more}",
            first.display(),
            guests.join(", ")
        );
        let fix = format!("getfacl {0} shows it; setfacl -b {0} takes it away", first.display());
        Some(Check::new(Grade::Warning, "rights", what, why, fix))
    }
}

const READ: u32 = 0o4;
const WRITE: u32 = 0o2;
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

    #[test]
    fn whom_a_list_lets_in_or_keeps_out_is_seen_where_the_mode_shows_neither() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("host.json");
        std::fs::write(&path, "").expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
        let owner = std::fs::metadata(&path).expect("is there");
        let guest = User { id: owner.uid() + 1, groups: vec![owner.gid() + 1] };
        let mate = User { id: owner.uid() + 2, groups: vec![owner.gid()] };
        let may = |user: &User| {
            let file = std::fs::metadata(&path).expect("is there");
            user.may(Need::Read, &file, Acl::of(&path).as_ref())
        };
        let told = || {
            let mut guests = Guests::of(None, READ | WRITE);
            guests.look(folder.path(), DEEPEST);
            guests.tell("why").map(|check| check.what)
        };
        assert_eq!((may(&guest), told()), (false, None), "without a list");

        // What "setfacl -m u:GUEST:r,g::- host.json" writes.
        let list = acl::tests::bytes(&[
            (1, 6, NOBODY),
            (2, 4, guest.id),
            (4, 0, NOBODY),
            (16, 4, NOBODY),
            (32, 0, NOBODY),
        ]);
        if !acl::tests::set(&path, &list) {
            return;
        }

        assert_eq!(std::fs::metadata(&path).expect("is there").mode() & 0o777, 0o640, "as the mode has it");
        assert!(may(&guest), "the list lets it in");
        assert!(!may(&mate), "the group of the file may not, whatever its bits of the mode say");
        let what = told().expect("a guest");
        let expected = format!("lets user {} read or write it, which its mode 0640 does not show", guest.id);
        assert!(what.contains("host.json") && what.contains(&expected), "{what}");
        let mut known = Guests::of(Some(guest.id), READ | WRITE);
        known.look(folder.path(), DEEPEST);
        assert!(known.tell("why").is_none(), "the user of the unit is no guest");
    }

    const NOBODY: u32 = u32::MAX;
}
