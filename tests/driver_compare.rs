//! The difference between two whole trees.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use plyfs::layer::Belief;
use plyfs::layer::compare::{self, Comparison, Tree};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::common::cmd::Cmd;
use crate::common::sandbox::Sandbox;
use crate::needs;

/// Two trees that were one: `old`, and `new`, a copy with times and all.
struct Pair(Sandbox);

impl Pair {
    fn of(make: impl FnOnce(&Path)) -> Pair {
        let sandbox = Sandbox::new();
        make(&sandbox.dir("old"));
        // What was there long before is told by its attributes alone.
        let past = SystemTime::now() - Duration::from_secs(1000);
        age(&sandbox.at("old"), past);
        plyfs::sys::copy::tree(
            &sandbox.at("old"),
            &sandbox.at("new"),
            plyfs::sys::copy::How::default(),
        )
        .unwrap();
        Pair(sandbox)
    }

    fn changed(&self) -> PathBuf {
        self.0.at("new")
    }

    fn tree(&self, name: &str) -> Tree {
        Tree { top: self.0.at(name), below: Vec::new() }
    }

    fn lines(&self) -> Vec<String> {
        let list = compare::list(Some(&self.tree("old")), &self.tree("new")).unwrap();
        list.iter().map(ToString::to_string).collect()
    }

    /// Names in the layer, with an arrow where one is another's.
    fn layer(&self) -> Vec<String> {
        let mut bytes = Vec::new();
        compare::write(Some(&self.tree("old")), &self.tree("new"), &mut bytes).unwrap();
        let mut again = Vec::new();
        compare::write(Some(&self.tree("old")), &self.tree("new"), &mut again).unwrap();
        assert!(bytes == again, "the same trees give other bytes");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            match entry.link_name().unwrap() {
                Some(to) => format!("{name} -> {}", to.display()),
                None => name,
            }
        });
        entries.collect()
    }
}

fn age(path: &Path, time: SystemTime) {
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| age(&entry.unwrap().path(), time));
    }
    if !path.is_symlink() {
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    }
}

fn keep_time(path: &Path, change: impl FnOnce()) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    change();
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

fn base(root: &Path) {
    for name in ["a", "b", "dir/one", "dir/two", "gone/deep/x"] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), name).unwrap();
    }
    symlink("a", root.join("link")).unwrap();
    fs::hard_link(root.join("b"), root.join("b2")).unwrap();
}

#[test]
fn a_copy_does_not_differ() {
    let pair = Pair::of(base);
    assert_eq!(pair.lines(), Vec::<String>::new());
    assert_eq!(pair.layer(), Vec::<String>::new());
}

#[test]
fn without_an_old_tree_all_is_new() {
    let pair = Pair::of(base);
    let list = compare::list(None, &pair.tree("new")).unwrap();
    assert_eq!(list.len(), 10);
    assert!(list.iter().all(|change| change.to_string().starts_with("A /")));
}

#[test]
fn every_attribute_of_a_layer_counts() {
    needs!(Root);
    type Step = fn(&Path);
    let steps: [(&str, Step); 8] = [
        ("mode", |f| fs::set_permissions(f, fs::Permissions::from_mode(0o4600)).unwrap()),
        ("owner", |f| chown(f, Some(7), None).unwrap()),
        ("group", |f| chown(f, None, Some(7)).unwrap()),
        ("xattr", |f| rustix::fs::setxattr(f, "user.x", b"y", XattrFlags::empty()).unwrap()),
        ("size", |f| keep_time(f, || fs::write(f, "longer").unwrap())),
        ("nanosecond", |f| {
            let time = fs::metadata(f).unwrap().modified().unwrap() + Duration::from_nanos(1);
            fs::File::open(f).unwrap().set_modified(time).unwrap();
        }),
        ("kind", |f| {
            fs::remove_file(f).unwrap();
            symlink("a", f).unwrap();
        }),
        ("device", |f| {
            fs::remove_file(f).unwrap();
            let device = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, f, FileType::CharacterDevice, Mode::RUSR, device).unwrap();
        }),
    ];
    for (what, step) in steps {
        let pair = Pair::of(base);
        let dir = pair.changed().join("dir");
        keep_time(&dir, || step(&dir.join("one")));
        assert_eq!(pair.lines(), ["C /dir", "C /dir/one"], "{what}");
        assert_eq!(pair.layer().len(), 2, "{what}");
    }
}

#[test]
fn a_directory_is_compared_too() {
    let pair = Pair::of(base);
    fs::set_permissions(pair.changed().join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(pair.lines(), ["C /dir"]);
    assert_eq!(pair.layer(), ["dir/"]);
}

#[test]
fn data_written_within_one_tick_is_compared() {
    let sandbox = Sandbox::new();
    for (name, text) in [("old", "x"), ("new", "y")] {
        fs::write(sandbox.dir(name).join("f"), text).unwrap();
    }
    let time = SystemTime::now();
    for name in ["old", "new"] {
        fs::File::open(sandbox.at(name).join("f")).unwrap().set_modified(time).unwrap();
    }
    let pair = Pair(sandbox);
    assert_eq!(pair.lines(), ["C /f"]);
}

/// What a user does who keeps times: `cp -p` over a file, the same by a rename, and `touch -r` after a write.
#[test]
fn data_that_changed_under_the_same_attributes_is_found_since_a_time() {
    let steps: [(&str, &str); 3] = [
        ("cp -p over it", "cp -p b a"),
        ("a copy moved over it", "cp -p b c && mv c a"),
        ("written, and its time put back", "cp -p a r; printf x > a; touch -r r a; rm r"),
    ];
    for (what, step) in steps {
        let pair = Pair::of(base);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let step = format!("cd \"$1\" && {step}");
        keep_time(&pair.changed(), || {
            Cmd::new("sh").args(["-c", &step, "sh"]).arg(pair.changed()).succeeds();
        });
        let (old, new) = (pair.tree("old"), pair.tree("new"));
        let since = |since| {
            let list = Comparison { old: Some(&old), new: &new, since, belief: Belief::standing() }
                .list()
                .unwrap();
            list.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(since(Some(i64::try_from(now).unwrap())), ["C /a"], "{what}");
        // Times are believed where nobody says since when.
        assert_eq!(since(None), [""; 0], "{what}");
    }
}

#[test]
fn additions_and_deletions() {
    let pair = Pair::of(base);
    let new = pair.changed();
    fs::remove_dir_all(new.join("gone")).unwrap();
    fs::remove_file(new.join("dir/one")).unwrap();
    fs::create_dir_all(new.join("dir/added/deep")).unwrap();
    fs::write(new.join("dir/added/deep/f"), "").unwrap();
    let lines = [
        "C /dir",
        "A /dir/added",
        "A /dir/added/deep",
        "A /dir/added/deep/f",
        "D /dir/one",
        "D /gone",
    ];
    assert_eq!(pair.lines(), lines);
    let names =
        ["dir/", "dir/added/", "dir/added/deep/", "dir/added/deep/f", "dir/.wh.one", ".wh.gone"];
    assert_eq!(pair.layer(), names);
}

#[test]
fn a_file_becomes_a_directory_and_the_reverse() {
    let pair = Pair::of(base);
    let new = pair.changed();
    fs::remove_file(new.join("a")).unwrap();
    fs::create_dir(new.join("a")).unwrap();
    fs::write(new.join("a/f"), "").unwrap();
    fs::remove_dir_all(new.join("dir")).unwrap();
    fs::write(new.join("dir"), "").unwrap();
    assert_eq!(pair.lines(), ["C /a", "A /a/f", "C /dir"]);
    assert_eq!(pair.layer(), ["a/", "a/f", "dir"]);
}

#[test]
fn names_that_become_one_file_and_two() {
    let pair = Pair::of(base);
    let new = pair.changed();
    // A second name, and nothing else of `a` changes.
    fs::hard_link(new.join("a"), new.join("a2")).unwrap();
    assert_eq!(pair.lines(), ["C /a", "A /a2"]);
    assert_eq!(pair.layer(), ["a", "a2 -> a"]);

    let pair = Pair::of(base);
    let new = pair.changed();
    let time = fs::metadata(new.join("b2")).unwrap().modified().unwrap();
    fs::copy(new.join("b2"), new.join("b3")).unwrap();
    fs::rename(new.join("b3"), new.join("b2")).unwrap();
    fs::File::open(new.join("b2")).unwrap().set_modified(time).unwrap();
    assert_eq!(pair.lines(), ["C /b", "C /b2"]);

    // One of two names goes: the other is what it was.
    let pair = Pair::of(base);
    fs::remove_file(pair.changed().join("b2")).unwrap();
    assert_eq!(pair.lines(), ["D /b2"]);
}

#[test]
fn a_stack_is_compared_as_it_is_merged() {
    needs!(Root);
    let pair = Pair::of(base);
    let upper = pair.0.dir("upper2");
    rustix::fs::mknodat(CWD, upper.join("a"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    fs::write(upper.join("c"), "c").unwrap();
    let new = Tree { top: upper, below: vec![pair.0.at("old")] };
    let list = compare::list(Some(&pair.tree("new")), &new).unwrap();
    let lines: Vec<String> = list.iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["D /a", "A /c"]);
}
