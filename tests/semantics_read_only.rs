//! An ordinary user's mount, whose daemon has his rights and no more: files and directories that are
//! closed to their owner are changed as on a local filesystem.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;

use crate::semantics_kit::{
    Stack, Test, as_user, backend, both, chmod, errno, exists, mode, mtime, mv, names, plant, put,
    stat, text, xattr,
};

const NOBODY: u32 = 65_534;

/// A mount that nobody made through fusermount3, with layers that are all his.
struct Mine {
    program: PathBuf,
    list: String,
    point: PathBuf,
}

impl Mine {
    /// What it takes; comes before anything is given to another user.
    fn needs(t: &Test) {
        t.needs(t.is_root(), "root of the host: to become an ordinary user of it");
        let helper = Path::new("/usr/bin/fusermount3");
        t.needs(helper.exists() && mode(helper) & 0o4000 != 0, "fusermount3, set-user-id");
        t.needs(exists("/etc/mtab"), "/etc/mtab, which fusermount3 reads");
        t.needs(!backend::asks_for_privilege(), "options that an ordinary user may give");
    }

    fn new(t: &Test, options: &str) -> Mine {
        Mine::with(t, Stack { options: options.to_owned(), ..t.stack() })
    }

    fn with(t: &Test, stack: Stack) -> Mine {
        Mine::needs(t);
        for dir in ["lower", "upper", "work", "merged"] {
            give(&t.at(dir));
        }
        // The build directory may be closed to him.
        let program = t.at("plyfs");
        fs::copy(backend::plyfs(), &program).unwrap();
        let mine = Mine { program, list: backend::list(&stack), point: stack.point };
        mine.call(&["mount", "-o", &mine.list]);
        mine
    }

    fn call(&self, words: &[&str]) {
        let mut command = Command::new(&self.program);
        command.args(words).arg(&self.point).uid(NOBODY).gid(NOBODY);
        backend::said(&mut command).unwrap();
    }

    /// Does something in the mount as its owner, then looks again after a remount.
    fn act(&self, act: impl FnOnce(&Path) + Send, look: impl Fn(&Path) + Send + Sync) {
        as_user(NOBODY, || {
            act(&self.point);
            look(&self.point);
        });
        self.call(&["umount"]);
        self.call(&["mount", "-o", &self.list]);
        as_user(NOBODY, || look(&self.point));
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("umount").arg(&self.point).uid(NOBODY).gid(NOBODY);
        let _ = backend::said(&mut command);
    }
}

/// Gives a tree to nobody. What is his already keeps its set-id bits.
fn give(path: &Path) {
    let stat = fs::symlink_metadata(path).unwrap();
    if stat.uid() != NOBODY {
        lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    if stat.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

both! { read_only_files_of_an_ordinary_user_are_copied_up, OnlyPlyfs, |t| {
    Mine::needs(t);
    plant(&t.at("lower"), &["mode=x", "moved=x", "touched=x", "h=h", "closed=x", "set=x"]);
    fs::hard_link(t.lower("h"), t.lower("h2")).unwrap();
    for name in ["mode", "moved", "touched", "h"] {
        chmod(t.lower(name), 0o444);
    }
    chmod(t.lower("closed"), 0o400);
    lchown(t.lower("set"), Some(NOBODY), Some(NOBODY)).unwrap();
    chmod(t.lower("set"), 0o6555);
    let mine = Mine::new(t, "");
    let at = mtime(t.lower("touched"));
    mine.act(
        |m| {
            chmod(m.join("mode"), 0o640);
            mv(m.join("moved"), m.join("there"));
            mv(m.join("touched"), m.join("kept"));
            fs::hard_link(m.join("closed"), m.join("linked")).unwrap();
            mv(m.join("set"), m.join("set2"));
            File::open(m.join("h")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
            fs::remove_file(m.join("h2")).unwrap();
        },
        |m| {
            assert_eq!(names(m), ["closed", "h", "kept", "linked", "mode", "set2", "there"]);
            for (name, bits) in
                [("mode", 0o640), ("there", 0o444), ("h", 0o444), ("closed", 0o400), ("set2", 0o6555)]
            {
                assert_eq!(mode(m.join(name)) & 0o7777, bits, "{name}");
            }
            assert_eq!(text(m.join("there")), "x");
            assert_eq!(mtime(m.join("kept")), at);
            assert_eq!(mtime(m.join("h")), (0, 0));
            assert_eq!((text(m.join("h")), stat(m.join("h")).nlink()), ("h".to_owned(), 1));
            assert_eq!(stat(m.join("closed")).nlink(), 2);
        },
    );
    assert_eq!(text(t.lower("h2")), "h");
    assert_eq!(mode(t.upper("there")) & 0o7777, 0o444, "on disk");
}}

both! { a_work_tree_of_read_only_objects_is_written_as_on_a_local_filesystem, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["objects", "objects/aa", "objects/aa/1=one", "objects/aa/2=two"]);
    for name in ["1", "2"] {
        chmod(t.lower("objects/aa").join(name), 0o444);
    }
    let mine = Mine::new(t, "");
    mine.act(
        |m| {
            let objects = m.join("objects");
            // As git does: made read-only, written by the descriptor, linked to its name.
            let mut made = File::options();
            made.write(true).create_new(true).mode(0o444);
            let mut file = made.open(objects.join("tmp")).unwrap();
            file.write_all(b"three").unwrap();
            fs::create_dir(objects.join("bb")).unwrap();
            fs::hard_link(objects.join("tmp"), objects.join("bb/3")).unwrap();
            fs::remove_file(objects.join("tmp")).unwrap();
            file.write_all(b"!").unwrap();
            // gc: what is packed goes, directories too.
            mv(objects.join("aa/1"), objects.join("bb/1"));
            fs::remove_file(objects.join("aa/2")).unwrap();
            fs::remove_dir(objects.join("aa")).unwrap();
        },
        |m| {
            assert_eq!(names(m.join("objects")), ["bb"]);
            assert_eq!(text(m.join("objects/bb/3")), "three!");
            assert_eq!(text(m.join("objects/bb/1")), "one");
            assert_eq!(mode(m.join("objects/bb/3")) & 0o7777, 0o444);
        },
    );
}}

both! { read_only_directories_of_an_ordinary_user_are_changed, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["mode", "mode/f=f", "moved", "moved/sub", "moved/sub/f=f", "moved/g=g", "inside", "inside/f=f", "gone", "over"]);
    for name in ["inside/f", "moved/g"] {
        chmod(t.lower(name), 0o444);
    }
    for name in ["mode", "moved/sub", "moved", "inside", "gone", "over"] {
        chmod(t.lower(name), 0o555);
    }
    let mine = Mine::new(t, "");
    mine.act(
        |m| {
            chmod(m.join("mode"), 0o755);
            put(m.join("mode/new"), "new");
            mv(m.join("moved"), m.join("there"));
            // Neither needs the right to write to the directory.
            chmod(m.join("inside/f"), 0o400);
            assert_eq!(errno(File::create(m.join("inside/new"))), Errno::ACCESS);
            fs::remove_dir(m.join("gone")).unwrap();
            fs::DirBuilder::new().mode(0o555).create(m.join("gone")).unwrap();
            fs::DirBuilder::new().mode(0o555).create(m.join("made")).unwrap();
            mv(m.join("made"), m.join("over"));
            fs::create_dir(m.join("made")).unwrap();
            fs::set_permissions(m.join("made"), PermissionsExt::from_mode(0o555)).unwrap();
            fs::remove_dir(m.join("made")).unwrap();
            for bits in [0, 0o300] {
                fs::DirBuilder::new().mode(bits).create(m.join("made")).unwrap();
                fs::remove_dir(m.join("made")).unwrap();
                fs::DirBuilder::new().mode(bits).create(m.join("made")).unwrap();
                fs::create_dir(m.join("new")).unwrap();
                mv(m.join("new"), m.join("made"));
                fs::remove_dir(m.join("made")).unwrap();
            }
        },
        |m| {
            assert_eq!(names(m), ["gone", "inside", "mode", "over", "there"]);
            assert_eq!(names(m.join("mode")), ["f", "new"]);
            assert_eq!(text(m.join("there/sub/f")), "f");
            for (name, bits) in [
                ("mode", 0o755),
                ("there", 0o555),
                ("there/sub", 0o555),
                ("there/g", 0o444),
                ("inside", 0o555),
                ("inside/f", 0o400),
                ("gone", 0o555),
                ("over", 0o555),
            ] {
                assert_eq!(mode(m.join(name)) & 0o7777, bits, "{name}");
            }
        },
    );
    for (name, bits) in [("inside", 0o555), ("there", 0o555), ("over", 0o555)] {
        assert_eq!(mode(t.upper(name)) & 0o7777, bits, "{name} on disk");
    }
}}

both! { files_closed_to_their_owner_keep_their_marks, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=f", "d", "d/x=x"]);
    let mine = Mine::new(t, "");
    let before = as_user(NOBODY, || ["f", "d"].map(|name| stat(mine.point.join(name)).ino()));
    mine.act(
        |m| {
            chmod(m.join("f"), 0);
            chmod(m.join("d"), 0);
        },
        |m| {
            assert_eq!(["f", "d"].map(|name| stat(m.join(name)).ino()), before);
            assert_eq!(["f", "d"].map(|name| mode(m.join(name)) & 0o7777), [0, 0]);
        },
    );
    as_user(NOBODY, || {
        assert_eq!(errno(File::open(mine.point.join("f"))), Errno::ACCESS);
        chmod(mine.point.join("f"), 0o600);
        chmod(mine.point.join("d"), 0o700);
        assert_eq!(text(mine.point.join("f")), "f");
        assert_eq!(text(mine.point.join("d/x")), "x");
    });
    assert_eq!(mode(t.lower("f")) & 0o777, 0o644, "lower layers are left alone");
}}

both! { directories_of_two_layers_that_are_closed_to_him_are_seen_from_outside, OnlyPlyfs, |t| {
    Mine::needs(t);
    let lowers = [t.layer("top", &["root", "f=f"]), t.layer("low", &["root", "root/g=g", "g=g"])];
    for lower in &lowers {
        chmod(lower.join("root"), 0o700);
    }
    let mine = Mine::with(t, Stack { lowers: lowers.to_vec(), ..t.stack() });
    mine.act(
        |m| put(m.join("new"), "new"),
        |m| {
            assert_eq!(names(m), ["f", "g", "new", "root"]);
            assert_eq!(mode(m.join("root")) & 0o7777, 0o700);
            assert_eq!(errno(fs::read_dir(m.join("root"))), Errno::ACCESS);
            assert_eq!(errno(fs::metadata(m.join("root/g"))), Errno::ACCESS);
        },
    );
}}

both! { a_read_only_metacopy_gets_its_data_at_the_first_write, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=data", "g=data", "moved=data"]);
    chmod(t.lower("f"), 0o444);
    chmod(t.lower("moved"), 0o444);
    let mine = Mine::new(t, "metacopy=on");
    mine.act(
        |m| {
            chmod(m.join("f"), 0o400);
            assert!(xattr(t.upper("f"), "user.overlay.metacopy").is_ok());
            // Opened while that was allowed, written when only the descriptor allows it.
            let mut open = File::options().append(true).open(m.join("g")).unwrap();
            chmod(m.join("g"), 0o444);
            open.write_all(b"+").unwrap();
            assert_eq!(text(m.join("g")), "data+");
            mv(m.join("moved"), m.join("there"));
        },
        |m| {
            assert_eq!(text(m.join("f")), "data");
            assert_eq!(text(m.join("g")), "data+");
            assert_eq!(text(m.join("there")), "data");
            let modes = ["f", "g", "there"].map(|name| mode(m.join(name)) & 0o7777);
            assert_eq!(modes, [0o400, 0o444, 0o444]);
        },
    );
    as_user(NOBODY, || {
        chmod(mine.point.join("f"), 0o600);
        put(mine.point.join("f"), "new");
        assert_eq!(text(mine.point.join("f")), "new");
    });
}}
