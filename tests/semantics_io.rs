//! Data and what else a descriptor can do: holes, ranges, flushes, locks, flags, nameless files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, IFlags, SeekFrom, StatxFlags, copy_file_range,
    fallocate, flock, ioctl_getflags, ioctl_setflags, seek, statvfs, statx, syncfs,
};
use rustix::io::Errno;

use crate::semantics_kit::sys::{FsXattr, fs_xattr, lock_range, set_fs_xattr};
use crate::semantics_kit::{
    append, both, chmod, errno, mode, mtime, names, open_flags, put, read_write, set_times, stat,
    text,
};

const PAGE: u64 = 4096;

/// 64 KiB of data, a hole of 64 KiB, 64 KiB of data.
fn holed(file: &File) {
    file.set_len(48 * PAGE).unwrap();
    file.write_all_at(&[1; 65_536], 0).unwrap();
    file.write_all_at(&[2; 65_536], 32 * PAGE).unwrap();
}

both! { holes_are_found_in_every_layer, |t| {
    holed(&File::create(t.lower("low")).unwrap());
    let fs = t.mount(&[]);
    holed(&File::create(fs.at("up")).unwrap());
    for name in ["low", "up"] {
        let file = File::open(fs.at(name)).unwrap();
        file.sync_all().unwrap();
        assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(16 * PAGE), "{name}");
        assert_eq!(seek(&file, SeekFrom::Data(17 * PAGE)), Ok(32 * PAGE), "{name}");
        assert_eq!(seek(&file, SeekFrom::Hole(40 * PAGE)), Ok(48 * PAGE), "{name}");
        assert_eq!(seek(&file, SeekFrom::Data(48 * PAGE)), Err(Errno::NXIO), "{name}");
    }
}}

both! { space_is_allocated_and_punched, |t| {
    fs::write(t.lower("low"), [1; 65_536]).unwrap();
    let fs = t.mount(&[]);
    fs::write(fs.at("up"), [1; 65_536]).unwrap();
    for name in ["low", "up"] {
        let file = read_write(fs.at(name));
        fallocate(&file, FallocateFlags::empty(), 65_536, 65_536).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 131_072);
        fallocate(&file, FallocateFlags::KEEP_SIZE, 131_072, 65_536).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 131_072);
        assert!(file.metadata().unwrap().blocks() >= 384, "{name}: nothing was allocated");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, PAGE, 2 * PAGE).unwrap();
        let zero = FallocateFlags::ZERO_RANGE;
        fallocate(&file, zero, 8 * PAGE, PAGE).unwrap();
        fallocate(&file, zero | FallocateFlags::KEEP_SIZE, 9 * PAGE, PAGE).unwrap();
        let data = fs::read(fs.at(name)).unwrap();
        let pages: Vec<u8> = data.chunks(PAGE as usize).map(|x| x[7]).collect();
        assert_eq!(pages[..16], [1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1], "{name}");
        let hole = seek(&file, SeekFrom::Hole(0)).unwrap();
        assert_eq!(hole, PAGE, "{name}: no hole was made");
    }
}}

both! { ranges_are_copied_between_files, |t| {
    let mut fs = t.mount(&["from=0123456789"]);
    let from = File::open(fs.at("from")).unwrap();
    let to = read_write({
        put(fs.at("to"), "abcdefghij");
        fs.at("to")
    });
    let (mut start, mut end) = (2, 5);
    assert_eq!(copy_file_range(&from, Some(&mut start), &to, Some(&mut end), 3), Ok(3));
    assert_eq!((start, end), (5, 8));
    assert_eq!(text(fs.at("to")), "abcde234ij");
    let (mut start, mut end) = (8, 10);
    assert_eq!(copy_file_range(&from, Some(&mut start), &to, Some(&mut end), 100), Ok(2));
    assert_eq!(text(fs.at("to")), "abcde234ij89");
    let (mut start, mut end) = (10, 0);
    assert_eq!(copy_file_range(&from, Some(&mut start), &to, Some(&mut end), 100), Ok(0));
    let itself = read_write(fs.at("from"));
    let (mut start, mut end) = (0, 6);
    assert_eq!(copy_file_range(&itself, Some(&mut start), &itself, Some(&mut end), 4), Ok(4));
    assert_eq!(text(fs.at("from")), "0123450123");
    drop((from, to, itself));
    fs.remount();
    assert_eq!(
        (text(fs.at("from")), text(fs.at("to"))),
        ("0123450123".into(), "abcde234ij89".into())
    );
    assert_eq!(text(t.lower("from")), "0123456789");
}}

both! { flushes_are_answered_by_files_and_directories, |t| {
    let fs = t.mount(&["d", "low=old"]);
    put(fs.at("up"), "x");
    for name in ["d", "low", "up", ""] {
        let file = File::open(fs.at(name)).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        syncfs(&file).unwrap();
    }
    let file = read_write(fs.at("low"));
    file.write_all_at(b"new", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(text(t.upper("low")), "new");
    let file = open_flags(fs.at("up"), 0o4_010_000).unwrap(); // O_SYNC
    file.write_all_at(b"y", 0).unwrap();
    assert_eq!(text(t.upper("up")), "y");
}}

both! { syncfs_brings_written_data_to_the_upper, |t| {
    let fs = t.mount(&[]);
    put(fs.at("f"), "written");
    syncfs(File::open(fs.at("")).unwrap()).unwrap();
    assert_eq!(text(t.upper("f")), "written");
}}

both! { files_without_a_name_are_made_and_named_later, |t| {
    let mut fs = t.mount(&["d"]);
    const O_TMPFILE: i32 = 0o20_200_000;
    let mut file = match open_flags(fs.at("d"), O_TMPFILE) {
        Err(error)
            if error.raw_os_error() == Some(95)
                && t.backend != crate::semantics_kit::Backend::Kernel =>
        {
            t.skip("a transport that carries O_TMPFILE; the classic one does not")
        }
        opened => opened.unwrap(),
    };
    file.write_all(b"nameless").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(names(fs.at("d")).len(), 0);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, &path, CWD, fs.at("d/named"), AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!((text(fs.at("d/named")), stat(fs.at("d/named")).nlink()), ("nameless".into(), 1));
    drop(file);
    const O_EXCL: i32 = 0o200;
    let file = open_flags(fs.at("d"), O_TMPFILE | O_EXCL).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let linked = rustix::fs::linkat(CWD, &path, CWD, fs.at("x"), AtFlags::SYMLINK_FOLLOW);
    assert_eq!(linked, Err(Errno::NOENT));
    drop(file);
    t.same_after_remount(&mut fs);
}}

both! { birth_times_are_told, |t| {
    let fs = t.mount(&["low=x"]);
    put(fs.at("up"), "x");
    for name in ["low", "up"] {
        let facts = statx(CWD, fs.at(name), AtFlags::empty(), StatxFlags::BTIME).unwrap();
        if facts.stx_mask & StatxFlags::BTIME.bits() == 0 {
            t.skip("a transport that carries birth times; the classic one does not");
        }
        assert!((facts.stx_btime.tv_sec - stat(fs.at(name)).mtime()).abs() < 60, "{name}");
    }
}}

both! { whole_file_locks_exclude_each_other, |t| {
    let fs = t.mount(&["f=old"]);
    let [one, two] = [0, 1].map(|_| read_write(fs.at("f")));
    flock(&one, FlockOperation::LockExclusive).unwrap();
    assert_eq!(flock(&two, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
    flock(&one, FlockOperation::LockShared).unwrap();
    flock(&two, FlockOperation::NonBlockingLockShared).unwrap();
    assert_eq!(flock(&one, FlockOperation::NonBlockingLockExclusive), Err(Errno::AGAIN));
    drop(two);
    flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
}}

both! { a_lock_that_waits_blocks_nobody_else, |t| {
    let fs = t.mount(&["f=old", "g=other"]);
    let one = read_write(fs.at("f"));
    flock(&one, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let two = read_write(fs.at("f"));
            flock(&two, FlockOperation::LockExclusive).unwrap();
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        append(fs.at("g"), "x");
        append(fs.at("f"), "x");
        assert!(!waiter.is_finished());
        drop(one);
        waiter.join().unwrap();
    });
    assert_eq!(text(fs.at("g")), "otherx");
}}

both! { range_locks_exclude_where_they_overlap, |t| {
    let fs = t.mount(&["f=0123456789"]);
    let [one, two] = [0, 1].map(|_| read_write(fs.at("f")));
    assert!(lock_range(&one, true, 0, 5).unwrap());
    assert!(!lock_range(&two, true, 4, 2).unwrap());
    assert!(!lock_range(&two, false, 0, 1).unwrap());
    assert!(lock_range(&two, true, 5, 5).unwrap());
    drop(one);
    assert!(lock_range(&two, true, 0, 5).unwrap());
}}

both! { a_lock_taken_before_the_copy_up_is_seen_after_it, |t| {
    let fs = t.mount(&["f=0123456789"]);
    let reader = File::open(fs.at("f")).unwrap();
    assert!(lock_range(&reader, false, 0, 5).unwrap());
    flock(&reader, FlockOperation::LockShared).unwrap();
    append(fs.at("f"), "x");
    let writer = read_write(fs.at("f"));
    assert!(!lock_range(&writer, true, 0, 5).unwrap());
    assert_eq!(flock(&writer, FlockOperation::NonBlockingLockExclusive), Err(Errno::AGAIN));
}}

both! { inode_flags_are_told_and_set, |t| {
    let fs = t.mount(&["low=x", "d"]);
    put(fs.at("up"), "x");
    for name in ["low", "up", "d"] {
        let disk = if name == "up" { t.upper(name) } else { t.lower(name) };
        let there = ioctl_getflags(File::open(disk).unwrap()).unwrap();
        let here = ioctl_getflags(File::open(fs.at(name)).unwrap()).unwrap();
        assert_eq!(here, there, "{name}");
    }
    for name in ["low", "up", "d"] {
        let file = File::open(fs.at(name)).unwrap();
        let old = ioctl_getflags(&file).unwrap();
        ioctl_setflags(&file, old | IFlags::NODUMP).unwrap();
        assert_eq!(ioctl_getflags(&file).unwrap(), old | IFlags::NODUMP, "{name}");
    }
    let lower = ioctl_getflags(File::open(t.lower("low")).unwrap()).unwrap();
    assert!(!lower.contains(IFlags::NODUMP), "a lower was changed");
}}

/// Takes the flags away again, without which the file can be removed.
struct Flagged(PathBuf);

impl Drop for Flagged {
    fn drop(&mut self) {
        if let Ok(file) = File::open(&self.0) {
            if let Err(error) = ioctl_setflags(&file, IFlags::empty()) {
                eprintln!("chattr = {}: {error}", self.0.display());
            }
        }
    }
}

both! { append_only_files_are_only_appended_to, |t| {
    t.needs(t.is_root(), "root of the host: chattr +a");
    let mut fs = t.mount(&["low=1"]);
    put(fs.at("up"), "1");
    let _flagged = ["low", "up"].map(|name| {
        let file = File::open(fs.at(name)).unwrap();
        ioctl_setflags(&file, ioctl_getflags(&file).unwrap() | IFlags::APPEND).unwrap();
        Flagged(t.upper(name))
    });
    for _ in 0..2 {
        for name in ["low", "up"] {
            append(fs.at(name), "2");
            let options = || File::options().write(true).clone();
            let over = options().open(fs.at(name)).and_then(|file| file.write_all_at(b"x", 0));
            assert_eq!(errno(over), Errno::PERM, "{name}");
            assert_eq!(errno(options().truncate(true).open(fs.at(name))), Errno::PERM, "{name}");
        }
        fs.remount();
    }
    for name in ["low", "up"] {
        assert_eq!(text(fs.at(name)), "122", "{name}");
    }
}}

both! { the_attributes_of_xfs_io_are_told_and_set, |t| {
    const NODUMP: u32 = 0x80;
    let fs = t.mount(&["low=x", "d"]);
    put(fs.at("up"), "x");
    for name in ["low", "up", "d"] {
        let disk = if name == "up" { t.upper(name) } else { t.lower(name) };
        let there = fs_xattr(File::open(disk).unwrap()).unwrap();
        let file = File::open(fs.at(name)).unwrap();
        let here = fs_xattr(&file).unwrap();
        assert_eq!((here.flags, here.project), (there.flags, there.project), "{name}");
        set_fs_xattr(&file, &FsXattr { flags: here.flags | NODUMP, ..here }).unwrap();
        assert_eq!(fs_xattr(&file).unwrap().flags, here.flags | NODUMP, "{name}");
        let stored = fs_xattr(File::open(t.upper(name)).unwrap()).unwrap();
        assert_eq!(stored.flags & NODUMP, NODUMP, "{name} on disk");
    }
    let lower = fs_xattr(File::open(t.lower("low")).unwrap()).unwrap();
    assert_eq!(lower.flags & NODUMP, 0, "a lower was changed");
    // A project is set where the filesystem keeps them, and refused as it refuses.
    let own = File::create(t.at("local")).unwrap();
    let file = File::open(fs.at("up")).unwrap();
    let set = |file: &File| {
        let old = fs_xattr(file).unwrap();
        let done = set_fs_xattr(file, &FsXattr { project: 7, ..old });
        (done.map_err(|x| x.raw_os_error()), fs_xattr(file).unwrap().project)
    };
    assert_eq!(set(&file), set(&own));
}}

both! { an_unknown_ioctl_is_refused_as_such, |t| {
    let fs = t.mount(&["f=x"]);
    let error = rustix::fs::ioctl_ficlone(read_write(fs.at("f")), File::open("/dev/null").unwrap());
    assert!(error.is_err());
    assert_ne!(error, Err(Errno::IO));
}}

both! { direct_io_reads_and_writes, |t| {
    fs::write(t.lower("f"), [1; 8192]).unwrap();
    let fs = t.mount(&[]);
    const O_DIRECT: i32 = 0o40_000;
    let mut file = open_flags(fs.at("f"), O_DIRECT).unwrap();
    let mut memory = vec![0; 3 * 4096];
    let start = memory.as_ptr().align_offset(4096);
    let buffer = &mut memory[start..start + 4096];
    file.read_exact(buffer).unwrap();
    assert_eq!(buffer[4095], 1);
    buffer.fill(2);
    file.rewind().unwrap();
    file.write_all(buffer).unwrap();
    assert_eq!(fs::read(fs.at("f")).unwrap()[4095..4097], [2, 1]);
}}

both! { appends_of_many_writers_do_not_overlap, |t| {
    let fs = t.mount(&[]);
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let path = fs.at("log");
            scope.spawn(move || {
                let mut log = OpenOptions::new().create(true).append(true).open(path).unwrap();
                (0..100).for_each(|_| log.write_all(&[b'a' + writer; 64]).unwrap());
            });
        }
    });
    let log = fs::read(fs.at("log")).unwrap();
    assert_eq!(log.len(), 4 * 100 * 64);
    assert!(log.chunks(64).all(|x| x.iter().all(|y| *y == x[0])));
}}

both! { a_file_is_cut_and_grown, |t| {
    let mut fs = t.mount(&["low=0123456789"]);
    put(fs.at("up"), "0123456789");
    for name in ["low", "up"] {
        read_write(fs.at(name)).set_len(4).unwrap();
        read_write(fs.at(name)).set_len(6).unwrap();
        assert_eq!(text(fs.at(name)), "0123\0\0");
        OpenOptions::new().write(true).open(fs.at(name)).unwrap().set_len(3).unwrap();
        assert_eq!(text(fs.at(name)), "012");
    }
    let file = read_write(fs.at("up"));
    file.write_all_at(b"far", 5 << 30).unwrap();
    drop(file);
    fs.remount();
    assert_eq!(stat(fs.at("up")).len(), (5 << 30) + 3);
    let mut end = [0; 4];
    File::open(fs.at("up")).unwrap().read_exact_at(&mut end, (5 << 30) - 1).unwrap();
    assert_eq!(&end, b"\0far");
}}

both! { an_opening_that_truncates_empties_a_lower_file, |t| {
    let mut fs = t.mount(&["f=0123456789"]);
    chmod(fs.at("f"), 0o640);
    drop(File::create(fs.at("f")).unwrap());
    assert_eq!((text(fs.at("f")), mode(fs.at("f"))), (String::new(), 0o640));
    t.same_after_remount(&mut fs);
    let exclusive = OpenOptions::new().write(true).create_new(true).open(fs.at("f"));
    assert_eq!(errno(exclusive), Errno::EXIST);
}}

both! { times_before_1970_and_nanoseconds_survive, |t| {
    let mut fs = t.mount(&["low=x", "dir", "link->x"]);
    put(fs.at("up"), "x");
    symlink("x", fs.at("uplink")).unwrap();
    let all = ["low", "dir", "link", "up", "uplink"];
    for (seconds, nanoseconds) in
        [(-1_000_000_000, 123_456_789), (-1, 999_999_999), (0, 1), (4_102_444_800, 5)]
    {
        for name in all {
            set_times(fs.at(name), seconds, nanoseconds);
            assert_eq!(mtime(fs.at(name)), (seconds, nanoseconds), "{name}");
        }
        fs.remount();
        for name in all {
            let stat = stat(fs.at(name));
            assert_eq!((stat.mtime(), stat.mtime_nsec()), (seconds, nanoseconds), "{name}");
        }
    }
}}

both! { times_are_set_one_at_a_time_and_to_now, |t| {
    use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
    let fs = t.mount(&["f=x"]);
    set_times(fs.at("f"), 1000, 0);
    let special = |nsec| Timespec { tv_sec: 0, tv_nsec: nsec };
    let times =
        Timestamps { last_access: special(UTIME_OMIT), last_modification: special(UTIME_NOW) };
    utimensat(CWD, fs.at("f"), &times, AtFlags::empty()).unwrap();
    assert_eq!(stat(fs.at("f")).atime(), 1000);
    assert!(stat(fs.at("f")).mtime() > 1_000_000);
}}

both! { the_filesystem_tells_its_size, |t| {
    let fs = t.mount(&[]);
    let (here, there) = (statvfs(fs.at("")).unwrap(), statvfs(t.at("upper")).unwrap());
    assert_eq!(here.f_namemax, 255);
    assert_eq!(here.f_blocks * here.f_frsize, there.f_blocks * there.f_frsize);
    assert!(here.f_bavail > 0 && here.f_files > 0);
}}

both! { a_full_device_is_told_and_loses_nothing, |t| {
    let upper = t.layer("small", &[]);
    let size = std::ffi::CString::new("size=1m").unwrap();
    rustix::mount::mount("t", &upper, "tmpfs", rustix::mount::MountFlags::empty(), &*size).unwrap();
    let layers = ["u", "w"].map(|x| t.layer(&format!("small/{x}"), &[]));
    let [u, w] = layers;
    fs::write(t.lower("big"), vec![7; 4 << 20]).unwrap();
    put(t.lower("small"), "old");
    let fs = t.mount_stack(crate::semantics_kit::Stack { upper: Some((u, w)), ..t.stack() });
    let open = OpenOptions::new().write(true).custom_flags(0).open(fs.at("big"));
    let written = open.and_then(|mut x| {
        x.write_all(b"x")?;
        x.sync_all()
    });
    assert_eq!(errno(written), Errno::NOSPC);
    assert!(fs::read(fs.at("big")).unwrap() == vec![7; 4 << 20]);
    append(fs.at("small"), "new");
    assert_eq!(text(fs.at("small")), "oldnew");
}}

/// Bytes that tell where they stand.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n / 7 % 251) as u8).collect()
}

both! { large_reads_give_what_the_file_holds, |t| {
    const SIZES: [usize; 8] = [32_767, 32_768, 32_769, 65_536, 131_071, 131_073, 300_001, 3 << 20];
    for size in SIZES {
        let name = size.to_string();
        fs::write(t.lower(&name), pattern(size)).unwrap();
    }
    let fs = t.mount(&[]);
    for size in SIZES {
        let name = size.to_string();
        assert!(fs::read(fs.at(&name)).unwrap() == pattern(size), "{size} below");
        append(fs.at(&name), "more");
        let whole = [pattern(size), b"more".to_vec()].concat();
        assert!(fs::read(fs.at(&name)).unwrap() == whole, "{size} above");
    }
    drop(fs);
    let fs = t.mount(&[]);
    for size in SIZES {
        let whole = [pattern(size), b"more".to_vec()].concat();
        let file = File::open(fs.at(size.to_string())).unwrap();
        // Past the page cache of the mount, in pieces of every kind.
        for piece in [40_000, 65_536, 131_072, 1 << 20] {
            let mut got = Vec::new();
            while got.len() < whole.len() {
                let mut room = vec![0; piece];
                let count = file.read_at(&mut room, got.len() as u64).unwrap();
                assert!(count > 0, "{size} ends at {}", got.len());
                got.extend_from_slice(&room[..count]);
            }
            assert!(got == whole, "{size} in pieces of {piece}");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
}}

both! { a_lower_file_that_is_cut_while_it_is_read_harms_nobody, |t| {
    let (below, whole) = (t.lower("log"), pattern(1 << 20));
    fs::write(&below, &whole).unwrap();
    fs::write(t.lower("other"), "safe").unwrap();
    let fs = t.mount(&[]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                File::options().write(true).open(&below).unwrap().set_len(4097).unwrap();
                fs::write(&below, &whole).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let file = File::open(fs.at("log")).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let mut room = vec![0; 1 << 20];
            // What is told may be old, cut or zeros where the kernel waits for more; it comes without an error.
            file.read_at(&mut room, 0).unwrap();
            drop(file);
        }
    });
    assert_eq!(text(fs.at("other")), "safe");
    drop(fs);
    assert!(fs::read(t.mount(&[]).at("log")).unwrap() == whole);
}}
