//! Where other readers of archives are known to make something else than plyfs, and why. Each rule is about names, so
//! that everything else in the same archive is still compared.

use std::collections::BTreeSet;

use super::generate::{Entry, Format};
use super::tree::Tree;

/// What the entries of an archive have to do with each other.
pub struct Known {
    /// Directories that the archive has.
    dirs: BTreeSet<Vec<u8>>,
    /// Names that something else than a directory has together with another entry, or above one, and what is reached
    /// through them: GNU tar often fails there, where the last entry is to win, and goes on.
    clashing: BTreeSet<Vec<u8>>,
    /// Links whose target goes up: GNU tar leaves out all before the last `..`, here it is a path.
    moved: BTreeSet<Vec<u8>>,
    /// A symlink is absolute or goes up. GNU tar makes an empty file for it and replaces that at the end, so meanwhile
    /// it leads nowhere; also where something else has taken its place.
    delayed: bool,
    /// Directories that come behind such a symlink in them, or in another spelling than in its name: GNU tar makes the
    /// symlink after it has set their times.
    touched: BTreeSet<Vec<u8>>,
    /// Directories that come again without the attributes that they had: GNU tar leaves those, here the last entry says
    /// what a directory has.
    stale: BTreeSet<Vec<u8>>,
    /// Names that get from GNU tar what another entry says: directories that are there in several spellings, by which it
    /// knows them, also as the way to something; `NAME/.`, for which it makes `NAME` before; and what takes the place of a directory, whose attributes
    /// are set at the end, of whatever is there or where that leads.
    vague: BTreeSet<Vec<u8>>,
    /// Names of plain files that end with a slash. The name says a directory, the type does not: refused here, a
    /// directory for GNU tar.
    slashes: Vec<Vec<u8>>,
    /// Targets of links, as the archive has them, that are there for GNU tar alone: of those that are `moved`, and of
    /// `NAME/.` to itself, for which it makes `NAME`.
    astray: Vec<Vec<u8>>,
    /// Files whose long name, cut off where the header ends, ends with a slash: where the type is the old one, Python
    /// (before gh-141707) takes the file for a directory and its data for headers.
    cut: BTreeSet<Vec<u8>>,
    /// No path is there twice, none leads through a symlink, links are to files that are there: Python is asked too.
    pub plain: bool,
}

impl Known {
    pub fn of(entries: &[Entry]) -> Known {
        let paths: Vec<_> = entries.iter().map(|entry| clean(&entry.name)).collect();
        let paths_of = |which: &dyn Fn(&Entry) -> bool| {
            let named = entries.iter().zip(&paths).filter(|(entry, _)| which(entry));
            named.map(|(_, path)| path.clone()).collect::<BTreeSet<_>>()
        };
        let is_hard = |entry: &&Entry| entry.kind == b'1';
        let moved = |entry: &Entry| entry.kind == b'1' && goes_up(&entry.link);
        let mut known = Known {
            dirs: paths_of(&is_dir),
            clashing: clashing(entries, &paths),
            moved: paths_of(&moved),
            delayed: entries.iter().any(delayed),
            touched: BTreeSet::new(),
            stale: BTreeSet::new(),
            vague: BTreeSet::new(),
            slashes: entries.iter().filter(|entry| is_slashed(entry)).map(name).collect(),
            astray: entries
                .iter()
                .filter(is_hard)
                .filter(|entry| moved(entry) || is_dot(entry))
                .map(|entry| entry.link.clone())
                .collect(),
            cut: paths_of(&|entry| is_file(entry) && cut_at_slash(entry)),
            plain: false,
        };
        known.dress(entries, &paths);
        known.follow(entries, &paths);
        known.plain = known.clashing.is_empty() && is_plain(entries, &paths);
        known
    }

    /// Notes where attributes come from another entry.
    fn dress(&mut self, entries: &[Entry], paths: &[Vec<u8>]) {
        let each = || entries.iter().zip(paths);
        for (at, (entry, path)) in each().enumerate() {
            let earlier: Vec<&Entry> =
                each().take(at).filter(|(_, name)| *name == path).map(|(old, _)| old).collect();
            let within = |(index, (link, name)): (usize, (&Entry, &Vec<u8>))| {
                delayed(link)
                    && parent(name) == path
                    && (index < at || parent(spelt(link)) != spelt(entry))
            };
            if is_dir(entry) && each().enumerate().any(within) {
                self.touched.insert(path.clone());
            }
            let otherwise = |(old, name): (&Entry, &Vec<u8>)| {
                below(name, path) && !below(spelt(old), spelt(entry))
            };
            let vague = match is_dir(entry) {
                true => is_dot(entry) || each().take(at).any(otherwise),
                false => earlier.iter().any(|old| is_dir(old)),
            };
            if vague {
                self.vague.insert(path.clone());
            }
            let had = earlier.iter().any(|old| !old.xattrs.is_empty());
            match is_dir(entry) && entry.xattrs.is_empty() && had {
                true => drop(self.stale.insert(path.clone())),
                false => drop(self.stale.remove(path)),
            }
        }
        // What is set at the end goes through symlinks.
        loop {
            let links =
                each().filter(|(entry, path)| entry.kind == b'2' && self.vague.contains(*path));
            let ends: Vec<_> = links.filter_map(|(entry, path)| way(entry, path).pop()).collect();
            let before = self.vague.len();
            self.vague.extend(ends);
            if self.vague.len() == before {
                return;
            }
        }
    }

    /// Adds what clashing names lead to: where symlinks go to, and links.
    fn follow(&mut self, entries: &[Entry], paths: &[Vec<u8>]) {
        let is_link = |path: &Vec<u8>| {
            entries.iter().zip(paths).any(|(entry, name)| entry.kind == b'2' && name == path)
        };
        loop {
            let before = (self.clashing.len(), self.moved.len());
            for (entry, path) in entries.iter().zip(paths) {
                let way = way(entry, path);
                let target = &way[way.len() - 1];
                match entry.kind {
                    b'2' if covers(&self.clashing, path) => {
                        self.clashing.extend(way.iter().filter_map(|on| beyond(on, paths)));
                        self.clashing.insert(target.clone());
                        // It goes on through a symlink; what is above where that leads, nobody knows here.
                        let linked = |on: &Vec<u8>| {
                            paths.iter().find(|path| is_link(path) && below(on, path))
                        };
                        self.clashing.extend(linked(target).cloned());
                        if way[..way.len() - 1].iter().any(|on| linked(on).is_some()) {
                            self.clashing.insert(Vec::new());
                        }
                    }
                    // A symlink leads elsewhere by a name in another directory, nobody follows where to.
                    b'1' if covers(&self.clashing, target) && is_link(target) => {
                        self.clashing.insert(Vec::new());
                    }
                    b'1' if covers(&self.clashing, target) || covers(&self.clashing, path) => {
                        self.clashing.extend([path.clone(), target.clone()]);
                    }
                    b'1' if covers(&self.moved, target) => {
                        self.moved.insert(path.clone());
                    }
                    _ => {}
                }
            }
            if before == (self.clashing.len(), self.moved.len()) {
                return;
            }
        }
    }

    /// Whether it is known why plyfs refuses what GNU tar does not.
    pub fn refused(&self, why: &str) -> bool {
        let about =
            |name: &[u8], what: &str| why.contains(&format!("'{}': {what}", name.escape_ascii()));
        let missing = |link: &[u8]| {
            why.contains(&format!("is a link to '{}', which is missing", link.escape_ascii()))
        };
        self.slashes.iter().any(|name| {
            about(name, "is a file whose name ends with a slash")
                || about(name, "has holes and is no file")
        }) || self.astray.iter().any(|link| missing(link))
            // It replaces the file by a directory, or leaves the entry out with a warning.
            || (!self.clashing.is_empty() && why.contains("is no directory"))
    }

    /// Whether it is known that GNU tar fails at some names. It goes on behind them, so the others are compared.
    pub fn fails(&self) -> bool {
        !self.clashing.is_empty() || !self.moved.is_empty()
    }

    /// The trees as far as ours and GNU tar's have to be the same.
    pub fn gnu(&self, mut ours: Tree, mut theirs: Tree, failed: bool) -> (Tree, Tree) {
        let clashes = failed || self.delayed;
        for tree in [&mut ours, &mut theirs] {
            // All names of an object have the same.
            let firsts: BTreeSet<_> =
                self.vague.iter().filter_map(|path| tree.0.get(path)?.first.clone()).collect();
            for (path, node) in &mut tree.0 {
                let linked = node.first.as_ref().is_some_and(|first| firsts.contains(first));
                if linked || self.vague.contains(path) {
                    (node.mode, node.owner, node.mtime) = (0, (0, 0), (0, 0));
                    node.xattrs.clear();
                }
            }
            tree.without(&|path| {
                covers(&self.moved, path) || clashes && covers(&self.clashing, path)
            });
            self.leave_out(tree);
            for path in &self.touched {
                if let Some(node) = tree.0.get_mut(path) {
                    node.mtime = (0, 0);
                }
            }
        }
        for path in &self.stale {
            if let Some(node) = theirs.0.get_mut(path) {
                node.xattrs.clear();
            }
        }
        (ours, theirs)
    }

    /// The same for Python's; nothing where it lost its way.
    pub fn python(&self, mut ours: Tree, mut theirs: Tree) -> Option<(Tree, Tree)> {
        if self.cut.iter().any(|path| theirs.0.get(path).is_some_and(|node| node.kind == 'd')) {
            return None;
        }
        for tree in [&mut ours, &mut theirs] {
            self.leave_out(tree);
            for node in tree.0.values_mut() {
                // It sets no times of symlinks, no attributes, and times as floating point numbers.
                node.mtime = match node.kind {
                    'l' => (0, 0),
                    _ => ((node.mtime.0 * 1000 + node.mtime.1 / 1_000_000 + 1) >> 2, 0),
                };
                node.xattrs.clear();
                // It gives a file what the entry of a further link to it says.
                if node.first.is_some() {
                    (node.mode, node.owner, node.mtime) = (0, (0, 0), (0, 0));
                }
            }
        }
        Some((ours, theirs))
    }

    /// Leaves out what the archive does not say.
    fn leave_out(&self, tree: &mut Tree) {
        tree.0.remove(&b""[..]);
        for (path, node) in &mut tree.0 {
            if node.kind == 'd' && !self.dirs.contains(path) {
                (node.mode, node.mtime) = (0, (0, 0));
            }
            node.xattrs.retain(|key, _| key.starts_with(b"user."));
        }
    }
}

fn name(entry: &Entry) -> Vec<u8> {
    entry.name.clone()
}

fn is_file(entry: &Entry) -> bool {
    matches!(entry.kind, b'0' | b'7' | b'S')
}

fn is_slashed(entry: &Entry) -> bool {
    is_file(entry) && entry.name.ends_with(b"/")
}

/// Also a plain file of the old format whose name ends with a slash.
fn is_dir(entry: &Entry) -> bool {
    entry.kind == b'5' || is_slashed(entry)
}

/// Whether no path is there twice and links are to files before them, as Python wants it; it takes absolute names and
/// those that end with a slash as they are.
fn is_plain(entries: &[Entry], paths: &[Vec<u8>]) -> bool {
    let once = paths.iter().collect::<BTreeSet<_>>().len() == paths.len();
    let linked = |(at, entry): (usize, &Entry)| {
        let mut before = entries.iter().zip(paths).take(at);
        let target = clean(&entry.link);
        entry.kind != b'1' || before.any(|(other, path)| is_file(other) && *path == target)
    };
    once && entries.iter().all(|entry| entry.kind == b'5' || !entry.name.ends_with(b"/"))
        && entries.iter().all(|entry| !entry.name.starts_with(b"/"))
        && entries.iter().enumerate().all(linked)
        && !paths.iter().any(Vec::is_empty)
}

/// Names where the type of one entry is at odds with another entry.
fn clashing(entries: &[Entry], paths: &[Vec<u8>]) -> BTreeSet<Vec<u8>> {
    let links: Vec<_> =
        entries.iter().filter(|entry| entry.kind == b'1').map(|entry| clean(&entry.link)).collect();
    let mut found = BTreeSet::new();
    for (at, (entry, path)) in entries.iter().zip(paths).enumerate() {
        let other = |index: usize| index != at;
        let beside = paths.iter().enumerate().any(|(index, name)| other(index) && name == path);
        let mut others = paths.iter().chain(&links);
        let above = others.any(|name| name != path && below(name, path));
        // GNU tar makes the directory of the name `NAME/.` before anything else of that name.
        if !is_dir(entry) && (beside || above || is_dot(entry) || path.is_empty()) {
            found.insert(path.clone());
        }
    }
    found
}

/// Whether the name is `NAME/.`.
fn is_dot(entry: &Entry) -> bool {
    parts(&entry.name).last() == Some(&&b"."[..])
}

/// How GNU tar knows a directory again.
fn spelt(entry: &Entry) -> &[u8] {
    let mut name = &entry.name[..];
    while let [b'/', rest @ ..] | [rest @ .., b'/'] = name {
        name = rest;
    }
    name
}

/// A symlink that GNU tar makes late.
fn delayed(entry: &Entry) -> bool {
    entry.kind == b'2' && (entry.link.starts_with(b"/") || goes_up(&entry.link))
}

fn goes_up(path: &[u8]) -> bool {
    parts(path).contains(&&b".."[..])
}

/// Whether the header has the start of the name only, up to a slash.
fn cut_at_slash(entry: &Entry) -> bool {
    matches!(entry.format, Format::Gnu | Format::Pax)
        && entry.name.len() > 100
        && entry.name[99] == b'/'
}

/// Where a link leads as text says, the end last: also what it passes before it goes up, which is made.
fn way(entry: &Entry, path: &[u8]) -> Vec<Vec<u8>> {
    let relative = entry.kind == b'2' && !entry.link.starts_with(b"/");
    let mut names = if relative { parts(parent(path)) } else { Vec::new() };
    let mut way = Vec::new();
    for part in parts(&entry.link) {
        match part {
            b"." => {}
            b".." => {
                way.push(names.join(&b'/'));
                names.pop();
            }
            _ => names.push(part),
        }
    }
    way.push(names.join(&b'/'));
    way
}

/// The first name on the way to `target` that nothing in the archive has.
fn beyond(target: &[u8], paths: &[Vec<u8>]) -> Option<Vec<u8>> {
    let ends = (0..target.len()).filter(|&at| target[at] == b'/').chain([target.len()]);
    let mut ways = ends.map(|end| target[..end].to_vec());
    ways.find(|way| !paths.iter().any(|path| below(path, way)))
}

/// Whether a path is another one, or below it.
fn below(path: &[u8], above: &[u8]) -> bool {
    above.is_empty()
        || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn covers(names: &BTreeSet<Vec<u8>>, path: &[u8]) -> bool {
    names.iter().any(|name| below(path, name))
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'/').map_or(b"", |at| &path[..at])
}

fn parts(path: &[u8]) -> Vec<&[u8]> {
    path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect()
}

fn clean(name: &[u8]) -> Vec<u8> {
    let parts = parts(name).into_iter().filter(|part| *part != b".");
    parts.collect::<Vec<_>>().join(&b'/')
}
