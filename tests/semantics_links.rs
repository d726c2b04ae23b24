//! Link groups after the mount has ended: the upper directory alone has every name of a file that was changed.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};

use crate::semantics_kit::{
    Backend, Stack, Test, append, both, chmod, exists, mode, mtime, mv, names, put, set_times,
    stat, text, wait_until,
};

fn ino(path: impl AsRef<Path>) -> u64 {
    stat(path).ino()
}

/// Waits for the end of the server, which takes names out of the index last.
fn settled(t: &Test) {
    wait_until("an empty index", || names(t.at("work/index")).is_empty());
}

fn pair(t: &Test) {
    put(t.lower("a"), "old");
    fs::create_dir_all(t.lower("d/e")).unwrap();
    for name in ["d/e/b", "d/c"] {
        fs::hard_link(t.lower("a"), t.lower(name)).unwrap();
    }
    put(t.lower("d/other"), "other");
}

fn one_file(root: &Path, links: &[&str], content: &str) {
    let number = ino(root.join(links[0]));
    for name in links {
        let found = (text(root.join(name)), ino(root.join(name)), stat(root.join(name)).nlink());
        assert_eq!(found, (content.to_owned(), number, links.len() as u64), "{name}");
    }
}

both! { every_name_of_a_changed_file_is_in_the_upper_directory, OnlyPlyfs, |t| {
    pair(t);
    for (name, when) in [("d/e", 1000), ("d", 2000)] {
        set_times(t.lower(name), when, 7);
    }
    let mut fs = t.mount(&[]);
    append(fs.at("d/e/b"), "new");
    fs.unmount();
    settled(t);
    one_file(&t.upper(""), &["a", "d/e/b", "d/c"], "oldnew");
    assert!(!exists(t.upper("d/other")), "nothing else is copied");
    assert_eq!((mtime(t.upper("d/e")), mtime(t.upper("d"))), ((1000, 7), (2000, 7)));
    let kernel = t.kernel_mount(fs.stack.clone());
    one_file(&kernel.at(""), &["a", "d/e/b", "d/c"], "oldnew");
    append(kernel.at("a"), "!");
    drop(kernel);
    fs.remount_again();
    one_file(&fs.at(""), &["a", "d/e/b", "d/c"], "oldnew!");
    append(fs.at("d/c"), "!");
    t.same_after_remount(&mut fs);
    one_file(&fs.at(""), &["a", "d/e/b", "d/c"], "oldnew!!");
}}

both! { a_name_that_was_removed_or_hidden_is_not_made, OnlyPlyfs, |t| {
    pair(t);
    // A layer in between hides one of them.
    let middle = t.layer("middle", &[]);
    let mut fs = t.mount_stack(Stack { upper: Some((middle.clone(), t.layer("scratch", &[]))), ..t.stack() });
    fs::remove_dir_all(fs.at("d/e")).unwrap();
    fs.unmount();
    let lower = t.at("lower");
    wait_until("the end of the server", || exists(t.at("scratch/settled")));
    // It is only counted: nothing but the name has changed.
    assert_eq!((names(&middle), names(middle.join("d"))), (vec!["d".into()], vec!["e".into()]));
    let mut fs = t.mount_lowers(&[&middle, &lower]);
    put(fs.at("a"), "new");
    fs.unmount();
    settled(t);
    one_file(&t.upper(""), &["a", "d/c"], "new");
    fs.remount_again();
    assert!(!exists(fs.at("d/e")));
    fs::remove_file(fs.at("d/c")).unwrap();
    fs.unmount();
    settled(t);
    one_file(&t.upper(""), &["a"], "new");
    let kernel = t.kernel_mount(fs.stack.clone());
    assert_eq!((names(kernel.at("")), names(kernel.at("d"))), (vec!["a".into(), "d".into()], vec!["other".into()]));
}}

both! { names_in_a_moved_directory_are_made_where_it_is, OnlyPlyfs, |t| {
    pair(t);
    let mut fs = t.mount(&[]);
    fs::create_dir(fs.at("new")).unwrap();
    mv(fs.at("d"), fs.at("new/d"));
    append(fs.at("a"), "new");
    fs.unmount();
    settled(t);
    one_file(&t.upper(""), &["a", "new/d/e/b", "new/d/c"], "oldnew");
    fs.remount_again();
    t.same_after_remount(&mut fs);
}}

both! { names_of_symlinks_and_pipes_are_made_too, OnlyPlyfs, |t| {
    symlink("nowhere", t.lower("l1")).unwrap();
    mknodat(CWD, t.lower("p1"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    for (from, to) in [("l1", "l2"), ("p1", "p2")] {
        fs::hard_link(t.lower(from), t.lower(to)).unwrap();
    }
    let mut fs = t.mount(&[]);
    for name in ["l1", "p2"] {
        set_times(fs.at(name), 1000, 5);
    }
    fs.unmount();
    settled(t);
    for (from, to) in [("l1", "l2"), ("p1", "p2")] {
        assert_eq!((ino(t.upper(from)), mtime(t.upper(to))), (ino(t.upper(to)), (1000, 5)), "{from}");
    }
    fs.remount_again();
    t.same_after_remount(&mut fs);
}}

both! { a_mount_waits_as_long_as_the_one_before_makes_names, OnlyPlyfs, |t| {
    pair(t);
    fs::create_dir_all(t.at("work/index")).unwrap();
    let held = ["upper", "work", "work/index"].map(|name| {
        let dir = fs::File::open(t.at(name)).unwrap();
        flock(&dir, FlockOperation::LockExclusive).unwrap();
        dir
    });
    let end = thread::spawn(move || {
        thread::sleep(Duration::from_millis(3500));
        drop(held);
    });
    let fs = t.mount(&[]);
    assert!(end.is_finished());
    assert_eq!(text(fs.at("a")), "old");
    end.join().unwrap();
}}

both! { metadata_only_copies_get_all_names, Rootless("userxattr refuses metacopy"), |t| {
    t.needs(t.backend == Backend::Plyfs, "plyfs");
    pair(t);
    let mut fs = t.mount_with("metacopy=on,redirect_dir=on", &[]);
    chmod(fs.at("a"), 0o600);
    fs.unmount();
    settled(t);
    for name in ["a", "d/e/b", "d/c"] {
        assert_eq!((mode(t.upper(name)), stat(t.upper(name)).nlink()), (0o600, 3), "{name}");
    }
    fs.remount_again();
    one_file(&fs.at(""), &["a", "d/e/b", "d/c"], "old");
    append(fs.at("d/c"), "new");
    fs.remount();
    one_file(&fs.at(""), &["a", "d/e/b", "d/c"], "oldnew");
}}

both! { a_change_by_the_name_that_is_left_is_in_the_upper_directory, OnlyPlyfs, |t| {
    pair(t);
    set_times(t.lower("a"), 1000, 5);
    let mut fs = t.mount(&[]);
    fs::remove_file(fs.at("a")).unwrap();
    fs.unmount();
    wait_until("the end of the server", || exists(t.at("work/settled")));
    assert!(!exists(t.upper("d")));
    fs.remount_again();
    assert_eq!((stat(fs.at("d/c")).nlink(), text(fs.at("d/c"))), (2, "old".into()));
    // Nothing but the data tells.
    put(fs.at("d/c"), "new");
    set_times(fs.at("d/c"), 1000, 5);
    fs.unmount();
    settled(t);
    one_file(&t.upper(""), &["d/c", "d/e/b"], "new");
}}
