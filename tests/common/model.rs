//! The definition of right: a filesystem made of maps.
//!
//! Review it like a specification. It knows nothing of layers once it is built: the tree that
//! [`Model::merge`] makes of a stack is the starting point, and from there an overlay has to behave
//! like any local filesystem. The merge rule is [`merge`]'s, the answers to operations [`apply`]'s.

mod apply;
mod merge;

use std::collections::BTreeMap;

pub use merge::merge;

use super::layer::{Item, Layer, What};
use super::ops::{Op, Said, Target, join};
use super::tree::{Meta, Node, Stamp, Tree, digest};

/// Names an object of a model for as long as the model lives.
pub type Id = usize;

/// The root directory.
pub const ROOT: Id = 0;

/// Who does the operations.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// Owner of what is made.
    pub uid: u32,
    /// Group of what is made.
    pub gid: u32,
    /// Bits that what is made does not get.
    pub umask: u32,
    /// Root of the host, not only of a user namespace: may make devices and set `trusted.` attributes.
    pub privileged: bool,
}

impl Who {
    /// This process.
    pub fn me() -> Who {
        // The overlay core sets it for the whole process anyway, since callers' umasks decide.
        rustix::process::umask(rustix::fs::Mode::empty());
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        let host = map.split_whitespace().eq(["0", "0", "4294967295"]);
        Who {
            privileged: host && rustix::process::geteuid().is_root(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: 0,
        }
    }

    /// Whether owners can be changed.
    pub fn root(self) -> bool {
        self.uid == 0
    }

    /// The namespace of an overlay's own attributes that he may write.
    pub fn space(self) -> &'static str {
        if self.privileged { "trusted" } else { "user" }
    }
}

/// What an object is.
#[derive(Clone, Debug)]
enum Body {
    Dir(BTreeMap<String, Id>),
    File(Vec<u8>),
    Link(String),
    /// Fifo or device; the letter of its kind.
    Special(char),
}

/// An object.
#[derive(Clone, Debug)]
struct Inode {
    body: Body,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: (u32, u32),
    nlink: u32,
    xattrs: BTreeMap<String, String>,
    mtime: Stamp,
    /// Made without a name, and may still get its first one.
    linkable: bool,
}

/// What is open in a slot.
#[derive(Clone, Copy, Debug)]
struct Held {
    id: Id,
    write: bool,
}

/// A filesystem made of maps.
#[derive(Clone, Debug)]
pub struct Model {
    who: Who,
    /// Objects are never forgotten, so that an id is never used twice.
    nodes: Vec<Inode>,
    held: BTreeMap<usize, Held>,
}

impl Model {
    /// The merged view of a stack, top first.
    pub fn merge(layers: &[Layer], who: Who) -> Model {
        merge(layers, who).model
    }

    /// All paths, the root's empty one first.
    pub fn paths(&self) -> Vec<(String, Id)> {
        let mut found = vec![(String::new(), ROOT)];
        let mut next = 0;
        while next < found.len() {
            let (path, id) = found[next].clone();
            next += 1;
            if let Body::Dir(names) = &self.nodes[id].body {
                found.extend(names.iter().map(|(name, id)| (join(&path, name), *id)));
            }
        }
        found.sort();
        found
    }

    /// The letter of the kind of what is at a path.
    pub fn kind_at(&self, path: &str) -> Option<char> {
        self.find(path).ok().map(|id| self.kind(id))
    }

    /// The object at a path.
    pub fn id_at(&self, path: &str) -> Option<Id> {
        self.find(path).ok()
    }

    /// The object open in a slot.
    pub fn id_held(&self, slot: usize) -> Option<Id> {
        self.held.get(&slot).map(|held| held.id)
    }

    /// How many names the object open in a slot has.
    pub fn nlink_held(&self, slot: usize) -> Option<u32> {
        self.id_held(slot).map(|id| self.nodes[id].nlink)
    }

    /// The same tree as a layer that could be written to a directory.
    pub fn to_layer(&self) -> Layer {
        let mut layer = Layer::default();
        let mut first: BTreeMap<Id, String> = BTreeMap::new();
        for (path, id) in self.paths() {
            let node = &self.nodes[id];
            let what = match &node.body {
                _ if first.contains_key(&id) => What::Same(first[&id].clone()),
                Body::Dir(_) => What::Dir { opaque: false },
                Body::File(bytes) => What::Plain(bytes.clone()),
                Body::Link(target) => What::Symlink(target.clone()),
                Body::Special(kind) => What::Special(*kind, node.rdev),
            };
            first.entry(id).or_insert_with(|| path.clone());
            let (mode, uid, gid, mtime) = (node.mode, node.uid, node.gid, node.mtime);
            layer
                .items
                .insert(path, Item { what, mode, uid, gid, mtime, xattrs: node.xattrs.clone() });
        }
        layer
    }

    fn kind(&self, id: Id) -> char {
        match &self.nodes[id].body {
            Body::Dir(_) => 'd',
            Body::File(_) => '-',
            Body::Link(_) => 'l',
            Body::Special(kind) => *kind,
        }
    }

    fn meta(&self, id: Id) -> Meta {
        let node = &self.nodes[id];
        let size = match &node.body {
            Body::File(bytes) => bytes.len(),
            Body::Link(target) => target.len(),
            _ => 0,
        };
        Meta {
            kind: self.kind(id),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size: size as u64,
            nlink: if self.kind(id) == 'd' { 0 } else { node.nlink },
            rdev: node.rdev,
            mtime: node.mtime,
        }
    }
}

impl Target for Model {
    fn apply(&mut self, op: &Op) -> Said {
        self.answer(op)
    }

    fn tree(&self) -> Result<Tree, String> {
        let mut tree = Tree::default();
        let mut same = super::tree::Groups::new();
        for (path, id) in self.paths() {
            let node = &self.nodes[id];
            let (digest, target) = match &node.body {
                Body::File(bytes) => (digest(bytes), String::new()),
                Body::Link(target) => (0, target.clone()),
                _ => (0, String::new()),
            };
            same.entry((0, id as u64)).or_default().push(path.clone());
            let shown = Node {
                meta: self.meta(id),
                digest,
                target,
                xattrs: node.xattrs.clone(),
                group: None,
            };
            tree.nodes.insert(path, shown);
        }
        tree.group(&same);
        Ok(tree)
    }

    fn close_all(&mut self) {
        self.held.clear();
    }
}
