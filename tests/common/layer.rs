//! A layer as data, random ones, and layers written to disk in any dialect.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::ops::{Fill, join, split};
use super::rng::Rng;
use super::tree::Stamp;

/// How deletions and opaque directories are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Character devices 0:0, `overlay.opaque=y`.
    Device,
    /// `.wh.NAME` and `.wh..wh..opq` files.
    Dot,
    /// Empty files with `overlay.whiteout`, in directories with `overlay.opaque=x`.
    Xattr,
}

/// A file with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Its size.
    pub size: usize,
    /// Where there is data.
    pub spans: Vec<(usize, Fill)>,
}

impl Sparse {
    /// The whole contents.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size];
        for (at, fill) in &self.spans {
            bytes[*at..at + fill.len].copy_from_slice(&fill.bytes());
        }
        bytes
    }
}

/// What a layer has at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir {
        /// It hides what lower layers have there.
        opaque: bool,
    },
    /// A file.
    Plain(Vec<u8>),
    /// A file with holes.
    Sparse(Sparse),
    /// A symlink.
    Symlink(String),
    /// Fifo or device: letter, (major, minor).
    Special(char, (u32, u32)),
    /// A further name of the file at this path.
    Same(String),
    /// The name is deleted.
    Whiteout,
}

/// One path of a layer.
#[derive(Clone, Debug)]
pub struct Item {
    /// What is there.
    pub what: What,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Stamp,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, String>,
}

/// A layer: sorted path -> what is there. The root is always there.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// By path.
    pub items: BTreeMap<String, Item>,
}

impl Layer {
    /// A layer that has nothing but its root.
    pub fn empty(who: super::model::Who) -> Layer {
        let mut layer = Layer::default();
        let mtime = Stamp { sec: 1_000_000_000, nsec: 5 };
        let what = What::Dir { opaque: false };
        layer.items.insert(
            String::new(),
            Item { what, mode: 0o755, uid: who.uid, gid: who.gid, mtime, xattrs: BTreeMap::new() },
        );
        layer
    }

    /// The names directly below a directory.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let below = |path: &&String| !path.is_empty() && split(path).0 == dir;
        self.items.keys().filter(below).map(|path| split(path).1.to_owned()).collect()
    }

    /// Takes out a path, what is below it, and turns names of a file that goes into files.
    pub fn remove(&mut self, path: &str) {
        let inside = format!("{path}/");
        let gone: Vec<String> =
            self.items.keys().filter(|p| *p == path || p.starts_with(&inside)).cloned().collect();
        for path in gone {
            let item = self.items.remove(&path);
            let heirs: Vec<String> = self
                .items
                .iter()
                .filter(|(_, i)| i.what == What::Same(path.clone()))
                .map(|(p, _)| p.clone())
                .collect();
            if let (Some(item), Some(heir)) = (item, heirs.first().cloned()) {
                for other in &heirs[1..] {
                    self.items.get_mut(other).unwrap().what = What::Same(heir.clone());
                }
                self.items.insert(heir, item);
            }
        }
    }

    /// Writes the layer into an empty directory. Overlay attributes go to `space`, "trusted" or "user".
    pub fn write(&self, dir: &Path, dialect: Dialect, space: &str) -> std::io::Result<()> {
        for (path, item) in &self.items {
            self.write_item(dir, (path, item), dialect, space)?;
        }
        for (path, item) in self.items.iter().rev() {
            let full = dir.join(path);
            match item.what {
                What::Whiteout => continue,
                What::Dir { .. }
                    if dialect == Dialect::Xattr
                        && !self.is_opaque(path)
                        && self.has_whiteouts(path) =>
                {
                    set_xattr(&full, &format!("{space}.overlay.opaque"), "x")?;
                }
                _ => {}
            }
            let time = Timespec { tv_sec: item.mtime.sec, tv_nsec: item.mtime.nsec.into() };
            let times = Timestamps { last_access: time, last_modification: time };
            if item.mtime != Stamp::NOW {
                rustix::fs::utimensat(CWD, &full, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(())
    }

    fn is_opaque(&self, path: &str) -> bool {
        matches!(self.items.get(path).map(|i| &i.what), Some(What::Dir { opaque: true }))
    }

    fn has_whiteouts(&self, path: &str) -> bool {
        self.names(path).iter().any(|name| self.items[&join(path, name)].what == What::Whiteout)
    }

    fn write_item(
        &self,
        dir: &Path,
        (path, item): (&str, &Item),
        dialect: Dialect,
        space: &str,
    ) -> std::io::Result<()> {
        let full = dir.join(path);
        let (parent, name) = split(path);
        match &item.what {
            What::Dir { opaque } => {
                if !path.is_empty() {
                    std::fs::create_dir(&full)?;
                }
                match (opaque, dialect) {
                    (true, Dialect::Dot) => std::fs::write(full.join(".wh..wh..opq"), "")?,
                    (true, _) => set_xattr(&full, &format!("{space}.overlay.opaque"), "y")?,
                    _ => {}
                }
            }
            What::Plain(bytes) => std::fs::write(&full, bytes)?,
            What::Sparse(sparse) => {
                let file = std::fs::File::create(&full)?;
                file.set_len(sparse.size as u64)?;
                for (at, fill) in &sparse.spans {
                    file.write_all_at(&fill.bytes(), *at as u64)?;
                }
            }
            What::Symlink(target) => symlink(target, &full)?,
            What::Special(kind, rdev) => {
                let kind = if *kind == 'p' { FileType::Fifo } else { FileType::CharacterDevice };
                rustix::fs::mknodat(
                    CWD,
                    &full,
                    kind,
                    Mode::from_raw_mode(0o600),
                    rustix::fs::makedev(rdev.0, rdev.1),
                )?;
            }
            What::Same(first) => return std::fs::hard_link(dir.join(first), &full),
            // Nothing is below an opaque directory for it to hide, and readers may skip the look.
            What::Whiteout if dialect == Dialect::Xattr && self.is_opaque(parent) => return Ok(()),
            What::Whiteout => {
                return match dialect {
                    Dialect::Device => Ok(rustix::fs::mknodat(
                        CWD,
                        &full,
                        FileType::CharacterDevice,
                        Mode::empty(),
                        0,
                    )?),
                    Dialect::Dot => {
                        std::fs::write(dir.join(parent).join(format!(".wh.{name}")), "")
                    }
                    Dialect::Xattr => {
                        std::fs::write(&full, "")?;
                        set_xattr(&full, &format!("{space}.overlay.whiteout"), "y")
                    }
                };
            }
        }
        for (name, value) in &item.xattrs {
            set_xattr(&full, name, value)?;
        }
        let (uid, gid) = (Uid::from_raw(item.uid), Gid::from_raw(item.gid));
        if rustix::process::geteuid().is_root() {
            rustix::fs::chownat(CWD, &full, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if !matches!(item.what, What::Symlink(_)) {
            std::fs::set_permissions(&full, std::fs::Permissions::from_mode(item.mode))?;
        }
        Ok(())
    }
}

fn set_xattr(path: &Path, name: &str, value: &str) -> std::io::Result<()> {
    Ok(rustix::fs::lsetxattr(path, name, value.as_bytes(), XattrFlags::empty())?)
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, item) in &self.items {
            let path = if path.is_empty() { "." } else { path };
            match &item.what {
                What::Plain(bytes) => write!(f, "    {path}: file of {}", bytes.len())?,
                other => write!(f, "    {path}: {other:?}")?,
            }
            write!(f, " {:04o} {}:{} {}", item.mode, item.uid, item.gid, item.mtime)?;
            for (name, value) in &item.xattrs {
                write!(f, " {name}={value}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Makes random layers.
pub struct Generator<'a> {
    /// Where chance comes from.
    pub rng: &'a mut Rng,
    /// The alphabet.
    pub names: &'a [&'a str],
    /// Who owns things; root may give them away.
    pub who: super::model::Who,
}

impl Generator<'_> {
    /// A random layer.
    pub fn layer(&mut self) -> Layer {
        let mut layer = Layer::empty(self.who);
        let root = self.item(What::Dir { opaque: false });
        layer.items.insert(String::new(), root);
        self.fill(&mut layer, "", 1);
        layer
    }

    fn fill(&mut self, layer: &mut Layer, dir: &str, depth: usize) {
        for name in self.names {
            if !self.rng.chance(60) {
                continue;
            }
            let path = join(dir, name);
            let what = self.what(layer, depth);
            let item = match &what {
                What::Same(first) => Item { what: what.clone(), ..layer.items[first].clone() },
                _ => self.item(what.clone()),
            };
            layer.items.insert(path.clone(), item);
            if matches!(what, What::Dir { .. }) {
                self.fill(layer, &path, depth + 1);
            }
        }
    }

    fn what(&mut self, layer: &Layer, depth: usize) -> What {
        let device = if self.who.privileged { 2 } else { 0 };
        let dir = if depth < 3 { 42 } else { 8 };
        match self.rng.weighted(&[dir, 20, 5, 7, 3, device, 17, 8]) {
            0 => What::Dir { opaque: self.rng.chance(20) },
            1 => What::Plain(self.content().bytes()),
            2 => {
                let spans =
                    vec![(0, self.content()), (40_000 + self.rng.below(9000), self.content())];
                What::Sparse(Sparse { size: 70_000 + self.rng.below(60_000), spans })
            }
            3 => What::Symlink(self.rng.pick(&["a", "b/c", "../a", "/nowhere", "."]).to_owned()),
            4 => What::Special('p', (0, 0)),
            5 => What::Special('c', self.rng.pick(&[(1, 3), (1, 5), (0, 1)])),
            6 => What::Whiteout,
            _ => {
                let linkable = |i: &&Item| {
                    !matches!(i.what, What::Dir { .. } | What::Whiteout | What::Same(_))
                };
                let firsts: Vec<_> = layer
                    .items
                    .iter()
                    .filter(|(_, i)| linkable(i))
                    .map(|(p, _)| p.clone())
                    .collect();
                if firsts.is_empty() {
                    What::Plain(Vec::new())
                } else {
                    What::Same(self.rng.pick(&firsts))
                }
            }
        }
    }

    fn content(&mut self) -> Fill {
        Fill {
            seed: self.rng.below(250) as u8,
            len: self.rng.pick(&[0, 1, 5, 100, 4096, 5000, 9000]),
        }
    }

    fn item(&mut self, what: What) -> Item {
        let data = matches!(what, What::Dir { .. } | What::Plain(_) | What::Sparse(_));
        let modes: &[u32] = match what {
            What::Dir { .. } => &[0o755, 0o700, 0o1777, 0o2755],
            What::Symlink(_) => &[0o777],
            _ => &[0o644, 0o600, 0o755, 0o4755, 0o2755, 0o640],
        };
        let owner = |rng: &mut Rng, own| {
            if self.who.root() { rng.pick(&[own, own, 1000, 54_321]) } else { own }
        };
        let (uid, gid) = (owner(self.rng, self.who.uid), owner(self.rng, self.who.gid));
        let mut xattrs = BTreeMap::new();
        for name in ["user.a", "user.b"] {
            if data && self.rng.chance(12) {
                xattrs.insert(
                    name.to_owned(),
                    self.rng.pick(&["", "one", "some longer value"]).to_owned(),
                );
            }
        }
        Item { what, mode: self.rng.pick(modes), uid, gid, mtime: random_past(self.rng), xattrs }
    }
}

/// A time that no clock of today shows; some are before 1970.
pub fn random_past(rng: &mut Rng) -> Stamp {
    let sec =
        rng.pick(&[-1_000_000_000, -1, 0, 1, 999_999_999, 1_234_567_890]) + rng.below(3) as i64;
    Stamp { sec, nsec: rng.pick(&[0, 1, 500_000_000, 999_999_999]) }
}
