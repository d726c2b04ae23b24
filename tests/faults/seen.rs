//! What somebody sees of a tree, and whether that is the old one or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write;

/// What somebody sees: path -> (inode number, everything else).
pub type Seen = BTreeMap<String, (u64, String)>;

/// What a scene does when nothing stops it.
pub struct Script {
    /// The tree before.
    pub old: Seen,
    /// The tree afterwards.
    pub new: Seen,
    /// Path afterwards -> path before, of one object.
    pub kept: BTreeMap<String, String>,
    /// Names in the hard-link index afterwards.
    pub index: BTreeSet<OsString>,
}

impl Script {
    /// Whether the new tree is there; an error when it is neither, or not the one it must be.
    pub fn which(&self, found: &Seen, before: &Seen, must: Option<bool>) -> Result<bool, String> {
        let new = self.is_new(found, before);
        let old = self.is_old(found, before);
        match (new, old, must) {
            (Ok(()), _, None | Some(true)) => Ok(true),
            (_, Ok(()), None | Some(false)) => Ok(false),
            (Err(new), Ok(()), _) => Err(format!("it is not done:\n{new}")),
            (Ok(()), Err(old), _) => Err(format!("it is done:\n{old}")),
            (Err(new), Err(old), _) => Err(format!("neither new:\n{new}  nor old:\n{old}")),
        }
    }

    /// Without link counts.
    pub fn uncounted(&self) -> Script {
        let (old, new) = (uncounted(&self.old), uncounted(&self.new));
        Script { old, new, kept: self.kept.clone(), index: self.index.clone() }
    }

    fn is_old(&self, found: &Seen, before: &Seen) -> Result<(), String> {
        same(found, before)?;
        renumbered(found, |path| before.get(path))
    }

    pub fn is_new(&self, found: &Seen, before: &Seen) -> Result<(), String> {
        same(found, &self.new)?;
        renumbered(found, |path| before.get(self.kept.get(path)?))
    }
}

/// Without link counts.
pub fn uncounted(seen: &Seen) -> Seen {
    let strip = |text: &str| {
        let (start, rest) = text.split_once(" nlink ")?;
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        Some(format!("{start}{rest}"))
    };
    let strip = |text: &String| strip(text).unwrap_or_else(|| text.clone());
    seen.iter().map(|(path, (ino, text))| (path.clone(), (*ino, strip(text)))).collect()
}

/// An error tells every path that differs.
pub fn same(found: &Seen, expected: &Seen) -> Result<(), String> {
    let mut text = String::new();
    let paths: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    for path in paths {
        let (a, b) = (found.get(path).map(|n| &n.1), expected.get(path).map(|n| &n.1));
        if a != b {
            let absent = "(absent)".to_owned();
            let _ = writeln!(text, "    '{path}'\n      found    {}", a.unwrap_or(&absent));
            let _ = writeln!(text, "      expected {}", b.unwrap_or(&absent));
        }
    }
    if text.is_empty() { Ok(()) } else { Err(text) }
}

fn renumbered<'a>(
    found: &Seen,
    was: impl Fn(&str) -> Option<&'a (u64, String)>,
) -> Result<(), String> {
    let mut text = String::new();
    for (path, (ino, _)) in found {
        if let Some((before, _)) = was(path).filter(|(before, _)| before != ino) {
            let _ = writeln!(text, "    '{path}' had number {before}, has {ino}");
        }
    }
    if text.is_empty() { Ok(()) } else { Err(text) }
}
