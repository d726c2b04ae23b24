//! What an overlay remembers is what is so, and with `timeout=0` it remembers nothing.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use plyfs_fuse::attr::{Attr, SetAttr};
use plyfs_fuse::inode::Ino;
use plyfs_fuse::owner::Caller;
use plyfs_fuse::{Options, Overlay};

use crate::common::model::Who;
use crate::common::sandbox::Sandbox;

fn options(sandbox: &Sandbox, lowers: usize) -> Options {
    Options {
        lowers: (1..=lowers).map(|n| sandbox.lower(n)).collect(),
        upper: Some(sandbox.upper()),
        work: Some(sandbox.work()),
        ..Options::default()
    }
}

fn live(options: &Options) -> Options {
    Options { timeout: Duration::ZERO, ..options.clone() }
}

fn list(fs: &Overlay, dir: Ino) -> Vec<String> {
    let handle = fs.open_dir(dir).unwrap();
    let names = fs.read_dir(handle).unwrap();
    let names = names.iter().map(|entry| entry.name.to_str().unwrap().to_owned());
    let mut names: Vec<_> = names.filter(|name| name != "." && name != "..").collect();
    fs.release_dir(handle);
    names.sort();
    names
}

fn look(fs: &Overlay, dir: Ino, name: &str) -> Result<Attr, i32> {
    fs.lookup(dir, OsStr::new(name)).map(|entry| entry.attr).map_err(|e| e.errno())
}

fn write(path: PathBuf) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "x").unwrap();
}

/// A caller who owns what the daemon makes.
fn me() -> Caller {
    let who = Who::me();
    Caller { uid: who.uid, gid: who.gid, umask: 0o022 }
}

#[test]
fn names_that_are_not_below_are_not_looked_for_again() {
    let sandbox = Sandbox::new();
    write(sandbox.lower(1).join("d/a"));
    write(sandbox.lower(3).join("d/b"));
    let options = options(&sandbox, 3);
    // A change behind the mount, which must not happen, is the way to see whether it looks.
    let late = sandbox.lower(3).join("d/late");
    for (listed, live_view) in [(true, false), (false, false), (true, true), (false, true)] {
        let fs = Overlay::open(&if live_view { live(&options) } else { options.clone() }).unwrap();
        let dir = look(&fs, Ino::ROOT, "d").unwrap().ino;
        if listed {
            assert_eq!(list(&fs, dir), ["a", "b"]);
        } else {
            for _ in 0..200 {
                assert_eq!(look(&fs, dir, "nothing"), Err(libc::ENOENT));
            }
        }
        write(late.clone());
        let seen = look(&fs, dir, "late").is_ok();
        assert_eq!(seen, live_view, "listed {listed}");
        assert!(look(&fs, dir, "a").is_ok() && look(&fs, dir, "b").is_ok());
        drop(fs);
        std::fs::remove_file(&late).unwrap();
    }
}

#[test]
fn a_listing_changes_nothing_that_is_found() {
    let sandbox = Sandbox::new();
    let [top, middle, bottom] = [1, 2, 3].map(|n| sandbox.lower(n));
    for name in ["d/hidden", "d/both", "d/kept", "d/sub/low", "d/gone/low", "d/over/low", "d/.opq"]
    {
        write(bottom.join(name));
    }
    for name in ["d/.wh.hidden", "d/.wh.gone", "d/both", "d/.wh.both", "d/sub/.wh..wh..opq"] {
        write(middle.join(name));
    }
    for name in ["d/gone/new", "d/over", "d/sub/top", "d/Kept"] {
        write(top.join(name));
    }
    let names =
        ["hidden", "both", "kept", "sub", "gone", "over", "Kept", "KEPT", ".opq", "no", ".wh.no"];
    let shows = |list_first: bool| {
        let fs = Overlay::open(&options(&sandbox, 3)).unwrap();
        let dir = look(&fs, Ino::ROOT, "d").unwrap().ino;
        if list_first {
            list(&fs, dir);
        }
        let found = names.map(|name| {
            let attr = look(&fs, dir, name)?;
            let dir = attr.mode & libc::S_IFMT == libc::S_IFDIR;
            Ok::<_, i32>((attr.ino, attr.mode, attr.nlink, dir.then(|| list(&fs, attr.ino))))
        });
        (found, list(&fs, dir))
    };
    let (found, listed) = shows(true);
    assert_eq!((found.clone(), listed.clone()), shows(false));
    assert_eq!(listed, [".opq", "Kept", "both", "gone", "kept", "over", "sub"]);
    assert_eq!(found[3].as_ref().unwrap().3.as_deref(), Some(&["top".to_owned()][..]));
    assert_eq!(found[4].as_ref().unwrap().3.as_deref(), Some(&["new".to_owned()][..]));
}

#[test]
fn a_directory_made_here_is_not_asked_for_names_it_never_had() {
    let sandbox = Sandbox::new();
    write(sandbox.lower(1).join("copied/low"));
    let options = options(&sandbox, 1);
    let me = me();
    for live_view in [false, true] {
        let fs = Overlay::open(&if live_view { live(&options) } else { options.clone() }).unwrap();
        let made = format!("made{live_view}");
        let made = fs.mkdir(me, Ino::ROOT, OsStr::new(&made), 0o755).unwrap().attr.ino;
        let copied = look(&fs, Ino::ROOT, "copied").unwrap().ino;
        fs.create(me, copied, OsStr::new(&format!("new{live_view}")), 0o644).unwrap();
        write(sandbox.upper().join(format!("made{live_view}/late")));
        write(sandbox.upper().join("copied/late"));
        assert_eq!(look(&fs, made, "late").is_ok(), live_view);
        assert_eq!(look(&fs, copied, "late").is_ok(), live_view);
        assert!(look(&fs, copied, "low").is_ok());
        // What is there all the same is not overwritten.
        let again = fs.create(me, made, OsStr::new("late"), 0o644).unwrap_err();
        assert_eq!(again.errno(), libc::EEXIST);
    }
}

#[test]
fn every_way_a_name_comes_into_a_known_directory_is_noticed() {
    let sandbox = Sandbox::new();
    for name in ["d/a", "d/b", "d/c", "d/sub/x", "e/low"] {
        write(sandbox.lower(1).join(name));
    }
    let fs = Overlay::open(&options(&sandbox, 1)).unwrap();
    let me = me();
    let name = OsStr::new;
    let (d, e) = (look(&fs, Ino::ROOT, "d").unwrap().ino, look(&fs, Ino::ROOT, "e").unwrap().ino);
    let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    // Both directories come up, and are known to be empty above.
    fs.setattr(me, look(&fs, d, "a").unwrap().ino, &mode(0o600)).unwrap();
    fs.setattr(me, look(&fs, e, "low").unwrap().ino, &mode(0o604)).unwrap();
    assert_eq!(look(&fs, d, "a").unwrap().mode & 0o777, 0o600);
    assert_eq!(look(&fs, e, "low").unwrap().mode & 0o777, 0o604);
    fs.unlink(d, name("b")).unwrap();
    assert_eq!(look(&fs, d, "b"), Err(libc::ENOENT));
    fs.rename(d, name("c"), e, name("c"), 0).unwrap();
    assert_eq!(look(&fs, d, "c"), Err(libc::ENOENT), "the whiteout counts");
    let moved = look(&fs, e, "c").unwrap().ino;
    assert_eq!(fs.link(moved, d, name("linked")).unwrap().attr.ino, moved);
    assert_eq!(look(&fs, d, "linked").unwrap().nlink, 2);
    fs.symlink(me, d, name("symlink"), name("target")).unwrap();
    fs.mknod(me, d, name("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    fs.mkdir(me, d, name("b"), 0o700).unwrap();
    fs.rename(d, name("a"), e, name("low"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(look(&fs, d, "a").unwrap().mode & 0o777, 0o604);
    assert_eq!(look(&fs, e, "low").unwrap().mode & 0o777, 0o600);
    assert_eq!(list(&fs, d), ["a", "b", "fifo", "linked", "sub", "symlink"]);
    for found in list(&fs, d) {
        look(&fs, d, &found).unwrap();
    }
    fs.check_invariants().unwrap();
}
