//! The pages of the program itself.

use std::ffi::c_void;
use std::io;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// Lets go of the program's code: most of it only the start needed. It stays in the kernel's cache of the file, and what is
/// called again is back without the disk. Returns how many bytes of code there are.
///
/// # Errors
/// When the kernel does not tell what is mapped where, or refuses.
#[expect(unsafe_code, reason = "advice about memory is unsafe in general")]
pub(crate) fn let_go() -> io::Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let program = std::fs::read_link("/proc/self/exe")?;
    let mut bytes = 0;
    for Range { start, end } in code(&maps, &program.to_string_lossy()) {
        // SAFETY: these are whole pages of a file that nobody can write to by this mapping: what is read there again is
        // what was there.
        unsafe { madvise(start as *mut c_void, end - start, Advice::LinuxDontNeed)? };
        bytes += end - start;
    }
    Ok(bytes)
}

/// Where a file is mapped as code. Source: `proc_pid_maps(5)`.
fn code(maps: &str, file: &str) -> impl Iterator<Item = Range<usize>> {
    maps.lines().filter_map(move |line| {
        let (place, rest) = line.split_once(' ')?;
        let (access, rest) = rest.split_once(' ')?;
        // Offset, device and inode lie between; the path has the rest of the line, spaces and all.
        let path = rest.splitn(4, ' ').last()?.trim_start();
        let (start, end) = place.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        (access == "r-xp" && path == file).then_some(address(start)?..address(end)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_the_program_is_meant() {
        let maps = "\
55d0c0a00000-55d0c1160000 r--p 00000000 fe:00 1311 /usr/bin/mesh d (deleted)
55d0c1160000-55d0c3010000 r-xp 0075f000 fe:00 1311                       /usr/bin/mesh d (deleted)
55d0c3010000-55d0c30d0000 r--p 0260e000 fe:00 1311 /usr/bin/mesh d (deleted)
55d0c30d0000-55d0c30e0000 rw-p 026cd000 fe:00 1311 /usr/bin/mesh d (deleted)
7f2a10000000-7f2a10021000 rw-p 00000000 00:00 0
7f2a14a28000-7f2a14bbd000 r-xp 00028000 fe:00 2622 /usr/lib/x86_64-linux-gnu/libc.so.6
7ffd5e9f2000-7ffd5e9f4000 r-xp 00000000 00:00 0 [vdso]
";
        let mut found = code(maps, "/usr/bin/mesh d (deleted)");
        assert_eq!(found.next(), Some(0x55d0_c116_0000..0x55d0_c301_0000));
        assert_eq!(found.next(), None);
    }

    #[test]
    fn the_program_goes_on() {
        assert!(let_go().unwrap() > 0);
        assert!(let_go().is_ok(), "what it calls is there again");
    }
}
