//! What was deleted stays deleted, whatever is made, renamed or mounted afterwards.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;

use crate::semantics_kit::{
    both, errno, exists, is_whiteout, listed_ino, mv, names, put, stat, text, xattr,
};

const TREE: [&str; 6] = ["d", "d/f=old", "d/sub", "d/sub/g=deep", "d/l->f", "x=old"];

both! { a_removed_directory_made_again_is_empty, |t| {
    let mut fs = t.mount(&TREE);
    fs::remove_dir_all(fs.at("d")).unwrap();
    fs::create_dir(fs.at("d")).unwrap();
    assert_eq!(names(fs.at("d")).len(), 0);
    assert!(!exists(fs.at("d/f")));
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("d")).len(), 0);
}}

both! { a_nested_tree_removed_and_made_again_holds_only_the_new, |t| {
    let mut fs = t.mount(&TREE);
    fs::remove_dir_all(fs.at("d")).unwrap();
    fs::create_dir_all(fs.at("d/sub")).unwrap();
    put(fs.at("d/sub/new"), "new");
    assert_eq!(names(fs.at("d/sub")), ["new"]);
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("d")), ["sub"]);
    assert_eq!(names(fs.at("d/sub")), ["new"]);
}}

both! { a_removed_subdirectory_made_again_in_a_merged_directory_is_empty, |t| {
    let mut fs = t.mount(&TREE);
    put(fs.at("d/other"), "up");
    fs::remove_dir_all(fs.at("d/sub")).unwrap();
    fs::create_dir(fs.at("d/sub")).unwrap();
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("d/sub")).len(), 0);
    assert_eq!(names(fs.at("d")), ["f", "l", "other", "sub"]);
}}

both! { an_upper_directory_renamed_onto_a_removed_lower_one_shows_only_its_own, |t| {
    let mut fs = t.mount(&TREE);
    fs::remove_dir_all(fs.at("d")).unwrap();
    fs::create_dir_all(fs.at("new/sub")).unwrap();
    put(fs.at("new/n"), "new");
    mv(fs.at("new"), fs.at("d"));
    assert_eq!(names(fs.at("d")), ["n", "sub"]);
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("d")), ["n", "sub"]);
    assert_eq!(names(fs.at("d/sub")).len(), 0);
}}

both! { an_upper_file_renamed_over_a_lower_one_and_removed_stays_removed, |t| {
    let mut fs = t.mount(&TREE);
    put(fs.at("new"), "new");
    mv(fs.at("new"), fs.at("x"));
    assert_eq!(text(fs.at("x")), "new");
    fs::remove_file(fs.at("x")).unwrap();
    assert!(!exists(fs.at("x")));
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("")), ["d"]);
}}

both! { an_upper_file_linked_onto_a_removed_lower_name_and_removed_stays_removed, |t| {
    let mut fs = t.mount(&TREE);
    fs::remove_file(fs.at("x")).unwrap();
    put(fs.at("new"), "new");
    fs::hard_link(fs.at("new"), fs.at("x")).unwrap();
    assert_eq!(text(fs.at("x")), "new");
    fs::remove_file(fs.at("x")).unwrap();
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("")), ["d", "new"]);
}}

both! { a_name_removed_and_made_again_has_its_new_type, |t| {
    let mut fs = t.mount(&["f=file", "d", "d/in=x", "l->f", "p=x"]);
    fs::remove_file(fs.at("p")).unwrap();
    for round in 0..3 {
        for name in ["f", "d", "l", "p"] {
            let path = fs.at(name);
            if let Ok(old) = path.symlink_metadata() {
                if old.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                    .unwrap();
            }
            assert!(!exists(&path));
            make(&path, (round + name.len() + usize::from(name.as_bytes()[0])) % 4);
        }
        for name in ["f", "d", "l", "p"] {
            check_kind(&fs.at(name), (round + name.len() + usize::from(name.as_bytes()[0])) % 4);
        }
        t.same_after_remount(&mut fs);
    }
}}

/// Makes a file, a directory, a symlink or a fifo.
fn make(path: &Path, kind: usize) {
    match kind {
        0 => put(path, "made"),
        1 => fs::create_dir(path).unwrap(),
        2 => symlink("target", path).unwrap(),
        _ => mknodat(CWD, path, FileType::Fifo, Mode::from(0o600), 0).unwrap(),
    }
}

fn check_kind(path: &Path, kind: usize) {
    let found = stat(path).file_type();
    let kinds = [found.is_file(), found.is_dir(), found.is_symlink(), found.is_fifo()];
    assert!(kinds[kind], "{}: {found:?}", path.display());
    let listed = fs::read_dir(path.parent().unwrap()).unwrap().map(|x| x.unwrap());
    let listed = listed.into_iter().find(|x| x.path() == path).unwrap().file_type().unwrap();
    assert_eq!(listed, found, "{}: as the listing says", path.display());
    match kind {
        0 => assert_eq!(text(path), "made"),
        1 => assert_eq!(names(path).len(), 0),
        2 => assert_eq!(fs::read_link(path).unwrap(), Path::new("target")),
        _ => assert_eq!(listed_ino(path), std::os::unix::fs::MetadataExt::ino(&stat(path))),
    }
}

both! { a_file_replaced_by_a_directory_hides_a_lower_directory_of_that_name, |t| {
    let mut fs = t.mount(&TREE);
    fs::remove_dir_all(fs.at("d")).unwrap();
    put(fs.at("d"), "file");
    fs.remount();
    fs::remove_file(fs.at("d")).unwrap();
    fs::create_dir(fs.at("d")).unwrap();
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("d")).len(), 0);
}}

both! { a_merged_directory_is_removed_only_when_it_looks_empty, |t| {
    let mut fs = t.mount(&TREE);
    assert_eq!(errno(fs::remove_dir(fs.at("d/sub"))), Errno::NOTEMPTY);
    fs::remove_file(fs.at("d/sub/g")).unwrap();
    fs.remount();
    fs::remove_dir(fs.at("d/sub")).unwrap();
    assert_eq!(names(fs.at("d")), ["f", "l"]);
    t.same_after_remount(&mut fs);
}}

both! { a_deletion_is_written_as_the_kernel_writes_it, |t| {
    let mut fs = t.mount(&TREE);
    fs::remove_file(fs.at("x")).unwrap();
    fs::remove_dir_all(fs.at("d")).unwrap();
    fs::create_dir(fs.at("d")).unwrap();
    fs.unmount();
    assert!(is_whiteout(&t.upper("x")));
    assert_eq!(xattr(t.upper("d"), &t.attribute("opaque")).unwrap(), b"y");
    assert_eq!(names(t.upper("d")).len(), 0);
}}

both! { no_whiteout_is_written_where_no_lower_has_the_name, |t| {
    let mut fs = t.mount(&TREE);
    put(fs.at("d/new"), "new");
    fs::remove_file(fs.at("d/new")).unwrap();
    fs::remove_dir_all(fs.at("d/sub")).unwrap();
    fs::create_dir(fs.at("d/sub")).unwrap();
    put(fs.at("d/sub/g"), "new");
    fs::remove_file(fs.at("d/sub/g")).unwrap();
    fs::create_dir(fs.at("plain")).unwrap();
    fs.unmount();
    assert_eq!(names(t.upper("d")), ["sub"]);
    assert_eq!(names(t.upper("d/sub")).len(), 0, "an opaque directory has no whiteouts");
    assert_eq!(xattr(t.upper("plain"), "user.overlay.opaque"), Err(Errno::NODATA));
}}

both! { a_name_of_every_layer_is_removed_at_once, |t| {
    let one = t.layer("one", &["d", "d/1=1", "f=1"]);
    let two = t.layer("two", &["d", "d/2=2", "f=2"]);
    let three = t.layer("three", &["d", "d/3=3", "f=3"]);
    let mut fs = t.mount_lowers(&[&one, &two, &three]);
    fs::remove_file(fs.at("f")).unwrap();
    assert_eq!(names(fs.at("d")), ["1", "2", "3"]);
    fs::remove_dir_all(fs.at("d")).unwrap();
    assert_eq!(names(fs.at("")).len(), 0);
    t.same_after_remount(&mut fs);
    fs::create_dir(fs.at("d")).unwrap();
    put(fs.at("d/2"), "new");
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("d")), ["2"]);
}}

both! { a_listing_that_is_open_survives_deletions, |t| {
    for file in 0..500 {
        put(t.lower(format!("f{file}")), "x");
    }
    let fs = t.mount(&[]);
    let mut seen = 0;
    for entry in fs::read_dir(fs.at("")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 500);
    assert_eq!(names(fs.at("")).len(), 0);
}}
