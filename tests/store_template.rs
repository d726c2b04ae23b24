//! A layer that begins as a copy of another is like it in all, and neither knows of the other any more.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

use crate::common::cmd::Cmd;
use crate::driver_kit;
use crate::every_driver;
use crate::store_kit::{Box_, tree};

/// A tree with everything that a copy can lose.
fn rich(store: &driver_kit::Store) -> PathBuf {
    let tree = tree(store);
    fs::hard_link(tree.join("a"), tree.join("d/also-a")).unwrap();
    setxattr(tree.join("a"), "user.kept", b"value", XattrFlags::empty()).unwrap();
    fs::set_permissions(tree.join("d/b"), fs::Permissions::from_mode(0o4751)).unwrap();
    mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    // An ordinary user makes none.
    let device =
        mknodat(CWD, tree.join("null"), FileType::CharacterDevice, Mode::RUSR, makedev(1, 3));
    assert!(device.is_ok() || device == Err(rustix::io::Errno::PERM));
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 8 << 20).unwrap();
    for name in ["a", "l", "d/b", "d"] {
        let touch = ["-h", "-d", "2001-02-03T04:05:06.123456789Z"];
        Cmd::new("touch").args(touch).arg(tree.join(name)).succeeds();
    }
    tree
}

/// What `x` adds to `base`: a name, a deletion, a directory that hides what lies below it.
fn on_top(store: &driver_kit::Store) -> PathBuf {
    let tree = store.sandbox.dir("top");
    for dir in ["d", "e"] {
        fs::create_dir(tree.join(dir)).unwrap();
    }
    for (name, text) in [("d/n", "new\n"), ("d/.wh.b", ""), ("e/.wh..wh..opq", ""), ("e/f", "f\n")]
    {
        fs::write(tree.join(name), text).unwrap();
    }
    fs::hard_link(tree.join("d/n"), tree.join("m")).unwrap();
    tree
}

fn at(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn diff(store: &Box_<'_>, name: &str) -> Vec<u8> {
    let file = store.0.sandbox.at("diff.tar");
    store.does(&["layer", "diff", name, "-o", at(&file)]);
    fs::read(file).unwrap()
}

/// Does something in the view of a layer.
fn in_view(store: &Box_<'_>, name: &str, script: &str) -> String {
    let path = store.does(&["layer", "mount", name]).stdout;
    let done = Cmd::new("sh").args(["-ec", &format!("cd \"$1\"; {script}"), "sh", path.trim_end()]);
    let said = done.succeeds().stdout;
    store.does(&["layer", "umount", name]);
    said
}

fn of_an_applied_layer(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &rich(store.0));
    let archive = fs::read(store.fill("x", Some("base"), &on_top(store.0))).unwrap();
    let base = fs::read(store.0.sandbox.at("base.tar")).unwrap();
    store.does(&["layer", "create", "--template", "base", "other"]);
    store.does(&["layer", "create", "--template", "x", "--parent", "base", "y"]);
    for (of, copy, archive) in [("base", "other", &base), ("x", "y", &archive)] {
        assert_eq!(store.0.differences(of, copy), [] as [String; 0], "{copy}");
        let changes = |name| store.does(&["layer", "changes", name]).stdout;
        assert_eq!(changes(copy), changes(of), "{copy}");
        assert!(diff(&store, copy) == *archive, "the archive of {copy} is another");
        let told = store.does(&["layer", "inspect", copy]).stdout;
        assert!(told.contains(&format!("\"template\": \"{of}\"")), "{told}");
        store
            .plyfs(&["layer", "apply", copy, "/dev/null"])
            .exits(1)
            .complains("is a copy of layer");
    }
    let own = store.0.own("other");
    let stat = |name: &str| own.join(name).symlink_metadata().unwrap();
    assert_eq!(stat("a").ino(), stat("d/also-a").ino());
    assert_eq!(stat("a").mtime(), 981_173_106);
    assert!(stat("fifo").file_type().is_fifo());
    // The copy needs its template no more.
    store.does(&["layer", "rm", "x"]);
    assert!(diff(&store, "y") == archive);
    store.does(&["layer", "create", "--parent", "y", "box"]);
    assert_eq!(in_view(&store, "box", "ls d e; cat m"), "d:\nalso-a\nc\nn\n\ne:\nf\nnew\n");
    store.does(&["check"]).says("nothing wrong");
    store.plyfs(&["layer", "rm", "base"]).exits(1).complains("layer 'y', which lies on it");
}

/// Links, a deletion, a directory in the place of another, one that was moved, an attribute.
const WORK: &str = "rm d/b d/also-a; ln a third; echo more >> third; mv e E; mkdir e; echo g > e/g; \
    chmod 600 d/c; ln -s a l2; touch -d 2001-02-03T04:05:06.123456789Z d";

fn of_a_written_layer(store: &driver_kit::Store) {
    let store = Box_(store);
    let tree = rich(store.0);
    fs::create_dir(tree.join("e")).unwrap();
    fs::write(tree.join("e/old"), "old\n").unwrap();
    store.fill("base", None, &tree);
    store.does(&["layer", "create", "--parent", "base", "box"]);
    in_view(&store, "box", WORK);
    // Size and time of what is changed stay as they are.
    in_view(&store, "box", "touch -r d/c t; printf 'THREE\\n' > d/c; touch -r t d/c; rm t");
    store.does(&["layer", "create", "--template", "box", "copy"]);
    assert_eq!(store.0.differences("box", "copy"), [] as [String; 0]);
    let changes = |name| store.does(&["layer", "changes", name]).stdout;
    let told = changes("copy");
    assert_eq!(told, changes("box"));
    assert!(told.contains("C /d/c\n") && told.contains("D /d/b\n"), "{told}");
    let bytes = diff(&store, "box");
    assert!(diff(&store, "copy") == bytes);
    // What is done to one is not done to the other.
    in_view(&store, "copy", "echo mine > a; rm -r E; echo h > e/h");
    assert!(diff(&store, "box") == bytes);
    in_view(&store, "box", "echo box > e/g; rm third");
    let look = "cat a third e/g; ls -1 e d";
    let seen = "mine\nmine\ng\nd:\nc\n\ne:\ng\nh\n";
    assert_eq!(in_view(&store, "copy", look), seen);
    store.does(&["layer", "rm", "box"]);
    assert_eq!(in_view(&store, "copy", look), seen);
    store.does(&["check"]).says("nothing wrong");
}

fn of_a_layer_without_a_parent(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "alone"]);
    let own = store.0.own("alone");
    Cmd::new("cp").args(["-aT", "--sparse=always"]).arg(rich(store.0)).arg(&own).succeeds();
    store.does(&["layer", "create", "--template", "alone", "copy"]);
    assert_eq!(store.0.differences("alone", "copy"), [] as [String; 0]);
    let times = |of: &str| {
        let stat = store.0.own(of).join("d/b").symlink_metadata().unwrap();
        (stat.mtime(), stat.mtime_nsec())
    };
    assert_eq!((times("copy"), times("alone")), ((981_173_106, 123_456_789), times("copy")));
    in_view(&store, "copy", "getfattr -n user.kept a");
    let sparse = store.0.own("copy").join("sparse").symlink_metadata().unwrap();
    let (size, blocks) = (sparse.len(), sparse.blocks());
    assert!(size > 8 << 20 && blocks < 2048, "{size} bytes in {blocks} blocks");
    let look = "cat a d/also-a; stat -c '%a %h %F' . a d/b l fifo";
    let seen = in_view(&store, "alone", look);
    assert_eq!(in_view(&store, "copy", look), seen);
    in_view(&store, "copy", "echo two > a; rm l fifo");
    assert_eq!(in_view(&store, "alone", look), seen);
}

fn of_the_other_kind(store: &driver_kit::Store) {
    let store = Box_(store);
    let archive = fs::read(store.fill("base", None, &rich(store.0))).unwrap();
    store.does(&["layer", "create", "--template", "base", "--read-write", "box"]);
    in_view(&store, "box", "echo more >> a; echo less > d/b");
    assert!(diff(&store, "base") == archive, "the template has changed");
    assert_ne!(diff(&store, "box"), archive);
    store.does(&["layer", "create", "--template", "box", "--read-only", "fixed"]);
    assert_eq!(store.0.differences("box", "fixed"), [] as [String; 0]);
    store.does(&["layer", "create", "--parent", "fixed", "child"]);
    in_view(&store, "child", "echo child > a");
    assert_eq!(in_view(&store, "box", "cat d/b"), "less\n");
    // A mount that may be written to, not one that may not.
    store.does(&["layer", "mount", "fixed"]);
    store.does(&["layer", "create", "--template", "fixed", "again"]);
    store.does(&["layer", "umount", "fixed"]);
    store.does(&["check"]).says("nothing wrong");
}

fn what_cannot_be_copied_is_refused(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    for name in ["one", "two"] {
        store.does(&["layer", "create", "--parent", "base", name]);
    }
    let create = |words: &[&str]| store.plyfs(&[&["layer", "create"], words].concat());
    create(&["--template", "none", "new"]).exits(1).complains("layer 'none': not found");
    create(&["--template", "one", "--parent", "two", "new"])
        .exits(1)
        .complains("template 'one': lies on layer 'base', and so does a copy of it");
    create(&["--template", "base", "--parent", "one", "new"])
        .exits(1)
        .complains("lies on no other");
    create(&["--template", "base", "one"]).exits(1).complains("layer 'one': already exists");
    create(&["--template", "one", "one"]).exits(1).complains("layer 'one': already exists");
    create(&["--read-write", "new"]).exits(2).complains("--template");
    store.does(&["layer", "mount", "one"]);
    create(&["--template", "one", "new"]).exits(1).complains("layer 'one': in use by its mount");
    store.does(&["layer", "umount", "one"]);
    let left = store.does(&["--json", "layer", "ls"]).stdout;
    assert!(!left.contains("\"new\""), "{left}");
    assert!(fs::read_dir(store.0.root().join("pending")).unwrap().next().is_none());
    store.does(&["check"]).says("nothing wrong");
}

fn limits_hold_for_a_copy(store: &driver_kit::Store) {
    let store = Box_(store);
    let by_mount = store.0.driver.name() == "fuse-overlay";
    let limits = ["--opt", "size=1m", "--opt", "inodes=20"];
    let made = store.plyfs(&[&["layer", "create"], &limits[..], &["box"]].concat()).run();
    if made.status != 0 && !by_mount {
        // This filesystem has no projects; a copy can have no limits then either.
        store.does(&["layer", "create", "box"]);
        let copy = ["layer", "create", "--template", "box", "--opt", "size=1m", "copy"];
        store.plyfs(&copy).exits(1).complains("quota of driver");
        return;
    }
    in_view(&store, "box", "head -c 200000 /dev/urandom > a");
    let copy = ["layer", "create", "--template", "box"];
    let tight = [&copy[..], &["--opt", "size=100k", "copy"]].concat();
    store
        .plyfs(&tight)
        .exits(1)
        .complains("limits of layer 'copy': the copy of its template takes");
    store.does(&[&copy[..], &["--opt", "inodes=none", "copy"]].concat());
    let limits = store.does(&["--json", "layer", "quota", "copy"]).stdout;
    assert!(limits.contains("1048576") && !limits.contains("20\n"), "{limits}");
    if by_mount {
        in_view(&store, "copy", "! head -c 1000000 /dev/zero 2>&1 > b");
    }
}

/// The ids of the tests' own user become these.
const IDS: [&str; 4] = ["--uidmap", "0:1000:10:20:30:1", "--gidmap", "0:2000:10"];

fn owners(store: &Box_<'_>, name: &str) -> String {
    in_view(store, name, "find . -exec stat -c '%u:%g' {} + | sort -u")
}

fn with_other_ids(store: &driver_kit::Store) {
    let store = Box_(store);
    let create = |words: &[&str]| store.plyfs(&[&["layer", "create"], words].concat());
    store.fill("base", None, &rich(store.0));
    store.fill("x", Some("base"), &on_top(store.0));
    let shift = |words: &[&str]| create(&[&IDS, words].concat());
    shift(&["--template", "x", "y"]).exits(1).complains("lies on layer 'base', whose owners stay");
    shift(&["--template", "base", "other"]).succeeds();
    create(&["--parent", "other", "--template", "x", "--uidmap", "0:1000:10", "y"])
        .exits(1)
        .complains("whose owners stay");
    shift(&["--parent", "other", "--template", "x", "y"]).succeeds();
    for (name, parent) in [("was", "x"), ("is", "y")] {
        create(&["--parent", parent, name]).succeeds();
    }
    assert_eq!(
        (owners(&store, "was"), owners(&store, "is")),
        ("0:0\n".into(), "1000:2000\n".into())
    );
    let look = "find . | sort; cat a d/n; stat -c '%a %Y' a m e sparse";
    assert_eq!(in_view(&store, "is", look), in_view(&store, "was", look));
    let mode = store.0.own("other").join("d/b").symlink_metadata().unwrap().mode();
    assert_eq!(mode & 0o7777, 0o4751);
    for (of, copy) in [("base", "other"), ("x", "y")] {
        let changes = |name| store.does(&["layer", "changes", name]).stdout;
        assert_eq!(changes(copy), changes(of));
        // Its archive said something else.
        assert_ne!(diff(&store, copy), diff(&store, of));
    }
    store.does(&["check"]).says("nothing wrong");
    store.does(&["driver", "status"]).says("Supports shifting: ");
}

fn ids_that_no_copy_can_have_are_refused(store: &driver_kit::Store) {
    let store = Box_(store);
    let create = |words: &[&str]| store.plyfs(&[&["layer", "create"], words].concat());
    store.fill("base", None, &rich(store.0));
    let to = ["--template", "base", "new"];
    create(&[&["--uidmap", "5:1000:1"], &to[..]].concat())
        .exits(1)
        .complains("its user 0 is in no range of the map of users");
    create(&[&["--gidmap", "0:1"], &to[..]].concat()).exits(2).complains("are not triples");
    create(&["--uidmap", "0:1:1", "new"]).exits(2).complains("--template");
    let left = store.does(&["--json", "layer", "ls"]).stdout;
    assert!(!left.contains("\"new\""), "{left}");
    store.does(&["check"]).says("nothing wrong");
    let root = fs::read_dir(store.0.driver.home()).unwrap();
    let names = root.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with(".new-")));
}

/// Symlinks bear no attributes of an ordinary user: what his mounts know of their owners lies beside the layer.
fn owners_of_symlinks(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "--opt", "inodes=1000", "box"]);
    let look = |name: &str, script: &str| {
        let mount = ["layer", "mount", "-o", "xattr_permissions=2", name];
        let path = store.does(&mount).stdout;
        let cmd =
            Cmd::new("sh").args(["-ec", &format!("cd \"$1\"; {script}"), "sh", path.trim_end()]);
        let said = cmd.succeeds().stdout;
        store.does(&["layer", "umount", name]);
        said
    };
    look("box", "mkdir d; ln -s gone d/l; chown -h 5:6 d/l; ln d/l m; ln -s gone n");
    store.does(&["layer", "create", "--template", "box", "copy"]);
    let seen = look("box", "stat -c %u:%g d/l m n");
    assert_eq!(seen, "5:6\n5:6\n0:0\n");
    assert_eq!(look("copy", "stat -c %u:%g d/l m n"), seen);
}

#[test]
fn owners_of_symlinks_are_kept() {
    driver_kit::with(crate::this_test!(), "fuse-overlay", true, owners_of_symlinks);
}

every_driver! {
    other_ids, with_other_ids;
    refused_ids, ids_that_no_copy_can_have_are_refused;
    applied, of_an_applied_layer;
    written, of_a_written_layer;
    alone, of_a_layer_without_a_parent;
    other_kind, of_the_other_kind;
    refused, what_cannot_be_copied_is_refused;
    limits, limits_hold_for_a_copy;
}
