//! Requests to the core's calls and back. No semantics here: `handlers` knows no transport, and a
//! transport (`classic`) no operation.
//!
//! One request, one reply; an error is logged once. What may take long (copying data up, flushing,
//! reading what is not cached, long listings, waiting for room where there are limits) goes to other threads, so that the
//! one that receives requests is there for the next. Nothing here may panic: a dead server is a dead container.

pub(crate) mod answer;
mod backing;
mod classic;
mod convert;
pub(crate) mod handlers;
mod pool;
mod read;
mod reply;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{Config, FopenFlags, InitFlags, KernelConfig, SessionACL};

use crate::error::Error;
use crate::inode::Ino;
use crate::options::{Io, Transport};
use crate::ring::{self, Ring};
use crate::stats::{Op, Timed};
use crate::{Overlay, sys};
use answer::{Code, Opened};
use backing::Backings;
use classic::Classic;
use pool::Pool;

/// Bytes in one read or write request at most; the kernel allows 256 pages.
pub(crate) const MAX_WRITE: u32 = 1 << 20;
/// Copying more than this is left to another thread: below it, waking one costs more.
const INLINE_COPY: u64 = 128 * 1024;

/// The core, and who does its work for the kernel.
#[derive(Debug)]
pub(crate) struct Server {
    core: Arc<Overlay>,
    pool: Arc<Pool>,
    ttl: Duration,
    /// The files that the kernel reads and writes itself, where it does.
    backings: OnceLock<Backings>,
    /// Requests come through rings: wanted before the handshake, agreed on after it.
    rings: AtomicBool,
}

impl Server {
    /// An adapter for an overlay.
    pub(crate) fn new(core: Arc<Overlay>) -> Server {
        let (ttl, pool) = (core.options().timeout, Arc::new(Pool::new()));
        let (counter, counting) = (Arc::downgrade(&core), pool.clone());
        core.count_elsewhere(move || {
            let counter = counter.clone();
            counting
                .run(None, Box::new(move || counter.upgrade().iter().for_each(|x| x.count_now())));
        });
        Server { core, pool, ttl, backings: OnceLock::new(), rings: AtomicBool::new(false) }
    }

    /// How long the kernel may keep names and attributes.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Names the kernel may keep without asking, and for how long.
    fn is_live(&self) -> bool {
        self.ttl.is_zero()
    }

    /// Whether the kernel is told not to ask at open and close.
    fn is_handleless(&self) -> bool {
        self.core.options().settled_io() == Io::Handleless
    }

    /// Whether what needs room, or waits for who does, may have to wait long: there are limits then, and no files handed over.
    fn is_tight(&self) -> bool {
        self.core.is_tight()
    }

    /// Whether no object has xattrs. The kernel is told so once and asks no more: whoever wants one gets
    /// EOPNOTSUPP.
    fn has_no_xattrs(&self) -> bool {
        self.core.options().noxattrs
    }

    /// Runs `job` here when it is quick, on another thread otherwise.
    fn dispatch(&self, op: Op, slow: bool, job: impl FnOnce(&Overlay) + Send + 'static) {
        if !slow {
            return job(&self.timed(op));
        }
        let (core, start) = (self.core.clone(), Instant::now());
        self.pool.run(
            None,
            Box::new(move || {
                job(&core);
                core.stats.done(op, start);
            }),
        );
    }

    /// Runs `job` on another thread, after what copies the same object up.
    fn defer(&self, op: Op, ino: Ino, job: impl FnOnce(&Overlay) + Send + 'static) {
        let (core, start) = (self.core.clone(), Instant::now());
        self.pool.run(
            Some(ino.0),
            Box::new(move || {
                job(&core);
                core.stats.done(op, start);
            }),
        );
    }

    /// Runs a `job` that changes an object: here unless much data is copied first.
    fn change(&self, op: Op, node: Ino, job: impl FnOnce(&Overlay) + Send + 'static) {
        if self.copies(node) { self.defer(op, node, job) } else { job(&self.timed(op)) }
    }

    /// Runs a `job` that gives or takes a name: here, unless it may have to wait for room, or for who waits for it. Those who
    /// give names in one directory wait together, and who takes one does not wait with them: that gives room.
    fn change_names(
        &self,
        op: Op,
        (dir, name): (Option<Ino>, &OsStr),
        job: impl FnOnce(&Overlay, &OsStr) + Send + 'static,
    ) {
        if !self.is_tight() {
            return job(&self.timed(op), name);
        }
        let name = name.to_owned();
        match dir {
            Some(dir) => self.defer(op, dir, move |core| job(core, &name)),
            None => self.dispatch(op, true, move |core| job(core, &name)),
        }
    }

    /// The core for one request, which is counted when this goes.
    fn timed(&self, op: Op) -> Timed<'_> {
        Timed::new(&self.core, op)
    }

    /// Whether changing an object copies much data first, or may have to wait for room.
    fn copies(&self, node: Ino) -> bool {
        self.core.copy_cost(node) > INLINE_COPY || self.is_tight()
    }

    /// What the kernel may keep of a file that was opened: as the only writer we say when it changes.
    fn opened(&self, node: Ino, writes: bool) -> Opened {
        if let Some(backings) = self.backings.get() {
            return backings.open(&self.core, node, writes);
        }
        self.opened_here()
    }

    /// The same of a file that is not handed over.
    fn opened_here(&self) -> Opened {
        let flags = FopenFlags::FOPEN_KEEP_CACHE.bits();
        Opened { handle: 0, flags: if self.is_live() { 0 } else { flags }, backing: None }
    }

    /// The same of an open directory.
    fn dir_flags(&self) -> u32 {
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        if self.is_live() { 0 } else { flags.bits() }
    }

    /// Asks for what helps. Not for `FUSE_ATOMIC_O_TRUNC`: with it the kernel has us truncate a
    /// file before it finds out that somebody executes it (ETXTBSY).
    fn negotiate(&self, config: &mut KernelConfig) {
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HAS_IOCTL_DIR;
        if self.core.options().nfs_export {
            wanted |= InitFlags::FUSE_EXPORT_SUPPORT;
        }
        // The mount may be mounted again with other owners; what makes nothing then tells no owner.
        wanted |= InitFlags::FUSE_ALLOW_IDMAP;
        if !self.core.options().noacl {
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        if self.core.options().settled_io() == Io::Passthrough {
            wanted |= InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
            // One level is left for a kernel overlay on top of the mount.
            if config.set_max_stack_depth(1).is_err() {
                log::debug!("the kernel knows no passthrough");
            }
        }
        if self.is_live() {
            wanted |= InitFlags::FUSE_AUTO_INVAL_DATA;
        } else {
            wanted |= InitFlags::FUSE_CACHE_SYMLINKS;
        }
        let offered = config.capabilities().contains(InitFlags::FUSE_OVER_IO_URING);
        if self.rings.load(Ordering::Relaxed) && offered {
            wanted |= InitFlags::FUSE_OVER_IO_URING;
        } else {
            self.rings.store(false, Ordering::Relaxed);
        }
        if let Err(missing) = config.add_capabilities(wanted & config.capabilities()) {
            log::debug!("capabilities not granted: {missing:?}");
        }
        let max_write =
            self.core.options().mount.max_write.unwrap_or(MAX_WRITE).clamp(4096, MAX_WRITE);
        for (what, done) in [
            ("max_write", config.set_max_write(max_write).is_ok()),
            ("max_background", config.set_max_background(64).is_ok()),
        ] {
            if !done {
                log::debug!("{what} keeps its default");
            }
        }
    }
}

/// A mount whose handshake is done.
#[derive(Debug)]
pub(crate) struct Serving {
    session: fuser::Session<Classic>,
    ring: Option<Ring>,
}

impl Serving {
    /// Answers the kernel's first request on the device of a fresh mount.
    pub(crate) fn start(core: Arc<Overlay>, device: OwnedFd) -> io::Result<Serving> {
        let mut config = Config::default();
        // One receiver: a second one costs more in wake-ups than it gains, since requests that wait
        // for the disk go to other threads anyway.
        config.n_threads = Some(1);
        let transport = core.options().transport;
        let server = Arc::new(Server::new(core.clone()));
        let usable = if transport == Transport::Classic { Ok(()) } else { ring::usable() };
        server.rings.store(transport != Transport::Classic && usable.is_ok(), Ordering::Relaxed);
        let connection = device.try_clone()?;
        let same = Arc::new(device.try_clone()?);
        let classic = Classic(server.clone(), same.clone());
        let session = fuser::Session::from_fd(classic, device, SessionACL::All, config)?;
        if core.options().settled_io() == Io::Passthrough {
            let backings = Backings::start(connection).map_err(|e| {
                io::Error::other(format!(
                    "io=passthrough: the kernel takes no files ({e}); it asks for CAP_SYS_ADMIN outside \
                     user namespaces: leave the option out"
                ))
            })?;
            if server.backings.set(backings).is_err() {
                log::debug!("files are handed over already");
            }
        }
        let notifier = session.notifier();
        // Offset -1 leaves the cached pages alone (fuse_lowlevel_notify_inval_inode(3)).
        core.watch(move |ino| {
            if let Err(e) = notifier.inval_inode(fuser::INodeNo(ino.0), -1, 0) {
                log::debug!("attributes of {} stay cached: {e}", ino.0);
            }
        });
        if server.rings.load(Ordering::Relaxed) {
            let started = Ring::start(&server, &same);
            if let (Err(e), Transport::Auto) = (&started, transport) {
                log::warn!("no rings: {e}");
                ring::give_up(&same)?;
                server.rings.store(false, Ordering::Relaxed);
                return Ok(Serving { session, ring: None });
            }
            let insisted = |e| io::Error::other(format!("transport=ring: {e}"));
            return Ok(Serving { session, ring: Some(started.map_err(insisted)?) });
        }
        if transport == Transport::Ring {
            let why = usable.err().map_or_else(ring::why_not_offered, |e| e.to_string());
            return Err(io::Error::other(format!("transport=ring: {why}")));
        }
        if let Err(e) = usable {
            log::debug!("the classic transport: {e}");
        }
        Ok(Serving { session, ring: None })
    }

    /// Serves until the mount is gone.
    pub(crate) fn run(self) -> io::Result<()> {
        let result = self.session.run();
        if let Some(ring) = self.ring {
            ring.end();
        }
        result
    }
}

/// Logs an error where somebody may look for it, and gives the number for the kernel.
fn fail(error: &Error) -> Code {
    let code = error.errno();
    match code {
        sys::EIO | sys::ENOSPC | sys::EMFILE | sys::ESTALE => log::warn!("{error}"),
        _ => log::debug!("{error}"),
    }
    code
}
