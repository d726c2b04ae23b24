//! A directory tree as data. Two trees are equal when nobody could tell them apart by looking, inode
//! numbers, directory sizes and access times aside.
//!
//! Times that operations set are long past; whatever is recent reads as [`Stamp::NOW`], so that a
//! change "now" is equal for every target and a change that should not have been shows.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, Stat};

use super::ops::join;

/// A modification time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Seconds since 1970; may be negative.
    pub sec: i64,
    /// Nanoseconds.
    pub nsec: u32,
}

/// No operation sets a time after this one, and no clock is before it.
const RECENT: i64 = 1_700_000_000;

impl Stamp {
    /// Set by the clock.
    pub const NOW: Stamp = Stamp { sec: i64::MAX, nsec: 0 };

    /// A time as found on disk.
    pub fn found(sec: i64, nsec: u32) -> Stamp {
        if sec >= RECENT { Stamp::NOW } else { Stamp { sec, nsec } }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Stamp::NOW {
            f.write_str("now")
        } else {
            write!(f, "{}.{:09}", self.sec, self.nsec)
        }
    }
}

/// What stat tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// `-` file, `d`, `l`, `p` fifo, `c`, `b`, `s` socket.
    pub kind: char,
    /// Permission bits with the set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; 0 for directories, whose size means nothing.
    pub size: u64,
    /// Names; 0 for directories.
    pub nlink: u32,
    /// (major, minor) of a device.
    pub rdev: (u32, u32),
    /// Modification time.
    pub mtime: Stamp,
}

/// One object of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What stat tells.
    pub meta: Meta,
    /// Of a regular file's contents.
    pub digest: u64,
    /// Of a symlink.
    pub target: String,
    /// All extended attributes, values escaped.
    pub xattrs: BTreeMap<String, String>,
    /// First path, in order, of the same file, when it has several here.
    pub group: Option<String>,
}

/// Sorted path -> object. The root is the empty path.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The objects.
    pub nodes: BTreeMap<String, Node>,
    /// Their inode numbers, which do not count for equality.
    pub inos: BTreeMap<String, u64>,
    /// Entries whose number in the listing is not their inode number.
    listed: Vec<String>,
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.nodes == other.nodes
    }
}

/// A digest of contents (FNV-1a, eight bytes at a time).
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash =
            (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }
    hash
}

/// The letter of a file type.
pub fn kind_letter(mode: u32) -> char {
    match mode & libc::S_IFMT {
        libc::S_IFREG => '-',
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFIFO => 'p',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFSOCK => 's',
        _ => '?',
    }
}

impl Meta {
    /// Of a stat buffer.
    pub fn of(stat: &Stat) -> Meta {
        let kind = kind_letter(stat.st_mode);
        let dir = kind == 'd';
        Meta {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if dir { 0 } else { stat.st_size as u64 },
            nlink: if dir { 0 } else { stat.st_nlink as u32 },
            rdev: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            mtime: Stamp::found(stat.st_mtime, stat.st_mtime_nsec as u32),
        }
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{:04o} {}:{} size {} nlink {}",
            self.kind, self.mode, self.uid, self.gid, self.size, self.nlink
        )?;
        if self.rdev != (0, 0) {
            write!(f, " rdev {}:{}", self.rdev.0, self.rdev.1)?;
        }
        write!(f, " mtime {}", self.mtime)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.meta)?;
        match self.meta.kind {
            '-' => write!(f, " digest {:016x}", self.digest)?,
            'l' => write!(f, " -> {}", self.target)?,
            _ => {}
        }
        for (name, value) in &self.xattrs {
            write!(f, " {name}={value}")?;
        }
        if let Some(group) = &self.group {
            write!(f, " same file as {group}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, node) in &self.nodes {
            writeln!(f, "{:<10} {node}", if path.is_empty() { "." } else { path })?;
        }
        Ok(())
    }
}

impl Tree {
    /// Reads a directory: plain, or the top of a mount. An entry whose number in the listing is not
    /// the number stat tells is an error.
    pub fn read(dir: &Path) -> Result<Tree, String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())
            .map_err(|e| format!("open {}: {e}", dir.display()))?;
        Tree::read_at(&root, true)
    }

    /// The same, of an open directory; the numbers in listings count only when `strict`.
    pub fn read_at(root: &OwnedFd, strict: bool) -> Result<Tree, String> {
        let mut tree = Tree::default();
        let stat = rustix::fs::fstat(root).map_err(|e| format!("fstat root: {e}"))?;
        let own = format!("/proc/self/fd/{}/.", root.as_raw_fd());
        tree.add(
            "",
            &stat,
            (0, String::new()),
            xattrs(&own).map_err(|e| format!("xattrs of root: {e}"))?,
        );
        let mut first = BTreeMap::new();
        tree.read_dir(root, "", &mut first)?;
        tree.group(&first);
        match tree.listed.pop() {
            Some(text) if strict => Err(text),
            _ => Ok(tree),
        }
    }

    fn add(
        &mut self,
        path: &str,
        stat: &Stat,
        body: (u64, String),
        xattrs: BTreeMap<String, String>,
    ) {
        let node =
            Node { meta: Meta::of(stat), digest: body.0, target: body.1, xattrs, group: None };
        self.nodes.insert(path.to_owned(), node);
        self.inos.insert(path.to_owned(), stat.st_ino);
    }

    fn read_dir(&mut self, dir: &OwnedFd, path: &str, first: &mut Groups) -> Result<(), String> {
        let at = |what: &str, name: &str, e: rustix::io::Errno| {
            format!("{what} {}: {e}", join(path, name))
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir).map_err(|e| at("list", ".", e))? {
            let entry = entry.map_err(|e| at("list", ".", e))?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec())
                .to_string_lossy()
                .into_owned();
            names.push((name, entry.ino(), entry.file_type()));
        }
        names.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, d_ino, d_type) in names {
            if name == "." || name == ".." {
                continue;
            }
            let full = join(path, &name);
            let stat = rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| at("stat", &name, e))?;
            if stat.st_ino != d_ino {
                self.listed.push(format!("{full}: d_ino {d_ino} but st_ino {}", stat.st_ino));
            }
            if rustix::fs::FileType::from_raw_mode(stat.st_mode) != d_type {
                return Err(format!("{full}: d_type {d_type:?} but mode {:o}", stat.st_mode));
            }
            let body = match kind_letter(stat.st_mode) {
                '-' => (
                    read_digest(dir, &name).map_err(|e| format!("read {full}: {e}"))?,
                    String::new(),
                ),
                'l' => {
                    let target = rustix::fs::readlinkat(dir, &*name, Vec::new())
                        .map_err(|e| at("readlink", &name, e))?;
                    (0, target.to_string_lossy().into_owned())
                }
                _ => (0, String::new()),
            };
            let own = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
            self.add(&full, &stat, body, xattrs(&own).map_err(|e| at("xattrs of", &name, e))?);
            if kind_letter(stat.st_mode) == 'd' {
                let inner = rustix::fs::openat(dir, &*name, flags, Mode::empty())
                    .map_err(|e| at("open", &name, e))?;
                self.read_dir(&inner, &full, first)?;
            } else {
                first.entry((stat.st_dev, stat.st_ino)).or_default().push(full);
            }
        }
        Ok(())
    }

    /// Marks the names of one file as a group.
    pub fn group(&mut self, same: &Groups) {
        for paths in same.values().filter(|paths| paths.len() > 1) {
            let first = paths.iter().min().cloned();
            for path in paths {
                if let Some(node) = self.nodes.get_mut(path) {
                    node.group = first.clone();
                }
            }
        }
    }

    /// What differs, a line or two a path; empty when equal. `names` names the two trees.
    pub fn diff(&self, other: &Tree, names: (&str, &str)) -> String {
        use std::fmt::Write;
        let width = names.0.len().max(names.1.len());
        let mut text = String::new();
        let paths: std::collections::BTreeSet<_> =
            self.nodes.keys().chain(other.nodes.keys()).collect();
        for path in paths {
            let (a, b) = (self.nodes.get(path), other.nodes.get(path));
            if a == b {
                continue;
            }
            let shown =
                |node: Option<&Node>| node.map_or_else(|| "(absent)".to_owned(), Node::to_string);
            let _ = writeln!(text, "{}", if path.is_empty() { "." } else { path });
            let _ = writeln!(text, "    {:<width$}  {}", names.0, shown(a));
            let _ = writeln!(text, "    {:<width$}  {}", names.1, shown(b));
        }
        text
    }
}

/// Paths of each file that has names here.
pub type Groups = BTreeMap<(u64, u64), Vec<String>>;

fn read_digest(dir: &OwnedFd, name: &str) -> std::io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())
        .or_else(|_| rustix::fs::openat(dir, name, flags - OFlags::NOATIME, Mode::empty()))?;
    let file = File::from(fd);
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(digest(&bytes))
}

/// Whether an attribute is the system's own business rather than somebody's.
fn is_foreign(name: &[u8]) -> bool {
    name == b"security.selinux"
}

/// The extended attributes of a path, values escaped; the last name is not followed.
pub fn xattrs(path: &str) -> rustix::io::Result<BTreeMap<String, String>> {
    let mut names = vec![0_u8; 65536];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty() && !is_foreign(n)) {
        let mut value = vec![0_u8; 65536];
        let key = std::ffi::OsStr::from_bytes(name);
        let len = rustix::fs::lgetxattr(path, key, &mut value[..])?;
        found.insert(key.to_string_lossy().into_owned(), value[..len].escape_ascii().to_string());
    }
    Ok(found)
}

/// A borrowed descriptor's path in /proc with `name` below it.
pub fn proc_path(dir: impl AsFd, name: &str) -> String {
    format!(
        "/proc/self/fd/{}/{}",
        dir.as_fd().as_raw_fd(),
        if name.is_empty() { "." } else { name }
    )
}
