//! Parts of an inode's state that few objects have. Each is one pointer, for there is a state of every known name.

use std::ffi::OsString;
use std::ops::Deref;
use std::sync::Arc;

use super::{LowerDir, State};

/// The lower directories that merge into one, top first; nothing for what is no directory.
#[derive(Clone, Debug, Default)]
pub struct Lowers(Option<Arc<Vec<Arc<LowerDir>>>>);

impl Lowers {
    /// Whether both are the same list, and not only equal.
    pub(crate) fn is(&self, other: &Lowers) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl From<Vec<Arc<LowerDir>>> for Lowers {
    fn from(mut dirs: Vec<Arc<LowerDir>>) -> Lowers {
        dirs.shrink_to_fit();
        Lowers((!dirs.is_empty()).then(|| Arc::new(dirs)))
    }
}

impl Deref for Lowers {
    type Target = [Arc<LowerDir>];

    fn deref(&self) -> &[Arc<LowerDir>] {
        self.0.as_ref().map_or(&[], |dirs| dirs)
    }
}

/// What hardly any object has.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    redirect: Option<OsString>,
    copy: Option<(u64, u64)>,
}

impl State {
    /// The redirect of the upper directory.
    pub fn redirect(&self) -> Option<&OsString> {
        self.rare.as_ref()?.redirect.as_ref()
    }

    /// Notes a redirect, or that there is none.
    pub fn set_redirect(&mut self, redirect: Option<OsString>) {
        if redirect.is_some() || self.rare.is_some() {
            self.rare.get_or_insert_default().redirect = redirect;
        }
    }

    /// Device and number of the upper object, once it was copied up.
    pub(super) fn copy(&self) -> Option<(u64, u64)> {
        self.rare.as_ref()?.copy
    }

    /// Notes them; returns those that it had.
    pub(super) fn set_copy(&mut self, copy: (u64, u64)) -> Option<(u64, u64)> {
        self.rare.get_or_insert_default().copy.replace(copy)
    }
}
