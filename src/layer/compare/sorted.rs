//! Many changes in little memory: the names of a directory lie one after another, without a path each.

use std::collections::BTreeMap;
use std::collections::btree_map::IntoIter;
use std::ffi::{OsStr, OsString};
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::layer::changes::ChangeKind;

/// Changes, to be read by path, a directory before its content.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// For each directory the names in order: kind, name, NUL.
    noted: BTreeMap<PathBuf, Box<[u8]>>,
    /// The names of the directory that is looked at.
    here: Vec<u8>,
    late: Late,
}

/// Those that were not found in the order of names, by directory.
type Late = BTreeMap<PathBuf, BTreeMap<OsString, ChangeKind>>;

const KINDS: [ChangeKind; 3] = [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Deleted];

impl Sorted {
    /// Notes a change in the directory that is looked at; they come in the order of their names.
    pub(super) fn note(&mut self, name: &OsStr, kind: ChangeKind) {
        self.here.push(KINDS.iter().position(|other| *other == kind).unwrap_or_default() as u8);
        self.here.extend_from_slice(name.as_bytes());
        self.here.push(0);
    }

    /// Ends with a directory. What it had is kept in as many bytes as it takes, and only now, where what was known of its names
    /// has lain in memory.
    pub(super) fn end(&mut self, dir: &Path) {
        if !self.here.is_empty() {
            self.noted.insert(dir.to_path_buf(), self.here.as_slice().into());
            self.here.clear();
        }
    }

    /// Adds a change of what may have one already: that stays.
    pub(super) fn add(&mut self, path: &Path, kind: ChangeKind) {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
        self.late.entry(dir.to_path_buf()).or_default().entry(name.to_owned()).or_insert(kind);
    }

    /// A directory with a change inside is a change.
    pub(super) fn add_parents(&mut self) {
        let dirs: Vec<PathBuf> = self.noted.keys().chain(self.late.keys()).cloned().collect();
        for mut dir in dirs {
            loop {
                let above = dir.parent().and_then(|above| self.late.get(above));
                // Who is there brought those above along.
                if dir.as_os_str().is_empty()
                    || above.is_some_and(|names| {
                        names.contains_key(dir.file_name().unwrap_or_default())
                    })
                {
                    break;
                }
                self.add(&dir, ChangeKind::Modified);
                dir.pop();
            }
        }
    }

    fn level(&mut self, path: PathBuf) -> Level {
        let noted = self.noted.remove(&path).unwrap_or_default();
        let late = self.late.remove(&path).unwrap_or_default().into_iter().peekable();
        Level { path, noted, at: 0, late }
    }
}

impl IntoIterator for Sorted {
    type Item = (PathBuf, ChangeKind);
    type IntoIter = Changes;

    fn into_iter(mut self) -> Changes {
        let root = self.level(PathBuf::new());
        Changes { left: self, levels: vec![root] }
    }
}

/// A directory that is being read.
#[derive(Debug)]
struct Level {
    path: PathBuf,
    noted: Box<[u8]>,
    at: usize,
    late: Peekable<IntoIter<OsString, ChangeKind>>,
}

impl Level {
    fn next(&mut self) -> Option<(PathBuf, ChangeKind)> {
        let Some((kind, rest)) = self.noted.get(self.at..).and_then(<[u8]>::split_first) else {
            return self.late.next().map(|(name, kind)| (self.path.join(name), kind));
        };
        let name = rest.split(|byte| *byte == 0).next().unwrap_or_default();
        match self.late.peek().map(|(late, _)| late.as_bytes().cmp(name)) {
            Some(std::cmp::Ordering::Less) => {
                return self.late.next().map(|(name, kind)| (self.path.join(name), kind));
            }
            Some(std::cmp::Ordering::Equal) => drop(self.late.next()),
            _ => {}
        }
        self.at += name.len() + 2;
        let kind = KINDS.get(usize::from(*kind)).copied().unwrap_or(ChangeKind::Modified);
        Some((self.path.join(OsStr::from_bytes(name)), kind))
    }
}

/// Gives changes by path, a directory before its content.
#[derive(Debug)]
pub(super) struct Changes {
    left: Sorted,
    levels: Vec<Level>,
}

impl Iterator for Changes {
    type Item = (PathBuf, ChangeKind);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((path, kind)) = self.levels.last_mut()?.next() else {
                self.levels.pop();
                continue;
            };
            if self.left.noted.contains_key(&path) || self.left.late.contains_key(&path) {
                let level = self.left.level(path.clone());
                self.levels.push(level);
            }
            return Some((path, kind));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_by_path_with_what_was_found_late() {
        let mut sorted = Sorted::default();
        let mut note = |dir: &str, names: &[(&str, ChangeKind)]| {
            for (name, kind) in names {
                sorted.note(name.as_ref(), *kind);
            }
            sorted.end(dir.as_ref());
        };
        note(
            "",
            &[("a", ChangeKind::Deleted), ("c", ChangeKind::Added), ("c.d", ChangeKind::Modified)],
        );
        note("x/y/z", &[("1", ChangeKind::Added), ("3", ChangeKind::Deleted)]);
        note("c", &[("in", ChangeKind::Added)]);
        sorted.add("x/y/z/2".as_ref(), ChangeKind::Modified);
        sorted.add("x/y/z/3".as_ref(), ChangeKind::Modified);
        sorted.add("b/late".as_ref(), ChangeKind::Modified);
        sorted.add("a".as_ref(), ChangeKind::Modified);
        sorted.add_parents();
        let found: Vec<String> =
            sorted.into_iter().map(|(path, kind)| format!("{kind:?} {}", path.display())).collect();
        let expected = [
            "Deleted a",
            "Modified b",
            "Modified b/late",
            "Added c",
            "Added c/in",
            "Modified c.d",
            "Modified x",
            "Modified x/y",
            "Modified x/y/z",
            "Added x/y/z/1",
            "Modified x/y/z/2",
            "Deleted x/y/z/3",
        ];
        assert_eq!(found, expected);
    }
}
