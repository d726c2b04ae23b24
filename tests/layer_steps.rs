//! Layers made step by step: what each step changes in a plain directory, as an archive, gives that directory again; and
//! what archives of trees hold.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use plyfs::layer::apply::{self, Limits, Owners, Target, Whiteouts};
use plyfs::layer::{compare, diff};

use crate::common::sandbox::Sandbox;
use crate::common::tree::Tree;
use crate::layer_apply_kit::owners;
use crate::{as_both, needs};

type Step = fn(&Path);

fn write(root: &Path, path: &str, text: &str) {
    let at = root.join(path);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    // A new file, so that what shares the old one keeps it.
    drop(fs::remove_file(&at));
    fs::write(&at, text).unwrap();
}

fn mode(root: &Path, path: &str, bits: u32) {
    fs::set_permissions(root.join(path), fs::Permissions::from_mode(bits)).unwrap();
}

/// A directory with what the steps change: files, one with two names, directories.
fn base(root: &Path) {
    write(root, "etc/hosts", "localhost");
    write(root, "etc/profile", "PATH=/bin");
    write(root, "root/.bashrc", "alias");
    write(root, "usr/lib/one", "1");
    fs::hard_link(root.join("usr/lib/one"), root.join("usr/lib/same")).unwrap();
    fs::hard_link(root.join("usr/lib/one"), root.join("etc/other")).unwrap();
    symlink("hosts", root.join("etc/link")).unwrap();
}

/// What is seen of a tree that is applied: all but the attributes of its root.
fn seen(root: &Path) -> Tree {
    let mut tree = Tree::read(root).unwrap();
    tree.nodes.remove("");
    tree
}

fn apply_to(root: &Path, archive: &[u8]) {
    let target = Target {
        root: root.to_path_buf(),
        lowers: Vec::new(),
        belief: plyfs::layer::Belief::standing(),
        whiteouts: Whiteouts::Remove,
        owners: owners(),
    };
    apply::apply(&mut &*archive, &target, &Limits::default(), None).unwrap();
}

/// The names in an archive, with an arrow where one is another's.
fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
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

const SUITES: [(&str, &[Step]); 9] = [
    (
        "basic",
        &[
            |root| write(root, "etc/hosts", "localhost 127.0.0.1"),
            |root| {
                write(root, "etc/hosts", "other");
                fs::remove_dir_all(root.join("root")).unwrap();
                write(root, "new/file", "x");
            },
        ],
    ),
    (
        "deletion",
        &[
            |root| fs::remove_dir_all(root.join("usr")).unwrap(),
            |root| {
                fs::remove_file(root.join("etc/link")).unwrap();
                write(root, "usr", "a file now");
            },
            |root| {
                fs::remove_file(root.join("usr")).unwrap();
                write(root, "usr/lib/back", "again");
            },
        ],
    ),
    (
        "update",
        &[
            |root| write(root, "etc/hosts", "hosts\n"),
            |root| fs::rename(root.join("etc/hosts"), root.join("etc/moved")).unwrap(),
            |root| fs::rename(root.join("etc"), root.join("var")).unwrap(),
        ],
    ),
    (
        "permissions of a directory",
        &[|root| mode(root, "etc", 0o700), |root| mode(root, "etc", 0o1777)],
    ),
    (
        "permissions of a parent",
        &[
            |root| {
                mode(root, "usr", 0o750);
                write(root, "usr/lib/new", "x");
            },
            |root| mode(root, "usr/lib", 0o711),
        ],
    ),
    (
        "hard links that stay",
        &[|root| write(root, "etc/new", "x"), |root| write(root, "usr/lib/new", "y")],
    ),
    (
        "a new name of a file that stays",
        &[
            |root| fs::hard_link(root.join("etc/hosts"), root.join("etc/hosts.2")).unwrap(),
            |root| {
                write(root, "etc/else", "z");
            },
        ],
    ),
    (
        "a new name of a file that changes then",
        &[
            |root| fs::hard_link(root.join("etc/hosts"), root.join("etc/hosts.2")).unwrap(),
            |root| fs::write(root.join("etc/hosts"), "changed under both names").unwrap(),
        ],
    ),
    (
        "a name that is taken from a file",
        &[
            |root| fs::remove_file(root.join("usr/lib/same")).unwrap(),
            |root| {
                write(root, "etc/other", "its own now");
            },
        ],
    ),
];

as_both! { steps_applied_one_after_another_give_the_directory, || {
    for (name, steps) in SUITES {
        let sandbox = Sandbox::new();
        let (plain, copy) = (sandbox.dir("plain"), sandbox.dir("copy"));
        let tree = |top: &Path| compare::Tree { top: top.to_path_buf(), below: Vec::new() };
        let first: Step = base;
        let mut before = None;
        for (number, step) in std::iter::once(&first).chain(steps).enumerate() {
            step(&plain);
            let mut archive = Vec::new();
            compare::write(before.as_ref().map(|at: &std::path::PathBuf| tree(at)).as_ref(), &tree(&plain), &mut archive).unwrap();
            apply_to(&copy, &archive);
            let (want, got) = (seen(&plain), seen(&copy));
            assert!(want == got, "{name}, step {number}\n{}", want.diff(&got, ("plain", "applied")));
            let old = sandbox.at(format!("old{number}"));
            plyfs::sys::copy::tree(&plain, &old, plyfs::sys::copy::How::default()).unwrap();
            before = Some(old);
        }
    }
} }

as_both! { a_layer_holds_what_changed_and_the_way_there, || {
    type Rows = [(&'static str, Step, &'static [&'static str]); 9];
    let rows: Rows = [
        ("nothing", |_| {}, &[]),
        ("a file", |upper| write(upper, "d/e/f", "x"), &["d/", "d/e/", "d/e/f"]),
        ("an empty directory", |upper| fs::create_dir_all(upper.join("d/e")).unwrap(), &["d/", "d/e/"]),
        ("hard links", |upper| {
            write(upper, "a/one", "x");
            fs::create_dir(upper.join("b")).unwrap();
            fs::hard_link(upper.join("a/one"), upper.join("b/two")).unwrap();
        }, &["a/", "a/one", "b/", "b/two -> a/one"]),
        ("permissions of a directory", |upper| {
            fs::create_dir(upper.join("d")).unwrap();
            mode(upper, "d", 0o700);
        }, &["d/"]),
        ("a deletion", |upper| write(upper, "d/e/.wh.f", ""), &["d/", "d/e/", "d/e/.wh.f"]),
        ("a deletion of all above", |upper| write(upper, ".wh.d", ""), &[".wh.d"]),
        ("a socket", |upper| {
            fs::create_dir(upper.join("d")).unwrap();
            drop(UnixListener::bind(upper.join("d/socket")).unwrap());
            write(upper, "d/f", "");
        }, &["d/", "d/f"]),
        ("a link that leads out", |upper| symlink("../../etc", upper.join("out")).unwrap(), &["out -> ../../etc"]),
    ];
    for (name, make, want) in rows {
        let sandbox = Sandbox::new();
        let upper = sandbox.dir("own");
        make(&upper);
        let mut archive = Vec::new();
        let spec = diff::Spec { upper, lowers: Vec::new(), user_marks: true };
        diff::write(&spec, &mut archive).unwrap();
        assert_eq!(names(&archive), want, "{name}");
    }
} }

as_both! { nothing_in_a_layer_is_of_the_moment_it_is_written, || {
    let sandbox = Sandbox::new();
    let upper = sandbox.dir("own");
    write(&upper, "d/.wh.gone", "");
    write(&upper, "d/.wh..wh..opq", "");
    let mut archive = Vec::new();
    diff::write(&diff::Spec { upper, lowers: Vec::new(), user_marks: true }, &mut archive).unwrap();
    let mut read = tar::Archive::new(archive.as_slice());
    let mut marks = 0;
    for entry in read.entries().unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        if name.contains(".wh.") {
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.username_bytes().unwrap_or_default()), (0, 0, &b""[..]), "{name}");
            marks += 1;
        }
    }
    assert_eq!(marks, 2);
} }

#[test]
fn other_readers_make_the_same_tree_of_a_layer() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let source = sandbox.dir("source");
    base(&source);
    let deep = format!("{}/{}", "d".repeat(120), "e".repeat(200));
    write(&source, &format!("{deep}/f"), "deep");
    fs::write(source.join("large"), vec![b'x'; 300_000]).unwrap();
    std::os::unix::fs::chown(source.join("large"), Some(3_000_000), Some(4_000_000_000)).unwrap();
    let time = std::time::UNIX_EPOCH - std::time::Duration::new(5, 250_000_000);
    fs::File::open(source.join("large")).unwrap().set_modified(time).unwrap();
    symlink("t".repeat(300), source.join("long")).unwrap();
    let mut archive = Vec::new();
    diff::write(
        &diff::Spec { upper: source.clone(), lowers: Vec::new(), user_marks: true },
        &mut archive,
    )
    .unwrap();
    let file = sandbox.at("layer.tar");
    fs::write(&file, &archive).unwrap();
    let python = "import sys,tarfile\nt=tarfile.open(sys.argv[1])\nh={'filter':'fully_trusted'} if hasattr(tarfile,'fully_trusted_filter') else {}\nt.extractall(sys.argv[2],numeric_owner=True,**h)";
    for (name, words) in
        [("tar", vec!["-x", "-p", "--numeric-owner", "-f"]), ("python3", vec!["-c", python])]
    {
        let to = sandbox.dir(name);
        let mut command = Command::new(name);
        command.args(words).arg(&file);
        if name == "tar" {
            command.arg("-C");
        }
        let Ok(done) = command.arg(&to).output() else {
            eprintln!("skipped: other_readers_make_the_same_tree_of_a_layer: needs {name}");
            continue;
        };
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        let (mut want, mut got) = (seen(&source), seen(&to));
        if name == "python3" {
            // It sets no times of symlinks.
            for tree in [&mut want, &mut got] {
                tree.nodes.retain(|_, node| node.meta.kind != 'l');
            }
        }
        assert!(want == got, "{name}\n{}", want.diff(&got, ("source", name)));
        assert_eq!(to.join("large").metadata().unwrap().gid(), 4_000_000_000);
    }
}

#[test]
fn a_root_that_is_a_symlink_is_not_left_by_names_in_an_archive() {
    let sandbox = Sandbox::new();
    let inside = sandbox.dir("a/real");
    symlink("a/real", sandbox.at("link")).unwrap();
    let archive = crate::layer_apply_kit::Tar::default()
        .symlink("up", "..")
        .file("up/../../f", "in")
        .file("../g", "in");
    let target = Target {
        root: sandbox.at("link"),
        lowers: Vec::new(),
        belief: plyfs::layer::Belief::standing(),
        whiteouts: Whiteouts::Remove,
        owners: Owners::Ignore,
    };
    apply::apply(&mut archive.end().as_slice(), &target, &Limits::default(), None).unwrap();
    let list = |path: &str| fs::read_dir(sandbox.at(path)).unwrap().count();
    assert_eq!((list("a"), list("a/real")), (1, 3));
    assert!(inside.join("f").exists() && inside.join("g").exists());
    let mut archive = Vec::new();
    let spec = diff::Spec { upper: sandbox.at("link"), lowers: Vec::new(), user_marks: true };
    diff::write(&spec, &mut archive).unwrap();
    assert_eq!(names(&archive), ["f", "g", "up -> .."]);
}

#[test]
fn capabilities_that_nobody_can_read_keep_no_layer_from_being_written() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let upper = sandbox.dir("own");
    fs::write(upper.join("f"), "x").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(upper.join("f"), "security.capability", b"", flags).unwrap();
    let mut archive = Vec::new();
    diff::write(&diff::Spec { upper, lowers: Vec::new(), user_marks: true }, &mut archive).unwrap();
    assert_eq!(names(&archive), ["f"]);
}

/// A directory may bear any name; only other kinds of objects are marks.
#[test]
fn directories_that_are_named_like_marks_are_kept() {
    let sandbox = Sandbox::new();
    let upper = sandbox.dir("own");
    write(&sandbox.dir("below"), "lit", "still there");
    for name in [".wh.lit/f", ".wh./f", "d/.wh..wh.x/f"] {
        write(&upper, name, "x");
    }
    let mut archive = Vec::new();
    let spec = diff::Spec { upper, lowers: vec![sandbox.at("below")], user_marks: true };
    diff::write(&spec, &mut archive).unwrap();
    // AUFS's own names mean nothing.
    assert_eq!(names(&archive), [".wh./", ".wh./f", ".wh.lit/", ".wh.lit/f", "d/"]);
    let root = sandbox.dir("applied");
    apply_to(&root, &archive);
    assert!(root.join(".wh.lit/f").exists() && root.join(".wh./f").exists());
}
