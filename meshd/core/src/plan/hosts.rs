//! Hosts by name: exactly, then by the longest wildcard.
//!
//! A table of a large mesh has every name of every service, and the next Plan has nearly all of them too: it is kept in
//! small parts, which two tables share, so that a table that differs in a few names costs those few parts.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::HashMap;
use foldhash::fast::FixedState;

/// Hosts by exact name, then by longest wildcard. Names are lower case, without port.
#[derive(Debug)]
pub struct HostTable<T> {
    /// In parts, a power of two of them, by the low bits of a name's number; each in order of that number.
    exact: Vec<Arc<Vec<Named<T>>>>,
    /// How many names are in them.
    len: usize,
    /// By suffix: `.example.com` is `*.example.com`, `""` is `*`.
    wildcard: HashMap<Box<str>, Arc<T>>,
    /// The lengths of those suffixes, longest first: what a look-up costs depends on them, not on the hosts.
    lengths: Vec<usize>,
}

/// A number for the name, the name, and what is there.
type Named<T> = (u32, Box<str>, Arc<T>);

/// How many names a part has on average, at most: looking one up costs half a dozen comparisons of numbers.
const PER_PART: usize = 32;

/// Returns the number of a name.
fn number(name: &str) -> u32 {
    let number = FixedState::with_seed(0x686f_7374).hash_one(name);
    u32::try_from(number >> 32).unwrap_or(0)
}

impl<T> Clone for HostTable<T> {
    fn clone(&self) -> Self {
        Self {
            exact: self.exact.clone(),
            len: self.len,
            wildcard: self.wildcard.clone(),
            lengths: self.lengths.clone(),
        }
    }
}

impl<T> Default for HostTable<T> {
    fn default() -> Self {
        Self { exact: Vec::new(), len: 0, wildcard: HashMap::default(), lengths: Vec::new() }
    }
}

impl<T> HostTable<T> {
    /// Adds a host unless it is there already; `*` and `*.suffix` are wildcards. Returns whether it was added.
    pub fn add(&mut self, host: &str, value: Arc<T>) -> bool {
        let host = host.to_ascii_lowercase();
        if self.get(&host).is_some() {
            return false;
        }
        self.put(&host, value);
        true
    }

    /// Adds a host, in lower case, or puts it in the place of what is there.
    pub(crate) fn put(&mut self, host: &str, value: Arc<T>) {
        let Some(suffix) = host.strip_prefix('*') else { return self.put_exactly(host, value) };
        if self.wildcard.insert(suffix.into(), value).is_none()
            && let Err(at) = self.lengths.binary_search_by(|other| suffix.len().cmp(other))
        {
            self.lengths.insert(at, suffix.len());
        }
    }

    fn put_exactly(&mut self, host: &str, value: Arc<T>) {
        if self.len >= self.exact.len() * PER_PART {
            self.split();
        }
        let number = number(host);
        let part = Arc::make_mut(self.part_mut(number));
        match place(part, number, host) {
            Ok(at) => part[at].2 = value,
            Err(at) => {
                part.insert(at, (number, host.into(), value));
                self.len += 1;
            }
        }
    }

    /// Takes a host out.
    pub(crate) fn remove(&mut self, host: &str) {
        if let Some(suffix) = host.strip_prefix('*') {
            self.wildcard.remove(suffix);
            if self.wildcard.keys().all(|other| other.len() != suffix.len()) {
                self.lengths.retain(|length| *length != suffix.len());
            }
        } else if self.exactly(host).is_some() {
            let number = number(host);
            let part = Arc::make_mut(self.part_mut(number));
            if let Ok(at) = place(part, number, host) {
                part.remove(at);
                self.len -= 1;
            }
            if self.len == 0 {
                self.exact = Vec::new();
            }
        }
    }

    /// Makes twice as many parts.
    fn split(&mut self) {
        let before = std::mem::take(&mut self.exact);
        let parts = (2 * before.len()).max(1);
        let of = |number: usize| {
            let all = before.get(number % before.len().max(1)).into_iter().flat_map(|part| part.iter());
            Arc::new(all.filter(|(other, ..)| part(*other, parts) == number).cloned().collect())
        };
        self.exact = (0..parts).map(of).collect();
    }

    /// The part of a number; there is one.
    fn part_mut(&mut self, number: u32) -> &mut Arc<Vec<Named<T>>> {
        let at = part(number, self.exact.len());
        &mut self.exact[at]
    }

    fn exactly(&self, name: &str) -> Option<&Arc<T>> {
        if self.exact.is_empty() {
            return None;
        }
        let number = number(name);
        let part = self.exact.get(part(number, self.exact.len()))?;
        place(part, number, name).ok().map(|at| &part[at].2)
    }

    /// Finds a host: exact first, then the longest wildcard. `host` is lower case without port.
    ///
    /// `*.example.com` takes `a.b.example.com`, not `example.com`. Source: Envoy's virtual host look-up.
    pub fn find(&self, host: &str) -> Option<&Arc<T>> {
        if let Some(value) = self.exactly(host) {
            return Some(value);
        }
        // A wildcard takes at least one character, but `*` takes the empty name too.
        let fitting = self.lengths.iter().filter(|length| **length < host.len() || **length == 0);
        fitting.copied().find_map(|length| self.wildcard.get(host.get(host.len() - length..)?))
    }

    /// Finds a host by its pattern: `*.example.com` is only itself.
    pub fn get(&self, pattern: &str) -> Option<&Arc<T>> {
        match pattern.strip_prefix('*') {
            Some(suffix) => self.wildcard.get(suffix),
            None => self.exactly(pattern),
        }
    }

    /// Whether no host is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.lengths.is_empty()
    }

    /// Returns every host pattern with its value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (String, &Arc<T>)> {
        let exact =
            self.exact.iter().flat_map(|part| part.iter()).map(|(_, host, value)| (host.to_string(), value));
        exact.chain(self.wildcard.iter().map(|(suffix, value)| (format!("*{suffix}"), value)))
    }
}

/// Which of so many parts a number belongs to.
fn part(number: u32, parts: usize) -> usize {
    number as usize & (parts - 1)
}

/// Where a name is in a part, or where it would be.
fn place<T>(part: &[Named<T>], number: u32, name: &str) -> Result<usize, usize> {
    part.binary_search_by(|(other, host, _)| other.cmp(&number).then_with(|| (**host).cmp(name)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_map_holds_and_a_copy_stays_as_it_was(
            steps in proptest::collection::vec((0_u8..4, 0_u16..300, any::<u8>()), 1..1_200),
            copy_at in 0_usize..1_200,
        ) {
            let (mut table, mut plain) = (HostTable::default(), BTreeMap::new());
            let mut copies = (table.clone(), plain.clone());
            for (index, (step, host, value)) in steps.into_iter().enumerate() {
                if index == copy_at {
                    copies = (table.clone(), plain.clone());
                }
                let name = if host % 7 == 0 { format!("*.{host}.test") } else { format!("{host}.test") };
                match step {
                    0 => {
                        table.remove(&name);
                        plain.remove(&name);
                    }
                    1 => {
                        let is_new = !plain.contains_key(&name);
                        prop_assert_eq!(table.add(&name.to_uppercase(), Arc::new(value)), is_new);
                        plain.entry(name).or_insert(value);
                    }
                    _ => {
                        table.put(&name, Arc::new(value));
                        plain.insert(name, value);
                    }
                }
            }
            for (table, plain) in [(table, plain), copies] {
                let found: BTreeMap<String, u8> = table.iter().map(|(name, value)| (name, **value)).collect();
                prop_assert_eq!(&found, &plain);
                prop_assert_eq!(table.is_empty(), plain.is_empty());
                for host in 0..300 {
                    for name in [format!("*.{host}.test"), format!("{host}.test")] {
                        prop_assert_eq!(table.get(&name).map(|value| **value), plain.get(&name).copied());
                    }
                    let under = format!("a.{host}.test");
                    let wild = plain.get(&format!("*.{host}.test")).copied();
                    prop_assert_eq!(table.find(&under).map(|value| **value), wild);
                }
            }
        }
    }
}
