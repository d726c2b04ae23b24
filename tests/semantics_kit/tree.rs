//! Small words for files: plant a tree, put and read a text, ask for the facts of a name.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, lgetxattr,
    llistxattr, lsetxattr, mknodat, renameat_with, utimensat,
};

/// Makes what the words say: `dir/`, `file=text`, `link->target`, `name=!` (a device whiteout).
/// Parents must come first.
pub fn plant(root: &Path, words: &[&str]) {
    for word in words {
        if let Some((name, target)) = word.split_once("->") {
            symlink(target, root.join(name)).unwrap();
        } else if let Some((name, text)) = word.split_once('=') {
            if text == "!" {
                whiteout(&root.join(name));
            } else {
                fs::write(root.join(name), text).unwrap();
            }
        } else {
            fs::create_dir(root.join(word)).unwrap_or_else(|x| panic!("{word}: {x}"));
        }
    }
}

/// Makes a device whiteout.
pub fn whiteout(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

/// True for a character device 0:0.
pub fn is_whiteout(path: &Path) -> bool {
    stat(path).mode() & 0o170_000 == 0o020_000 && stat(path).rdev() == 0
}

/// Writes a whole file, which may exist.
pub fn put(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    fs::write(path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}

/// Adds to a file.
pub fn append(path: impl AsRef<Path>, text: &str) {
    use io::Write;
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The whole text of a file.
pub fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The facts of a name, a symlink's own.
pub fn stat(path: impl AsRef<Path>) -> Metadata {
    let path = path.as_ref();
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("stat {}: {error}", path.display()))
}

/// The permission bits of a name.
pub fn mode(path: impl AsRef<Path>) -> u32 {
    stat(path).mode() & 0o7777
}

/// The modification time of a name.
pub fn mtime(path: impl AsRef<Path>) -> (i64, i64) {
    let stat = stat(path);
    (stat.mtime(), stat.mtime_nsec())
}

pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}

pub fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The names in a directory, sorted.
pub fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|x| x.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|x| String::from_utf8_lossy(x.as_bytes()).into()).collect();
    names.sort();
    names
}

/// The inode number that the listing of the parent gives for a name.
pub fn listed_ino(path: impl AsRef<Path>) -> u64 {
    let path = path.as_ref();
    let mut entries = fs::read_dir(path.parent().unwrap()).unwrap().map(|x| x.unwrap());
    entries.find(|x| Some(&*x.file_name()) == path.file_name()).unwrap().ino()
}

pub fn read_write(path: impl AsRef<Path>) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Opens with flags of open(2) besides the access mode, which is read and write.
pub fn open_flags(path: impl AsRef<Path>, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Renames with flags.
pub fn rename(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    flags: RenameFlags,
) -> rustix::io::Result<()> {
    renameat_with(CWD, from.as_ref(), CWD, to.as_ref(), flags)
}

/// Renames plainly; it must work.
pub fn mv(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let (from, to) = (from.as_ref(), to.as_ref());
    fs::rename(from, to)
        .unwrap_or_else(|error| panic!("rename {} {}: {error}", from.display(), to.display()));
}

/// Sets both times of a name, a symlink's own.
pub fn set_times(path: impl AsRef<Path>, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path.as_ref(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// One extended attribute of a name, a symlink's own.
pub fn xattr(path: impl AsRef<Path>, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = Vec::with_capacity(65_536);
    lgetxattr(path.as_ref(), name, rustix::buffer::spare_capacity(&mut value))?;
    Ok(value)
}

pub fn set_xattr(path: impl AsRef<Path>, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    lsetxattr(path.as_ref(), name, value, XattrFlags::empty())
}

/// The names of the extended attributes of a name, sorted.
pub fn xattrs(path: impl AsRef<Path>) -> Vec<String> {
    let mut list = Vec::with_capacity(65_536);
    llistxattr(path.as_ref(), rustix::buffer::spare_capacity(&mut list)).unwrap();
    let names = list.split(|x| *x == 0).filter(|x| !x.is_empty());
    let mut names: Vec<_> = names.map(|x| String::from_utf8_lossy(x).into_owned()).collect();
    names.sort();
    names
}

/// A line for everything below `root`: path, kind and mode, owner, links, size, times, attributes
/// and content. Equal before and after a remount, and in the kernel's eyes.
pub fn facts(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines.sort();
    lines
}

fn walk(root: &Path, dir: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stat = stat(&path);
        let content = match stat.mode() & 0o170_000 {
            0o100_000 => String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned(),
            0o120_000 => fs::read_link(&path).unwrap().display().to_string(),
            0o020_000 | 0o060_000 => stat.rdev().to_string(),
            _ => String::new(),
        };
        let is_dir = stat.is_dir();
        let (links, size) = if is_dir { (0, 0) } else { (stat.nlink(), stat.len()) };
        let attributes: Vec<_> =
            xattrs(&path).iter().map(|x| (x.clone(), xattr(&path, x))).collect();
        lines.push(format!(
            "{:?} {:o} {}:{} links {links} size {size} mtime {:?} {attributes:?} {content:?}",
            path.strip_prefix(root).unwrap(),
            stat.mode(),
            stat.uid(),
            stat.gid(),
            mtime(&path),
        ));
        if is_dir {
            walk(root, &path, lines);
        }
    }
}
