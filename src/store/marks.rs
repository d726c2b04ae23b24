//! Which attributes of a layer's directories hide what lies below them, found by looking.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::sys::tree::{self, Kind};

/// Where such attributes are, as records name it.
const SPACES: [(&str, &str); 2] = [("trusted.overlay.", "trusted"), ("user.overlay.", "user")];

/// What they are called there.
const HIDING: [&str; 2] = ["opaque", "whiteout"];

/// The space of those in a tree. Who is not root of the host does not see `trusted`: in what is not his own, some may be there
/// where nothing is seen.
pub(super) fn seen(dir: &Path) -> Result<Option<&'static str>> {
    let root = tree::open_root(dir).on("open", dir)?;
    let stranger = !tree::has_initial_privilege()
        && tree::stat(&root, OsStr::new("")).on("stat", dir)?.uid != crate::sys::real_ids().0;
    if stranger {
        return Ok(Some("trusted"));
    }
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let at = tree::open_dir(&root, &path).on("open", dir.join(&path))?;
        let mut names = tree::list(&at).on("list", dir.join(&path))?;
        names.push("".into());
        for name in names {
            let inner = path.join(&name);
            let kind = tree::stat(&at, &name).on("stat", dir.join(&inner))?.kind;
            if kind == Kind::Dir && !name.is_empty() {
                // Its attributes are read with its names.
                todo.push(inner);
                continue;
            }
            if !matches!(kind, Kind::Dir | Kind::File) {
                continue;
            }
            for key in tree::xattr_names(&at, &name).on("list xattrs", dir.join(&inner))? {
                let key = key.to_string_lossy();
                let hides = |(prefix, _): &&(&str, &str)| {
                    key.strip_prefix(prefix).is_some_and(|rest| HIDING.contains(&rest))
                };
                if let Some((_, space)) = SPACES.iter().find(hides) {
                    return Ok(Some(space));
                }
            }
        }
    }
    Ok(None)
}
