//! The kit of the semantic tests: every test runs on a real mount, in a process of its own, twice:
//! as root (`trusted.overlay.*`) and as root of an unprivileged user namespace (`user.overlay.*`).
//!
//! `PLYFS_TEST_BACKEND` is `plyfs`, or `kernel` or `fuse-overlayfs` to test the tests: one that the
//! kernel's overlay cannot pass says so, and must then fail there. `PLYFS_TEST_OPTIONS` is a list that every
//! mount of plyfs gets, for instance `transport=ring`.

#![allow(dead_code)]

pub mod backend;
pub mod hold;
pub mod isolate;
pub mod sys;
pub mod tree;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::needs::Need;
pub use backend::Backend;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
pub use tree::*;

/// Who runs the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Root,
    Rootless,
}

/// Why and where the kernel's overlay fails a test.
#[derive(Clone, Copy, Debug)]
pub enum KernelCannot {
    Nothing,
    AsRoot(&'static str),
    Rootless(&'static str),
    Both(&'static str),
    /// The test is about a daemon or its options: it is left out there.
    NoDaemon,
    /// The test is about what plyfs alone offers: it is left out elsewhere.
    OnlyPlyfs,
}

/// Why the kernel's overlay loses hard links.
pub const BROKEN_LINKS: &str = "hard links of lowers break without an index";

/// Why a rootless kernel overlay does not rename directories.
pub const NO_REDIRECTS: &str = "userxattr knows no redirects: EXDEV";

/// Defines a test that runs as root and rootless: `name::root` and `name::rootless`.
macro_rules! both {
    ($name:ident, |$t:ident| $body:block) => {
        both! { $name, $crate::semantics_kit::KernelCannot::Nothing, |$t| $body }
    };
    ($name:ident, $cannot:expr, |$t:ident| $body:block) => {
        fn $name($t: &$crate::semantics_kit::Test) $body

        mod $name {
            #[allow(unused_imports)]
            use $crate::semantics_kit::{BROKEN_LINKS, Case, KernelCannot, KernelCannot::*, Mode};
            #[allow(unused_imports)]
            use $crate::semantics_kit::{NO_REDIRECTS, run};

            const CANNOT: KernelCannot = $cannot;

            #[test]
            fn root() {
                let name = concat!(module_path!(), "::root");
                run(&Case { name, mode: Mode::Root, cannot: CANNOT }, super::$name);
            }

            #[test]
            fn rootless() {
                let name = concat!(module_path!(), "::rootless");
                run(&Case { name, mode: Mode::Rootless, cannot: CANNOT }, super::$name);
            }
        }
    };
}
pub(crate) use both;

/// One test in one mode.
pub struct Case {
    pub name: &'static str,
    pub mode: Mode,
    pub cannot: KernelCannot,
}

/// Thrown by [`Test::skip`].
struct Skipped;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says on the real standard error that a test did not run.
fn skipped(name: &str, needs: &str) {
    let line = format!("skipped: {name}: needs {needs}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Outside: starts the test in a process of its own and judges it. Inside: runs it.
pub fn run(case: &Case, body: fn(&Test)) {
    let name = case.name.split_once("::").map_or(case.name, |(_, name)| name);
    if let Some(dir) = std::env::var_os("PLYFS_SEMANTICS_DIR") {
        let test = Test::new(PathBuf::from(dir), name, case.mode);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(&test))) {
            if !panic.is::<Skipped>() {
                resume_unwind(panic);
            }
        }
        return;
    }
    if case.mode == Mode::Root && !is_root() {
        return skipped(name, "root");
    }
    let backend = Backend::chosen();
    if case.mode == Mode::Rootless && !Need::AnyUserNs.met() {
        return skipped(name, "user namespaces");
    }
    let device = || std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if backend != Backend::Kernel && device().is_err() {
        return skipped(name, "/dev/fuse, readable and writable");
    }
    match (case.cannot, backend) {
        (KernelCannot::NoDaemon, Backend::Kernel) => return skipped(name, "a daemon"),
        (KernelCannot::OnlyPlyfs, Backend::Kernel | Backend::FuseOverlayfs) => {
            return skipped(name, "plyfs");
        }
        _ => {}
    }
    let scratch = isolate::scratch(case.mode);
    let outcome = isolate::run(name, case.mode, scratch.path());
    isolate::remove(scratch);
    let mut was_skipped = false;
    for line in outcome.output.lines().filter(|line| line.starts_with("skipped: ")) {
        was_skipped = true;
        let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
    }
    judge(case, backend, &outcome, was_skipped);
}

fn judge(case: &Case, backend: Backend, outcome: &isolate::Outcome, was_skipped: bool) {
    let passed = outcome.status.success();
    let reason = match (case.cannot, case.mode) {
        (KernelCannot::Both(reason), _)
        | (KernelCannot::AsRoot(reason), Mode::Root)
        | (KernelCannot::Rootless(reason), Mode::Rootless) => Some(reason),
        _ => None,
    };
    match reason.filter(|_| backend == Backend::Kernel) {
        Some(reason) if passed && !was_skipped => {
            panic!("{}: the kernel can do it, but the test says: {reason}", case.name)
        }
        Some(_) => {}
        None => {
            let hung = if outcome.hung { "; it hung" } else { "" };
            assert!(passed, "on {backend:?}{hung}: {}", outcome.output);
        }
    }
}

/// The layers and options of one mount.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Top first.
    pub lowers: Vec<PathBuf>,
    pub data: Vec<PathBuf>,
    /// The upper and the work directory.
    pub upper: Option<(PathBuf, PathBuf)>,
    pub options: String,
    pub point: PathBuf,
}

/// What a test has: a directory with `lower`, `upper`, `work` and the mountpoint `merged`.
pub struct Test {
    dir: PathBuf,
    name: String,
    pub mode: Mode,
    pub backend: Backend,
}

impl Test {
    fn new(dir: PathBuf, name: &str, mode: Mode) -> Test {
        rustix::process::umask(rustix::fs::Mode::from(0o022));
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        let backend = Backend::chosen();
        Test { dir, name: name.to_owned(), mode, backend }
    }

    /// A path in the test's directory.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join(path)
    }

    /// A path in the lower layer.
    pub fn lower(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join("lower").join(path)
    }

    /// A path in the upper layer.
    pub fn upper(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join("upper").join(path)
    }

    /// Makes another layer.
    pub fn layer(&self, name: &str, entries: &[&str]) -> PathBuf {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        plant(&dir, entries);
        dir
    }

    /// The default stack: one lower, upper, work.
    pub fn stack(&self) -> Stack {
        Stack {
            lowers: vec![self.at("lower")],
            data: Vec::new(),
            upper: Some((self.at("upper"), self.at("work"))),
            options: String::new(),
            point: self.at("merged"),
        }
    }

    /// Mounts the default stack over what `entries` plant in the lower layer.
    pub fn mount(&self, entries: &[&str]) -> Fs {
        plant(&self.at("lower"), entries);
        self.mount_stack(self.stack())
    }

    /// The same with options.
    pub fn mount_with(&self, options: &str, entries: &[&str]) -> Fs {
        plant(&self.at("lower"), entries);
        self.mount_stack(Stack { options: options.to_owned(), ..self.stack() })
    }

    /// Mounts these lowers, top first, under the upper layer.
    pub fn mount_lowers(&self, lowers: &[&Path]) -> Fs {
        let lowers = lowers.iter().map(|x| x.to_path_buf()).collect();
        self.mount_stack(Stack { lowers, ..self.stack() })
    }

    /// Mounts a stack.
    pub fn mount_stack(&self, stack: Stack) -> Fs {
        self.try_mount(stack).unwrap_or_else(|error| panic!("mount: {error}"))
    }

    /// Mounts a stack, or says what the program said.
    pub fn try_mount(&self, stack: Stack) -> Result<Fs, String> {
        self.backend.mount(&stack, self.mode)?;
        Ok(Fs { stack, mode: self.mode, backend: self.backend, mounted: true })
    }

    /// Mounts a stack with the kernel's overlay, whatever is under test.
    pub fn kernel_mount(&self, stack: Stack) -> Fs {
        backend::kernel(&stack, self.mode).unwrap_or_else(|error| panic!("kernel mount: {error}"));
        Fs { stack, mode: self.mode, backend: Backend::Kernel, mounted: true }
    }

    /// The same layers, shown read-only by the kernel's overlay at `kernel`.
    pub fn kernel_view(&self, fs: &Fs) -> Fs {
        let mut stack = fs.stack.clone();
        stack.options = String::new();
        stack.point = self.layer("kernel", &[]);
        if let Some((upper, _)) = stack.upper.take() {
            stack.lowers.insert(0, upper);
        }
        // Alone, a lower needs a second one beside it.
        stack.lowers.push(self.layer("empty", &[]));
        if self.mode == Mode::Root {
            stack.options = "redirect_dir=follow".to_owned();
        }
        self.kernel_mount(stack)
    }

    /// The tree is the same after a remount and, where the kernel reads redirects, in its eyes.
    pub fn same_after_remount(&self, fs: &mut Fs) {
        let before = facts(&fs.at(""));
        fs.remount();
        assert_eq!(before, facts(&fs.at("")), "after a remount");
        fs.unmount();
        let kernel = self.kernel_view(fs);
        assert_eq!(before, facts(&kernel.at("")), "as the kernel reads it");
        drop(kernel);
        fs.remount_again();
    }

    /// Ends the test as one that could not run here.
    pub fn skip(&self, needs: &str) -> ! {
        // The harness has begun a line.
        let _ = writeln!(std::io::stderr());
        skipped(&self.name, needs);
        panic_any(Skipped)
    }

    /// Ends the test unless `can`.
    pub fn needs(&self, can: bool, what: &str) {
        if !can {
            self.skip(what);
        }
    }

    /// The test is about other users: it needs more than one id.
    pub fn needs_ids(&self) {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        let ids: u64 = map.split_whitespace().nth(2).unwrap().parse().unwrap();
        self.needs(ids >= 65_536, "subordinate ids");
    }

    pub fn is_root(&self) -> bool {
        self.mode == Mode::Root
    }

    /// The name of an overlay attribute on disk, for instance `trusted.overlay.opaque`.
    pub fn attribute(&self, name: &str) -> String {
        let namespace = if self.is_root() { "trusted" } else { "user" };
        format!("{namespace}.overlay.{name}")
    }
}

/// A mount, unmounted when dropped.
pub struct Fs {
    pub stack: Stack,
    mode: Mode,
    backend: Backend,
    mounted: bool,
}

impl Fs {
    /// A path below the mountpoint; the mountpoint itself for an empty one.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.stack.point.join(path).components().collect()
    }

    /// Unmounts, as an administrator does: a busy mount is a failure.
    pub fn unmount(&mut self) {
        assert!(self.mounted);
        unmount(&self.stack.point, UnmountFlags::empty()).unwrap();
        self.mounted = false;
    }

    /// Unmounts as soon as a daemon that had the mount open for its own layers has ended.
    pub fn unmount_patiently(&mut self) {
        let point = self.stack.point.clone();
        wait_until("an unmount", || unmount(&point, UnmountFlags::empty()).is_ok());
        self.mounted = false;
    }

    /// Unmounts and mounts the same stack again.
    pub fn remount(&mut self) {
        self.remount_with(self.stack.clone());
    }

    /// Unmounts and mounts another stack.
    pub fn remount_with(&mut self, stack: Stack) {
        self.unmount();
        self.stack = stack;
        self.remount_again();
    }

    /// Mounts again what was unmounted.
    pub fn remount_again(&mut self) {
        self.backend.mount(&self.stack, self.mode).unwrap_or_else(|x| panic!("remount: {x}"));
        self.mounted = true;
    }

    /// The mount went away by itself.
    pub fn forget(&mut self) {
        self.mounted = false;
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        if self.mounted && unmount(&self.stack.point, UnmountFlags::empty()).is_err() {
            let _ = unmount(&self.stack.point, UnmountFlags::DETACH);
        }
    }
}

/// Runs `work` on a thread of another user, without capabilities.
pub fn as_user<T: Send>(id: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let (uid, gid) = (rustix::fs::Uid::from_raw(id), rustix::fs::Gid::from_raw(id));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Waits until `done`, at most half a minute.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The error of a result of the standard library, which must have failed.
pub fn errno<T>(result: std::io::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("it worked, and should not have"),
        Err(error) => Errno::from_io_error(&error).unwrap_or_else(|| panic!("{error}")),
    }
}
