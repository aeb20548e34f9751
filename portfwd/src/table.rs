//! What a table of the kernel is to hold of the ways back to clients.

use std::{collections::HashMap, hash::Hash};

use crate::Error;

/// Entries by the bits of the key that count, as they were found last: none
/// where more were found than fit, for a part of them would mislead.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V, const MAX: u32> {
    entries: HashMap<(u32, K), V>,
    /// More were found than fit.
    pub(crate) too_many: bool,
    /// They are not what was written last.
    changed: bool,
}

impl<K, V, const MAX: u32> Default for Table<K, V, MAX> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            too_many: false,
            changed: false,
        }
    }
}

impl<K: Eq + Hash, V: PartialEq, const MAX: u32> Table<K, V, MAX> {
    /// Takes what was found. `tell` is told of how many there are when they
    /// have become too many.
    pub(crate) fn take(&mut self, mut found: HashMap<(u32, K), V>, tell: impl FnOnce(usize)) {
        let too_many = !Self::fits(&found);
        if too_many && !self.too_many {
            tell(found.len());
        }
        self.too_many = too_many;
        if too_many {
            found = HashMap::new();
        }
        if found != self.entries {
            self.entries = found;
            self.changed = true;
        }
    }

    pub(crate) fn fits(found: &HashMap<(u32, K), V>) -> bool {
        found.len() <= MAX as usize
    }

    pub(crate) const fn entries(&self) -> &HashMap<(u32, K), V> {
        &self.entries
    }

    /// Writes them where they are not what was written last.
    pub(crate) fn write(
        &mut self,
        write: impl FnOnce(&HashMap<(u32, K), V>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.changed {
            write(&self.entries)?;
            self.changed = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Small = Table<u8, u8, 2>;

    fn entries(count: u8) -> HashMap<(u32, u8), u8> {
        (0..count).map(|key| ((8, key), key)).collect()
    }

    /// What is written, if anything is.
    fn written(table: &mut Small) -> Option<HashMap<(u32, u8), u8>> {
        let mut written = None;
        let wrote = table.write(|entries| {
            written = Some(entries.clone());
            Ok(())
        });
        assert_eq!(wrote, Ok(()));
        written
    }

    #[test]
    fn too_many_are_none_and_told_of_once() {
        let mut table = Small::default();
        let mut told = Vec::new();
        for count in [2, 3, 4, 1, 5] {
            table.take(entries(count), |found| told.push(found));
            assert_eq!(table.too_many, count > 2);
            let held = if count > 2 { 0 } else { count };
            assert_eq!(*table.entries(), entries(held), "{count}");
        }
        assert_eq!(told, [3, 5]);
    }

    #[test]
    fn what_has_not_changed_is_not_written_again() {
        let mut table = Small::default();
        assert_eq!(written(&mut table), None, "the kernel's is empty too");
        table.take(entries(1), |_| {});
        assert_eq!(written(&mut table), Some(entries(1)));
        table.take(entries(1), |_| {});
        assert_eq!(written(&mut table), None);
        table.take(entries(3), |_| {});
        assert_eq!(written(&mut table), Some(entries(0)));
    }

    #[test]
    fn what_could_not_be_written_is_written_the_next_time() {
        let mut table = Small::default();
        table.take(entries(2), |_| {});
        assert!(table.write(|_| Err(Error::machine("full"))).is_err());
        table.take(entries(2), |_| {});
        assert_eq!(written(&mut table), Some(entries(2)));
    }
}
