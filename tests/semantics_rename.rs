//! Renames: every flag, every kind of object, directories of every origin.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::semantics_kit::{
    both, errno, exists, listed_ino, mtime, mv, names, put, rename, set_times, stat, text,
};

const TREE: [&str; 6] = ["a", "a/f=old", "a/sub", "a/sub/g=deep", "a/l->f", "b"];

both! { two_lower_files_swap_by_three_renames, |t| {
    let mut fs = t.mount(&["a=1", "b=2"]);
    mv(fs.at("a"), fs.at("c"));
    mv(fs.at("b"), fs.at("a"));
    mv(fs.at("c"), fs.at("b"));
    assert_eq!((text(fs.at("a")), text(fs.at("b"))), ("2".into(), "1".into()));
    assert_eq!(names(fs.at("")), ["a", "b"]);
    t.same_after_remount(&mut fs);
}}

both! { a_rename_without_replacing_refuses_existing_names, |t| {
    let mut fs = t.mount(&["low=1", "other=2", "gone=3", "d", "d/x=4"]);
    put(fs.at("up"), "5");
    fs::remove_file(fs.at("gone")).unwrap();
    let no_replace = RenameFlags::NOREPLACE;
    for (from, to) in [("low", "other"), ("up", "low"), ("low", "up"), ("up", "d"), ("d", "up")] {
        assert_eq!(rename(fs.at(from), fs.at(to), no_replace), Err(Errno::EXIST), "{from} {to}");
    }
    rename(fs.at("low"), fs.at("gone"), no_replace).unwrap();
    rename(fs.at("up"), fs.at("new"), no_replace).unwrap();
    assert_eq!(names(fs.at("")), ["d", "gone", "new", "other"]);
    assert_eq!((text(fs.at("gone")), text(fs.at("new"))), ("1".into(), "5".into()));
    t.same_after_remount(&mut fs);
}}

both! { files_of_all_layers_are_exchanged, |t| {
    let mut fs = t.mount(&["low=1", "other=2", "d", "d/in=3", "link->low"]);
    put(fs.at("up"), "4");
    let exchange = RenameFlags::EXCHANGE;
    rename(fs.at("low"), fs.at("other"), exchange).unwrap();
    rename(fs.at("up"), fs.at("d/in"), exchange).unwrap();
    rename(fs.at("link"), fs.at("low"), exchange).unwrap();
    assert_eq!(rename(fs.at("low"), fs.at("none"), exchange), Err(Errno::NOENT));
    assert_eq!(text(fs.at("other")), "1");
    assert_eq!(text(fs.at("link")), "2");
    assert_eq!(fs::read_link(fs.at("low")).unwrap(), Path::new("low"));
    assert_eq!((text(fs.at("up")), text(fs.at("d/in"))), ("3".into(), "4".into()));
    t.same_after_remount(&mut fs);
}}

both! { lower_directories_are_exchanged_with_files_and_directories, Rootless(NO_REDIRECTS), |t| {
    let mut fs = t.mount(&TREE);
    put(fs.at("b/new"), "new");
    put(fs.at("file"), "file");
    rename(fs.at("a"), fs.at("b"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(names(fs.at("a")), ["new"]);
    assert_eq!(names(fs.at("b")), ["f", "l", "sub"]);
    rename(fs.at("file"), fs.at("b"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(text(fs.at("b")), "file");
    assert_eq!(text(fs.at("file/sub/g")), "deep");
    t.same_after_remount(&mut fs);
}}

both! { a_rename_that_leaves_a_whiteout_is_done_or_refused_as_unknown, |t| {
    let fs = t.mount(&["low=1"]);
    put(fs.at("up"), "2");
    for (name, content) in [("low", "1"), ("up", "2")] {
        match rename(fs.at(name), fs.at("moved"), RenameFlags::WHITEOUT) {
            Ok(()) => {
                assert_eq!(text(fs.at("moved")), content);
                assert!(!exists(fs.at(name)) || stat(fs.at(name)).file_type().is_char_device());
            }
            Err(error) => {
                assert_eq!(error, Errno::INVAL);
                assert_eq!(text(fs.at(name)), content);
            }
        }
    }
}}

both! { impossible_renames_are_refused_with_the_right_error, |t| {
    let fs = t.mount(&["d", "d/f=1", "e", "f=2"]);
    fs::create_dir(fs.at("up")).unwrap();
    let unknown = RenameFlags::from_bits_retain(8);
    let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
    assert_eq!(rename(fs.at("f"), fs.at("g"), unknown), Err(Errno::INVAL));
    assert_eq!(rename(fs.at("f"), fs.at("e"), both), Err(Errno::INVAL));
    assert_eq!(errno(fs::rename(fs.at("f"), fs.at("e"))), Errno::ISDIR);
    assert_eq!(errno(fs::rename(fs.at("up"), fs.at("f"))), Errno::NOTDIR);
    assert_eq!(errno(fs::rename(fs.at("up"), fs.at("d"))), Errno::NOTEMPTY);
    assert_eq!(errno(fs::rename(fs.at("up"), fs.at("up/in"))), Errno::INVAL);
    assert_eq!(errno(fs::rename(fs.at("none"), fs.at("x"))), Errno::NOENT);
    assert_eq!(errno(fs::rename(fs.at("f"), fs.at("none/x"))), Errno::NOENT);
    assert_eq!(names(fs.at("")), ["d", "e", "f", "up"]);
}}

both! { a_rename_between_names_of_one_file_does_nothing, |t| {
    let fs = t.mount(&[]);
    put(fs.at("a"), "1");
    fs::hard_link(fs.at("a"), fs.at("b")).unwrap();
    mv(fs.at("a"), fs.at("b"));
    assert_eq!(names(fs.at("")), ["a", "b"]);
}}

both! { a_lower_directory_is_renamed, Rootless(NO_REDIRECTS), |t| {
    let mut fs = t.mount(&TREE);
    set_times(fs.at("a"), 1000, 7);
    let ino = stat(fs.at("a")).ino();
    mv(fs.at("a"), fs.at("c"));
    assert_eq!(names(fs.at("")), ["b", "c"]);
    assert_eq!(text(fs.at("c/f")), "old");
    assert_eq!(text(fs.at("c/sub/g")), "deep");
    assert_eq!(text(fs.at("c/l")), "old");
    assert_eq!(mtime(fs.at("c")), (1000, 7));
    assert_eq!(stat(fs.at("c")).ino(), ino);
    assert_eq!(listed_ino(fs.at("c")), ino);
    t.same_after_remount(&mut fs);
    assert_eq!(stat(fs.at("c")).ino(), ino);
}}

both! { a_merged_directory_is_renamed, Rootless(NO_REDIRECTS), |t| {
    let top = t.layer("top", &["a", "a/f=top", "a/t=top"]);
    let low = t.layer("low", &TREE);
    let mut fs = t.mount_lowers(&[&top, &low]);
    put(fs.at("a/u"), "up");
    fs::remove_file(fs.at("a/l")).unwrap();
    mv(fs.at("a"), fs.at("b/moved"));
    assert_eq!(names(fs.at("b/moved")), ["f", "sub", "t", "u"]);
    assert_eq!(text(fs.at("b/moved/f")), "top");
    assert_eq!(text(fs.at("b/moved/sub/g")), "deep");
    t.same_after_remount(&mut fs);
}}

both! { directories_inside_a_renamed_directory_are_renamed_again, Rootless(NO_REDIRECTS), |t| {
    let mut fs = t.mount(&TREE);
    mv(fs.at("a"), fs.at("c"));
    mv(fs.at("c/sub"), fs.at("c/deep"));
    mv(fs.at("c/deep"), fs.at("out"));
    mv(fs.at("c"), fs.at("out/in"));
    mv(fs.at("out"), fs.at("b/last"));
    assert_eq!(text(fs.at("b/last/g")), "deep");
    assert_eq!(text(fs.at("b/last/in/f")), "old");
    assert_eq!(names(fs.at("")), ["b"]);
    t.same_after_remount(&mut fs);
}}

both! { the_old_name_of_a_renamed_directory_is_new_when_made_again, Rootless(NO_REDIRECTS), |t| {
    let mut fs = t.mount(&TREE);
    mv(fs.at("a"), fs.at("c"));
    fs::create_dir(fs.at("a")).unwrap();
    assert_eq!(names(fs.at("a")).len(), 0);
    put(fs.at("a/f"), "new");
    mv(fs.at("c"), fs.at("a/c"));
    assert_eq!(text(fs.at("a/c/sub/g")), "deep");
    assert_eq!(names(fs.at("a")), ["c", "f"]);
    t.same_after_remount(&mut fs);
}}

both! { a_directory_is_renamed_over_an_empty_one, Rootless(NO_REDIRECTS), |t| {
    let mut fs = t.mount(&TREE);
    mv(fs.at("a"), fs.at("b"));
    assert_eq!(names(fs.at("")), ["b"]);
    fs::create_dir(fs.at("new")).unwrap();
    mv(fs.at("b"), fs.at("new"));
    assert_eq!(text(fs.at("new/sub/g")), "deep");
    // An empty upper directory that hides a full lower one.
    fs::create_dir(fs.at("a")).unwrap();
    mv(fs.at("new"), fs.at("a"));
    assert_eq!(names(fs.at("a")), ["f", "l", "sub"]);
    assert_eq!(names(fs.at("")), ["a"]);
    t.same_after_remount(&mut fs);
}}

both! { an_upper_directory_is_renamed_over_a_merged_one_that_was_emptied, |t| {
    let mut fs = t.mount(&TREE);
    for name in ["a/f", "a/l", "a/sub/g"] {
        fs::remove_file(fs.at(name)).unwrap();
    }
    fs::remove_dir(fs.at("a/sub")).unwrap();
    fs::create_dir(fs.at("new")).unwrap();
    put(fs.at("new/f2"), "new");
    mv(fs.at("new"), fs.at("a"));
    assert_eq!(names(fs.at("a")), ["f2"]);
    t.same_after_remount(&mut fs);
}}

both! { a_renamed_directory_is_written_in_and_removed, Rootless(NO_REDIRECTS), |t| {
    let mut fs = t.mount(&TREE);
    mv(fs.at("a"), fs.at("c"));
    put(fs.at("c/f"), "changed");
    put(fs.at("c/sub/new"), "new");
    fs::remove_file(fs.at("c/sub/g")).unwrap();
    mv(fs.at("c/l"), fs.at("l"));
    assert_eq!(text(t.lower("a/f")), "old");
    t.same_after_remount(&mut fs);
    fs::remove_dir_all(fs.at("c")).unwrap();
    fs::create_dir(fs.at("c")).unwrap();
    fs::create_dir(fs.at("a")).unwrap();
    assert_eq!((names(fs.at("a")).len(), names(fs.at("c")).len()), (0, 0));
    t.same_after_remount(&mut fs);
}}

both! { a_renamed_directory_keeps_its_open_files_and_its_visitors, Rootless(NO_REDIRECTS), |t| {
    let fs = t.mount(&TREE);
    let file = crate::semantics_kit::read_write(fs.at("a/f"));
    let dir = File::open(fs.at("a/sub")).unwrap();
    let visitor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
    mv(fs.at("a"), fs.at("c"));
    put(Path::new(&visitor).join("made"), "here");
    std::os::unix::fs::FileExt::write_all_at(&file, b"new", 0).unwrap();
    assert_eq!(text(fs.at("c/sub/made")), "here");
    assert_eq!(text(fs.at("c/f")), "new");
    assert_eq!(text(t.lower("a/f")), "old");
}}

both! { redirect_dir_off_refuses_lower_directories_and_renames_new_ones, |t| {
    let fs = t.mount_with("redirect_dir=off", &TREE);
    assert_eq!(errno(fs::rename(fs.at("a"), fs.at("c"))), Errno::XDEV);
    fs::create_dir(fs.at("new")).unwrap();
    put(fs.at("new/x"), "x");
    mv(fs.at("new"), fs.at("c"));
    assert_eq!(text(fs.at("c/x")), "x");
}}

both! { redirect_dir_on_renames_directories, Rootless(NO_REDIRECTS), |t| {
    let mut fs = t.mount_with("redirect_dir=on", &TREE);
    mv(fs.at("a"), fs.at("c"));
    fs.remount();
    assert_eq!(text(fs.at("c/sub/g")), "deep");
    assert!(!exists(fs.at("a")));
}}

both! { a_large_lower_tree_is_renamed_whole, Rootless(NO_REDIRECTS), |t| {
    for dir in 0..20 {
        fs::create_dir_all(t.lower(format!("a/{dir}/x/y/z"))).unwrap();
        for file in 0..20 {
            put(t.lower(format!("a/{dir}/x/f{file}")), "x");
        }
    }
    let mut fs = t.mount(&["b"]);
    let before = crate::semantics_kit::facts(&fs.at("a"));
    mv(fs.at("a"), fs.at("b/c"));
    assert_eq!(before, crate::semantics_kit::facts(&fs.at("b/c")));
    fs.remount();
    assert_eq!(before, crate::semantics_kit::facts(&fs.at("b/c")));
    assert!(!exists(fs.at("a")));
}}

both! { an_observer_never_misses_a_name_that_is_replaced_or_exchanged, |t| {
    let fs = t.mount(&["a=1", "b=2"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert!(exists(fs.at("a")), "the name was missing");
            }
        });
        for _ in 0..200 {
            rename(fs.at("a"), fs.at("b"), RenameFlags::EXCHANGE).unwrap();
            put(fs.at("c"), "3");
            mv(fs.at("c"), fs.at("a"));
        }
        stop.store(true, Ordering::Relaxed);
        watch.join().unwrap();
    });
}}
