//! Directories to apply archives to: a root, a layer below it, and something beside them that has to stay as it is.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use plyfs::driver::FileGetter;
use plyfs::layer::apply::{self, Applied, Limits, Owners, Target, Whiteouts};
use plyfs::layer::split;

use super::tree::Tree;

/// Where an archive goes, and how.
pub struct Place {
    scratch: PathBuf,
    pub target: Target,
    outside: Tree,
}

/// How an archive is applied.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// There is a layer below.
    pub over: bool,
    /// Deletions delete.
    pub removing: bool,
    /// Owners are noted in attributes.
    pub recording: bool,
}

/// Whether marks of an overlay have to be `user.*` here.
pub fn user_marks(at: &Path) -> bool {
    let flags = rustix::fs::XattrFlags::empty();
    let set = rustix::fs::setxattr(at, "trusted.plyfs.probe", b"y", flags);
    if set.is_ok() {
        rustix::fs::removexattr(at, "trusted.plyfs.probe").expect("the probe is removed");
    }
    set.is_err()
}

/// Makes a small tree that archives have to do with: links that lead out, directories, a file with two names.
fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("d/e")).expect("made");
    fs::create_dir(dir.join("etc")).expect("made");
    fs::write(dir.join("d/f"), "below").expect("made");
    fs::write(dir.join("etc/passwd"), "inside").expect("made");
    fs::hard_link(dir.join("d/f"), dir.join("h")).expect("made");
    symlink("/etc", dir.join("l")).expect("made");
    symlink("../../etc", dir.join("d/up")).expect("made");
    symlink("d", dir.join("s")).expect("made");
    symlink("gone", dir.join("dead")).expect("made");
}

impl Place {
    /// Makes everything in `scratch`, which is emptied before.
    pub fn new(scratch: &Path, how: How) -> Place {
        empty(scratch);
        for dir in ["root", "etc", "lower", "root2"] {
            fs::create_dir(scratch.join(dir)).expect("made");
        }
        fs::write(scratch.join("etc/passwd"), "outside").expect("made");
        fs::write(scratch.join("passwd"), "outside too").expect("made");
        let (root, lower) = (scratch.join("root"), scratch.join("lower"));
        let lowers = if how.over && !how.removing { vec![lower.clone()] } else { Vec::new() };
        furnish(&lower);
        if how.over && how.removing {
            furnish(&root);
        }
        let whiteouts = match how.removing {
            true => Whiteouts::Remove,
            false => Whiteouts::Overlay { user: user_marks(&lower) },
        };
        let owners = match how.recording {
            true => Owners::Record,
            false if rustix::process::geteuid().is_root() => Owners::Set,
            false => Owners::Ignore,
        };
        let belief = plyfs::layer::Belief::standing();
        let target = Target { root, lowers, belief, whiteouts, owners };
        let mut place = Place { scratch: scratch.to_path_buf(), target, outside: Tree::default() };
        place.outside = place.beside();
        place
    }

    /// Everything in the scratch directory but the roots.
    fn beside(&self) -> Tree {
        let mut tree = Tree::read(&self.scratch, &|path| matches!(path, b"root" | b"again"));
        tree.0.remove(&b""[..]);
        tree
    }

    /// Another root of the same kind, beside the first.
    pub fn again(&self) -> Target {
        let root = self.scratch.join("again");
        fs::create_dir(&root).expect("made");
        Target { root, ..self.target.clone() }
    }

    /// Applies an archive, and looks whether anything outside the root has changed. With the record that gives it back.
    pub fn apply(
        &self,
        target: &Target,
        archive: &[u8],
        limits: &Limits,
    ) -> Option<(Applied, Vec<u8>)> {
        let (mut record, mut input) = (Vec::new(), archive);
        let applied = apply::apply(&mut input, target, limits, Some(&mut record));
        let now = self.beside();
        assert!(now == self.outside, "outside of the root:\n{}", self.outside.differences(&now));
        match applied {
            Ok(applied) => Some((applied, record)),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains('\n'), "an error of several lines: {text}");
                None
            }
        }
    }

    /// The archive that a record gives back.
    pub fn assembled(&self, root: &Path, record: &[u8]) -> Vec<u8> {
        let files = Files(root.to_path_buf());
        let (mut bytes, mut input) = (Vec::new(), record);
        split::assemble(&mut input, &files, &mut bytes).expect("the archive is given back");
        let mut input = record;
        let differences = split::check(&mut input, &files).expect("the record is read");
        assert_eq!(differences, [], "files that differ");
        bytes
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        empty(&self.scratch);
    }
}

/// Deletes what is in a directory.
pub fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).expect("listed") {
        let entry = entry.expect("listed");
        match entry.file_type().expect("known").is_dir() {
            true => fs::remove_dir_all(entry.path()).expect("removed"),
            false => fs::remove_file(entry.path()).expect("removed"),
        }
    }
}

/// The files of an applied layer.
pub struct Files(pub PathBuf);

impl FileGetter for Files {
    fn open(&self, path: &[u8]) -> plyfs::Result<Box<dyn Read>> {
        let at = self.0.join(std::ffi::OsStr::from_bytes(path));
        let found =
            fs::symlink_metadata(&at).map_err(|error| plyfs::Error::io("stat", &at, error))?;
        assert!(found.is_file(), "{} is no file", at.display());
        let open = File::open(&at).map_err(|error| plyfs::Error::io("open", at, error))?;
        Ok(Box::new(open))
    }
}
