//! Limits of bytes and inodes (`size=`, `nr_inodes=`) on a mount.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::fs::{FallocateFlags, StatVfs, fallocate, statvfs};
use rustix::io::Errno;

use crate::semantics_kit::backend::{self, plyfs};
use crate::semantics_kit::{
    Fs, Stack, Test, append, both, errno, exists, names, put, read_write, stat, text, wait_until,
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Mounts with limits, which do not go with files that the kernel reads and writes itself.
fn limited(t: &Test, options: &str, entries: &[&str]) -> Fs {
    t.needs(!backend::asks_for_privilege(), "an io mode in which all writes come to the server");
    t.mount_with(options, entries)
}

/// Bytes in all, and free.
fn space(fs: &Fs) -> (u64, u64) {
    let found: StatVfs = statvfs(fs.at("")).unwrap();
    assert_eq!(found.f_bfree, found.f_bavail);
    (found.f_blocks * found.f_frsize, found.f_bfree * found.f_frsize)
}

/// Inodes in all, and free.
fn inodes(fs: &Fs) -> (u64, u64) {
    let found = statvfs(fs.at("")).unwrap();
    (found.f_files, found.f_ffree)
}

/// The inode numbers of all that is in a directory.
fn objects(dir: &Path, found: &mut HashSet<u64>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.insert(stat(&path).ino());
        if stat(&path).is_dir() {
            objects(&path, found);
        }
    }
}

/// Writes until there is no room, and returns how much there was.
fn fill(path: &Path, chunk: usize) -> u64 {
    let mut file = File::create(path).unwrap();
    let mut total = 0;
    loop {
        match file.write(&vec![7; chunk]) {
            Ok(done) => total += done as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                assert_eq!(file.metadata().unwrap().len(), total, "nothing half-made");
                return total;
            }
        }
    }
}

both! { filling_ends_at_the_limit_and_deleting_makes_room, OnlyPlyfs, |t| {
    for io in ["handleless", "handles"] {
        let mut fs = t.mount_with(&format!("size=1m,io={io}"), &[]);
        assert_eq!(space(&fs), (MIB, MIB));
        for chunk in [100_000, 65_536, 5000] {
            assert_eq!(fill(&fs.at("f"), chunk), MIB);
            assert_eq!(space(&fs), (MIB, 0));
            assert_eq!(errno(fs::write(fs.at("g"), "x")), Errno::NOSPC);
            assert_eq!(text(fs.at("g")), "", "a name takes an inode only");
            fs::remove_file(fs.at("f")).unwrap();
            fs::write(fs.at("g"), vec![1; 4 * PAGE as usize]).unwrap();
            wait_until("the space", || space(&fs) == (MIB, MIB - 4 * PAGE));
            fs::remove_file(fs.at("g")).unwrap();
        }
        fs.unmount();
    }
}}

both! { blocks_for_the_records_of_a_file_are_no_room_for_its_data, OnlyPlyfs, |t| {
    let fs = limited(t, "size=128k", &[]);
    // Page by page to the disk in turn: in pieces that a filesystem with extents keeps a block of records for.
    let files = ["one", "two"].map(|name| read_write_new(&fs, name));
    for page in 0..16 {
        for file in &files {
            file.write_all_at(&[1; PAGE as usize], page * PAGE).unwrap();
            file.sync_all().unwrap();
        }
    }
    for file in &files {
        assert_eq!(errno(file.write_all_at(&[1], 16 * PAGE)), Errno::NOSPC);
        assert_eq!(file.metadata().unwrap().len(), 16 * PAGE);
    }
}}

both! { who_waits_for_room_is_in_nobodys_way, OnlyPlyfs, |t| {
    let fs = limited(t, "size=256k", &[]);
    let full = read_write_new(&fs, "full");
    full.write_all_at(&[1; 256 << 10], 0).unwrap();
    // Odd while somebody waits.
    let (turn, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let seen = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut seen = 0;
            for n in 0_u64.. {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                let before = turn.load(Ordering::SeqCst);
                assert!(!exists(fs.at(format!("absent{n}"))));
                seen += u32::from(before % 2 == 1 && turn.load(Ordering::SeqCst) == before);
            }
            seen
        });
        for n in 0..10 {
            // What was just deleted may be about to be forgotten, which is worth waiting for; this one is held.
            let name = format!("held{n}");
            let held = read_write_new(&fs, &name);
            fs::remove_file(fs.at(name)).unwrap();
            turn.fetch_add(1, Ordering::SeqCst);
            assert_eq!(errno(full.write_at(&[1; 4096], 1 << 20)), Errno::NOSPC);
            turn.fetch_add(1, Ordering::SeqCst);
            drop(held);
        }
        done.store(true, Ordering::SeqCst);
        other.join().unwrap()
    });
    assert!(seen >= 30, "{seen} names were looked up while ten writes waited");
}}

both! { room_is_there_as_soon_as_a_deletion_returns, OnlyPlyfs, |t| {
    let fs = limited(t, "size=64k,nr_inodes=20", &[]);
    for round in 0..200 {
        let name = fs.at(format!("f{}", round % 3));
        fs::write(&name, vec![1; 65_536]).unwrap_or_else(|error| panic!("round {round}: {error}"));
        fs::remove_file(&name).unwrap();
        for n in 0..15 {
            put(fs.at(n.to_string()), "");
        }
        for n in 0..15 {
            fs::remove_file(fs.at(n.to_string())).unwrap();
        }
    }
    assert_eq!(fill(&fs.at("last"), 4096), 65_536);
}}

both! { files_with_their_blocks_are_written_in_place_at_the_limit, OnlyPlyfs, |t| {
    let fs = limited(t, "size=256k", &[]);
    assert_eq!(fill(&fs.at("f"), 4096), 256 << 10);
    let file = read_write(fs.at("f"));
    for at in [0, 5000, 100_000] {
        file.write_all_at(&[9; 50_000], at).unwrap();
    }
    file.set_len(128 << 10).unwrap();
    assert_eq!(space(&fs).1, 128 << 10);
    fallocate(&file, FallocateFlags::empty(), 0, 256 << 10).unwrap();
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 256 << 10, 1), Err(Errno::NOSPC));
    file.write_all_at(&vec![3; 256 << 10], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 64 << 10, 64 << 10).unwrap();
    assert_eq!(space(&fs).1, 64 << 10);
    let holes = File::create(fs.at("holes")).unwrap();
    holes.set_len(1 << 40).unwrap();
    holes.write_all_at(b"x", 1 << 39).unwrap();
    assert_eq!(space(&fs).1, 60 << 10, "holes take nothing");
}}

both! { a_lower_file_counts_once_it_is_copied_up, OnlyPlyfs, |t| {
    fs::create_dir(t.lower("d")).unwrap();
    fs::write(t.lower("d/big"), vec![1; 300_000]).unwrap();
    fs::write(t.lower("d/small"), vec![1; 10_000]).unwrap();
    fs::write(t.lower("d/other"), vec![1; 10_000]).unwrap();
    let fs = limited(t, "size=256k,nr_inodes=2", &[]);
    assert_eq!(fs::read(fs.at("d/big")).unwrap().len(), 300_000, "reading is free");
    assert_eq!(space(&fs).1, 256 << 10);
    let big = File::options().append(true).open(fs.at("d/big")).unwrap();
    assert_eq!(errno((&big).write_all(b"x")), Errno::NOSPC);
    assert!(!exists(t.upper("d/big")));
    append(fs.at("d/small"), "more");
    assert_eq!((space(&fs).1, inodes(&fs)), ((256 << 10) - 3 * PAGE, (2, 0)));
    assert_eq!(errno(File::options().append(true).open(fs.at("d/other")).and_then(|mut x| x.write_all(b"x"))), Errno::NOSPC);
    assert_eq!(fs::read(fs.at("d/other")).unwrap(), vec![1; 10_000]);
    fs::remove_file(fs.at("d/big")).unwrap();
    fs::remove_dir_all(fs.at("d")).unwrap();
    assert_eq!(names(fs.at("")), Vec::<String>::new());
    wait_until("the space", || space(&fs).1 == 256 << 10);
}}

both! { there_are_no_more_inodes_than_the_limit, OnlyPlyfs, |t| {
    let mut fs = limited(t, "nr_inodes=5", &["low=x", "gone=x"]);
    assert_eq!(inodes(&fs), (5, 5));
    put(fs.at("file"), "text");
    fs::create_dir(fs.at("dir")).unwrap();
    symlink("target", fs.at("link")).unwrap();
    append(fs.at("low"), "+");
    put(fs.at("dir/inner"), "x");
    assert_eq!(inodes(&fs), (5, 0));
    assert_eq!(errno(File::create(fs.at("more"))), Errno::NOSPC);
    assert_eq!(errno(fs::create_dir(fs.at("more"))), Errno::NOSPC);
    assert_eq!(errno(symlink("x", fs.at("more"))), Errno::NOSPC);
    fs::hard_link(fs.at("file"), fs.at("second")).unwrap();
    fs::rename(fs.at("file"), fs.at("dir/file")).unwrap();
    append(fs.at("second"), " longer");
    // Leaves a whiteout.
    fs::remove_file(fs.at("gone")).unwrap();
    fs.remount();
    assert_eq!(inodes(&fs).1, 0);
    fs::remove_dir_all(fs.at("dir")).unwrap();
    wait_until("an inode", || inodes(&fs).1 > 0);
    put(fs.at("more"), "x");
    assert_eq!(text(fs.at("second")), "text longer");
}}

both! { an_unlinked_file_that_is_open_still_counts, OnlyPlyfs, |t| {
    for io in ["handleless", "handles"] {
        let mut fs = t.mount_with(&format!("size=256k,io={io}"), &[]);
        let mut file = File::options().read(true).write(true).create_new(true).open(fs.at("f")).unwrap();
        file.write_all(&vec![5; 200 << 10]).unwrap();
        fs::remove_file(fs.at("f")).unwrap();
        assert_eq!(fill(&fs.at("g"), 4096), 56 << 10);
        assert_eq!(errno(file.write_all(&[5; 4096])), Errno::NOSPC);
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == vec![5; 200 << 10]);
        drop(file);
        wait_until("the space", || space(&fs).1 == 200 << 10);
        fs::write(fs.at("h"), vec![1; 200 << 10]).unwrap();
        for name in ["g", "h"] {
            fs::remove_file(fs.at(name)).unwrap();
        }
        fs.unmount();
    }
}}

both! { a_remount_counts_the_same, OnlyPlyfs, |t| {
    let mut fs = limited(t, "size=1m,nr_inodes=100", &["a=x", "b=x", "d/", "d/x=1", "d/y=2"]);
    fs::write(fs.at("f"), vec![1; 100_000]).unwrap();
    fs::hard_link(fs.at("f"), fs.at("g")).unwrap();
    symlink("x".repeat(300), fs.at("long")).unwrap();
    append(fs.at("a"), "+");
    fs::remove_file(fs.at("b")).unwrap();
    fs::remove_dir_all(fs.at("d")).unwrap();
    fs::create_dir_all(fs.at("d/e")).unwrap();
    File::create(fs.at("d/e/hole")).unwrap().set_len(MIB * 5).unwrap();
    fs::write(fs.at("temporary"), vec![1; 50_000]).unwrap();
    fs::rename(fs.at("temporary"), fs.at("d/e/hole")).unwrap();
    let mut found = HashSet::new();
    objects(&t.at("upper"), &mut found);
    wait_until("what is forgotten", || inodes(&fs).1 == 100 - found.len() as u64);
    let before = (space(&fs), inodes(&fs));
    let blocks = |name: &str| stat(t.upper(name)).blocks() * 512;
    let bytes: u64 = ["f", "long", "a", "d/e/hole"].iter().map(|name| blocks(name)).sum();
    fs.remount();
    assert_eq!((space(&fs), inodes(&fs)), before);
    assert_eq!(space(&fs), (MIB, MIB - bytes));
    let stack = Stack { options: "size=64k,nr_inodes=3".to_owned(), ..fs.stack.clone() };
    fs.remount_with(stack);
    assert_eq!((space(&fs), inodes(&fs)), ((64 << 10, 0), (3, 0)));
    assert_eq!(errno(fs::write(fs.at("new"), "x")), Errno::NOSPC);
    read_write(fs.at("d/e/hole")).write_all_at(&[1; 50_000], 0).unwrap();
}}

fn read_write_new(fs: &Fs, name: &str) -> File {
    File::options().read(true).write(true).create_new(true).open(fs.at(name)).unwrap()
}

fn refused(t: &Test, stack: &Stack) -> String {
    let mut command = Command::new(plyfs());
    let output = command
        .arg("mount")
        .arg("-o")
        .arg(backend::list(stack))
        .arg(t.at("merged"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

both! { limits_that_cannot_be_kept_are_refused_in_one_line, OnlyPlyfs, |t| {
    let options = |options: &str| Stack { options: options.to_owned(), ..t.stack() };
    let said = refused(t, &options("size=1m,io=passthrough"));
    assert!(said.contains("option 'io'") && said.contains("limit of size"), "{said}");
    let said = refused(t, &Stack { upper: None, ..options("nr_inodes=10") });
    assert!(said.contains("option 'nr_inodes'") && said.contains("upperdir"), "{said}");
    let said = refused(t, &options("size=lots"));
    assert!(said.contains("option 'size'"), "{said}");
    assert!(!exists(t.at("merged/f")), "nothing is mounted");
}}

both! { pages_that_find_no_room_are_told_at_the_sync, OnlyPlyfs, |t| {
    let fs = limited(t, "size=64k", &[]);
    let file = File::options().read(true).write(true).create_new(true).open(fs.at("f")).unwrap();
    file.set_len(256 << 10).unwrap();
    // SAFETY: a new mapping of a file that nobody makes shorter.
    let map = unsafe {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        use std::os::fd::AsRawFd;
        let map = libc::mmap(std::ptr::null_mut(), 256 << 10, prot, flags, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(map.cast::<u8>(), 256 << 10)
    };
    map[..32 << 10].fill(1);
    file.sync_all().unwrap();
    map[32 << 10..].fill(2);
    assert_eq!(errno(file.sync_all()), Errno::NOSPC);
    // SAFETY: the mapping from above, which nobody uses any more.
    unsafe { libc::munmap(map.as_mut_ptr().cast(), 256 << 10) };
    assert!(space(&fs).1 <= 32 << 10);
}}
