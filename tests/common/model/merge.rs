//! The merge rule, from the definition: a name is what the topmost layer says it is; a whiteout says
//! it is nothing; directories with nothing between them merge, and an opaque one ends the merge.

use std::collections::{BTreeMap, BTreeSet};

use super::super::layer::{Layer, What};
use super::super::ops::join;
use super::{Body, Id, Inode, Model, ROOT, Who};

/// Merges a stack, top first. The root is a directory in every layer.
pub fn merge(layers: &[Layer], who: Who) -> Merge<'_> {
    let model = Model { who, nodes: Vec::new(), held: BTreeMap::new() };
    let mut merge =
        Merge { layers, model, ids: BTreeMap::new(), shown: BTreeSet::new(), stray: Vec::new() };
    let stack = merge.cut((0..layers.len()).collect(), "");
    let root = merge.directory(stack, "");
    assert_eq!(root, ROOT);
    merge
}

/// A merged stack.
pub struct Merge<'a> {
    layers: &'a [Layer],
    /// The merged view.
    pub model: Model,
    /// Objects by layer and first path, so that hard links stay one object.
    ids: BTreeMap<(usize, String), Id>,
    /// Paths, other than directories', that show in the view, with their layer's index.
    pub shown: BTreeSet<(usize, String)>,
    /// Whiteouts in directories that nothing lies below.
    pub stray: Vec<(usize, String)>,
}

impl Merge<'_> {
    /// Ends a list of layers that have `path` as a directory after the first opaque one.
    fn cut(&self, mut stack: Vec<usize>, path: &str) -> Vec<usize> {
        let opaque =
            |l: &usize| matches!(self.layers[*l].items[path].what, What::Dir { opaque: true });
        if let Some(end) = stack.iter().position(opaque) {
            stack.truncate(end + 1);
        }
        stack
    }

    /// A directory merged from the layers of `stack`; its attributes are the topmost one's.
    fn directory(&mut self, stack: Vec<usize>, path: &str) -> Id {
        let id = self.inode(stack[0], path, Body::Dir(BTreeMap::new()));
        self.model.nodes[id].nlink = 1;
        let names: BTreeSet<String> =
            stack.iter().flat_map(|l| self.layers[*l].names(path)).collect();
        if let [layer] = stack[..] {
            let items = &self.layers[layer].items;
            let paths = names
                .iter()
                .map(|name| join(path, name))
                .filter(|p| items[p].what == What::Whiteout);
            self.stray.extend(paths.map(|path| (layer, path)));
        }
        for name in names {
            if let Some(child) = self.name(&stack, &join(path, &name)) {
                let Body::Dir(names) = &mut self.model.nodes[id].body else { unreachable!() };
                names.insert(name, child);
            }
        }
        id
    }

    /// What a path stands for, seen through the layers of its parent.
    fn name(&mut self, stack: &[usize], path: &str) -> Option<Id> {
        let mut dirs = Vec::new();
        for layer in stack {
            match self.layers[*layer].items.get(path).map(|item| &item.what) {
                None => {}
                Some(What::Dir { .. }) => dirs.push(*layer),
                Some(_) if !dirs.is_empty() => break,
                Some(What::Whiteout) => return None,
                Some(_) => return Some(self.object(*layer, path)),
            }
        }
        if dirs.is_empty() {
            return None;
        }
        let dirs = self.cut(dirs, path);
        Some(self.directory(dirs, path))
    }

    /// Anything but a directory.
    fn object(&mut self, layer: usize, path: &str) -> Id {
        let first = match &self.layers[layer].items[path].what {
            What::Same(first) => first.clone(),
            _ => path.to_owned(),
        };
        let id = match self.ids.get(&(layer, first.clone())) {
            Some(id) => *id,
            None => {
                let body = match &self.layers[layer].items[&first].what {
                    What::Plain(bytes) => Body::File(bytes.clone()),
                    What::Sparse(sparse) => Body::File(sparse.bytes()),
                    What::Symlink(target) => Body::Link(target.clone()),
                    What::Special(kind, _) => Body::Special(*kind),
                    other => unreachable!("{other:?} is not an object"),
                };
                self.inode(layer, &first, body)
            }
        };
        self.model.nodes[id].nlink += 1;
        self.shown.insert((layer, path.to_owned()));
        self.ids.insert((layer, first), id);
        id
    }

    fn inode(&mut self, layer: usize, path: &str, body: Body) -> Id {
        let item = &self.layers[layer].items[path];
        let rdev = if let What::Special(_, rdev) = &item.what { *rdev } else { (0, 0) };
        let (mode, uid, gid, xattrs, mtime) =
            (item.mode, item.uid, item.gid, item.xattrs.clone(), item.mtime);
        self.model.nodes.push(Inode {
            body,
            mode,
            uid,
            gid,
            rdev,
            nlink: 0,
            xattrs,
            mtime,
            linkable: false,
        });
        self.model.nodes.len() - 1
    }
}
