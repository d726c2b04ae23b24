//! What the state directory's filesystem can do for layers.

use std::fs::File;
use std::io;
use std::path::Path;

use super::scratch::Scratch;
use super::trial::{Answers, reason};
use crate::error::{Context, Result};
use crate::sys::probe;

const KEYS: [&str; 8] = [
    "fs.user_xattr",
    "fs.trusted_xattr",
    "fs.whiteout_device",
    "fs.d_type",
    "fs.rename_whiteout",
    "fs.tmpfile",
    "fs.reflink",
    "fs.file_handle",
];

/// Types by their number in statfs(2), linux/magic.h.
const TYPES: [(u64, &str); 19] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x794c_7630, "overlay"),
    (0x6573_5546, "fuse"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb"),
    (0x0102_1997, "9p"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0xe0f5_e1e2, "erofs"),
    (0x7371_7368, "squashfs"),
    (0xf15f, "ecryptfs"),
    (0x4d44, "vfat"),
    (0x6175_6673, "aufs"),
];

/// The type of the filesystem a directory is on.
pub(crate) fn name(path: &Path) -> String {
    match probe::filesystem_magic(path) {
        Ok(magic) => match TYPES.iter().find(|(known, _)| *known == magic) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("type {magic:#x}"),
        },
        Err(error) => reason(&error),
    }
}

/// Tries it.
pub(super) fn probe(scratch: &Scratch, answers: &mut Answers) -> Result<()> {
    let dir = scratch.dir("filesystem").on("create a directory in", "the state directory")?;
    answers.trial(&KEYS, |answers| {
        if let Err(error) = std::fs::write(dir.join("file"), "data") {
            return answers.say("fs.writable", false, reason(&error));
        }
        try_all(&dir, answers);
    })
}

fn try_all(dir: &Path, answers: &mut Answers) {
    let file = dir.join("file");
    answers.tried("fs.user_xattr", &probe::set_xattr(&file, "user.plyfs.probe", b"y"));
    answers.tried("fs.trusted_xattr", &probe::set_xattr(&file, "trusted.plyfs.probe", b"y"));
    let device = dir.join("device");
    answers.tried(
        "fs.whiteout_device",
        &probe::make_whiteout(&device).and_then(|()| is_whiteout(&device)),
    );
    let types =
        probe::lists_types(dir).and_then(|types| said(types, "listings do not say what a name is"));
    answers.tried("fs.d_type", &types);
    let old = dir.join("old");
    let renamed = std::fs::write(&old, "")
        .and_then(|()| probe::rename_whiteout(&old, &dir.join("new")))
        .and_then(|()| is_whiteout(&old));
    answers.tried("fs.rename_whiteout", &renamed);
    answers.tried("fs.tmpfile", &probe::unnamed_file(dir));
    let shared = File::open(&file)
        .and_then(|from| File::create(dir.join("copy")).and_then(|to| probe::reflink(&from, &to)));
    answers.tried("fs.reflink", &shared);
    answers.tried("fs.file_handle", &probe::file_handle(&file));
}

fn is_whiteout(path: &Path) -> io::Result<()> {
    said(probe::is_whiteout(path)?, "something else was made")
}

fn said(yes: bool, otherwise: &str) -> io::Result<()> {
    if yes { Ok(()) } else { Err(io::Error::other(otherwise.to_owned())) }
}
