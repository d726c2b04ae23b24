//! Identity: inode numbers, link counts, hard links, devices; over copy-up, rename and remount.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind};

use crate::semantics_kit::sys::Mapping;
use crate::semantics_kit::{
    Fs, Stack, append, both, chmod, exists, listed_ino, mv, names, plant, put, stat, text,
};

const TREE: [&str; 5] = ["d", "d/f=old", "d/sub", "d/l->f", "f=old"];

fn ino(path: impl AsRef<Path>) -> u64 {
    stat(path).ino()
}

both! { inode_numbers_are_kept_over_copy_up, |t| {
    let fs = t.mount(&TREE);
    let all = ["d", "d/f", "d/sub", "d/l", "f"];
    let before: Vec<_> = all.iter().map(|x| ino(fs.at(x))).collect();
    append(fs.at("d/f"), "x");
    chmod(fs.at("d/sub"), 0o700);
    std::os::unix::fs::lchown(fs.at("d/l"), Some(0), Some(0)).unwrap();
    append(fs.at("f"), "x");
    for (name, before) in all.iter().zip(before) {
        assert_eq!(ino(fs.at(name)), before, "{name}");
        assert_eq!(listed_ino(fs.at(name)), before, "{name} as listed");
    }
}}

both! { inode_numbers_are_kept_over_remount_after_copy_up,
    Rootless("origins are not kept with userxattr"), |t| {
    let mut fs = t.mount(&TREE);
    let all = ["d", "d/f", "d/sub", "d/l", "f", "new", "newdir"];
    put(fs.at("new"), "x");
    fs::create_dir(fs.at("newdir")).unwrap();
    let before: Vec<_> = all.iter().map(|x| ino(fs.at(x))).collect();
    append(fs.at("d/f"), "x");
    chmod(fs.at("d/sub"), 0o700);
    append(fs.at("f"), "x");
    fs.remount();
    for (name, before) in all.iter().zip(before) {
        assert_eq!(ino(fs.at(name)), before, "{name}");
        assert_eq!(listed_ino(fs.at(name)), before, "{name} as listed");
    }
}}

both! { inode_numbers_are_kept_over_rename_and_remount,
    Rootless("origins are not kept with userxattr"), |t| {
    let mut fs = t.mount(&TREE);
    let before = ino(fs.at("f"));
    mv(fs.at("f"), fs.at("d/g"));
    assert_eq!(ino(fs.at("d/g")), before);
    fs.remount();
    assert_eq!(ino(fs.at("d/g")), before);
}}

both! { a_listing_gives_the_numbers_that_stat_gives, |t| {
    let top = t.layer("top", &["d", "d/top=1", "d/sub", "top=1"]);
    let low = t.layer("low", &TREE);
    let mut fs = t.mount_lowers(&[&top, &low]);
    put(fs.at("d/up"), "x");
    fs::create_dir(fs.at("updir")).unwrap();
    append(fs.at("d/top"), "x");
    symlink("x", fs.at("d/newlink")).unwrap();
    for _ in 0..2 {
        for dir in ["", "d", "d/sub", "updir"] {
            let here =
                rustix::fs::open(fs.at(dir), rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
            for entry in rustix::fs::Dir::read_from(&here).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().to_str().unwrap();
                if (dir, name) != ("", "..") {
                    assert_eq!(entry.ino(), ino(fs.at(dir).join(name)), "{dir}/{name}");
                }
            }
        }
        fs.remount();
    }
}}

both! { every_object_of_a_mount_has_its_own_number_and_one_device, |t| {
    let top = t.layer("top", &["d", "d/top=1", "d/sub", "top=1"]);
    let low = t.layer("low", &TREE);
    let fs = t.mount_lowers(&[&top, &low]);
    put(fs.at("d/up"), "x");
    let all = ["", "d", "d/f", "d/sub", "d/l", "f", "d/top", "top", "d/up"];
    let mut numbers: Vec<_> = all.iter().map(|x| ino(fs.at(x))).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), all.len());
    let device = stat(fs.at("")).dev();
    all.iter().for_each(|x| assert_eq!(stat(fs.at(x)).dev(), device, "{x}"));
}}

/// Two fresh tmpfs, whose first files have equal inode numbers.
fn two_filesystems(t: &crate::semantics_kit::Test) -> [std::path::PathBuf; 2] {
    ["one", "two"].map(|name| {
        let dir = t.layer(name, &[]);
        mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), None).unwrap();
        plant(&dir, &[&format!("{name}={name}"), "d"]);
        plant(&dir, &[&format!("d/{name}=in {name}")]);
        dir
    })
}

both! { files_of_two_filesystems_with_one_number_stay_two_files, |t| {
    let [one, two] = two_filesystems(t);
    assert_eq!(ino(one.join("one")), ino(two.join("two")), "the test wants equal numbers");
    let fs = t.mount_lowers(&[&one, &two]);
    assert_eq!((text(fs.at("one")), text(fs.at("two"))), ("one".into(), "two".into()));
    let files = ["one", "two"].map(|x| File::open(fs.at(x)).unwrap());
    let maps = [0, 1].map(|x| Mapping::shared(&files[x], 3, false).unwrap());
    assert_eq!((maps[0].read(0, 3), maps[1].read(0, 3)), (b"one".into(), b"two".into()));
    assert_eq!(names(fs.at("d")), ["one", "two"]);
    let key = |name: &str| (stat(fs.at(name)).dev(), ino(fs.at(name)));
    assert_ne!(key("one"), key("two"));
    assert_ne!(key("d/one"), key("d/two"));
    append(fs.at("one"), "!");
    assert_eq!((text(fs.at("one")), text(fs.at("two"))), ("one!".into(), "two".into()));
}}

both! { numbers_of_two_filesystems_are_listed_as_stat_gives_them,
    Both("without xino, d_ino differs for directories"), |t| {
    let [one, two] = two_filesystems(t);
    let fs = t.mount_lowers(&[&one, &two]);
    put(fs.at("d/up"), "x");
    for name in ["one", "two", "d", "d/one", "d/two", "d/up"] {
        assert_eq!(listed_ino(fs.at(name)), ino(fs.at(name)), "{name}");
    }
}}

both! { both_ends_of_a_bind_mount_in_a_lower_are_shown, |t| {
    plant(&t.at("lower"), &["a", "a/f=x", "b", "c"]);
    mount_bind(t.lower("a"), t.lower("b")).unwrap();
    let low = t.at("lower");
    let fs = t.mount_lowers(&[&low, &t.layer("other", &["c", "c/g=y"])]);
    assert_eq!(names(fs.at("")), ["a", "b", "c"]);
    assert_eq!(names(fs.at("a")), ["f"]);
    fs::create_dir(fs.at("a/new")).unwrap();
    assert_eq!(names(fs.at("a")), ["f", "new"]);
    assert!(exists(fs.at("b")));
}}

both! { both_names_of_a_lower_pair_have_two_links, |t| {
    put(t.lower("a"), "old");
    fs::hard_link(t.lower("a"), t.lower("b")).unwrap();
    let fs = t.mount(&[]);
    assert_eq!((stat(fs.at("a")).nlink(), stat(fs.at("b")).nlink()), (2, 2));
    assert_eq!(ino(fs.at("a")), ino(fs.at("b")));
    assert_eq!(names(fs.at("")), ["a", "b"]);
}}

both! { a_lower_pair_stays_linked_over_a_write_and_a_remount, Both(BROKEN_LINKS), |t| {
    put(t.lower("a"), "old");
    fs::create_dir(t.lower("d")).unwrap();
    fs::hard_link(t.lower("a"), t.lower("d/b")).unwrap();
    let mut fs = t.mount(&[]);
    let number = ino(fs.at("a"));
    append(fs.at("a"), "new");
    for _ in 0..2 {
        assert_eq!(text(fs.at("d/b")), "oldnew");
        assert_eq!((ino(fs.at("a")), ino(fs.at("d/b"))), (number, number));
        assert_eq!((stat(fs.at("a")).nlink(), stat(fs.at("d/b")).nlink()), (2, 2));
        fs.remount();
    }
    append(fs.at("d/b"), "!");
    assert_eq!(text(fs.at("a")), "oldnew!");
    assert_eq!(text(t.lower("a")), "old");
}}

both! { a_lower_pair_without_a_file_handle_stays_linked_too, OnlyPlyfs, |t| {
    // What is mounted inside a layer is on a filesystem that no origin record can name.
    let inside = t.layer("lower/in", &[]);
    let none = c"";
    mount("none", &inside, "tmpfs", MountFlags::empty(), none).unwrap();
    put(inside.join("a"), "old");
    for name in ["b", "c"] {
        fs::hard_link(inside.join("a"), inside.join(name)).unwrap();
    }
    let check = |fs: &Fs, expected: &[&str]| {
        assert_eq!(names(fs.at("in")), expected);
        for name in expected {
            let file = fs.at("in").join(name);
            let links = stat(&file).nlink();
            assert_eq!((text(&file), links), ("new".into(), expected.len() as u64), "{name}");
            assert_eq!(ino(&file), ino(fs.at("in/a")), "{name}");
        }
    };
    let mut fs = t.mount(&[]);
    assert_eq!(ino(fs.at("in/b")), ino(fs.at("in/a")));
    put(fs.at("in/a"), "new");
    check(&fs, &["a", "b", "c"]);
    fs.remount();
    check(&fs, &["a", "b", "c"]);
    fs::remove_file(fs.at("in/b")).unwrap();
    check(&fs, &["a", "c"]);
    fs.remount();
    check(&fs, &["a", "c"]);
}}

both! { a_lower_pair_stays_linked_over_a_change_of_mode, Both(BROKEN_LINKS), |t| {
    put(t.lower("a"), "old");
    fs::hard_link(t.lower("a"), t.lower("b")).unwrap();
    let mut fs = t.mount(&[]);
    chmod(fs.at("b"), 0o600);
    fs.remount();
    assert_eq!(stat(fs.at("a")).mode() & 0o777, 0o600);
    append(fs.at("a"), "new");
    assert_eq!(text(fs.at("b")), "oldnew");
}}

both! { deleting_one_of_a_lower_pair_leaves_one_link, Both(BROKEN_LINKS), |t| {
    put(t.lower("a"), "old");
    fs::hard_link(t.lower("a"), t.lower("b")).unwrap();
    let mut fs = t.mount(&[]);
    fs::remove_file(fs.at("a")).unwrap();
    for _ in 0..2 {
        assert_eq!(stat(fs.at("b")).nlink(), 1);
        assert_eq!(text(fs.at("b")), "old");
        fs.remount();
    }
    append(fs.at("b"), "new");
    assert_eq!(stat(fs.at("b")).nlink(), 1);
    fs.remount();
    assert_eq!((stat(fs.at("b")).nlink(), text(fs.at("b"))), (1, "oldnew".into()));
}}

both! { renaming_one_of_a_lower_pair_keeps_it_linked, Both(BROKEN_LINKS), |t| {
    put(t.lower("a"), "old");
    fs::hard_link(t.lower("a"), t.lower("b")).unwrap();
    let mut fs = t.mount(&[]);
    mv(fs.at("a"), fs.at("c"));
    for _ in 0..2 {
        assert_eq!(ino(fs.at("b")), ino(fs.at("c")));
        assert_eq!((stat(fs.at("b")).nlink(), stat(fs.at("c")).nlink()), (2, 2));
        fs.remount();
    }
    append(fs.at("b"), "new");
    assert_eq!(text(fs.at("c")), "oldnew");
}}

both! { a_new_link_to_a_lower_file_is_the_same_file,
    Rootless("the old name keeps the lower's number until a remount"), |t| {
    let mut fs = t.mount(&TREE);
    fs::hard_link(fs.at("f"), fs.at("d/g")).unwrap();
    for _ in 0..2 {
        assert_eq!(ino(fs.at("f")), ino(fs.at("d/g")));
        assert_eq!((stat(fs.at("f")).nlink(), stat(fs.at("d/g")).nlink()), (2, 2));
        fs.remount();
    }
    append(fs.at("d/g"), "new");
    assert_eq!(text(fs.at("f")), "oldnew");
    fs::remove_file(fs.at("f")).unwrap();
    assert_eq!((stat(fs.at("d/g")).nlink(), text(fs.at("d/g"))), (1, "oldnew".into()));
    t.same_after_remount(&mut fs);
}}

both! { writes_through_two_descriptors_of_a_lower_pair_meet, Both(BROKEN_LINKS), |t| {
    put(t.lower("a"), "0123");
    fs::hard_link(t.lower("a"), t.lower("b")).unwrap();
    let fs = t.mount(&[]);
    let reader = File::open(fs.at("b")).unwrap();
    crate::semantics_kit::read_write(fs.at("a")).write_all_at(b"ab", 0).unwrap();
    let mut buffer = [0; 4];
    reader.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"ab23");
}}

both! { the_links_of_a_directory_are_counted_or_one, |t| {
    let fs = t.mount(&["d", "d/a", "d/b", "d/f=x"]);
    fs::create_dir(fs.at("d/c")).unwrap();
    assert!([1, 5].contains(&stat(fs.at("d")).nlink()), "{}", stat(fs.at("d")).nlink());
}}

both! { static_nlink_gives_every_directory_one_link, NoDaemon, |t| {
    let fs = t.mount_with("static_nlink", &["d", "d/a", "f=x"]);
    assert_eq!(stat(fs.at("d")).nlink(), 1);
    assert_eq!(stat(fs.at("f")).nlink(), 1);
}}

both! { ino32_t_gives_numbers_of_32_bits, NoDaemon, |t| {
    let fs = t.mount_with("ino32_t", &TREE);
    put(fs.at("new"), "x");
    for name in ["d", "d/f", "f", "new", "d/l"] {
        assert!(ino(fs.at(name)) <= u64::from(u32::MAX), "{name}");
        assert_eq!(listed_ino(fs.at(name)), ino(fs.at(name)), "{name}");
    }
}}

both! { xino_is_accepted_in_its_three_forms, NoDaemon, |t| {
    for value in ["off", "auto", "on"] {
        let options = format!("xino={value}");
        let fs = t.mount_stack(Stack { options, ..t.stack() });
        put(fs.at(value), "x");
    }
}}
