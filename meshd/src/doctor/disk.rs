//! The disk of the data folder: whether it can be written, how much is free, how long it takes to keep something.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_proto::look::{Check, Grade};
use rustix::fs::{StatVfsMountFlags, statvfs};

use super::as_root;

/// Below this the control plane cannot write; Raft's log and snapshots need room.
const LEAST_FREE: u64 = 64 << 20;
const LITTLE_FREE: u64 = 512 << 20;
/// Raft's followers count a leader as gone after about a second: a write that takes a tenth is slow.
const SLOW: Duration = Duration::from_millis(100);
const TOO_SLOW: Duration = Duration::from_millis(500);

/// `is_others`: whoever looks is neither root nor who would write there.
pub(super) fn check(data: &Path, is_others: bool) -> Vec<Check> {
    if let Err(error) = std::fs::metadata(data) {
        if error.kind() == io::ErrorKind::NotFound {
            let why = "this host is in no mesh";
            let fix = "meshd init, or: meshd join ADDRESS < token";
            let what = format!("{} is not there", data.display());
            return vec![Check::new(Grade::Info, "data folder", what, why, fix)];
        }
        let what = format!("{} cannot be looked at ({error})", data.display());
        return vec![Check::skipped("data folder", as_root(&what))];
    }
    let mut checks = Vec::new();
    match statvfs(data) {
        Ok(disk) if disk.f_flag.contains(StatVfsMountFlags::RDONLY) => {
            let what = format!("{} is mounted read-only", data.display());
            let why = "meshd does not start; one that runs keeps nothing";
            let fix = format!("mount -o remount,rw $(findmnt -no TARGET --target {})", data.display());
            return vec![Check::new(Grade::Error, "disk", what, why, fix)];
        }
        Ok(disk) => {
            checks.push(room(
                data,
                disk.f_bavail * disk.f_frsize,
                disk.f_blocks * disk.f_frsize,
                disk.f_favail,
            ));
        }
        Err(error) => checks.push(Check::skipped("disk", format!("{}: {error}", data.display()))),
    }
    checks.push(match sync_time(data) {
        Ok(took) => speed(took),
        // Whether meshd may write there is told apart (`rights`).
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_others => {
            Check::skipped("fsync", as_root(&format!("{} is not this user's to write", data.display())))
        }
        Err(error) => unwritable(data, &error),
    });
    checks
}

fn room(data: &Path, free: u64, all: u64, files: u64) -> Check {
    let what = format!("{} MiB of {} MiB are free at {}", free >> 20, all >> 20, data.display());
    let fix = format!(
        "make room: du -xh --max-depth=2 $(findmnt -no TARGET --target {}) | sort -h | tail",
        data.display()
    );
    if free < LEAST_FREE.min(all / 20) {
        let why = "what changes cannot be written down: no apply, no new instances; traffic goes on";
        return Check::new(Grade::Error, "disk", what, why, fix);
    }
    if files == 0 && all > 0 && free > 0 && is_counted(data) {
        return Check::new(
            Grade::Error,
            "disk",
            format!("no inode is free at {}", data.display()),
            "no file can be made",
            fix,
        );
    }
    if free < LITTLE_FREE.min(all / 10) {
        return Check::new(Grade::Warning, "disk", what, "the log and snapshots of a voter need room", fix);
    }
    Check::good("disk", what)
}

/// Some file systems (btrfs) count no inodes, and always say 0.
fn is_counted(data: &Path) -> bool {
    statvfs(data).is_ok_and(|disk| disk.f_files > 0)
}

/// Writes 4 KiB and has them kept, five times; the median.
fn sync_time(data: &Path) -> io::Result<Duration> {
    let path = Probe(data.join(format!(".doctor-{}", std::process::id())));
    let mut file = File::create(&path.0)?;
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        file.write_all(&[0x6d; 4_096])?;
        file.sync_data()?;
        took.push(began.elapsed());
        // A disk this slow has told enough.
        if began.elapsed() > TOO_SLOW {
            break;
        }
    }
    took.sort_unstable();
    Ok(took[took.len() / 2])
}

/// The file is gone whatever happens.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn speed(took: Duration) -> Check {
    let what = format!("the disk keeps 4 KiB in {:.1} ms (fsync, median of 5)", took.as_secs_f64() * 1e3);
    let why = "a voter answers only when its disk has kept the change: applies wait, and leaders may change";
    let fix = "iostat -x 1 names who keeps the disk busy; put host.data on a faster one";
    match took {
        took if took >= TOO_SLOW => Check::new(Grade::Error, "fsync", what, why, fix),
        took if took >= SLOW => Check::new(Grade::Warning, "fsync", what, why, fix),
        _ => Check::good("fsync", what),
    }
}

fn unwritable(data: &Path, error: &io::Error) -> Check {
    let what = format!("{} cannot be written: {error}", data.display());
    let fix = match error.kind() {
        io::ErrorKind::StorageFull => "make room: df -h, du -xh --max-depth=2".to_owned(),
        io::ErrorKind::PermissionDenied => format!(
            "run this as root, or as the user of meshd; or: chown -R $(stat -c %U {0}): {0}",
            data.display()
        ),
        _ => "dmesg | tail tells of a broken disk".to_owned(),
    };
    Check::new(Grade::Error, "disk", what, "meshd keeps its keys and the mesh's state there", fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_disk_is_judged_by_what_is_left_on_it() {
        let grade = |free| room(Path::new("/"), free, 100 * GIB, 1_000).grade;

        assert_eq!(grade(50 * GIB), Grade::Good);
        assert_eq!(grade(256 << 20), Grade::Warning);
        assert_eq!(grade(8 << 20), Grade::Error);
    }

    #[test]
    fn a_slow_disk_is_told_with_what_comes_of_it() {
        assert_eq!(speed(Duration::from_millis(2)).grade, Grade::Good);
        assert_eq!(speed(Duration::from_millis(150)).grade, Grade::Warning);
        assert_eq!(speed(Duration::from_secs(2)).grade, Grade::Error);
    }

    #[test]
    fn measuring_leaves_no_file_behind() {
        let folder = tempfile::tempdir().expect("a folder");

        let took = sync_time(folder.path()).expect("measured");

        assert!(took > Duration::ZERO);
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
    }
}
