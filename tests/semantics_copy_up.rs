//! Copy-up: whole, faithful, once, in nobody's way.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::semantics_kit::hold::during_a_copy;
use crate::semantics_kit::sys::extents;
use crate::semantics_kit::{
    Fs, Stack, Test, append, both, chmod, exists, mode, mtime, names, put, read_write, set_times,
    set_xattr, stat, text, xattr, xattrs,
};

const MIB: u64 = 1 << 20;

/// A file of `size` bytes with data at its start, its middle and its end only.
fn sparse(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for at in [0, size / 2, size - 4096] {
        file.write_all_at(&[7; 4096], at).unwrap();
    }
}

both! { reading_copies_nothing_and_changes_no_lower, |t| {
    let mut fs = t.mount(&["d", "d/f=old", "l->d/f"]);
    set_times(t.lower("d/f"), 1000, 0);
    assert_eq!(text(fs.at("l")), "old");
    assert_eq!(names(fs.at("d")), ["f"]);
    let _ = xattrs(fs.at("d/f"));
    fs.unmount();
    assert_eq!(names(t.upper("")).len(), 0);
    assert_eq!(stat(t.lower("d/f")).atime(), 1000);
}}

both! { holes_are_kept_by_copy_up, |t| {
    sparse(&t.lower("f"), 256 * MIB);
    let mut fs = t.mount(&[]);
    append(fs.at("f"), "end");
    let file = File::open(fs.at("f")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 256 * MIB + 3);
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
    assert!((4096..=MIB).contains(&hole), "the first hole is at {hole}");
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(MIB)).unwrap();
    assert!((127 * MIB..=128 * MIB).contains(&data), "the next data is at {data}");
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 128 * MIB).unwrap();
    assert_eq!(page, [7; 4096]);
    drop(file);
    fs.unmount();
    let blocks = stat(t.upper("f")).blocks() * 512;
    assert!(blocks < 4 * MIB, "the copy takes {blocks} bytes");
}}

both! { a_large_file_is_copied_up_whole, |t| {
    let bytes: Vec<u8> =
        (0..5_000_003u32).map(|x| (x.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(t.lower("f"), &bytes).unwrap();
    let mut fs = t.mount(&[]);
    let mut file = read_write(fs.at("f"));
    file.seek(SeekFrom::Start(2_500_000)).unwrap();
    file.write_all(b"changed").unwrap();
    drop(file);
    let mut expected = bytes;
    expected[2_500_000..2_500_007].copy_from_slice(b"changed");
    assert!(fs::read(fs.at("f")).unwrap() == expected);
    fs.remount();
    assert!(fs::read(fs.at("f")).unwrap() == expected);
}}

/// One of every kind, with an odd mode, odd times and attributes.
fn kinds(dir: &Path) {
    put(dir.join("file"), "old");
    fs::create_dir(dir.join("dir")).unwrap();
    symlink("nowhere", dir.join("link")).unwrap();
    mknodat(CWD, dir.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    for name in ["file", "dir", "fifo"] {
        chmod(dir.join(name), 0o1705);
    }
    for name in ["file", "dir"] {
        set_xattr(dir.join(name), "user.note", b"kept").unwrap();
        set_xattr(dir.join(name), "user.empty", b"").unwrap();
    }
    for name in ["file", "dir", "link", "fifo"] {
        lchown(dir.join(name), Some(0), Some(0)).unwrap();
        set_times(dir.join(name), -86_400, 123_456_789);
    }
}

both! { every_kind_keeps_its_facts_over_copy_up_by_rename_and_link, |t| {
    kinds(&t.at("lower"));
    let mut fs = t.mount(&[]);
    for name in ["file", "link", "fifo"] {
        fs::hard_link(fs.at(name), fs.at(format!("{name}2"))).unwrap();
        fs::rename(fs.at(name), fs.at(format!("{name}3"))).unwrap();
    }
    for _ in 0..2 {
        for name in ["file2", "file3", "link2", "link3", "fifo2", "fifo3"] {
            assert_eq!(mtime(fs.at(name)), (-86_400, 123_456_789), "{name}");
            assert_eq!(stat(fs.at(name)).nlink(), 2, "{name}");
        }
        assert_eq!(mode(fs.at("file2")), 0o1705);
        assert_eq!(mode(fs.at("fifo3")), 0o1705);
        assert_eq!(xattr(fs.at("file3"), "user.note").unwrap(), b"kept");
        assert_eq!(xattr(fs.at("file3"), "user.empty").unwrap(), b"");
        assert_eq!(fs::read_link(fs.at("link3")).unwrap(), Path::new("nowhere"));
        fs.remount();
    }
}}

both! { the_times_of_a_symlink_are_kept_when_its_owner_changes, |t| {
    t.needs_ids();
    kinds(&t.at("lower"));
    let mut fs = t.mount(&[]);
    for name in ["link", "fifo", "file", "dir"] {
        lchown(fs.at(name), Some(1000), Some(1001)).unwrap();
    }
    for _ in 0..2 {
        for name in ["link", "fifo", "file", "dir"] {
            assert_eq!(mtime(fs.at(name)), (-86_400, 123_456_789), "{name}");
            assert_eq!((stat(fs.at(name)).uid(), stat(fs.at(name)).gid()), (1000, 1001), "{name}");
        }
        fs.remount();
    }
}}

both! { directories_keep_their_times_over_a_recursive_chmod, |t| {
    let mut fs = t.mount(&["a", "a/b", "a/b/f=1", "a/g=2"]);
    fs.unmount();
    for name in ["a/b", "a"] {
        set_times(t.lower(name), 1000, 9);
    }
    fs.remount_again();
    for name in ["a", "a/b", "a/b/f", "a/g"] {
        chmod(fs.at(name), 0o700);
    }
    for _ in 0..2 {
        for name in ["a", "a/b"] {
            assert_eq!(mtime(fs.at(name)), (1000, 9), "{name}");
        }
        fs.remount();
    }
}}

both! { a_directory_changed_after_its_copy_up_shows_the_change, |t| {
    let mut fs = t.mount(&["a", "a/f=1", "a/g=2"]);
    set_times(fs.at("a"), 1000, 0);
    append(fs.at("a/f"), "x");
    assert_eq!(mtime(fs.at("a")), (1000, 0), "a copy-up is no change of the directory");
    fs::remove_file(fs.at("a/g")).unwrap();
    let after = mtime(fs.at("a"));
    assert!(after.0 > 1000, "a deletion is");
    fs.remount();
    assert_eq!(mtime(fs.at("a")), after);
}}

both! { extended_attributes_and_access_time_are_copied, |t| {
    put(t.lower("f"), "old");
    set_xattr(t.lower("f"), "user.one", &[0, 1, 255]).unwrap();
    set_xattr(t.lower("f"), "user.long", &[b'x'; 2000]).unwrap();
    set_times(t.lower("f"), 4_102_444_800, 5);
    let fs = t.mount(&[]);
    chmod(fs.at("f"), 0o604);
    assert_eq!(xattr(fs.at("f"), "user.one").unwrap(), [0, 1, 255]);
    assert_eq!(xattr(fs.at("f"), "user.long").unwrap(), [b'x'; 2000]);
    assert_eq!((stat(fs.at("f")).atime(), stat(fs.at("f")).atime_nsec()), (4_102_444_800, 5));
    assert_eq!(text(fs.at("f")), "old");
}}

both! { metadata_only_copy_up_copies_no_data, Rootless("userxattr refuses metacopy"), |t| {
    fs::write(t.lower("f"), vec![7; 8 << 20]).unwrap();
    let mut fs = t.mount_with("metacopy=on", &[]);
    chmod(fs.at("f"), 0o600);
    set_xattr(fs.at("f"), "user.note", b"new").unwrap();
    fs.remount();
    assert_eq!(mode(fs.at("f")), 0o600);
    assert_eq!(stat(fs.at("f")).len(), 8 << 20);
    assert!(fs::read(fs.at("f")).unwrap() == vec![7; 8 << 20]);
    assert!(stat(t.upper("f")).blocks() < 100, "data was copied");
    fs::rename(fs.at("f"), fs.at("moved")).unwrap();
    assert!(fs::read(fs.at("moved")).unwrap() == vec![7; 8 << 20]);
    fs.remount();
    assert!(fs::read(fs.at("moved")).unwrap() == vec![7; 8 << 20]);
    append(fs.at("moved"), "end");
    fs.remount();
    assert_eq!(stat(fs.at("moved")).len(), (8 << 20) + 3);
    assert!(fs::read(fs.at("moved")).unwrap().starts_with(&[7; 4096]));
    assert_eq!(mode(fs.at("moved")), 0o600);
}}

both! { a_metadata_only_copy_is_read_by_the_kernel, |t| {
    t.needs(t.is_root(), "root: the kernel reads metacopy in the trusted namespace only");
    put(t.lower("f"), "the data");
    let mut fs = t.mount_with("metacopy=on", &[]);
    chmod(fs.at("f"), 0o600);
    fs.unmount();
    let options = "metacopy=on".to_owned();
    let kernel = t.kernel_mount(Stack { options, ..t.stack() });
    assert_eq!(text(kernel.at("f")), "the data");
    assert_eq!(mode(kernel.at("f")), 0o600);
}}

both! { writers_that_race_for_one_copy_up_lose_nothing, |t| {
    let fs = t.mount(&["f="]);
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let path = fs.at("f");
            scope.spawn(move || {
                (0..20).for_each(|line| append(&path, &format!("{writer}.{line}\n")))
            });
        }
    });
    let text = text(fs.at("f"));
    assert_eq!(text.lines().count(), 160);
    for writer in 0..8 {
        let own: Vec<_> = text.lines().filter(|x| x.starts_with(&format!("{writer}."))).collect();
        assert_eq!(own.len(), 20);
        assert_eq!(own[19], format!("{writer}.19"));
    }
}}

both! { a_copy_up_shows_in_the_upper_whole_or_not_at_all, |t| {
    const SIZE: u64 = 64 * MIB;
    fs::write(t.lower("f"), vec![7; SIZE as usize]).unwrap();
    let fs = t.mount(&[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(stat) = t.upper("f").metadata() {
                    assert!(stat.len() >= SIZE, "{} bytes", stat.len());
                }
            }
        });
        append(fs.at("f"), "x");
        stop.store(true, Ordering::Relaxed);
        watch.join().unwrap();
    });
    assert!(exists(t.upper("f")));
}}

/// Does `work`, which copies data, and meanwhile looks up, makes and removes names in `dir`, where there are
/// 100. While a name is removed from a directory the kernel itself lets nobody look there for one it does not
/// know yet.
fn others_go_on(t: &Test, fs: &Fs, dir: &str, work: impl FnOnce() + Send) {
    let (old, new) = (|x| format!("{dir}/f{x}"), |x| format!("{dir}/new{x}"));
    assert!(exists(fs.at(dir)));
    during_a_copy(t, work, || {
        for file in 0..100 {
            assert!(exists(fs.at(old(file))));
            put(fs.at(new(file)), "x");
            fs::remove_file(fs.at(old(file))).unwrap();
        }
    });
    assert_eq!(names(fs.at(dir)).len(), 100);
}

fn hundred(t: &Test, dir: &str) {
    fs::create_dir(t.lower(dir)).unwrap();
    (0..100).for_each(|file| put(t.lower(format!("{dir}/f{file}")), "x"));
}

both! { other_operations_go_on_during_a_copy_up, OnlyPlyfs, |t| {
    fs::write(t.lower("big"), vec![7; 1 << 20]).unwrap();
    hundred(t, "d");
    let fs = t.mount(&[]);
    others_go_on(t, &fs, "d", || append(fs.at("big"), "x"));
    assert_eq!(stat(fs.at("big")).len(), (1 << 20) + 1);
}}

both! { other_operations_go_on_while_a_hard_link_is_copied_to_be_removed_or_replaced, OnlyPlyfs, |t| {
    for (name, byte) in [("big", 7), ("large", 8)] {
        fs::write(t.lower(name), vec![byte; 1 << 20]).unwrap();
        fs::hard_link(t.lower(name), t.lower(format!("{name}2"))).unwrap();
    }
    hundred(t, "d");
    hundred(t, "e");
    let fs = t.mount(&[]);
    put(fs.at("small"), "x");
    others_go_on(t, &fs, "d", || fs::remove_file(fs.at("big")).unwrap());
    others_go_on(t, &fs, "e", || fs::rename(fs.at("small"), fs.at("large")).unwrap());
    assert_eq!(text(fs.at("large")), "x");
    for name in ["big2", "large2"] {
        assert_eq!(stat(fs.at(name)).len(), 1 << 20);
    }
}}

/// A fresh filesystem with reflinks at `disk`, which only root can mount.
fn reflinks(t: &Test) {
    t.needs(t.is_root(), "root: a loop mount");
    let image = t.at("image");
    File::create(&image).unwrap().set_len(512 * MIB).unwrap();
    let disk = t.layer("disk", &[]);
    let ran = |command: &mut Command| command.output().is_ok_and(|x| x.status.success());
    let made = ran(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image))
        && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk));
    t.needs(made, "a filesystem with reflinks: mkfs.xfs and a loop device");
}

fn is_shared(path: &Path) -> bool {
    const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
    let extents = extents(File::open(path).unwrap()).unwrap();
    assert!(!extents.is_empty());
    extents.iter().any(|x| x.flags & FIEMAP_EXTENT_SHARED != 0)
}

both! { a_copy_up_and_a_copied_range_share_blocks_where_the_filesystem_can, |t| {
    reflinks(t);
    let [low, up, work] = ["low", "up", "work"].map(|x| t.layer(&format!("disk/{x}"), &[]));
    fs::write(low.join("f"), vec![7; 4 << 20]).unwrap();
    let mut fs =
        t.mount_stack(Stack { lowers: vec![low], upper: Some((up.clone(), work)), ..t.stack() });
    append(fs.at("f"), "end");
    let from = File::open(fs.at("f")).unwrap();
    let to = File::create(fs.at("copy")).unwrap();
    while rustix::fs::copy_file_range(&from, None, &to, None, 8 << 20).unwrap() > 0 {}
    drop((from, to));
    assert!(fs::read(fs.at("copy")).unwrap() == fs::read(fs.at("f")).unwrap());
    fs.unmount();
    assert!(is_shared(&up.join("f")), "the copy-up copied");
    assert!(is_shared(&up.join("copy")), "the range was copied");
}}

both! { looking_at_a_file_while_its_data_is_copied_takes_nothing_back, OnlyPlyfs, |t| {
    let files: Vec<String> = (0..60).map(|n| format!("f{n}")).collect();
    for name in &files {
        put(t.lower(name), &"o".repeat(200 << 10));
    }
    let fs = t.mount_with("metacopy=on,timeout=0", &[]);
    for name in &files {
        chmod(fs.at(name), 0o600);
    }
    let now = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(name) = files.get(now.load(Ordering::Relaxed)) {
                    fs::metadata(fs.at(name)).unwrap();
                }
            });
        }
        for name in &files {
            let file = File::options().read(true).write(true).open(fs.at(name)).unwrap();
            file.write_at(b"NEW", 0).unwrap();
            file.write_at(b"SECOND", 100).unwrap();
            now.fetch_add(1, Ordering::Relaxed);
        }
    });
    for name in &files {
        let text = fs::read(t.upper(name)).unwrap();
        assert_eq!((&text[..3], &text[100..106]), (&b"NEW"[..], &b"SECOND"[..]), "{name}");
    }
}}
