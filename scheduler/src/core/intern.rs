//! Ids for values that many nodes share. An id is given back when its last holder lets go, so the
//! table is as large as what lives.

use std::hash::Hash;
use std::sync::Arc;

use super::maps::HashMap;

#[derive(Debug)]
struct Entry<T> {
    value: Arc<T>,
    holders: u32,
}

/// Values by id and ids by value, with a count of holders.
#[derive(Debug)]
pub(super) struct Interner<T> {
    entries: Vec<Option<Entry<T>>>,
    ids: HashMap<Arc<T>, u32>,
    free: Vec<u32>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), ids: HashMap::default(), free: Vec::new() }
    }
}

impl<T: Eq + Hash> Interner<T> {
    /// The id of a value, held once more.
    pub(super) fn hold(&mut self, value: T) -> u32 {
        if let Some(id) = self.ids.get(&value) {
            if let Some(Some(entry)) = self.entries.get_mut(*id as usize) {
                entry.holders += 1;
            }
            return *id;
        }
        self.enter(Arc::new(value))
    }

    fn enter(&mut self, value: Arc<T>) -> u32 {
        let entry = Some(Entry { value: Arc::clone(&value), holders: 1 });
        let id = if let Some(id) = self.free.pop() {
            self.entries[id as usize] = entry;
            id
        } else {
            self.entries.push(entry);
            // A table has fewer nodes than 2^32 and each node holds one value.
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        };
        self.ids.insert(value, id);
        id
    }

    /// As [`Self::hold`], of a value that is shared already.
    pub(super) fn hold_shared(&mut self, value: &Arc<T>) -> u32 {
        if let Some(id) = self.ids.get(&**value) {
            if let Some(Some(entry)) = self.entries.get_mut(*id as usize) {
                entry.holders += 1;
            }
            return *id;
        }
        self.enter(Arc::clone(value))
    }

    /// Lets go of a value once.
    pub(super) fn release(&mut self, id: u32) {
        let Some(slot) = self.entries.get_mut(id as usize) else { return };
        let Some(entry) = slot else { return };
        entry.holders -= 1;
        if entry.holders == 0 {
            self.ids.remove(&entry.value);
            *slot = None;
            self.free.push(id);
        }
    }

    /// The value of an id that is held.
    pub(super) fn get(&self, id: u32) -> Option<&T> {
        Some(&self.entries.get(id as usize)?.as_ref()?.value)
    }

    /// The value of an id that is held, shared.
    pub(super) fn shared(&self, id: u32) -> Option<Arc<T>> {
        self.entries.get(id as usize)?.as_ref().map(|entry| Arc::clone(&entry.value))
    }

    /// How many hold the value.
    pub(super) fn holders(&self, id: u32) -> u32 {
        let entry = self.entries.get(id as usize).and_then(Option::as_ref);
        entry.map_or(0, |entry| entry.holders)
    }

    /// The values that are held, with how many hold each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T, u32)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(id, entry)| {
            let entry = entry.as_ref()?;
            Some((u32::try_from(id).ok()?, &*entry.value, entry.holders))
        })
    }

    /// Something for each id; the default for ids that nobody holds.
    pub(super) fn map<R: Default>(&self, f: impl Fn(&T) -> R) -> Vec<R> {
        let entry = |entry: &Option<Entry<T>>| entry.as_ref().map(|e| f(&e.value));
        self.entries.iter().map(|e| entry(e).unwrap_or_default()).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shared_and_reused() {
        let mut interner = Interner::default();
        let a = interner.hold("a");
        assert_eq!(interner.hold("a"), a);
        let b = interner.hold("b");
        interner.release(a);
        assert_eq!(interner.get(a), Some(&"a"));
        interner.release(a);
        assert_eq!(interner.get(a), None);
        assert_eq!(interner.hold("c"), a);
        assert_eq!(interner.map(|v| v.len()), vec![1, 1]);
        interner.release(b);
        assert_eq!(interner.len(), 1);
    }
}
