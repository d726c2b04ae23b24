//! A tree out of an input's bytes, diffed and applied.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use plyfs::layer::apply::Limits;
use plyfs::layer::diff;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::apply::comparable;
use super::generate::Feed;
use super::place::{How, Place, user_marks};
use super::tree::Tree;

/// The bytes are what is done to an upper directory.
pub fn run(scratch: &Path, data: &[u8]) {
    let mut feed = Feed(data);
    let over = feed.below(2) == 1;
    let place = Place::new(scratch, How { over, removing: false, recording: false });
    let mut upper = Upper {
        root: place.target.root.clone(),
        user: user_marks(scratch),
        dirs: vec![Vec::new()],
        over,
    };
    for _ in 0..40 {
        if feed.0.is_empty() {
            break;
        }
        upper.step(&mut feed);
    }
    let times = Timestamps { last_access: moment(1, 0), last_modification: moment(1, 1) };
    for dir in upper.dirs.iter().rev().skip(1) {
        let _ = rustix::fs::utimensat(CWD, upper.at(dir), &times, AtFlags::SYMLINK_NOFOLLOW);
    }
    let spec = diff::Spec {
        upper: place.target.root.clone(),
        lowers: place.target.lowers.clone(),
        user_marks: true,
    };
    let (mut archive, mut twice) = (Vec::new(), Vec::new());
    diff::write(&spec, &mut archive).expect("the tree is written");
    diff::write(&spec, &mut twice).expect("the tree is written");
    assert!(archive == twice, "the same tree gives other bytes");
    let again = place.again();
    let (_, record) =
        place.apply(&again, &archive, &Limits::default()).expect("the archive is applied");
    assert!(place.assembled(&again.root, &record) == archive, "the archive does not come back");
    let mut want = comparable(Tree::read(&place.target.root, &|_| false));
    if let Some(lower) = place.target.lowers.first() {
        hiding_only(&mut want, &Tree::read(lower, &|_| false));
    }
    let got = comparable(Tree::read(&again.root, &|_| false));
    assert!(want == got, "made and applied:\n{}", want.differences(&got));
}

/// Drops whiteouts of nothing, which an archive's become none of.
fn hiding_only(tree: &mut Tree, lower: &Tree) {
    let opaque = |dir: &[u8]| {
        let node = tree.0.get(dir);
        let opaque = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            let marks = [&b"user.overlay.opaque"[..], b"trusted.overlay.opaque"];
            marks.contains(&key.as_slice()) && value == b"y"
        };
        node.is_some_and(|node| node.xattrs.iter().any(opaque))
    };
    let hides = |path: &[u8]| {
        let mut ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        lower.0.contains_key(path) && !ends.any(|(end, _)| opaque(&path[..end]))
    };
    let idle = tree.0.iter().filter(|(path, node)| node.is_whiteout() && !hides(path));
    let idle: Vec<Vec<u8>> = idle.map(|(path, _)| path.clone()).collect();
    tree.0.retain(|path, _| !idle.contains(path));
}

fn moment(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds }
}

/// An upper directory in the making.
struct Upper {
    root: PathBuf,
    user: bool,
    dirs: Vec<Vec<u8>>,
    over: bool,
}

/// Names that formats write in different ways, and those of the layer below.
const NAMES: [&[u8]; 15] = [
    b"a",
    b"d",
    b"e",
    b"f",
    b"s",
    b"l",
    b"\xff\xfe",
    b"new\nline",
    b"wh.x",
    b".opq",
    b"a=b",
    b" ",
    b"\"\\",
    &[b'n'; 101],
    &[b'm'; 255],
];

impl Upper {
    fn at(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    /// Makes one object; what is there already stays.
    fn step(&mut self, feed: &mut Feed<'_>) {
        let dir = self.dirs[feed.below(self.dirs.len())].clone();
        let name = feed.pick(&NAMES);
        let path = if dir.is_empty() { name.to_vec() } else { [&dir[..], b"/", name].concat() };
        let at = self.at(&path);
        if path.len() > 900 || at.symlink_metadata().is_ok() {
            return;
        }
        match feed.below(9) {
            0 | 1 => {
                fs::create_dir(&at).expect("made");
                self.dirs.push(path);
                if feed.below(4) == 0 && self.over {
                    self.mark(&at, "opaque", b"y");
                }
            }
            2 | 3 => fs::write(&at, feed.bytes(600)).expect("made"),
            4 => {
                let file = File::create(&at).expect("made");
                file.set_len(feed.below(300_000) as u64).expect("made");
                let offset = feed.below(200_000) as u64;
                file.write_all_at(b"piece", offset).expect("made");
            }
            5 => {
                let target = feed.bytes(160);
                if target.is_empty()
                    || target.contains(&0)
                    || symlink(OsStr::from_bytes(target), &at).is_err()
                {
                    return;
                }
            }
            6 => {
                let device = rustix::fs::makedev(0, 0);
                if rustix::fs::mknodat(CWD, &at, FileType::CharacterDevice, Mode::empty(), device)
                    .is_err()
                {
                    return;
                }
                // A whiteout has no attributes of its own.
                return;
            }
            7 => rustix::fs::mknodat(CWD, &at, FileType::Fifo, Mode::RUSR, 0).expect("made"),
            _ => {
                let from = self.at(feed.pick(&NAMES));
                let Ok(found) = from.symlink_metadata() else { return };
                if found.is_dir() || fs::hard_link(from, &at).is_err() {
                    return;
                }
            }
        }
        self.dress(&at, feed);
    }

    fn mark(&self, at: &Path, key: &str, value: &[u8]) {
        let space = if self.user { "user" } else { "trusted" };
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(at, format!("{space}.overlay.{key}"), value, flags).expect("marked");
    }

    fn dress(&self, at: &Path, feed: &mut Feed<'_>) {
        let found = at.symlink_metadata().expect("there");
        if found.file_type().is_char_device() {
            return;
        }
        if feed.below(3) == 0 {
            let (uid, gid) = (feed.number(), feed.number());
            // Only root may, and not every number is one.
            drop(std::os::unix::fs::lchown(at, Some(uid), Some(gid)));
        }
        if !found.is_symlink() {
            let mode = feed.number() & 0o7777;
            let keep = if found.is_dir() { 0o700 } else { 0o600 };
            fs::set_permissions(at, Permissions::from_mode(mode | keep)).expect("set");
            if found.is_file() || found.is_dir() {
                for _ in 0..feed.below(3) {
                    let key = feed.pick(&[
                        "user.a",
                        "user.b=c",
                        "user.%3D",
                        "user.overlay.overlay.opaque",
                        "security.capability",
                    ]);
                    let _ = rustix::fs::setxattr(at, key, feed.bytes(40), XattrFlags::empty());
                }
            }
        }
        let seconds = match feed.below(4) {
            0 => i64::from(feed.number()),
            1 => -i64::from(feed.number() >> 8),
            2 => i64::from(feed.number()) << 3,
            _ => 0,
        };
        let nanoseconds = i64::from(feed.number() % 1_000_000_000);
        let times = Timestamps {
            last_access: moment(0, 0),
            last_modification: moment(seconds, nanoseconds),
        };
        let _ = rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW);
    }
}
