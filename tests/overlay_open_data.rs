//! The bound on opened data, for a daemon that may not open again what it has open.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use plyfs_fuse::attr::SetAttr;
use plyfs_fuse::inode::Ino;
use plyfs_fuse::options::Io;
use plyfs_fuse::owner::Caller;
use plyfs_fuse::{Options, Overlay};

use crate::common::sandbox::Sandbox;
use crate::{needs, this_test};

/// An ordinary user's id that nobody has.
const USER: u32 = 100_000;
const ME: Caller = Caller { uid: USER, gid: USER, umask: 0o022 };
/// Descriptors that the daemon may have; about half of them are for data.
const DESCRIPTORS: u64 = 160;

/// Set in the process of the ordinary user.
const INSIDE: &str = "PLYFS_POOR";

/// Runs a test again as an ordinary user with few descriptors.
fn as_poor_user(test: &str) {
    let dir = tempfile::Builder::new()
        .prefix("plyfs-poor.")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(crate::common::sandbox::base())
        .unwrap();
    std::os::unix::fs::chown(dir.path(), Some(USER), Some(USER)).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(INSIDE, "1").env("PLYFS_TEST_DIR", dir.path()).current_dir(dir.path());
    command.uid(USER).gid(USER);
    // SAFETY: a plain system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn overlay(sandbox: &Sandbox, io: Io) -> Overlay {
    let options = Options {
        lowers: vec![sandbox.lower(1)],
        upper: Some(sandbox.upper()),
        work: Some(sandbox.work()),
        io,
        ..Options::default()
    };
    Overlay::open(&options).unwrap()
}

fn create(fs: &Overlay, name: &str) -> plyfs_fuse::Result<Ino> {
    fs.create(ME, Ino::ROOT, &OsString::from(name), 0o644).map(|entry| entry.attr.ino)
}

fn close_permissions(fs: &Overlay, ino: Ino, mode: u32) {
    let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
    fs.setattr(ME, ino, &set).unwrap();
}

/// Writes to all files and reads it back.
fn use_all(fs: &Overlay, files: &[Ino]) {
    for (n, ino) in files.iter().enumerate() {
        assert_eq!(fs.write(*ino, 0, b"data", true).unwrap_or_else(|e| panic!("{n}: {e}")), 4);
        let mut bytes = [0; 4];
        assert_eq!(fs.read(*ino, 0, &mut bytes).unwrap(), 4);
        assert_eq!(&bytes, b"data");
    }
}

#[test]
fn files_open_for_writing_stay_so_whatever_becomes_of_their_mode_and_name() {
    if std::env::var_os(INSIDE).is_none() {
        needs!(Root);
        return as_poor_user(this_test!());
    }
    for io in [Io::Handles, Io::Handleless] {
        let sandbox = Sandbox::new();
        let fs = overlay(&sandbox, io);
        // Three times as many as are kept open: most were closed by the time they change.
        let files: Vec<Ino> = (0..200).map(|n| create(&fs, &format!("f{n}")).unwrap()).collect();
        for (n, ino) in files.iter().enumerate() {
            match n % 8 {
                0 => close_permissions(&fs, *ino, 0o444),
                1 => close_permissions(&fs, *ino, 0),
                2 => fs.unlink(Ino::ROOT, &OsString::from(format!("f{n}"))).unwrap(),
                _ => {}
            }
        }
        use_all(&fs, &files);
        fs.check_invariants().unwrap();
    }
}

#[test]
fn without_handles_any_number_of_closed_files_goes_on_working() {
    if std::env::var_os(INSIDE).is_none() {
        needs!(Root);
        return as_poor_user(this_test!());
    }
    let sandbox = Sandbox::new();
    let fs = overlay(&sandbox, Io::Handleless);
    let files: Vec<Ino> = (0..3 * DESCRIPTORS)
        .map(|n| {
            let ino = create(&fs, &format!("f{n}")).unwrap();
            close_permissions(&fs, ino, 0);
            ino
        })
        .collect();
    use_all(&fs, &files);
    fs.check_invariants().unwrap();
}

#[test]
fn when_all_that_is_open_has_to_stay_no_more_is_opened_and_it_goes_on_working() {
    if std::env::var_os(INSIDE).is_none() {
        needs!(Root);
        return as_poor_user(this_test!());
    }
    let sandbox = Sandbox::new();
    let fs = overlay(&sandbox, Io::Handles);
    let mut files = Vec::new();
    let refused = loop {
        match create(&fs, &format!("f{}", files.len())) {
            Ok(ino) => files.push(ino),
            Err(e) => break e.errno(),
        }
        close_permissions(&fs, files[files.len() - 1], 0);
        assert!(files.len() < DESCRIPTORS as usize, "there is no end");
    };
    assert_eq!(refused, libc::EMFILE);
    use_all(&fs, &files);
    fs.mkdir(ME, Ino::ROOT, &OsString::from("d"), 0o755).unwrap();
    fs.unlink(Ino::ROOT, &OsString::from("f0")).unwrap();
    use_all(&fs, &files);
    fs.release(files[0]);
    let more = create(&fs, "more").unwrap();
    files[0] = more;
    use_all(&fs, &files);
}

#[test]
fn the_end_of_a_file_is_read_from_the_page_cache_in_whole_pages() {
    let sandbox = Sandbox::new();
    let fs = overlay(&sandbox, Io::Handleless);
    let who = crate::common::model::Who::me();
    let me = Caller { uid: who.uid, gid: who.gid, umask: 0o022 };
    let ino = fs.create(me, Ino::ROOT, &OsString::from("f"), 0o644).unwrap().attr.ino;
    assert_eq!(fs.write(ino, 0, &[7; 5000], false).unwrap(), 5000);
    let mut page = [0; 4096];
    if fs.read_cached(ino, 0, &mut page).is_none() {
        let what = "a filesystem that tells what the page cache has (RWF_NOWAIT)";
        return println!("skipped: {}: needs {what}", this_test!());
    }
    assert_eq!(fs.read_cached(ino, 4096, &mut page), Some(904));
    assert_eq!(fs.read_cached(ino, 8192, &mut page), Some(0));
}
