//! Work in bulk: deep trees, full disks, many who wait for one copy. What it costs others, and what it
//! must not do.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use plyfs_fuse::inode::Ino;
use plyfs_fuse::options::RedirectDir;
use plyfs_fuse::{Options, Overlay, sys};

use crate::common::sandbox::Sandbox;

const FLAGS: i32 = sys::O_PATH | sys::O_DIRECTORY;

/// A directory whose content is removed on drop, however deep it is.
struct Deep(PathBuf);

impl Drop for Deep {
    fn drop(&mut self) {
        let dir = open(&self.0);
        for entry in sys::list(&dir).unwrap_or_default() {
            let _ = sys::remove_tree(&dir, &entry.name);
        }
    }
}

fn open(path: &Path) -> OwnedFd {
    std::fs::File::open(path).unwrap().into()
}

/// Makes directories `d` inside each other below `dir`, a file beside every hundredth.
fn dig(dir: OwnedFd, depth: usize) {
    let mut here = dir;
    for level in 0..depth {
        if level % 100 == 0 {
            let name = format!("f{level}");
            sys::mknod(&here, OsStr::new(&name), sys::S_IFREG | 0o600, 0).unwrap();
        }
        sys::mkdir(&here, OsStr::new("d"), 0o755).unwrap();
        here = sys::open(&here, OsStr::new("d"), FLAGS).unwrap();
    }
}

/// How many directories `d` are inside each other, and how many other names are beside them.
fn fathom(dir: OwnedFd) -> (usize, usize) {
    let (mut here, mut depth, mut files) = (dir, 0, 0);
    loop {
        let names = sys::list(&here).unwrap();
        files += names.iter().filter(|entry| entry.name != "d").count();
        match sys::open(&here, OsStr::new("d"), FLAGS) {
            Ok(below) => here = below,
            Err(_) => return (depth, files),
        }
        depth += 1;
    }
}

fn options(sandbox: &Sandbox, lower: &Path) -> Options {
    Options {
        lowers: vec![lower.to_owned()],
        upper: Some(sandbox.upper()),
        work: Some(sandbox.work()),
        redirect_dir: RedirectDir::Copy,
        ..Options::default()
    }
}

/// On a stack that a call a level would not fit in.
fn on_a_small_stack(job: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(192 * 1024).spawn(job).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_directory_9000_levels_deep_is_copied_whole_and_moved() {
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    let _clean = [Deep(lower.clone()), Deep(sandbox.upper()), Deep(sandbox.work())];
    std::fs::create_dir(lower.join("a")).unwrap();
    dig(open(&lower.join("a")), 9000);
    let fs = Overlay::open(&options(&sandbox, &lower)).unwrap();
    on_a_small_stack(move || {
        fs.rename(Ino::ROOT, OsStr::new("a"), Ino::ROOT, OsStr::new("b"), 0).unwrap();
        fs.check_invariants().unwrap();
        assert!(fs.known_inodes() <= 2, "what was copied is forgotten");
    });
    assert_eq!(fathom(open(&sandbox.upper().join("b"))), (9000, 90));
    // What a crash left in the work directory is as deep.
    std::fs::rename(sandbox.upper().join("b"), sandbox.work().join("work/left")).unwrap();
    let options = options(&sandbox, &lower);
    on_a_small_stack(move || drop(Overlay::open(&options).unwrap()));
    assert!(!sandbox.work().join("work/left").exists());
}

#[test]
fn nothing_is_copied_for_a_rename_that_is_refused() {
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    for dir in ["a/b", "full/x", "gone"] {
        std::fs::create_dir_all(lower.join(dir)).unwrap();
    }
    std::fs::write(lower.join("a/f"), "data").unwrap();
    let fs = Overlay::open(&options(&sandbox, &lower)).unwrap();
    let gone = fs.lookup(Ino::ROOT, OsStr::new("gone")).unwrap().attr.ino;
    fs.rmdir(Ino::ROOT, OsStr::new("gone")).unwrap();
    let a = OsStr::new("a");
    let onto = |dir, name| fs.rename(Ino::ROOT, a, dir, OsStr::new(name), 0).unwrap_err().errno();
    assert_eq!(onto(Ino::ROOT, "full"), libc::ENOTEMPTY);
    assert_eq!(onto(gone, "new"), libc::ENOENT);
    assert!(!sandbox.upper().join("a").exists(), "it was copied in vain");
    fs.forget(gone, 1);
}
