//! An ordered map for a handful of entries, in the room that they take.
//!
//! Labels, headers and the like are there by the hundred thousand in a large mesh, with one to five entries each. A
//! `BTreeMap` reserves room for eleven of each (half a kilobyte), this one has no room to spare, and its copies share what
//! is in it.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An ordered map for a handful of entries: a list in order of its keys. Every change copies them: gather first.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SmallMap<K, V>(Option<Arc<[(K, V)]>>);

impl<K, V> SmallMap<K, V> {
    /// Makes an empty one.
    pub const fn new() -> Self {
        Self(None)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns all entries, in order of their keys.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter(self.entries().iter())
    }

    /// Returns all keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.entries().iter().map(|(key, _)| key)
    }

    /// Returns all values, in order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.entries().iter().map(|(_, value)| value)
    }

    fn entries(&self) -> &[(K, V)] {
        self.0.as_deref().unwrap_or_default()
    }

    /// What is in order already.
    fn of(entries: Vec<(K, V)>) -> Self {
        Self(if entries.is_empty() { None } else { Some(entries.into()) })
    }
}

impl<K: Ord, V> SmallMap<K, V> {
    /// Returns the value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.place(key).ok().map(|at| &self.entries()[at].1)
    }

    /// Whether a key is there.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.place(key).is_ok()
    }

    fn place<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.entries().binary_search_by(|(other, _)| other.borrow().cmp(key))
    }
}

impl<K: Ord + Clone, V: Clone> SmallMap<K, V> {
    /// Puts a value in the place of a key's; returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let mut entries = self.entries().to_vec();
        let old = match self.place(&key) {
            Ok(at) => Some(std::mem::replace(&mut entries[at].1, value)),
            Err(at) => {
                entries.insert(at, (key, value));
                None
            }
        };
        *self = Self::of(entries);
        old
    }

    /// Takes a key out; returns what was there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.place(key).ok()?;
        let mut entries = self.entries().to_vec();
        let (_, old) = entries.remove(at);
        *self = Self::of(entries);
        Some(old)
    }

    /// Puts a value where a key has none yet.
    pub fn insert_missing(&mut self, key: K, value: impl FnOnce() -> V) {
        if !self.contains_key(&key) {
            self.insert(key, value());
        }
    }
}

/// Copies share their entries.
impl<K, V> Clone for SmallMap<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Of two values for one key the last counts, as with every map.
impl<K: Ord, V> From<Vec<(K, V)>> for SmallMap<K, V> {
    fn from(mut entries: Vec<(K, V)>) -> Self {
        if !entries.is_sorted_by(|(one, _), (other, _)| one < other) {
            // The sort is stable: of equal keys the last one is kept.
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            entries.reverse();
            entries.dedup_by(|(one, _), (other, _)| one == other);
            entries.reverse();
        }
        Self::of(entries)
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for SmallMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        Vec::from(entries).into()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for SmallMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        entries.into_iter().collect::<Vec<_>>().into()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SmallMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        let mut all = self.entries().to_vec();
        all.extend(entries);
        *self = all.into();
    }
}

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SmallMap<K, V> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for SmallMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the key is there, as with every map that is indexed")
    }
}

/// The entries of a [`SmallMap`], in order of their keys.
#[derive(Clone, Debug)]
pub struct Iter<'a, K, V>(std::slice::Iter<'a, (K, V)>);

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<K, V> DoubleEndedIterator for Iter<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back().map(|(key, value)| (key, value))
    }
}

impl<K, V> ExactSizeIterator for Iter<'_, K, V> {}

impl<'a, K, V> IntoIterator for &'a SmallMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Clone, V: Clone> IntoIterator for SmallMap<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries().to_vec().into_iter()
    }
}

impl<K: Serialize, V: Serialize> Serialize for SmallMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de, K: Ord + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for SmallMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}

struct MapVisitor<K, V>(PhantomData<(K, V)>);

impl<'de, K: Ord + Deserialize<'de>, V: Deserialize<'de>> Visitor<'de> for MapVisitor<K, V> {
    type Value = SmallMap<K, V>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries.into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Every order of a few steps, against a plain map.
    #[test]
    fn it_holds_what_a_plain_map_holds() {
        let mut seed = 7_u64;
        for _ in 0..2_000 {
            let (mut map, mut plain) = (SmallMap::new(), BTreeMap::new());
            let mut gathered = Vec::new();
            for step in 0..12_u64 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (key, what) = (seed >> 33 & 7, seed >> 60);
                match what {
                    0..3 => assert_eq!(map.remove(&key), plain.remove(&key)),
                    3..5 => {
                        map.insert_missing(key, || step);
                        plain.entry(key).or_insert(step);
                    }
                    _ => assert_eq!(map.insert(key, step), plain.insert(key, step)),
                }
                gathered.push((key, step));
                assert!(map.iter().eq(plain.iter()) && map.keys().rev().eq(plain.keys().rev()));
                assert_eq!((map.get(&key), map.contains_key(&3)), (plain.get(&key), plain.contains_key(&3)));
            }
            map.extend(gathered.clone());
            plain.extend(gathered.clone());
            assert!(map.iter().eq(plain.iter()));
            let (map, plain): (SmallMap<_, _>, BTreeMap<_, _>) =
                (gathered.iter().copied().collect(), gathered.into_iter().collect());
            assert!(map.iter().eq(plain.iter()), "of two values for one key the last counts");
        }
    }

    #[test]
    fn it_is_written_and_read_as_a_plain_map() {
        let map: SmallMap<String, u8> = serde_json::from_str(r#"{"b": 2, "a": 1, "b": 3}"#).unwrap();
        assert_eq!(serde_json::to_string(&map).unwrap(), r#"{"a":1,"b":3}"#);
    }
}
