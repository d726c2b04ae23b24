//! A directory as data.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `d`, `-`, `l`, `c`, `b`, `p` or `s`.
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub device: u64,
    pub size: u64,
    pub mtime: (i64, i64),
    /// Hash of the data of a file.
    pub data: u64,
    pub target: Vec<u8>,
    /// The first path of the same object, for what has several names.
    pub first: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Objects by path; the root is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<Vec<u8>, Node>);

impl Tree {
    /// Reads a directory, without what `skip` says.
    pub fn read(root: &Path, skip: &dyn Fn(&[u8]) -> bool) -> Tree {
        let (mut tree, mut todo, mut names) = (Tree::default(), vec![Vec::new()], HashMap::new());
        while let Some(path) = todo.pop() {
            let at = root.join(OsStr::from_bytes(&path));
            let mut node = Node::read(&at);
            let found = fs::symlink_metadata(&at).expect("there");
            if node.kind == 'd' {
                let mut below: Vec<Vec<u8>> = fs::read_dir(&at)
                    .expect("listed")
                    .map(|entry| entry.expect("listed").file_name().into_vec())
                    .map(
                        |name| {
                            if path.is_empty() { name } else { [&path[..], b"/", &name].concat() }
                        },
                    )
                    .filter(|path| !skip(path))
                    .collect();
                // The first of them is the next.
                below.sort_by(|a, b| b.cmp(a));
                todo.append(&mut below);
            } else if found.nlink() > 1 {
                let first = names.entry((found.dev(), found.ino())).or_insert_with(|| path.clone());
                node.first = Some(first.clone());
            }
            tree.0.insert(path, node);
        }
        tree
    }

    /// Leaves out paths; what has no second name left is as if it never had one.
    pub fn without(&mut self, skip: &dyn Fn(&[u8]) -> bool) {
        self.0.retain(|path, _| !skip(path));
        let mut groups: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for (path, node) in &self.0 {
            if let Some(first) = &node.first {
                groups.entry(first.clone()).or_default().push(path.clone());
            }
        }
        for paths in groups.values() {
            let first = (paths.len() > 1).then(|| paths[0].clone());
            for path in paths {
                if let Some(node) = self.0.get_mut(path) {
                    node.first.clone_from(&first);
                }
            }
        }
    }

    /// How another tree differs, as lines.
    pub fn differences(&self, other: &Tree) -> String {
        let mut lines = Vec::new();
        for path in self.0.keys().chain(other.0.keys().filter(|path| !self.0.contains_key(*path))) {
            let (one, two) = (self.0.get(path), other.0.get(path));
            if one != two {
                lines.push(format!("{}\n  {one:?}\n  {two:?}", path.escape_ascii()));
            }
        }
        lines.join("\n")
    }
}

impl Node {
    fn read(at: &Path) -> Node {
        let found = fs::symlink_metadata(at).expect("there");
        let kind = found.file_type();
        let kind = if kind.is_dir() {
            'd'
        } else if kind.is_symlink() {
            'l'
        } else if kind.is_char_device() {
            'c'
        } else if kind.is_block_device() {
            'b'
        } else if kind.is_fifo() {
            'p'
        } else if kind.is_socket() {
            's'
        } else {
            '-'
        };
        let mut hasher = DefaultHasher::new();
        if kind == '-' {
            fs::read(at).expect("read").hash(&mut hasher);
        }
        Node {
            kind,
            mode: found.mode() & 0o7777,
            owner: (found.uid(), found.gid()),
            device: found.rdev(),
            size: if kind == 'd' { 0 } else { found.size() },
            mtime: (found.mtime(), found.mtime_nsec()),
            data: hasher.finish(),
            target: if kind == 'l' {
                fs::read_link(at).expect("read").into_os_string().into_vec()
            } else {
                Vec::new()
            },
            first: None,
            xattrs: xattrs(at),
        }
    }

    /// Whether it is a whiteout of an overlay.
    pub fn is_whiteout(&self) -> bool {
        self.kind == 'c' && self.device == 0
    }
}

fn xattrs(at: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(at, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    // What nobody can read is as if it were not there.
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(at, OsStr::from_bytes(name), &mut value[..]).ok()?;
        value.truncate(length);
        Some(value)
    };
    names.filter_map(|name| Some((name.to_vec(), value(name)?))).collect()
}
