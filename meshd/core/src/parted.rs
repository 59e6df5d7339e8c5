//! An ordered map in parts: copies share the parts, a change copies one of them.
//!
//! So the next World or Plan of a large mesh costs what changed, and two of them are compared part by part.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

/// An ordered map in parts.
#[derive(Clone)]
pub struct PartedMap<K, V> {
    /// None is empty; in order, as what is in them.
    parts: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

/// How much a part holds at most: copying it takes some microseconds.
const MOST: usize = 64;

impl<K: Ord + Clone, V: Clone> PartedMap<K, V> {
    /// Puts a value in the place of a key's; returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = match self.place(&key) {
            Ok((part, at)) => {
                let (_, old) = Arc::make_mut(&mut self.parts[part]).get_mut(at)?;
                return Some(std::mem::replace(old, value));
            }
            Err((part, at)) => (part, at),
        };
        self.len += 1;
        let (part, at) = at;
        let is_last = part + 1 == self.parts.len();
        let Some(there) = self.parts.get_mut(part) else {
            self.parts.push(Arc::new(vec![(key, value)]));
            return None;
        };
        if there.len() < MOST {
            Arc::make_mut(there).insert(at, (key, value));
        } else if at == MOST && is_last {
            // What comes in order fills its parts.
            self.parts.push(Arc::new(vec![(key, value)]));
        } else {
            let mut left = Vec::clone(there);
            let mut right = left.split_off(MOST / 2);
            if at <= MOST / 2 {
                left.insert(at, (key, value));
            } else {
                right.insert(at - MOST / 2, (key, value));
            }
            *there = Arc::new(left);
            self.parts.insert(part + 1, Arc::new(right));
        }
        None
    }

    /// Holds what another map has alike as that one does, instead of in copies of its own: parts of equal values are shared.
    /// Returns whether the two hold the same.
    pub fn share(&mut self, other: &Self, same: impl Fn(&V, &V) -> bool) -> bool {
        let differing = self.changes(other, same);
        // Of what is all but different, there is nothing to share.
        if differing.len() > self.len() / 2 {
            return false;
        }
        let own = differing.into_iter().map(|(key, _, own)| (key.clone(), own.cloned()));
        let own: Vec<(K, Option<V>)> = own.collect();
        let mut shared = other.clone();
        let is_same = own.is_empty();
        for (key, value) in own {
            match value {
                Some(value) => drop(shared.insert(key, value)),
                None => drop(shared.remove(&key)),
            }
        }
        *self = shared;
        is_same
    }

    /// Takes a key out; returns what was there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (part, at) = self.place(key).ok()?;
        self.len -= 1;
        if self.parts[part].len() == 1 {
            return self.parts.remove(part).first().map(|(_, value)| value.clone());
        }
        let (_, value) = Arc::make_mut(&mut self.parts[part]).remove(at);
        let fits = |next: &Arc<Vec<_>>| next.len() + self.parts[part].len() <= MOST / 2;
        if self.parts.get(part + 1).is_some_and(fits) {
            let next = self.parts.remove(part + 1);
            Arc::make_mut(&mut self.parts[part]).extend(next.iter().cloned());
        }
        Some(value)
    }
}

impl<K: Ord, V> PartedMap<K, V> {
    /// Returns the value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (part, at) = self.place(key).ok()?;
        self.parts[part].get(at).map(|(_, value)| value)
    }

    /// Returns a key as it is held.
    pub fn get_key<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
    {
        let (part, at) = self.place(key).ok()?;
        self.parts[part].get(at).map(|(key, _)| key)
    }

    /// Whether a key is there.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.place(key).is_ok()
    }

    /// Returns what lies from `first` on, in order.
    pub fn range_from<'a, Q: Ord + ?Sized>(
        &'a self,
        first: &Q,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V, Q>
    where
        K: Borrow<Q>,
    {
        let (part, at) = self.place(first).unwrap_or_else(|place| place);
        let parts = self.parts.get(part..).unwrap_or_default();
        parts.iter().flat_map(|part| part.iter()).skip(at).map(|(key, value)| (key, value))
    }

    /// Where a key is, or where it would be: the part, and the place in it.
    fn place<Q: Ord + ?Sized>(&self, key: &Q) -> Result<(usize, usize), (usize, usize)>
    where
        K: Borrow<Q>,
    {
        let begins_before =
            |part: &Arc<Vec<(K, V)>>| part.first().is_some_and(|(first, _)| first.borrow() <= key);
        let part = self.parts.partition_point(begins_before).saturating_sub(1);
        let Some(there) = self.parts.get(part) else { return Err((part, 0)) };
        match there.binary_search_by(|(other, _)| other.borrow().cmp(key)) {
            Ok(at) => Ok((part, at)),
            Err(at) => Err((part, at)),
        }
    }

    /// Returns what differs from an earlier one, in order: key, then, now. `same` tells whether two values are alike.
    ///
    /// What both share is not looked at.
    pub fn changes<'a>(
        &'a self,
        then: &'a Self,
        same: impl Fn(&V, &V) -> bool,
    ) -> Vec<(&'a K, Option<&'a V>, Option<&'a V>)> {
        let mut found = Vec::new();
        let (mut old, mut new) = (Cursor::of(&then.parts), Cursor::of(&self.parts));
        loop {
            if old.skip_shared(&mut new) {
                continue;
            }
            match (old.peek(), new.peek()) {
                (None, None) => return found,
                (Some((key, then)), Some((other, now))) if key == other => {
                    if !same(then, now) {
                        found.push((key, Some(then), Some(now)));
                    }
                    old.step();
                    new.step();
                }
                (Some((key, then)), other) if other.is_none_or(|(other, _)| key < other) => {
                    found.push((key, Some(then), None));
                    old.step();
                }
                (_, Some((key, now))) => {
                    found.push((key, None, Some(now)));
                    new.step();
                }
                (Some(_), None) => old.step(),
            }
        }
    }
}

impl<K, V> PartedMap<K, V> {
    /// How many are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns all, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.parts.iter().flat_map(|part| part.iter()).map(|(key, value)| (key, value))
    }

    /// Returns all keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// Returns all values, in order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }
}

/// A place on the way through the parts of a map.
struct Cursor<'a, K, V> {
    parts: &'a [Arc<Vec<(K, V)>>],
    at: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn of(parts: &'a [Arc<Vec<(K, V)>>]) -> Self {
        Self { parts, at: 0 }
    }

    fn peek(&self) -> Option<&'a (K, V)> {
        self.parts.first()?.get(self.at)
    }

    fn step(&mut self) {
        self.at += 1;
        if self.parts.first().is_some_and(|part| self.at >= part.len()) {
            self.parts = &self.parts[1..];
            self.at = 0;
        }
    }

    /// Goes past a part that both are at the beginning of.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let (Some(one), Some(two)) = (self.parts.first(), other.parts.first()) else { return false };
        let is_shared = self.at == 0 && other.at == 0 && Arc::ptr_eq(one, two);
        if is_shared {
            (self.parts, other.parts) = (&self.parts[1..], &other.parts[1..]);
        }
        is_shared
    }
}

impl<K, V> Default for PartedMap<K, V> {
    fn default() -> Self {
        Self { parts: Vec::new(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for PartedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for PartedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for PartedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        let mut map = Self::default();
        map.extend(items);
        map
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for PartedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, items: I) {
        for (key, value) in items {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for PartedMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the key is there, as with every map that is indexed")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_map_holds_and_tells_what_changed(
            steps in proptest::collection::vec((any::<bool>(), 0_u16..400, any::<u8>()), 1..900),
            copy_at in 0_usize..900,
        ) {
            let (mut map, mut plain) = (PartedMap::default(), BTreeMap::new());
            let mut copies = (map.clone(), plain.clone());
            for (index, (puts, key, value)) in steps.into_iter().enumerate() {
                if index == copy_at {
                    copies = (map.clone(), plain.clone());
                }
                if puts {
                    prop_assert_eq!(map.insert(key, value), plain.insert(key, value));
                } else {
                    prop_assert_eq!(map.remove(&key), plain.remove(&key));
                }
            }
            let (then, plain_then) = copies;
            prop_assert!(then.iter().eq(plain_then.iter()), "a copy stays as it was");
            prop_assert!(map.iter().eq(plain.iter()));
            prop_assert!(map.iter().rev().eq(plain.iter().rev()));
            prop_assert_eq!(map.len(), plain.len());
            for key in 0_u16..400 {
                prop_assert_eq!(map.get(&key), plain.get(&key));
                prop_assert!(map.range_from(&key).eq(plain.range(key..)));
            }
            let keys: std::collections::BTreeSet<&u16> = plain.keys().chain(plain_then.keys()).collect();
            let unlike = keys.into_iter().map(|key| (key, plain_then.get(key), plain.get(key)));
            let unlike: Vec<_> = unlike.filter(|(_, then, now)| then != now).collect();
            prop_assert_eq!(map.changes(&then, PartialEq::eq), unlike);
            let mut shared = map.clone();
            prop_assert_eq!(shared.share(&then, PartialEq::eq), plain == plain_then);
            prop_assert!(shared.iter().eq(plain.iter()), "sharing changes nothing");
            prop_assert_eq!(shared.len(), plain.len());
        }
    }
}
