//! Starting the server of a mount: in this process, or in a forked one that tells when it is ready.
//!
//! The tale between the two is one pipe: a single zero byte once the mount answers, or else the
//! error in four fields. Its end without either means that the server died.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use plyfs_fuse::{Counters, Options, Session};

use crate::error::{Context, Error, Result};
use crate::sys::{self, Child};

const READY: &[u8] = &[0];

/// How a forked server lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is unmounted; it keeps no terminal, stream or directory of its starter.
    Detached,
    /// No longer than its starter, whose end unmounts it; it keeps the starter's standard error.
    Bound,
}

/// The options and the mountpoint with every path made absolute, so that a server may leave the
/// directory it was started in.
pub fn absolute(mut options: Options, mountpoint: &Path) -> Result<(Options, PathBuf)> {
    let layers = options.lowers.iter_mut().chain(&mut options.data_lowers);
    for path in layers.chain(&mut options.upper).chain(&mut options.work) {
        *path = std::path::absolute(&path).on("resolve", &path)?;
    }
    let mountpoint = std::path::absolute(mountpoint).on("resolve", mountpoint)?;
    Ok((options, mountpoint))
}

/// Mounts and serves in this process until unmounted; `ready` is called once the mount answers.
/// Returns what serving took.
pub fn foreground(
    options: Options,
    mountpoint: &Path,
    ready: impl FnOnce() -> Result<()>,
) -> Result<Counters> {
    let session = prepare(options, mountpoint)?;
    let counters = session.counters();
    ready()?;
    session.run()?;
    Ok(counters)
}

/// Mounts and serves in a new process. Returns it once the mount answers.
pub fn start(options: Options, mountpoint: &Path, lifetime: Lifetime) -> Result<Child> {
    let (reading, writing) = sys::pipe().on("pipe", "")?;
    let child = sys::fork(|| match serve(options, mountpoint, lifetime, &writing) {
        Ok(()) => 0,
        Err(error) => {
            tell(&writing, &encode(&error));
            1
        }
    })
    .on("fork", "")?;
    drop(writing);
    match wait_until_ready(reading, mountpoint) {
        Ok(()) => Ok(child),
        Err(error) => {
            // It has closed its end of the pipe, so it ends by itself; its status says no more.
            if let Err(error) = child.wait() {
                log::debug!("wait for the server: {error}");
            }
            Err(error)
        }
    }
}

fn serve(options: Options, mountpoint: &Path, lifetime: Lifetime, ready: &File) -> Result<()> {
    sys::unblock_signals().on("unblock signals", "")?;
    sys::new_session().on("setsid", "")?;
    if lifetime == Lifetime::Bound {
        sys::exit_with_parent(sys::SIGTERM).on("prctl", "")?;
    }
    // Layers may be named by them, so they stay open until the layers are.
    let inherited = sys::inherited();
    let session = prepare(options, mountpoint)?;
    if lifetime == Lifetime::Detached {
        sys::close_stdio().on("open", "/dev/null")?;
        sys::close_inherited(&inherited);
    }
    std::env::set_current_dir("/").on("chdir", "/")?;
    tell(ready, READY);
    Ok(session.run()?)
}

fn prepare(options: Options, mountpoint: &Path) -> Result<Session> {
    if let Err(error) = sys::raise_open_files() {
        log::debug!("raise the limit of open files: {error}");
    }
    // What users write through the mount is held to their limits, as the kernel's overlay does.
    if let Err(error) = sys::keep_to_limits() {
        log::debug!("give up CAP_SYS_RESOURCE: {error}");
    }
    // A name over our own mount's directory is resolved once, here; the server never walks it again.
    Ok(plyfs_fuse::mount(options, mountpoint)?)
}

/// The starter may have gone; then nobody is left to be told.
fn tell(mut pipe: &File, bytes: &[u8]) {
    if let Err(error) = pipe.write_all(bytes) {
        log::debug!("tell the starter: {error}");
    }
}

fn wait_until_ready(mut pipe: File, mountpoint: &Path) -> Result<()> {
    let mut first = [0];
    if pipe.read(&mut first).on("read", "pipe")? == 0 {
        let died = io::Error::other("the server died before it was ready");
        return Err(Error::io("mount", mountpoint, died));
    }
    if first == READY {
        return Ok(());
    }
    let mut rest = first.to_vec();
    pipe.read_to_end(&mut rest).on("read", "pipe")?;
    Err(decode(&rest))
}

/// An error as `number NUL op NUL path NUL text`: a number above 0 is the system's and needs no text.
pub(crate) fn encode(error: &Error) -> Vec<u8> {
    let (number, op, path, text) = match error {
        Error::Io { op, path, source } => {
            (source.raw_os_error().unwrap_or(0), op.as_ref(), path.as_path(), source.to_string())
        }
        other => (0, "", Path::new(""), other.to_string()),
    };
    let mut out = format!("{number}\0{op}\0").into_bytes();
    out.extend_from_slice(path.as_os_str().as_bytes());
    out.push(0);
    out.extend_from_slice(text.as_bytes());
    out
}

/// The error that [`encode`] was given, as far as it tells.
pub(crate) fn decode(bytes: &[u8]) -> Error {
    let mut fields = bytes.splitn(4, |byte| *byte == 0);
    let mut text = || fields.next().map(<[u8]>::to_vec).unwrap_or_default();
    let (number, op, path, words) = (text(), text(), text(), text());
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let source = match lossy(&number).parse() {
        Ok(number) if number > 0 => io::Error::from_raw_os_error(number),
        _ => io::Error::other(lossy(&words)),
    };
    Error::io(lossy(&op), PathBuf::from(std::ffi::OsString::from_vec(path)), source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_pipe() {
        let errors = [
            Error::io("open", "/a b", io::Error::from_raw_os_error(2)),
            Error::io("mount", "/m", io::Error::other("refused: why")),
            Error::invalid("upperdir", "is a lower too"),
            Error::io("fork", "", io::Error::from_raw_os_error(11)),
        ];
        for error in errors {
            assert_eq!(decode(&encode(&error)).to_string(), error.to_string());
        }
    }
}
