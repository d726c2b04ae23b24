//! A scene: a stack, what was done to it before, and the one operation to be interrupted.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use plyfs_fuse::inode::Ino;
use plyfs_fuse::owner::Caller;
use plyfs_fuse::{Options, Overlay};

use crate::common::core::Core;
use crate::common::layer::{Dialect, Item, Layer, Sparse, What};
use crate::common::model::Who;
use crate::common::ops::{Fill, Op, Said, Target, split};
use crate::common::tree::Stamp;

/// Owner of some lower objects, and the foreign caller.
pub const SOMEBODY: u32 = 1000;

/// What is done.
#[derive(Clone, Debug)]
pub enum Act {
    /// By the usual caller.
    Op(Op),
    /// [`SOMEBODY`] makes an object: letter of its kind, path.
    Foreign(char, String),
}

/// One operation on a prepared stack.
#[derive(Clone)]
pub struct Scene {
    /// Unique among all scenes.
    pub name: String,
    /// Changes the options of the mount.
    pub set: fn(&mut Options),
    /// Done earlier, in a mount of its own.
    pub before: Vec<Op>,
    /// Done in the same mount, and changes nothing on disk.
    pub warm: Vec<Op>,
    /// The operation.
    pub act: Act,
    /// Paths of which a modification time says nothing.
    pub touched: Vec<String>,
    /// The lower layers are on another filesystem, and have a large file.
    pub afar: bool,
}

impl Scene {
    /// A scene on the usual stack.
    pub fn new(name: impl Into<String>, op: Op) -> Scene {
        Scene::of(name, Act::Op(op))
    }

    /// The same with any act.
    pub fn of(name: impl Into<String>, act: Act) -> Scene {
        Scene {
            name: name.into(),
            set: |_| {},
            before: Vec::new(),
            warm: Vec::new(),
            act,
            touched: Vec::new(),
            afar: false,
        }
    }

    /// Done earlier.
    pub fn before(mut self, ops: impl IntoIterator<Item = Op>) -> Scene {
        self.before.extend(ops);
        self
    }

    /// Done in the same mount.
    pub fn warm(mut self, op: Op) -> Scene {
        self.warm.push(op);
        self
    }

    /// Changes the options.
    pub fn with(mut self, set: fn(&mut Options)) -> Scene {
        self.set = set;
        self
    }

    /// The modification time of this path says nothing.
    pub fn touches(mut self, path: &str) -> Scene {
        self.touched.push(path.to_owned());
        self
    }

    /// Lower layers on another filesystem.
    pub fn afar(mut self) -> Scene {
        self.afar = true;
        self
    }
}

/// Does the act.
pub fn act(core: &mut Core, act: &Act) -> Said {
    match act {
        Act::Op(op) => core.apply(op),
        Act::Foreign(kind, path) => foreign(core.overlay(), *kind, path)
            .map(|()| crate::common::ops::Outcome::Done)
            .map_err(|e| e.errno()),
    }
}

fn foreign(fs: &Overlay, kind: char, path: &str) -> plyfs_fuse::Result<()> {
    let caller = Caller { uid: SOMEBODY, gid: SOMEBODY, umask: 0o022 };
    let (dir, name) = split(path);
    let (mut parent, name) = (Ino::ROOT, OsStr::new(name));
    for part in dir.split('/').filter(|part| !part.is_empty()) {
        parent = fs.lookup(parent, OsStr::new(part))?.attr.ino;
    }
    match kind {
        '-' => {
            let made = fs.create(caller, parent, name, 0o666)?;
            fs.release(made.attr.ino);
            Ok(())
        }
        'd' => fs.mkdir(caller, parent, name, 0o777).map(drop),
        'l' => fs.symlink(caller, parent, name, OsStr::new("target")).map(drop),
        _ => fs.mknod(caller, parent, name, libc::S_IFIFO | 0o666, 0).map(drop),
    }
}

/// Whether more ids than our own can be given to files.
pub fn has_ids() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().nth(2).and_then(|n| n.parse().ok()).is_some_and(|n: u64| n > 1)
}

struct Builder(Layer);

impl Builder {
    fn add(mut self, path: &str, what: What, mode: u32) -> Builder {
        let (uid, gid) = (self.0.items[""].uid, self.0.items[""].gid);
        let mtime = Stamp { sec: 1_234_567_890 + path.len() as i64, nsec: 123_456_789 };
        let xattrs = BTreeMap::new();
        self.0.items.insert(path.to_owned(), Item { what, mode, uid, gid, mtime, xattrs });
        self
    }

    fn dir(self, path: &str) -> Builder {
        self.add(path, What::Dir { opaque: false }, 0o755)
    }

    fn file(self, path: &str, len: usize) -> Builder {
        let seed = path.bytes().fold(7_u8, |seed, byte| seed.wrapping_mul(31) ^ byte);
        self.add(path, What::Plain(Fill { seed, len }.bytes()), 0o644)
    }

    fn same(mut self, path: &str, first: &str) -> Builder {
        let item = Item { what: What::Same(first.to_owned()), ..self.0.items[first].clone() };
        self.0.items.insert(path.to_owned(), item);
        self
    }

    fn change(mut self, path: &str, change: impl FnOnce(&mut Item)) -> Builder {
        change(self.0.items.get_mut(path).unwrap());
        self
    }
}

/// The usual lower layers, top first.
pub fn layers(afar: bool) -> Vec<Layer> {
    let who = Who::me();
    let owner = if has_ids() { SOMEBODY } else { who.uid };
    let spans = vec![(0, Fill { seed: 3, len: 5000 }), (40_960, Fill { seed: 4, len: 9000 })];
    let top = Builder(Layer::empty(who))
        .file("a", 5000)
        .change("a", |item| {
            (item.uid, item.gid) = (owner, owner);
            item.xattrs.insert("user.a".into(), "one".into());
        })
        .dir("d")
        .file("d/f", 100)
        .file("d/dead", 60)
        .add("d/gone", What::Whiteout, 0)
        .dir("d/sub")
        .file("d/sub/x", 9000)
        .change("d/sub/x", |item| item.mode = 0o4755)
        .file("d/hard2", 700)
        .same("hard1", "d/hard2")
        .same("hard3", "d/hard2")
        .add("lnk", What::Symlink("d/f".into()), 0o777)
        .add("twin1", What::Symlink("nowhere".into()), 0o777)
        .same("twin2", "twin1")
        .add("pipe", What::Special('p', (0, 0)), 0o640)
        .dir("e")
        .dir("w")
        .file("w/1", 11);
    let bottom = Builder(Layer::empty(who))
        .dir("d")
        .file("d/g", 40)
        .file("d/gone", 41)
        .dir("d/sub")
        .file("d/sub/y", 10)
        .file("low", 8192)
        .add("sparse", What::Sparse(Sparse { size: 70_000, spans }), 0o600)
        .dir("w")
        .file("w/2", 12)
        .dir("s")
        .change("s", |item| (item.mode, item.gid) = (0o2775, owner));
    let bottom = if afar { bottom.file("big", 528_000) } else { bottom };
    vec![top.0, bottom.0]
}

/// Writes layers below `dir`.
pub fn write_layers(layers: &[Layer], dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let path = dir.join(format!("lower{}", n + 1));
        std::fs::create_dir_all(&path).unwrap();
        layer.write(&path, Dialect::Device, Who::me().space()).unwrap();
        paths.push(path);
    }
    paths
}

/// Makes a directory whatever the umask.
pub fn make_dir(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
}
