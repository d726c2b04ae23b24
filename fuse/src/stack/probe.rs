//! What the upper filesystem can do, found by doing.
//!
//! A full filesystem can be mounted: how else would anybody delete something there. A call that says
//! "no room" got past what refuses it for good (the right to make a device or to set an attribute, the
//! filesystem knowing them at all), so what it was to show counts as shown. A [`Feature`] that nothing
//! can be told of is asked again when it is needed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::OnceLock;

use crate::error::{Context, Error, Result};
use crate::options::{Namespace, Options, Whiteouts};
use crate::sys;
use crate::whiteout::{Dialect, Space, Style, is_device};
use crate::workdir::Workdir;

/// What was found.
pub(super) struct Probe {
    pub(super) dialect: Dialect,
    pub(super) rename_whiteout: Feature,
    pub(super) exchange: Feature,
}

/// A call that some filesystems have, known once there was room to try it.
#[derive(Debug)]
pub(crate) struct Feature {
    known: OnceLock<bool>,
    probe: fn(&Workdir) -> io::Result<bool>,
}

impl Feature {
    fn new(work: &Workdir, probe: fn(&Workdir) -> io::Result<bool>) -> Feature {
        let feature = Feature { known: OnceLock::new(), probe };
        if let Err(e) = feature.get(work) {
            log::debug!("a probe of the upper filesystem has to wait: {e}");
        }
        feature
    }

    fn absent() -> Feature {
        Feature { known: OnceLock::from(false), probe: |_| Ok(false) }
    }

    /// Whether it is there; an error only when there is no room to find out.
    pub(crate) fn get(&self, work: &Workdir) -> io::Result<bool> {
        if let Some(known) = self.known.get() {
            return Ok(*known);
        }
        let found = (self.probe)(work)?;
        Ok(*self.known.get_or_init(|| found))
    }
}

/// Whether a call failed for want of room only.
pub(super) fn no_room(error: &io::Error) -> bool {
    matches!(sys::errno(error), sys::ENOSPC | sys::EDQUOT)
}

/// Whether a call worked, or had worked if there were room.
fn would_work<T>(result: &io::Result<T>) -> bool {
    result.as_ref().map_or_else(no_room, |_| true)
}

/// Whether a call worked; an error when it would have worked if there were room.
fn worked(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Err(e) if no_room(&e) => Err(e),
        other => Ok(other.is_ok()),
    }
}

/// Probes the filesystem of `upper` in its work directory.
pub(super) fn probe(
    work: &Workdir,
    options: &Options,
    (upper, work_path): (&Path, &Path),
) -> Result<Probe> {
    let file = work.temp();
    let made = sys::mknod(file.dir(), file.name(), sys::S_IFREG | 0o600, 0);
    let name = match made {
        Err(e) if no_room(&e) => OsStr::new(""),
        other => other.map(|()| file.name()).on("write work directory", work_path)?,
    };
    let space = probe_space((work.dir(), name), options.namespace, upper)?;
    let style = probe_style(work, space, options.whiteouts).on("probe upper directory", upper)?;
    let rename_whiteout = match style {
        Style::Device => Feature::new(work, probe_rename_whiteout),
        Style::Dot | Style::Xattr => Feature::absent(),
    };
    Ok(Probe {
        dialect: Dialect { space, style },
        rename_whiteout,
        exchange: Feature::new(work, probe_exchange),
    })
}

fn probe_space(
    (dir, name): (BorrowedFd<'_>, &OsStr),
    namespace: Namespace,
    upper: &Path,
) -> Result<Space> {
    let works = |space: Space| {
        let key = space.key("probe");
        let set = sys::set_xattr(dir, name, &key, b"y", 0);
        if set.is_ok() && name.is_empty() {
            if let Err(e) = sys::remove_xattr(dir, name, &key) {
                log::debug!("work directory: {key:?} stays: {e}");
            }
        }
        would_work(&set)
    };
    let refuse = |why| Err(Error::refuse("mount", upper, why));
    match namespace {
        Namespace::User if works(Space::User) => Ok(Space::User),
        Namespace::Trusted | Namespace::Auto if works(Space::Trusted) => Ok(Space::Trusted),
        Namespace::Auto if works(Space::User) => Ok(Space::User),
        Namespace::Auto => Ok(Space::None),
        Namespace::User => refuse(
            "userxattr was given, but its filesystem takes no user.* attributes; leave userxattr out \
             or put the upper directory on another filesystem",
        ),
        Namespace::Trusted => refuse(
            "nouserxattr was given, but trusted.* attributes cannot be set here: they need root of \
             the initial user namespace and a filesystem that has them; leave nouserxattr out",
        ),
    }
}

/// How deletions can be written: as asked for; else as devices, as files, or, inside another overlay,
/// which takes neither, as xattrs.
fn probe_style(work: &Workdir, space: Space, asked: Whiteouts) -> io::Result<Style> {
    let works = |style: Style| match style {
        Style::Device => probe_device(work),
        Style::Dot => probe_dot(work),
        Style::Xattr => space != Space::None,
    };
    let (styles, what): (&[Style], _) = match asked {
        Whiteouts::Auto => (&[Style::Device, Style::Dot, Style::Xattr], "any sort of"),
        Whiteouts::Device => (&[Style::Device], "device"),
        Whiteouts::Dot => (&[Style::Dot], ".wh."),
        Whiteouts::Xattr => (&[Style::Xattr], "xattr"),
    };
    styles.iter().copied().find(|style| works(*style)).ok_or_else(|| {
        let why = format!(
            "it refuses {what} whiteouts, so nothing could be deleted; put the upper directory on \
             another filesystem{}",
            if asked == Whiteouts::Auto { "" } else { " or leave out whiteouts=" }
        );
        io::Error::new(io::ErrorKind::Unsupported, why)
    })
}

fn probe_device(work: &Workdir) -> bool {
    let temp = work.temp();
    match sys::mknod(temp.dir(), temp.name(), sys::S_IFCHR, 0) {
        Ok(()) => sys::stat(temp.dir(), temp.name()).is_ok_and(|stat| is_device(&stat)),
        Err(e) => no_room(&e),
    }
}

fn probe_dot(work: &Workdir) -> bool {
    let name = OsStr::new(".wh.#plyfs-probe");
    match sys::mknod(work.dir(), name, sys::S_IFREG | 0o600, 0) {
        Ok(()) => sys::unlink(work.dir(), name).is_ok(),
        Err(e) => no_room(&e),
    }
}

fn probe_rename_whiteout(work: &Workdir) -> io::Result<bool> {
    let (from, to) = (work.temp(), work.temp());
    sys::mknod(from.dir(), from.name(), sys::S_IFREG | 0o600, 0)?;
    let renamed = sys::rename(from.dir(), from.name(), to.dir(), to.name(), sys::RENAME_WHITEOUT);
    Ok(worked(renamed)? && sys::stat(from.dir(), from.name()).is_ok_and(|stat| is_device(&stat)))
}

fn probe_exchange(work: &Workdir) -> io::Result<bool> {
    let (a, b) = (work.temp(), work.temp());
    sys::mknod(a.dir(), a.name(), sys::S_IFREG | 0o600, 0)?;
    match sys::mkdir(b.dir(), b.name(), 0o700) {
        // A directory takes a block as well as an inode; a file shows nearly as much.
        Err(e) if no_room(&e) => sys::mknod(b.dir(), b.name(), sys::S_IFREG | 0o600, 0)?,
        other => other?,
    }
    worked(sys::rename(a.dir(), a.name(), b.dir(), b.name(), sys::RENAME_EXCHANGE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI32, Ordering};

    #[test]
    fn a_feature_is_asked_again_until_there_is_room_to_tell() {
        static SAYS: AtomicI32 = AtomicI32::new(sys::ENOSPC);
        let dir = tempfile::tempdir().unwrap();
        let root = sys::open_root(dir.path()).unwrap();
        let work = Workdir::open(root, dir.path()).unwrap();
        let feature = Feature::new(&work, |_| match SAYS.load(Ordering::Relaxed) {
            0 => Ok(true),
            code => Err(io::Error::from_raw_os_error(code)),
        });
        assert!(sys::is(&feature.get(&work), sys::ENOSPC));
        SAYS.store(0, Ordering::Relaxed);
        assert!(feature.get(&work).unwrap());
        SAYS.store(sys::EIO, Ordering::Relaxed);
        assert!(feature.get(&work).unwrap(), "what is known stays known");
    }
}
