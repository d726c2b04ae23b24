//! The tree of an overlay core, read with every cross-check that costs nothing: listings against
//! lookups, lookups against attributes, sizes against contents.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use plyfs_fuse::attr::Attr;
use plyfs_fuse::inode::Ino;

use super::super::ops::join;
use super::super::tree::{Groups, Meta, Node, Stamp, Tree, digest, kind_letter};
use super::Core;

/// An entry of a listing: name, type, number.
type Listed = (String, u32, Ino);

impl Core {
    /// Sorted entries without dots, checked: both dots once, with the right numbers.
    pub(super) fn list(&self, dir: Ino, parent: Ino) -> Result<Vec<Listed>, String> {
        let said = |e: plyfs_fuse::Error| e.to_string();
        let handle = self.fs.open_dir(dir).map_err(said)?;
        let listing = self.fs.read_dir(handle).map_err(said);
        self.fs.release_dir(handle);
        let mut names: Vec<_> = listing?
            .iter()
            .map(|e| (e.name.to_string_lossy().into_owned(), e.kind, e.ino))
            .collect();
        names.sort();
        for (dot, ino) in [(".", dir), ("..", parent)] {
            let found: Vec<_> = names.iter().filter(|e| e.0 == dot).map(|e| e.2).collect();
            if found != [ino] {
                return Err(format!("'{dot}' is listed as {found:?} instead of {ino:?}"));
            }
        }
        names.retain(|e| e.0 != "." && e.0 != "..");
        if names.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("a name is listed twice: {names:?}"));
        }
        Ok(names)
    }

    fn read_tree(
        &self,
        tree: &mut Tree,
        same: &mut Groups,
        (path, attr, above): (&str, &Attr, Ino),
    ) -> Result<(), String> {
        let at = |what: &str, e: plyfs_fuse::Error| format!("{what} of '{path}': {e}");
        let mut node = Node {
            meta: meta(attr),
            digest: 0,
            target: String::new(),
            xattrs: BTreeMap::new(),
            group: None,
        };
        match node.meta.kind {
            '-' => {
                self.fs
                    .open_file(self.caller(), attr.ino, libc::O_RDONLY)
                    .map_err(|e| at("open", e))?;
                let bytes = self.read(attr.ino, 0, attr.size as usize + 1);
                self.fs.release(attr.ino);
                let bytes = bytes.map_err(|e| format!("read of '{path}': errno {e}"))?;
                if bytes.len() as u64 != attr.size {
                    return Err(format!(
                        "'{path}': size {} but {} bytes read",
                        attr.size,
                        bytes.len()
                    ));
                }
                node.digest = digest(&bytes);
            }
            'l' => {
                let target = self.fs.readlink(attr.ino).map_err(|e| at("readlink", e))?;
                node.target = target.to_string_lossy().into_owned();
            }
            _ => {}
        }
        let names = self.fs.listxattr(attr.ino).map_err(|e| at("listxattr", e))?;
        for name in names.split(|b| *b == 0).filter(|n| !n.is_empty() && *n != b"security.selinux")
        {
            let name = String::from_utf8_lossy(name).into_owned();
            let value = self.fs.getxattr(attr.ino, OsStr::new(&name)).map_err(|e| at(&name, e))?;
            node.xattrs.insert(name, value.escape_ascii().to_string());
        }
        let dir = node.meta.kind == 'd';
        if !dir {
            same.entry((0, attr.ino.0)).or_default().push(path.to_owned());
        }
        tree.nodes.insert(path.to_owned(), node);
        tree.inos.insert(path.to_owned(), attr.ino.0);
        for (name, kind, ino) in if dir { self.list(attr.ino, above)? } else { Vec::new() } {
            let full = join(path, &name);
            let child = self
                .lookup(attr.ino, &name)
                .map_err(|e| format!("'{full}' is listed, but lookup: errno {e}"))?;
            if child.attr.ino != ino || child.attr.mode & libc::S_IFMT != kind {
                return Err(format!(
                    "'{full}' is listed as {ino:?} type {kind:o}, lookup gives {:?}",
                    child.attr
                ));
            }
            let again = self.fs.getattr(ino).map_err(|e| at("getattr", e))?;
            if meta(&again) != meta(&child.attr) {
                return Err(format!("'{full}': lookup gives {:?}, getattr {again:?}", child.attr));
            }
            self.read_tree(tree, same, (&full, &child.attr, attr.ino))?;
        }
        Ok(())
    }
}

impl Tree {
    /// The tree of an overlay core.
    pub fn of(core: &Core) -> Result<Tree, String> {
        let (mut tree, mut same) = (Tree::default(), Groups::new());
        let root = core.fs.getattr(Ino::ROOT).map_err(|e| e.to_string())?;
        core.read_tree(&mut tree, &mut same, ("", &root, Ino::ROOT))?;
        tree.group(&same);
        Ok(tree)
    }
}

pub(super) fn meta(attr: &Attr) -> Meta {
    let kind = kind_letter(attr.mode);
    let dir = kind == 'd';
    Meta {
        kind,
        mode: attr.mode & 0o7777,
        uid: attr.uid,
        gid: attr.gid,
        size: if dir { 0 } else { attr.size },
        nlink: if dir { 0 } else { attr.nlink },
        rdev: decode_dev(attr.rdev),
        mtime: Stamp::found(attr.mtime.sec, attr.mtime.nsec),
    }
}

/// A device number as stat has it: 32 bits, the kernel's encoding.
pub(super) fn encode_dev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}
