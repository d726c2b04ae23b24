//! What an upper directory adds, changes and deletes.
//!
//! With the lower directories every line is exact: the view with the upper is compared with the view
//! without it, wherever the two can differ. Without them the upper's own marks decide: an object
//! with an origin, or a directory that is neither opaque nor moved nor inside an added one, changes
//! something; everything else is added. A directory with a change inside is a change. The root never
//! shows, nor what an overlay keeps for itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::marks::Belief;
use super::stack::{Found, Place, Stack};
use crate::error::Result;
use crate::sys::tree::Kind;

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It was there, and is something else now or has changes inside.
    Modified,
    /// It is gone.
    Deleted,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How.
    pub kind: ChangeKind,
    /// Absolute, from the root of the view.
    pub path: PathBuf,
}

/// Lists the changes, sorted by path, a directory before its content. Without `lowers` what is added
/// and what is changed is told from the upper directory alone.
pub fn list(upper: &Path, lowers: &[PathBuf]) -> Result<Vec<Change>> {
    list_believing(upper, lowers, Belief::ALL)
}

/// The same of a layer of which it is known whose word can be taken.
pub fn list_believing(upper: &Path, lowers: &[PathBuf], belief: Belief) -> Result<Vec<Change>> {
    let stack = Stack::open(upper, lowers, belief)?;
    let moved = stack.is_opaque();
    let root = Dir {
        path: PathBuf::from("/"),
        merged: stack.root(0),
        base: stack.root(1),
        moved,
        added: false,
        redirected: false,
    };
    let mut walk = Walk { stack, todo: vec![root], changes: Vec::new() };
    while let Some(dir) = walk.todo.pop() {
        walk.visit(&dir)?;
    }
    walk.changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.changes)
}

/// A directory of the view.
struct Dir {
    path: PathBuf,
    /// What makes it up with the upper directory.
    merged: Vec<Place>,
    /// What makes up the directory of that path without it.
    base: Vec<Place>,
    /// `merged` is not just the upper part and then `base`, so any name below can differ.
    moved: bool,
    /// Without lowers: nothing of this path was there before.
    added: bool,
    /// Without lowers: a deletion below is one in the place it was moved from.
    redirected: bool,
}

struct Walk {
    stack: Stack,
    todo: Vec<Dir>,
    changes: Vec<Change>,
}

impl Walk {
    fn visit(&mut self, dir: &Dir) -> Result<()> {
        let names = self.names(dir)?;
        let merged = self.stack.look_up(&dir.merged, names.clone())?;
        let base = self.stack.look_up(&dir.base, names.clone())?;
        for ((name, merged), base) in names.into_iter().zip(merged).zip(base) {
            let path = dir.path.join(name);
            if let Some(kind) = self.kind(dir, merged.as_ref(), base.as_ref()) {
                self.changes.push(Change { kind, path: path.clone() });
            }
            if let Some(merged) = merged.filter(|merged| merged.stat.kind == Kind::Dir) {
                self.todo.push(descend(dir, path, merged, base));
            }
        }
        Ok(())
    }

    /// The names that can differ.
    fn names(&self, dir: &Dir) -> Result<Vec<OsString>> {
        let lower = if dir.moved { dir.base.as_slice() } else { &[] };
        let mut names = BTreeSet::new();
        for place in dir.merged.iter().filter(|place| dir.moved || place.layer == 0).chain(lower) {
            names.append(&mut self.stack.names(place)?);
        }
        Ok(names.into_iter().collect())
    }

    fn kind(&self, dir: &Dir, merged: Option<&Found>, base: Option<&Found>) -> Option<ChangeKind> {
        match (merged, base) {
            (None, None) if self.stack.lowers() == 0 && !dir.redirected => {
                Some(ChangeKind::Deleted)
            }
            (None, None) => None,
            (Some(_), Some(_)) => Some(ChangeKind::Modified),
            (None, Some(_)) => Some(ChangeKind::Deleted),
            (Some(found), None) if self.stack.lowers() == 0 => Some(told_by_marks(dir, found)),
            (Some(_), None) => Some(ChangeKind::Added),
        }
    }
}

/// Whether an object seems to be new, without a look at the lowers.
fn told_by_marks(dir: &Dir, found: &Found) -> ChangeKind {
    let marks = &found.marks;
    let replaces = match found.stat.kind {
        _ if dir.added || marks.redirect.is_some() => false,
        Kind::Dir => !found.opaque,
        _ => marks.origin || marks.metacopy,
    };
    if replaces { ChangeKind::Modified } else { ChangeKind::Added }
}

fn descend(dir: &Dir, path: PathBuf, merged: Found, base: Option<Found>) -> Dir {
    let redirected = merged.marks.redirect.is_some();
    Dir {
        path,
        moved: dir.moved || redirected || merged.opaque,
        added: dir.added || told_by_marks(dir, &merged) == ChangeKind::Added,
        redirected: dir.redirected || redirected,
        merged: merged.dirs,
        base: base.map(|base| base.dirs).unwrap_or_default(),
    }
}

impl ChangeKind {
    /// The letter that stands for it: `A`, `C` or `D`.
    pub fn letter(self) -> &'static str {
        match self {
            ChangeKind::Added => "A",
            ChangeKind::Modified => "C",
            ChangeKind::Deleted => "D",
        }
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.letter())
    }
}

/// One line: the letter and the path, with backslashes, control characters and bytes that are not
/// text escaped as `ls -b` does.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        for chunk in self.path.as_os_str().as_bytes().utf8_chunks() {
            for c in chunk.valid().chars() {
                escape(f, c)?;
            }
            octal(f, chunk.invalid())?;
        }
        Ok(())
    }
}

fn escape(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '\\' => f.write_str("\\\\"),
        '\x07' => f.write_str("\\a"),
        '\x08' => f.write_str("\\b"),
        '\t' => f.write_str("\\t"),
        '\n' => f.write_str("\\n"),
        '\x0b' => f.write_str("\\v"),
        '\x0c' => f.write_str("\\f"),
        '\r' => f.write_str("\\r"),
        c if c.is_control() => octal(f, c.encode_utf8(&mut [0; 4]).as_bytes()),
        c => f.write_char(c),
    }
}

fn octal(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\{byte:03o}"))
}

/// `kind` is the letter, `path` the path as text; `path_bytes`, in hexadecimal, is there only when
/// the path is not UTF-8, and then is the true one.
impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let exact = self.path.to_str().is_none();
        let mut fields = serializer.serialize_struct("Change", 2 + usize::from(exact))?;
        fields.serialize_field("kind", self.kind.letter())?;
        fields.serialize_field("path", &self.path.to_string_lossy())?;
        if exact {
            let bytes = self.path.as_os_str().as_bytes();
            let hex = bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
            fields.serialize_field("path_bytes", &hex)?;
        }
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn change(bytes: &[u8]) -> Change {
        Change { kind: ChangeKind::Added, path: OsString::from_vec(bytes.to_vec()).into() }
    }

    #[test]
    fn lines_hold_one_path_each() {
        for (path, line) in [
            (&b"/etc/new"[..], "A /etc/new"),
            (b"/a b", "A /a b"),
            (b"/a\nD /b", "A /a\\nD /b"),
            (b"/\x1b[31m\\", "A /\\033[31m\\\\"),
            (b"/\xff\xc3\xa9", "A /\\377\u{e9}"),
            (b"/\xc2\x9b", "A /\\302\\233"),
        ] {
            assert_eq!(change(path).to_string(), line);
        }
    }

    #[test]
    fn json_keeps_every_byte() {
        let json = |bytes| serde_json::to_string(&change(bytes)).unwrap();
        assert_eq!(json(b"/a"), r#"{"kind":"A","path":"/a"}"#);
        assert_eq!(
            json(b"/a\xff"),
            "{\"kind\":\"A\",\"path\":\"/a\u{fffd}\",\"path_bytes\":\"2f61ff\"}"
        );
    }
}
