//! What an overlay remembers is what is so, and with `timeout=0` it remembers nothing.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use plyfs_fuse::attr::Attr;
use plyfs_fuse::inode::Ino;
use plyfs_fuse::{Options, Overlay};

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
