//! The life of a mount: put in place, served, taken off.
//!
//! The layers are opened before the mount appears, so no path of ours ever leads through it. When
//! [`mount`] returns the kernel has been answered and the mount works as soon as it is served.

mod fusermount;

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Context, Error, Result};
use crate::options::Options;
use crate::server::Serving;
use crate::stats::Counters;
use crate::{Overlay, sys};

/// A mount that answers, to be served by [`Session::run`].
#[derive(Debug)]
pub struct Session {
    inner: Serving,
    core: Arc<Overlay>,
    mountpoint: PathBuf,
    /// The mount's id, by which it is told from what others mount at the same place.
    id: Option<u64>,
}

/// Opens the layers, mounts at `mountpoint` and completes the handshake with the kernel. TERM, INT, HUP
/// and USR1 are blocked in this thread then, for [`Session::run`].
pub fn mount(options: Options, mountpoint: &Path) -> Result<Session> {
    options.validate().map_err(|e| Error::refuse("mount", mountpoint, e.to_string()))?;
    let mountpoint = mountpoint.canonicalize().on("mount", mountpoint)?;
    let core = Arc::new(Overlay::open(&options)?);
    check_place(&core, &mountpoint)?;
    // From here on there is a mount that a signal has to take off: it waits until it is served.
    sys::block_signals().on("block signals", &mountpoint)?;
    let session = attach(&options, &core, &mountpoint).and_then(|device| {
        let id = mount_id(&mountpoint);
        let inner = Serving::start(core.clone(), device).map_err(|e| {
            take_off(&mountpoint, id);
            Error::new("mount", &mountpoint, e)
        })?;
        Ok(Session { inner, core, mountpoint: mountpoint.clone(), id })
    });
    if session.is_err() {
        sys::unblock_signals().on("unblock signals", &mountpoint)?;
    }
    session
}

/// A mount on a layer's root is fine, one below it is not where our paths would lead into it.
fn check_place(core: &Overlay, mountpoint: &Path) -> Result<()> {
    for above in mountpoint.ancestors().skip(1) {
        let root = sys::open_root(above).on("open", above)?;
        let stat = sys::fstat(root).on("stat", above)?;
        if core.must_not_hold_mount((stat.dev, stat.ino)) {
            let why = format!("is below the layer {}; mount somewhere else", above.display());
            return Err(Error::refuse("mount", mountpoint, why));
        }
    }
    Ok(())
}

/// The id of what is mounted on top at a place (proc(5), mountinfo).
fn mount_id(mountpoint: &Path) -> Option<u64> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let text = String::from_utf8_lossy(&table);
    let place = escaped(mountpoint);
    let line = text.lines().rfind(|line| line.split(' ').nth(4) == Some(&place))?;
    line.split(' ').next()?.parse().ok()
}

/// A path as mountinfo has it: space, tab, newline and backslash in octal.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        match c {
            ' ' | '\t' | '\n' | '\\' => text.push_str(&format!("\\{:03o}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

impl Session {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What serving took so far, to be read at any time, also when the mount is gone.
    pub fn counters(&self) -> Counters {
        Counters(self.core.clone())
    }

    /// Serves until unmounted. TERM, INT and HUP unmount; USR1 logs the counters. Call it before the
    /// process has other threads, since the signals are blocked in those started later only.
    pub fn run(self) -> Result<()> {
        let counters = self.counters();
        let Session { inner, core, mountpoint, id } = self;
        let place = mountpoint.clone();
        let watch = std::thread::Builder::new().name("plyfs-signals".into());
        watch
            .spawn(move || watch_signals(&counters, &place, id))
            .on("start thread", &mountpoint)?;
        sys::fault::arm();
        let served = inner.run().on("serve", &mountpoint);
        if let Err(e) = core.settle() {
            log::warn!(
                "{}: names of some files with several are in the index only: {e}",
                mountpoint.display()
            );
        }
        served
    }
}

/// The target of the log under which counters are told.
const REPORT: &str = "plyfs_fuse::stats";

fn watch_signals(counters: &Counters, mountpoint: &Path, id: Option<u64>) {
    loop {
        match sys::wait_signal() {
            Ok(true) => {
                log::info!(target: REPORT, "{}\n{counters}", mountpoint.display());
            }
            Ok(false) => take_off(mountpoint, id),
            Err(e) => {
                log::warn!("signals: {e}");
                return;
            }
        }
    }
}

/// Unmounts; who still uses the mount keeps it until done, and the session ends then.
fn take_off(mountpoint: &Path, id: Option<u64>) {
    if id.is_some() && mount_id(mountpoint) != id {
        // Somebody took it off already, or mounted on top of it: what is there now is not ours. The
        // session ends with its last user.
        log::info!("{}: not mounted here any more", mountpoint.display());
        return;
    }
    let direct = sys::unmount_lazily(mountpoint);
    if direct.is_err() && fusermount::unmount(mountpoint).is_err() {
        log::warn!("unmount {}: {direct:?}", mountpoint.display());
    }
}

/// Mounts by ourselves, or through fusermount3 where that is not allowed.
fn attach(options: &Options, core: &Overlay, mountpoint: &Path) -> Result<OwnedFd> {
    let device = Path::new("/dev/fuse");
    let open = sys::open_device(device);
    let fd = open.map_err(|e| match sys::errno(&e) {
        sys::ENOENT | sys::ENODEV => {
            Error::refuse("open", device, "no FUSE here; load the fuse module")
        }
        sys::EACCES | sys::EPERM => {
            Error::refuse("open", device, "not allowed; let this user read and write the device")
        }
        _ => Error::new("open", device, e),
    })?;
    let (uid, gid) = sys::effective_ids();
    let rootmode =
        sys::stat(sys::open_root(mountpoint).on("open", mountpoint)?, std::ffi::OsStr::new(""))
            .on("stat", mountpoint)?
            .mode
            & sys::S_IFMT;
    let mut data =
        format!("fd={},rootmode={rootmode:o},user_id={uid},group_id={gid}", fd.as_raw_fd());
    data.push_str(",default_permissions");
    if options.mount.allow_other.unwrap_or(true) {
        data.push_str(",allow_other");
    }
    if let Some(max_read) = options.mount.max_read {
        data.push_str(&format!(",max_read={max_read}"));
    }
    let source = options.mount.fsname.clone().unwrap_or_else(|| "plyfs".into());
    let kind = format!("fuse.{}", options.mount.subtype.as_deref().unwrap_or("plyfs"));
    let flags = flags(options, core);
    match sys::mount_fuse(&source, mountpoint, &kind, flags, &OsString::from(data)) {
        Ok(()) => Ok(fd),
        Err(e) if sys::errno(&e) == sys::EPERM => {
            drop(fd);
            fusermount::mount(options, flags, mountpoint)
        }
        Err(e) => Err(Error::new("mount", mountpoint, e)),
    }
}

/// The `MS_*` bits of mount(2).
fn flags(options: &Options, core: &Overlay) -> u64 {
    let mount = &options.mount;
    let read_only = mount.read_only || core.is_read_only();
    let mut flags = 0;
    for (set, flag) in [
        (read_only, sys::MS_RDONLY),
        (mount.suid == Some(false), sys::MS_NOSUID),
        (mount.dev == Some(false), sys::MS_NODEV),
        (mount.exec == Some(false), sys::MS_NOEXEC),
        (mount.atime != Some(true), sys::MS_NOATIME),
        (mount.diratime == Some(false), sys::MS_NODIRATIME),
        (mount.sync, sys::MS_SYNCHRONOUS),
        (mount.dirsync, sys::MS_DIRSYNC),
    ] {
        if set {
            flags |= flag;
        }
    }
    flags
}
