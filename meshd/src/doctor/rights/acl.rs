//! The access list beside a file's bits, as Linux keeps it in an extended attribute.
//!
//! Where there is one, the bits of the group in the mode are its mask: the most that anybody but the owner and *others* gets.
//!
//! **Source**: acl(5), "Access check algorithm"; `linux/posix_acl_xattr.h` for the form.

use std::fmt;
use std::path::Path;

/// The access list of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    bits: u32,
    id: u32,
}

/// Somebody whom a list names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    User(u32),
    Group(u32),
}

impl fmt::Display for Whom {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(formatter, "user {id}"),
            Self::Group(id) => write!(formatter, "group {id}"),
        }
    }
}

impl Acl {
    /// Reads the list of a file; `None` where it has none, also because its file system knows no lists.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let mut bytes = vec![0; MOST_BYTES];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut bytes[..]).ok()?;
        Self::read(bytes.get(..length)?)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (version, entries) = bytes.split_first_chunk()?;
        if u32::from_le_bytes(*version) != VERSION {
            return None;
        }
        let entry = |entry: &[u8]| {
            let tag = u16::from_le_bytes(entry[..2].try_into().ok()?);
            let bits = u16::from_le_bytes(entry[2..4].try_into().ok()?).into();
            let id = u32::from_le_bytes(entry[4..8].try_into().ok()?);
            Some(Entry { tag, bits, id })
        };
        entries.chunks_exact(ENTRY_BYTES).map(entry).collect::<Option<_>>().map(Self)
    }

    /// Whether a user of these groups gets all of `bits` on a file of that owner and group.
    pub(super) fn lets(&self, user: u32, groups: &[u32], of: (u32, u32), bits: u32) -> bool {
        let has = |entry: &Entry| entry.bits & bits == bits;
        let is_masked = |entry: &Entry| entry.bits & self.mask() & bits == bits;
        if user == of.0 {
            return self.tagged(USER_OBJ).any(has);
        }
        if let Some(named) = self.tagged(USER).find(|entry| entry.id == user) {
            return is_masked(named);
        }
        let mut of_groups = self.0.iter().filter(|entry| match entry.tag {
            GROUP_OBJ => groups.contains(&of.1),
            GROUP => groups.contains(&entry.id),
            _ => false,
        });
        match of_groups.next() {
            // One of them must give all that is asked for.
            Some(first) => is_masked(first) || of_groups.any(is_masked),
            None => self.tagged(OTHER).any(has),
        }
    }

    /// Returns whom it names and gives some of `bits`.
    pub(super) fn guests(&self, bits: u32) -> Vec<Whom> {
        let named = self.0.iter().filter(|entry| entry.bits & self.mask() & bits != 0);
        let whom = |entry: &Entry| match entry.tag {
            USER => Some(Whom::User(entry.id)),
            GROUP => Some(Whom::Group(entry.id)),
            _ => None,
        };
        named.filter_map(whom).collect()
    }

    /// A list that names nobody may have none: then nothing is held back.
    fn mask(&self) -> u32 {
        self.tagged(MASK).next().map_or(0o7, |mask| mask.bits)
    }

    fn tagged(&self, tag: u16) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter(move |entry| entry.tag == tag)
    }
}

const ATTRIBUTE: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
/// The kernel's bound for an attribute (`XATTR_SIZE_MAX`).
const MOST_BYTES: usize = 64 << 10;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A list in the kernel's form, of tags, bits and ids.
    pub(in super::super) fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, bits, id) in entries {
            bytes.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// Gives a file a list; `false`, said aloud, where its file system keeps none.
    pub(in super::super) fn set(path: &Path, list: &[u8]) -> bool {
        match rustix::fs::setxattr(path, ATTRIBUTE, list, rustix::fs::XattrFlags::empty()) {
            Ok(()) => true,
            Err(error @ (rustix::io::Errno::NOTSUP | rustix::io::Errno::PERM)) => {
                eprintln!("SKIPPED: {} cannot have an access list ({error})", path.display());
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn one_of_several_groups_must_give_all_and_the_mask_holds_back_all_but_owner_and_others() {
        let read = |entries: &[(u16, u16, u32)]| Acl::read(&bytes(entries)).expect("a list");
        let any = u32::MAX;
        let list = read(&[
            (USER_OBJ, 7, any),
            (USER, 6, 10),
            (GROUP_OBJ, 2, any),
            (GROUP, 4, 20),
            (MASK, 6, any),
            (OTHER, 1, any),
        ]);
        let of = (1, 2);

        assert!(list.lets(1, &[], of, 7) && list.lets(10, &[], of, 6) && list.lets(99, &[99], of, 1));
        assert!(list.lets(11, &[2, 20], of, 4) && list.lets(11, &[2, 20], of, 2));
        assert!(!list.lets(11, &[2, 20], of, 6), "no single group gives both");
        assert!(!list.lets(11, &[20], of, 1), "who is of a group is none of the others");
        assert_eq!(list.guests(4), [Whom::User(10), Whom::Group(20)]);
        let masked = read(&[(USER, 6, 10), (MASK, 0, any)]);
        assert!(!masked.lets(10, &[], of, 4) && masked.guests(6).is_empty());
        assert_eq!(Acl::read(&[1, 0, 0, 0]), None, "another version");
        assert_eq!(Acl::read(&[2, 0]), None);
    }
}
