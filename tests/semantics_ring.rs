//! The ring transport: what it carries beyond the classic one, and how it starts, waits and ends.
//!
//! That it serves everything else as the classic one does is seen by running all semantic tests with
//! `PLYFS_TEST_OPTIONS=transport=ring`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, linkat, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::semantics_kit::hold::during_a_copy;
use crate::semantics_kit::{
    Fs, Stack, Test, append, both, chmod, errno, exists, mode, mv, open_flags, plant, put, text,
    wait_until,
};

const O_TMPFILE: i32 = 0o20_200_000;
const CAPABILITY: &str = "fuse's enable_uring";

/// Whether the fuse module offers rings; a kernel that has none has no such parameter.
fn offered() -> bool {
    let enabled = fs::read_to_string("/sys/module/fuse/parameters/enable_uring");
    enabled.is_ok_and(|x| x.trim() == "Y")
}

fn stack(t: &Test, transport: &str) -> Stack {
    Stack { options: format!("transport={transport}"), ..t.stack() }
}

/// A mount over rings; ends the test where there are none.
fn ring(t: &Test, entries: &[&str]) -> Fs {
    t.needs(offered(), CAPABILITY);
    plant(&t.at("lower"), entries);
    t.mount_stack(stack(t, "ring"))
}

/// The servers, with the names of their threads.
fn servers() -> Vec<(Pid, Vec<String>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse() else { continue };
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        if exe.file_name().is_some_and(|x| x == "plyfs") {
            let tasks = fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten();
            let names =
                tasks.map(|x| fs::read_to_string(x.path().join("comm")).unwrap_or_default());
            found.extend(Pid::from_raw(number).map(|pid| (pid, names.collect())));
        }
    }
    found
}

fn ring_threads() -> usize {
    servers()[0].1.iter().filter(|name| name.trim() == "plyfs-ring").count()
}

both! { rings_are_taken_where_they_are_offered_and_not_where_they_are_not_wanted, OnlyPlyfs, |t| {
    let mut fs = ring(t, &["f=x"]);
    let threads = ring_threads();
    assert!(threads > 0);
    fs.remount_with(stack(t, "auto"));
    assert_eq!((text(fs.at("f")), ring_threads()), ("x".into(), threads));
    fs.remount_with(stack(t, "classic"));
    assert_eq!((text(fs.at("f")), ring_threads()), ("x".into(), 0));
}}

both! { rings_that_are_not_offered_refuse_a_mount_that_wants_them, OnlyPlyfs, |t| {
    t.needs(!offered(), "fuse's enable_uring to be off");
    plant(&t.at("lower"), &["f=x"]);
    let said = t.try_mount(stack(t, "ring")).err().expect("a refusal");
    assert!(said.contains("transport=ring") && said.contains("enable_uring"), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    wait_until("the end of the server", || servers().is_empty());
    assert!(!exists(t.at("merged/f")));
    assert_eq!(text(t.mount_stack(stack(t, "auto")).at("f")), "x");
}}

both! { a_file_without_a_name_is_given_one, OnlyPlyfs, |t| {
    let mut fs = ring(t, &["d", "d/f=x"]);
    let mut file = open_flags(fs.at("d"), O_TMPFILE).unwrap();
    file.write_all(b"written").unwrap();
    assert_eq!(fs::read_dir(fs.at("d")).unwrap().count(), 1);
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    linkat(CWD, link, CWD, fs.at("d/g"), AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(text(fs.at("d/g")), "written");
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut again = String::new();
    file.read_to_string(&mut again).unwrap();
    assert_eq!(again, "written");
    drop(file);
    fs.remount();
    assert_eq!(text(fs.at("d/g")), "written");
}}

fn birth(path: &Path) -> (i64, u32) {
    let facts: Statx = statx(CWD, path, AtFlags::empty(), StatxFlags::BTIME).unwrap();
    assert!(facts.stx_mask & StatxFlags::BTIME.bits() != 0, "no birth time of {}", path.display());
    (facts.stx_btime.tv_sec, facts.stx_btime.tv_nsec)
}

both! { birth_times_are_those_of_the_objects_on_disk, OnlyPlyfs, |t| {
    let knows = statx(CWD, t.at("upper"), AtFlags::empty(), StatxFlags::BTIME).unwrap();
    t.needs(knows.stx_mask & StatxFlags::BTIME.bits() != 0, "a filesystem with birth times");
    let fs = ring(t, &["f=old"]);
    assert_eq!(birth(&fs.at("f")), birth(&t.lower("f")));
    put(fs.at("g"), "x");
    let born = birth(&fs.at("g"));
    assert_eq!(born, birth(&t.upper("g")));
    thread::sleep(Duration::from_millis(20));
    append(fs.at("g"), "more");
    chmod(fs.at("g"), 0o600);
    mv(fs.at("g"), fs.at("h"));
    assert_eq!(birth(&fs.at("h")), born, "changes leave it");
    append(fs.at("f"), "new");
    // The kernel keeps what it was told before the copy-up as long as it keeps the inode.
    let either = [birth(&t.lower("f")), birth(&t.upper("f"))];
    assert!(either.contains(&birth(&fs.at("f"))));
    assert_eq!((text(fs.at("f")), mode(fs.at("h"))), ("oldnew".into(), 0o600));
}}

both! { clients_on_several_processors_are_served_at_once, OnlyPlyfs, |t| {
    let fs = ring(t, &["d"]);
    thread::scope(|scope| {
        for client in 0..4 {
            let dir = fs.at(format!("d/{client}"));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                for number in 0..200 {
                    put(dir.join(number.to_string()), &format!("{client}/{number}"));
                }
                for number in 0..200 {
                    let name = dir.join(number.to_string());
                    assert_eq!(text(&name), format!("{client}/{number}"));
                    mv(&name, dir.join(format!("moved{number}")));
                }
                assert_eq!(fs::read_dir(&dir).unwrap().count(), 200);
                fs::remove_dir_all(&dir).unwrap();
            });
        }
    });
    assert_eq!(fs::read_dir(fs.at("d")).unwrap().count(), 0);
}}

both! { large_reads_and_writes_keep_every_byte, OnlyPlyfs, |t| {
    t.needs(offered(), CAPABILITY);
    // Reads past the page cache come to us as they are made.
    let mut fs = t.mount_stack(Stack { options: "transport=ring,io=handles".into(), ..t.stack() });
    let data: Vec<u8> = (0..(3 << 20) + 4321_u32).map(|n| (n * 7 + n / 251) as u8).collect();
    let file = File::create(fs.at("f")).unwrap();
    file.write_all_at(&data, 1000).unwrap();
    drop(file);
    fs.remount();
    let file = File::open(fs.at("f")).unwrap();
    let mut got = vec![1; 1 << 20];
    file.read_exact_at(&mut got[..1000], 0).unwrap();
    assert!(got[..1000].iter().all(|byte| *byte == 0));
    for at in [0, 1, 4096, 1 << 20, (2 << 20) + 4321] {
        file.read_exact_at(&mut got, at + 1000).unwrap();
        let at = usize::try_from(at).unwrap();
        assert!(got == data[at..at + got.len()], "at {at}");
    }
    assert_eq!(file.read_at(&mut got, data.len() as u64 + 1000).unwrap(), 0);
    // Past the page cache: requests as large as the kernel makes them.
    const O_DIRECT: i32 = 0o40_000;
    let file = open_flags(fs.at("f"), O_DIRECT).unwrap();
    let mut got = vec![1; data.len() + 1000];
    file.read_exact_at(&mut got, 0).unwrap();
    assert!(got[1000..] == data);
}}

both! { a_server_that_was_killed_ends_the_mount_for_everybody, OnlyPlyfs, |t| {
    let mut fs = ring(t, &["f=old", "d"]);
    let file = File::open(fs.at("f")).unwrap();
    append(fs.at("f"), "new");
    kill_process(servers()[0].0, Signal::KILL).unwrap();
    wait_until("the end of the server", || servers().is_empty());
    // Who asks while it is being cut off is told so (ECONNABORTED).
    let cut_off = || fs::metadata(fs.at("d")).is_err() && errno(fs::metadata(fs.at("d"))) == Errno::NOTCONN;
    wait_until("the end of the connection", cut_off);
    drop(file);
    unmount(fs.at(""), UnmountFlags::DETACH).unwrap();
    fs.forget();
    let fs = t.mount_stack(stack(t, "ring"));
    assert_eq!(text(fs.at("f")), "oldnew");
}}

both! { a_signal_unmounts_and_the_threads_end, OnlyPlyfs, |t| {
    for round in 0..5 {
        let mut fs = ring(t, if t.lower("f").exists() { &[] } else { &["f=x"] });
        append(fs.at("f"), &round.to_string());
        kill_process(servers()[0].0, Signal::TERM).unwrap();
        wait_until("the end of the server", || servers().is_empty());
        assert!(!exists(fs.at("f")));
        fs.forget();
    }
    assert_eq!(text(t.upper("f")), "x01234");
}}

both! { an_unmount_with_requests_under_way_ends_the_server, OnlyPlyfs, |t| {
    for _ in 0..3 {
        let mut fs = ring(t, if t.lower("f").exists() { &[] } else { &["f=x", "d", "d/g=y"] });
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for client in 0..4 {
                let (dir, stop) = (File::open(fs.at("d")).unwrap(), &stop);
                scope.spawn(move || {
                    let name = format!("new{client}");
                    for _ in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR;
                        let file = rustix::fs::openat(&dir, &name, flags, 0o644.into()).unwrap();
                        rustix::io::write(&file, b"text").unwrap();
                        rustix::fs::fsync(file.as_fd()).unwrap();
                        drop(file);
                        rustix::fs::unlinkat(&dir, &name, AtFlags::empty()).unwrap();
                    }
                });
            }
            thread::sleep(Duration::from_millis(100));
            unmount(fs.at(""), UnmountFlags::DETACH).unwrap();
            thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
        });
        fs.forget();
        wait_until("the end of the server", || servers().is_empty());
    }
}}

both! { names_are_looked_up_while_many_wait_for_one_copy_up, OnlyPlyfs, |t| {
    let fs = ring(t, &["d"]);
    for number in 0..200 {
        put(t.lower(format!("d/{number}")), "");
    }
    put(t.lower("large"), &"x".repeat(1 << 20));
    let write = || append(fs.at("large"), "y");
    let clients = || thread::scope(|scope| (0..40).for_each(|_| drop(scope.spawn(write))));
    during_a_copy(t, clients, || {
        (0..200).for_each(|number| assert!(exists(fs.at(format!("d/{number}")))));
    });
    assert_eq!(fs::metadata(fs.at("large")).unwrap().len(), (1 << 20) + 40);
}}
