//! Upper filesystems that lack something.

use std::ffi::{CString, OsStr};
use std::path::{Path, PathBuf};

use plyfs_fuse::inode::Ino;
use plyfs_fuse::options::{Namespace, Whiteouts};
use plyfs_fuse::owner::Caller;
use plyfs_fuse::{Options, Overlay};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::common::mount::own_namespace;
use crate::common::rootless;
use crate::common::sandbox::Sandbox;
use crate::{needs, this_test};

/// A ramfs, which has no extended attributes; unmounted on drop.
struct Ram(PathBuf);

impl Ram {
    fn mount(at: PathBuf) -> Ram {
        own_namespace();
        let none = CString::default();
        rustix::mount::mount("ramfs", &at, "ramfs", MountFlags::empty(), &*none).unwrap();
        for name in ["upper", "work"] {
            std::fs::create_dir(at.join(name)).unwrap();
        }
        Ram(at)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn options(lower: &Path, upper: &Path) -> Options {
    Options {
        lowers: vec![lower.to_owned()],
        upper: Some(upper.join("upper")),
        work: Some(upper.join("work")),
        ..Options::default()
    }
}

fn refusal(options: Options) -> String {
    Overlay::open(&options).map(drop).unwrap_err().to_string()
}

#[test]
fn a_namespace_that_was_asked_for_and_cannot_be_had_refuses_the_mount() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    let ram = Ram::mount(sandbox.dir("ram"));
    for (namespace, word) in [(Namespace::User, "userxattr"), (Namespace::Trusted, "nouserxattr")] {
        let said = refusal(Options { namespace, ..options(&lower, &ram.0) });
        assert!(said.contains(&format!("{word} was given")), "{said}");
    }
    Overlay::open(&options(&lower, &ram.0)).unwrap();
}

#[test]
fn trusted_attributes_are_refused_to_an_ordinary_user() {
    needs!(UserNs);
    if rootless::run(this_test!()) {
        return;
    }
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    for name in ["upper", "work"] {
        std::fs::create_dir_all(sandbox.at(name)).unwrap();
    }
    let asked = Options { namespace: Namespace::Trusted, ..options(&lower, &sandbox.at(".")) };
    let read_only = Options { upper: None, work: None, ..asked.clone() };
    for options in [asked, read_only] {
        let said = refusal(options);
        assert!(said.contains("nouserxattr was given"), "{said}");
    }
}

fn names(fs: &Overlay, dir: Ino) -> Vec<String> {
    let handle = fs.open_dir(dir).unwrap();
    let names = fs.read_dir(handle).unwrap();
    let names = names.iter().map(|entry| entry.name.to_str().unwrap().to_owned());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    fs.release_dir(handle);
    names.sort();
    names
}

/// What `src` and `dst` hold; none where they do not exist.
fn shown(fs: &Overlay) -> [Option<Vec<String>>; 2] {
    ["src", "dst"].map(|name| {
        let dir = fs.lookup(Ino::ROOT, OsStr::new(name)).ok()?.attr.ino;
        let names = names(fs, dir);
        fs.forget(dir, 1);
        Some(names)
    })
}

/// Empties `dst`, which merges, and moves `src`, of whatever layer, over it.
fn moves_onto_an_emptied_directory(options: &Options, src_below: bool) {
    let [src, dst] = ["src", "dst"].map(OsStr::new);
    let me = Caller { uid: 0, gid: 0, umask: 0o022 };
    let fs = Overlay::open(options).unwrap();
    if !src_below {
        fs.mkdir(me, Ino::ROOT, src, 0o755).unwrap();
    }
    let from = fs.lookup(Ino::ROOT, src).unwrap().attr.ino;
    fs.mkdir(me, from, OsStr::new("new"), 0o755).unwrap();
    let to = fs.lookup(Ino::ROOT, dst).unwrap().attr.ino;
    fs.unlink(to, OsStr::new("x")).unwrap();
    let before = shown(&fs);
    fs.rename(Ino::ROOT, src, Ino::ROOT, dst, 0).unwrap();
    let after = [None, before[0].clone()];
    assert_eq!(shown(&fs), after);
    fs.check_invariants().unwrap();
    assert_eq!(fs.lookup(Ino::ROOT, dst).unwrap().attr.ino, from);
    assert!(names(&fs, to).is_empty(), "what was replaced is empty");
    drop(fs);
    let fs = Overlay::open(options).unwrap();
    assert_eq!(shown(&fs), after, "reopened");
    fs.check_invariants().unwrap();
}

#[test]
fn a_directory_moves_onto_an_emptied_one_where_there_are_no_attributes() {
    needs!(Root);
    for whiteouts in [Whiteouts::Dot, Whiteouts::Device] {
        for src_below in [true, false] {
            let sandbox = Sandbox::new();
            let lower = sandbox.lower(1);
            std::fs::create_dir(lower.join("dst")).unwrap();
            std::fs::write(lower.join("dst/x"), "x").unwrap();
            if src_below {
                std::fs::create_dir_all(lower.join("src/old")).unwrap();
            }
            let ram = Ram::mount(sandbox.dir("ram"));
            let options = Options { whiteouts, ..options(&lower, &ram.0) };
            moves_onto_an_emptied_directory(&options, src_below);
        }
    }
}
