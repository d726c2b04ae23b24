//! Who has lost his last name. Several changes may concern one object at a time, each by another name, and each sees what all
//! of them did: one of them books it.

use std::collections::HashMap;

/// Device and inode number. It is nobody else's while the object is here: who changes its names has it open, and so has the inode
/// that keeps it.
pub(super) type Id = (u64, u64);

/// What is known of an object whose names change, or that has none.
#[derive(Debug, Default)]
struct Object {
    /// Changes under way.
    changes: u32,
    /// It has no name, and that was seen to.
    nameless: bool,
    /// It is booked until the kernel forgets it.
    kept: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Objects {
    all: HashMap<Id, Object>,
    /// The whiteout that gets further names, once it is booked.
    whiteout: Option<Id>,
}

impl Objects {
    /// A change of an object that has a name begins.
    pub(super) fn begin(&mut self, id: Id) {
        self.all.entry(id).or_default().changes += 1;
    }

    /// The change has ended, and the object is `nameless` or not. True when that is to be booked: it goes, or is `kept`.
    pub(super) fn end(&mut self, id: Id, nameless: bool, kept: bool) -> bool {
        let Some(object) = self.all.get_mut(&id) else { return false };
        object.changes = object.changes.saturating_sub(1);
        let first = nameless && !object.nameless;
        if first {
            (object.nameless, object.kept) = (true, kept);
        }
        if object.changes == 0 && !object.kept {
            self.all.remove(&id);
        }
        first
    }

    /// An object without a name stays booked until it is forgotten, unless it was seen to before.
    pub(super) fn keep(&mut self, id: Id) {
        let object = self.all.entry(id).or_default();
        if !object.nameless {
            (object.nameless, object.kept) = (true, true);
        }
    }

    /// An object that had no name has one now.
    pub(super) fn named(&mut self, id: Id) {
        self.forget(id);
        if let Some(object) = self.all.get_mut(&id) {
            object.nameless = false;
        }
    }

    /// Nobody keeps the object any more. Whether it was booked until now.
    pub(super) fn forget(&mut self, id: Id) -> bool {
        let Some(object) = self.all.get_mut(&id) else { return false };
        let kept = std::mem::take(&mut object.kept);
        if object.changes == 0 {
            self.all.remove(&id);
        }
        kept
    }

    /// Whether any object is kept.
    pub(super) fn keep_any(&self) -> bool {
        self.all.values().any(|object| object.kept)
    }

    /// Whether the whiteout that gets further names is one that nobody has booked; whoever asks does.
    pub(super) fn is_new_whiteout(&mut self, id: Id) -> bool {
        self.whiteout.replace(id) != Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = (1, 2);

    #[test]
    fn one_of_those_who_took_the_last_names_books_it() {
        let mut objects = Objects::default();
        objects.begin(ID);
        objects.begin(ID);
        assert!(objects.end(ID, true, false));
        assert!(!objects.end(ID, true, true), "booked already");
        assert!(objects.all.is_empty());
        assert!(!objects.forget(ID), "and so not again");
    }

    #[test]
    fn what_is_kept_goes_once_when_it_is_forgotten() {
        let mut objects = Objects::default();
        objects.begin(ID);
        objects.begin(ID);
        assert!(objects.end(ID, true, true));
        // Somebody who looked before the last name went.
        assert!(!objects.end(ID, false, false));
        assert!(objects.forget(ID));
        assert!(!objects.forget(ID));
        assert!(objects.all.is_empty());
    }

    #[test]
    fn what_has_a_name_again_is_not_kept() {
        let mut objects = Objects::default();
        objects.keep(ID);
        objects.named(ID);
        assert!(!objects.forget(ID));
        objects.begin(ID);
        assert!(!objects.end(ID, false, false));
        assert!(objects.all.is_empty());
    }

    #[test]
    fn a_shared_whiteout_is_booked_once() {
        let mut objects = Objects::default();
        assert!(objects.is_new_whiteout(ID) && !objects.is_new_whiteout(ID));
        assert!(objects.is_new_whiteout((1, 3)));
    }
}
