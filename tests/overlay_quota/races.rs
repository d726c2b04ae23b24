//! Limits while several are at work, and what one of them leaves to another.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use plyfs_fuse::attr::SetAttr;
use plyfs_fuse::inode::Ino;
use plyfs_fuse::options::Io;
use plyfs_fuse::quota::Used;
use plyfs_fuse::{Options, Overlay};

use super::{BLOCK, create, full, me, name, of, open, options, used, walk, write};
use crate::common::rng::Rng;
use crate::common::sandbox::Sandbox;

#[test]
fn many_writers_book_what_is_there() {
    for io in [Io::Handleless, Io::Handles] {
        let sandbox = Sandbox::new();
        let size = 300 * BLOCK;
        let fs = Arc::new(Overlay::open(&Options { io, ..options(&sandbox, size, 40) }).unwrap());
        let shared = create(&fs, "shared");
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let fs = fs.clone();
                scope.spawn(move || {
                    for n in 0..60_u64 {
                        let _ = write(&fs, shared, (n * 8 + thread) * BLOCK / 2, BLOCK);
                        let text = format!("{thread}.{}", n % 3);
                        if let Ok(entry) = fs.mknod(me(), Ino::ROOT, name(&text), 0o100_644, 0) {
                            let _ = write(&fs, entry.attr.ino, 0, 3 * BLOCK);
                            fs.unlink(Ino::ROOT, name(&text)).unwrap();
                            fs.forget(entry.attr.ino, 1);
                        }
                        let (booked, _) = fs.used().unwrap().unwrap();
                        assert!(booked.bytes <= size, "{booked:?}");
                    }
                });
            }
        });
        fs.check_invariants().unwrap();
        let (booked, found) = fs.used().unwrap().unwrap();
        assert!(found.bytes > 100 * BLOCK && (booked.inodes, found.inodes) == (1, 1), "{found:?}");
        // A file in pieces may have got a block to list them when it was written back.
        assert!(found.bytes.abs_diff(booked.bytes) <= 2 * BLOCK, "{booked:?} {found:?}");
    }
}

/// A file known by one of its names only: the last one may go by the other.
#[test]
fn a_name_that_nobody_looked_up_may_be_the_last_one() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.upper().join("a"), vec![1; 3 * BLOCK as usize]).unwrap();
    std::fs::hard_link(sandbox.upper().join("a"), sandbox.upper().join("b")).unwrap();
    let fs = open(&sandbox, 20 * BLOCK, 20);
    let a = walk(&fs, "a");
    let other = create(&fs, "other");
    write(&fs, other, 0, BLOCK).unwrap();
    fs.unlink(Ino::ROOT, name("a")).unwrap();
    assert_eq!(used(&fs), of(4, 2));
    fs.unlink(Ino::ROOT, name("b")).unwrap();
    assert_eq!(used(&fs), of(4, 2), "somebody may have it open");
    write(&fs, a, 3 * BLOCK, BLOCK).unwrap();
    assert_eq!(used(&fs), of(5, 2));
    fs.forget(a, 1);
    assert_eq!(used(&fs), of(1, 1));
}

#[test]
fn a_copied_file_whose_names_go_while_it_is_open_counts_until_it_is_forgotten() {
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    std::fs::write(lower.join("one"), vec![1; 2 * BLOCK as usize]).unwrap();
    std::fs::hard_link(lower.join("one"), lower.join("two")).unwrap();
    let fs = open(&sandbox, 20 * BLOCK, 20);
    let one = walk(&fs, "one");
    fs.unlink(Ino::ROOT, name("one")).unwrap();
    fs.unlink(Ino::ROOT, name("two")).unwrap();
    let before = used(&fs);
    write(&fs, one, 0, 4 * BLOCK).unwrap();
    let written = used(&fs);
    assert!(written.bytes >= 4 * BLOCK && before.bytes >= 2 * BLOCK, "{before:?} {written:?}");
    fs.forget(one, 1);
    assert_eq!(used(&fs).bytes, 0);
}

/// What is open when the server dies is not there any more at the next mount.
#[test]
fn what_had_no_name_at_a_crash_is_gone_after_it() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 20 * BLOCK, 20);
    for ino in [
        create(&fs, "gone"),
        create(&fs, "stays"),
        fs.tmpfile(me(), Ino::ROOT, 0o644).unwrap().attr.ino,
    ] {
        write(&fs, ino, 0, 2 * BLOCK).unwrap();
    }
    fs.unlink(Ino::ROOT, name("gone")).unwrap();
    assert_eq!(used(&fs), of(6, 3));
    drop(fs);
    assert_eq!(used(&open(&sandbox, 20 * BLOCK, 20)), of(2, 1));
}

#[test]
fn a_lower_file_with_several_names_is_removed_without_room() {
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    std::fs::write(lower.join("one"), vec![1; 9 * BLOCK as usize]).unwrap();
    for other in ["two", "three"] {
        std::fs::hard_link(lower.join("one"), lower.join(other)).unwrap();
    }
    let fs = open(&sandbox, 4 * BLOCK, 2);
    for text in ["a", "b"] {
        create(&fs, text);
    }
    for text in ["one", "two", "three"] {
        fs.unlink(Ino::ROOT, name(text)).unwrap();
        assert_eq!(fs.lookup(Ino::ROOT, name(text)).unwrap_err().errno(), libc::ENOENT);
    }
    used(&fs);
}

/// Bytes of the blocks of a directory beyond those that are free.
fn beyond(path: &Path) -> u64 {
    (std::fs::metadata(path).unwrap().blocks() * 512).saturating_sub(2 * BLOCK)
}

#[test]
fn a_directory_with_many_names_counts_and_gets_no_more_beyond_the_limit() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 10 * BLOCK, 0);
    let dir = fs.mkdir(me(), Ino::ROOT, name("d"), 0o755).unwrap().attr.ino;
    assert_eq!(used(&fs), of(0, 1), "the first blocks are free");
    let a = create(&fs, "a");
    let long = |n: u32| format!("{n:0200}");
    let refused = (0..2000).find(|n| fs.link(a, dir, name(&long(*n))).is_err());
    let taken = beyond(&sandbox.upper().join("d"));
    assert_eq!(used(&fs), Used { bytes: taken, inodes: 2 });
    assert_eq!(refused.is_some(), taken > 10 * BLOCK, "{refused:?} {taken}");
    if let Some(last) = refused {
        full(fs.link(a, dir, name(&long(last))));
        full(fs.mknod(me(), dir, name("x"), 0o100_644, 0));
        full(fs.mkdir(me(), Ino::ROOT, name("e"), 0o755));
        full(write(&fs, a, 0, 1));
        assert!(taken < 30 * BLOCK, "{taken}");
    }
    for n in 0..refused.unwrap_or(2000) {
        fs.unlink(dir, name(&long(n))).unwrap();
        fs.forget(a, 1);
    }
    fs.rmdir(Ino::ROOT, name("d")).unwrap();
    used(&fs);
    fs.forget(dir, 1);
    assert_eq!(used(&fs), of(0, 1));
    write(&fs, a, 0, 1).unwrap();
}

#[test]
fn attributes_of_directories_count() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 100 * BLOCK, 0);
    let dir = fs.mkdir(me(), Ino::ROOT, name("d"), 0o755).unwrap().attr.ino;
    let mut most = 0;
    for n in 0..200 {
        // Many filesystems have room for one block of them only.
        let set = fs.setxattr(dir, name(&format!("user.{n}")), &[b'x'; 3000], 0);
        most = most.max(used(&fs).bytes);
        assert_eq!(used(&fs).bytes, beyond(&sandbox.upper().join("d")));
        if set.is_err() {
            full(set);
            break;
        }
    }
    assert!(most <= 102 * BLOCK, "{most}");
    fs.rmdir(Ino::ROOT, name("d")).unwrap();
    fs.forget(dir, 1);
    assert_eq!(used(&fs), of(0, 0));
}

/// Each thread has a directory of its own; all of them link and delete the same few files, and delete lower ones.
#[test]
fn names_that_come_and_go_at_once_are_booked_once() {
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    for thread in 0..6 {
        let dir = lower.join(thread.to_string());
        std::fs::create_dir(&dir).unwrap();
        for n in 0..3 {
            std::fs::write(dir.join(format!("low{n}")), "").unwrap();
        }
    }
    for round in 0..4 {
        let fs = Arc::new(open(&sandbox, 1 << 30, 1 << 20));
        let dirs: Vec<Ino> = (0..6).map(|n| walk(&fs, &n.to_string())).collect();
        std::thread::scope(|scope| {
            for thread in 0..6_usize {
                let (fs, dirs) = (fs.clone(), dirs.clone());
                scope.spawn(move || some_names(&fs, &dirs, thread, round));
            }
        });
        // What was in use when it was forgotten goes with those that are forgotten next.
        for _ in 0..100 {
            fs.forget(walk(&fs, "0"), 1);
        }
        let found = used(&fs);
        drop(fs);
        assert_eq!(
            used(&open(&sandbox, 1 << 30, 1 << 20)),
            found,
            "nothing is known without a name"
        );
    }
}

fn some_names(fs: &Overlay, dirs: &[Ino], thread: usize, round: u64) {
    let mut rng = Rng::new(round * 100 + thread as u64);
    let here = dirs[thread];
    for _ in 0..400 {
        let (there, text) = (dirs[rng.below(dirs.len())], format!("n{}", rng.below(3)));
        match rng.below(6) {
            0 => {
                if let Ok(entry) = fs.mknod(me(), here, name(&text), 0o100_644, 0) {
                    let _ = write(fs, entry.attr.ino, 0, BLOCK);
                    fs.forget(entry.attr.ino, 1);
                }
            }
            1 | 2 => {
                if let Ok(entry) = fs.lookup(there, name(&text)) {
                    let new = format!("n{}", rng.below(3));
                    if fs.link(entry.attr.ino, here, name(&new)).is_ok() {
                        fs.forget(entry.attr.ino, 1);
                    }
                    fs.forget(entry.attr.ino, 1);
                }
            }
            3 => drop(fs.unlink(there, name(&text))),
            4 => {
                let low = format!("low{}", rng.below(3));
                if fs.unlink(here, name(&low)).is_err() {
                    if let Ok(entry) = fs.mknod(me(), here, name(&low), 0o100_644, 0) {
                        fs.forget(entry.attr.ino, 1);
                    }
                }
            }
            _ => {
                let new = format!("n{}", rng.below(3));
                let _ = fs.rename(there, name(&text), here, name(&new), 0);
            }
        }
    }
}

/// At the limit, with all that takes and gives room at once.
#[test]
fn nothing_goes_beyond_the_limit_whoever_is_at_work() {
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    for n in 0..40 {
        std::fs::write(lower.join(format!("low{n}")), vec![1; 20 * BLOCK as usize]).unwrap();
    }
    let size = 200 * BLOCK;
    let fs = Arc::new(open(&sandbox, size, 60));
    let shared: Vec<Ino> = (0..4).map(|n| create(&fs, &format!("shared{n}"))).collect();
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let (fs, shared) = (fs.clone(), shared.clone());
            scope.spawn(move || some_data(&fs, &shared, thread));
        }
    });
    let (booked, found) = fs.used().unwrap().unwrap();
    assert_eq!(booked.inodes, found.inodes);
    assert!(booked.bytes.abs_diff(found.bytes) <= 8 * BLOCK, "{booked:?} {found:?}");
    assert!(found.bytes <= size + 8 * BLOCK && found.inodes <= 60, "{found:?}");
    for n in 0..40 {
        let text = format!("low{n}");
        let entry = fs.lookup(Ino::ROOT, name(&text)).unwrap();
        assert!(entry.attr.size >= 20 * BLOCK, "{text} lost data");
    }
}

fn some_data(fs: &Overlay, shared: &[Ino], thread: u64) {
    let mut rng = Rng::new(thread);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    for n in 0..150 {
        let ino = shared[rng.below(shared.len())];
        let (at, length) = (rng.below(100) as u64 * BLOCK, (1 + rng.below(20) as u64) * BLOCK);
        match rng.below(7) {
            0 | 1 => drop(write(fs, ino, at + 17, length)),
            2 => drop(fs.fallocate(ino, punch, at, length)),
            3 => drop(fs.fallocate(ino, 0, at, length)),
            4 => drop(fs.setattr(me(), ino, &SetAttr { size: Some(at), ..SetAttr::default() })),
            5 => {
                let low = fs.lookup(Ino::ROOT, name(&format!("low{}", rng.below(40)))).unwrap();
                let _ = write(fs, low.attr.ino, 0, 10);
                fs.forget(low.attr.ino, 1);
            }
            _ => {
                let (new, to) = (format!("new{thread}.{n}"), format!("to{}", rng.below(3)));
                if let Ok(entry) = fs.mknod(me(), Ino::ROOT, name(&new), 0o100_644, 0) {
                    let _ = write(fs, entry.attr.ino, 0, length);
                    fs.forget(entry.attr.ino, 1);
                    let _ = fs.rename(Ino::ROOT, name(&new), Ino::ROOT, name(&to), 0);
                }
            }
        }
    }
}
