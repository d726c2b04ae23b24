//! Mounting the kernel's overlay: by descriptors, layer by layer, so that neither the number of layers nor the length of
//! their names is bound by a page; and by the old call, with one list of options, where a kernel or a filter does not know
//! the newer ones.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::super::table::MountPoint;
use super::{Mount, ids};
use crate::error::{Context as _, Error, Result};
use crate::sys::context::{self, Context, Detached};
use crate::sys::{self, probe, publish, trash};

/// The longest text that one option may be set to (fsconfig(2)).
const TEXT_LIMIT: usize = 255;

/// Why the newer calls did not serve.
enum Failure {
    /// They are not there, or do not know how to take layers one by one.
    Unknown(io::Error),
    /// They are, and this is what they say.
    Said(io::Error),
    /// This host cannot do it.
    Refused(Error),
}

/// Mounts at the target, which exists.
pub(super) fn perform(mount: &Mount) -> Result<()> {
    let said = |error| refused(mount, error);
    match made(mount) {
        Ok(made) => made.attach(&mount.target).map_err(said),
        Err(Failure::Said(error)) => Err(said(error)),
        Err(Failure::Refused(error)) => Err(error),
        Err(Failure::Unknown(why)) => by_text(mount, &why),
    }
}

/// A mount that was made to see whether it can be.
#[derive(Debug)]
pub enum Attempt {
    /// It is nowhere, and goes with this value.
    Detached(PathBuf, Detached),
    /// It is at this path.
    Attached(PathBuf),
}

impl Attempt {
    /// Where this process can use it.
    pub fn path(&self) -> &Path {
        match self {
            Attempt::Detached(path, _) | Attempt::Attached(path) => path,
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Attempt::Attached(path) = self {
            if let Err(error) = sys::unmount(path, true) {
                log::warn!("unmount {}: {error}", path.display());
            }
        }
    }
}

/// Mounts to try, without anybody else seeing it where the newer calls are known, at the target otherwise.
pub fn trial(mount: &Mount) -> Result<Attempt> {
    // The end of any other would write out everything on the filesystem, whosever it is.
    let mut hasty = mount.clone();
    hasty.options.push("volatile".to_owned());
    match made(&hasty).or_else(|_| made(mount)) {
        Ok(made) => Ok(Attempt::Detached(made.path(), made)),
        Err(Failure::Said(error)) => Err(refused(mount, error)),
        Err(Failure::Refused(error)) => Err(error),
        Err(Failure::Unknown(why)) => {
            super::make_target(&mount.target)?;
            by_text(mount, &why)?;
            Ok(Attempt::Attached(mount.target.clone()))
        }
    }
}

/// What cannot work here, whatever is mounted, is unsupported.
fn refused(mount: &Mount, error: io::Error) -> Error {
    let feature = "the kernel's overlay";
    match error.raw_os_error() {
        Some(probe::ENODEV) => Error::unsupported(feature, "not in this kernel"),
        Some(sys::EPERM) if sys::is_root() => Error::unsupported(feature, super::MAY_NOT_MOUNT),
        Some(sys::EPERM) => Error::unsupported(feature, "needs root, or root of a user namespace"),
        _ => Error::io("mount", &mount.target, error),
    }
}

/// The mount, nowhere, where the newer calls are known.
fn made(mount: &Mount) -> std::result::Result<Detached, Failure> {
    let shown = ids::lowers(mount).map_err(Failure::Refused)?;
    match detached(mount, &shown) {
        Err(Failure::Unknown(why)) if !shown.is_empty() => {
            log::debug!("lower layers with other ids are mounted apart: {why}");
            apart(mount, &shown).map_err(Failure::Refused)
        }
        // Also of a kernel that knows the calls and takes no mount that is nowhere.
        Err(Failure::Said(why)) if !shown.is_empty() && why.kind() == ErrorKind::InvalidInput => {
            apart(mount, &shown).map_err(|_| Failure::Said(why))
        }
        other => other,
    }
}

/// By the old call, where the layers' mounts can be found by name.
fn apart(mount: &Mount, shown: &[Detached]) -> Result<Detached> {
    super::make_target(&mount.target)?;
    let numbers = (0..shown.len()).map(|number| PathBuf::from(number.to_string())).collect();
    let absolute = |path: &PathBuf| std::path::absolute(path).on("resolve", path);
    let upper = match &mount.upper {
        Some((upper, work)) => Some((absolute(upper)?, absolute(work)?)),
        None => None,
    };
    let target = absolute(&mount.target)?;
    let mount = Mount { lowers: numbers, upper, target, ..mount.clone() };
    ids::apart(&mount, shown, &list(&mount)).map_err(|error| match sys::is(&error, sys::EINVAL) {
        true => ids::unsupported(
            "this kernel's overlay takes no such layers (Linux 5.19 does), or not these options",
        ),
        false => refused(&mount, error),
    })
}

fn detached(mount: &Mount, shown: &[Detached]) -> std::result::Result<Detached, Failure> {
    let context = match Context::open("overlay") {
        // Not known, or not let through.
        Err(error) if is_any(&error, &[sys::ENOSYS, sys::EPERM]) => {
            return Err(Failure::Unknown(error));
        }
        other => other.map_err(Failure::Said)?,
    };
    // Where the old call is behind the new ones (before Linux 6.5), every word is taken until the mount is made: this one
    // lacks what it needs.
    if context.flag("lowerdir+").is_ok() {
        let why = "layers are named in one text";
        return Err(Failure::Unknown(io::Error::other(why)));
    }
    drop(context.messages());
    let mut held = Vec::new();
    set_options(&context, mount).map_err(|error| worded(&context, error))?;
    for (number, lower) in mount.lowers.iter().enumerate() {
        let set = match shown.get(number) {
            Some(shown) => set_shown(&context, shown),
            None => set_layer(&context, "lowerdir+", lower, &mut held),
        };
        match set {
            Err(error) if number == 0 && sys::is(&error, sys::EINVAL) => {
                return Err(Failure::Unknown(error));
            }
            other => other.map_err(|error| worded(&context, error))?,
        }
    }
    if let Some((upper, work)) = &mount.upper {
        for (key, path) in [("upperdir", upper), ("workdir", work)] {
            let set = set_layer(&context, key, path, &mut held);
            set.map_err(|error| worded(&context, error))?;
        }
    }
    context.create(is_read_only(mount)).map_err(|error| worded(&context, error))
}

fn set_options(context: &Context, mount: &Mount) -> io::Result<()> {
    context.text("source", OsStr::new("plyfs"))?;
    for option in &mount.options {
        match option.split_once('=') {
            Some((key, value)) => context.text(key, OsStr::new(value.trim_matches('"')))?,
            None => context.flag(option)?,
        }
    }
    Ok(())
}

/// Names a lower layer that is a mount of its own.
fn set_shown(context: &Context, shown: &Detached) -> io::Result<()> {
    match context.file("lowerdir+", shown.as_fd()) {
        Err(error) if sys::is(&error, sys::EINVAL) => {
            context.text("lowerdir+", shown.path().as_os_str())
        }
        other => other,
    }
}

/// Names a layer by descriptor; for kernels that take only text, by path, or by the descriptor's path, which is short.
fn set_layer(context: &Context, key: &str, path: &Path, held: &mut Vec<OwnedFd>) -> io::Result<()> {
    let layer = context::open_layer(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    match context.file(key, layer.as_fd()) {
        Err(error) if sys::is(&error, sys::EINVAL) => {}
        other => return other,
    }
    if path.as_os_str().len() <= TEXT_LIMIT {
        return context.text(key, path.as_os_str());
    }
    let short = format!("/proc/self/fd/{}", layer.as_raw_fd());
    held.push(layer);
    context.text(key, OsStr::new(&short))
}

/// An error with what the kernel has said beside its number.
fn worded(context: &Context, error: io::Error) -> Failure {
    let keep = is_any(&error, &[probe::ENODEV, sys::EPERM]);
    match context.messages() {
        said if said.is_empty() || keep => Failure::Said(error),
        said => Failure::Said(io::Error::new(error.kind(), format!("{error}: {said}"))),
    }
}

fn is_any(error: &io::Error, codes: &[i32]) -> bool {
    codes.iter().any(|code| sys::is(error, *code))
}

/// By the old call; `why` the newer ones did not serve. Where the layers' names are too long, their descriptors' are short.
fn by_text(mount: &Mount, why: &io::Error) -> Result<()> {
    let list = list(mount);
    let done = if list.len() < publish::page_size() {
        context::mount_by_text("overlay", &mount.target, &list, is_read_only(mount))
    } else {
        by_numbers(mount, why)?
    };
    done.map_err(|error| match sys::is(&error, sys::EINVAL) && !mount.options.is_empty() {
        // The old call has no words for which one.
        true => {
            let options = mount.options.join(",");
            let why = format!("{error} (options {options}; the kernel's log may say more)");
            Error::io("mount", &mount.target, io::Error::new(error.kind(), why))
        }
        false => refused(mount, error),
    })
}

/// The same with every lower layer named by the number of a descriptor.
fn by_numbers(mount: &Mount, why: &io::Error) -> Result<io::Result<()>> {
    let open = |path: &PathBuf| context::open_layer(path).on("open", path);
    let layers: Vec<OwnedFd> = mount.lowers.iter().map(open).collect::<Result<_>>()?;
    let lowers = layers.iter().map(|layer| PathBuf::from(layer.as_raw_fd().to_string())).collect();
    let absolute = |path: &PathBuf| std::path::absolute(path).on("resolve", path);
    let upper = match &mount.upper {
        Some((upper, work)) => Some((absolute(upper)?, absolute(work)?)),
        None => None,
    };
    let target = absolute(&mount.target)?;
    let list = list(&Mount { lowers, upper, ..mount.clone() });
    if list.len() >= publish::page_size() {
        let what = format!("mount of {} layers", mount.lowers.len());
        let why = format!(
            "mount(2) takes a page of options, these are {} bytes, and the newer calls say: {why}",
            list.len()
        );
        return Err(Error::unsupported(what, why));
    }
    Ok(context::mount_by_numbers("overlay", &target, &list, is_read_only(mount)))
}

/// A volatile mount leaves a mark with which the kernel refuses any other on the same directories: what was written may not be
/// on disk. The directory that has it.
pub(super) fn marks(mount: &MountPoint) -> Option<PathBuf> {
    let mut words = mount.options.split(',');
    let volatile = words.any(|word| word == "volatile" || word == "fsync=volatile");
    let work = mount.workdir.as_ref()?;
    // Kernels before 6.5 show what mount(2) was given, escaped as it was.
    let work = if work.is_dir() { work.clone() } else { unescaped(work) };
    (mount.kind == "overlay" && volatile).then(|| work.join("work/incompat"))
}

/// Writes out what was written through a volatile mount, after an orderly end, and removes its mark.
pub(super) fn settle(marks: &Path) {
    let settled = publish::sync_filesystem(marks)
        .and_then(|()| trash::delete(marks, OsStr::new("volatile"), None));
    if let Err(error) = settled {
        log::warn!("{}: its mark of a volatile mount stays: {error}", marks.display());
    }
}

/// Words that mount(2) has a flag for, and takes for unknown options.
const FLAGS: [&str; 2] = ["ro", "rw"];

/// Whether nothing can be written through it.
pub(super) fn is_read_only(mount: &Mount) -> bool {
    let said = mount.options.iter().rfind(|option| FLAGS.contains(&option.as_str()));
    mount.upper.is_none() || said.is_some_and(|said| said == "ro")
}

/// The options as mount(2) takes them.
fn list(mount: &Mount) -> OsString {
    let mut list = Vec::new();
    for option in mount.options.iter().filter(|option| !FLAGS.contains(&option.as_str())) {
        list.extend_from_slice(option.as_bytes());
        list.push(b',');
    }
    list.extend_from_slice(b"lowerdir=");
    for (number, lower) in mount.lowers.iter().enumerate() {
        if number > 0 {
            list.push(b':');
        }
        escape(lower, &mut list);
    }
    if let Some((upper, work)) = &mount.upper {
        list.extend_from_slice(b",upperdir=");
        escape(upper, &mut list);
        list.extend_from_slice(b",workdir=");
        escape(work, &mut list);
    }
    OsString::from_vec(list)
}

fn escape(path: &Path, list: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            list.push(b'\\');
        }
        list.push(*byte);
    }
}

/// What [`escape`] was given.
fn unescaped(path: &Path) -> PathBuf {
    let (mut plain, mut bytes) = (Vec::new(), path.as_os_str().as_bytes().iter());
    while let Some(byte) = bytes.next() {
        plain.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_is_understood() {
        for path in ["/plain", "/a,b:c\\d", "/\\\\,", "/\\"].map(Path::new) {
            let mut list = Vec::new();
            escape(path, &mut list);
            assert_eq!(unescaped(Path::new(&OsString::from_vec(list))), path);
        }
    }
    use crate::mount::plan::Kind;

    fn mount(lowers: usize) -> Mount {
        Mount {
            kind: Kind::Overlay,
            lowers: (0..lowers).map(|number| PathBuf::from(format!("/a:b/{number}"))).collect(),
            upper: Some((PathBuf::from("/u,p"), PathBuf::from("/w"))),
            options: vec!["index=off".to_owned()],
            ids: sys::Ids::default(),
            target: PathBuf::from("/none"),
        }
    }

    #[test]
    fn what_is_a_flag_is_no_word_of_the_list() {
        let options = |words: &[&str]| Mount {
            options: words.iter().map(|word| (*word).to_owned()).collect(),
            ..mount(1)
        };
        for (words, read_only) in
            [(&["index=off", "ro"][..], true), (&["ro", "index=off", "rw"], false)]
        {
            assert_eq!(list(&options(words)), list(&mount(1)));
            assert_eq!(is_read_only(&options(words)), read_only);
        }
        assert!(is_read_only(&Mount { upper: None, ..options(&["rw"]) }));
    }

    #[test]
    fn a_list_keeps_every_name_one() {
        let wanted = "index=off,lowerdir=/a\\:b/0:/a\\:b/1,upperdir=/u\\,p,workdir=/w";
        assert_eq!(list(&mount(2)), wanted);
    }

    #[test]
    fn a_list_longer_than_a_page_is_refused() {
        let why = io::Error::from_raw_os_error(sys::ENOSYS);
        let mut wide = mount(1);
        wide.lowers = vec![PathBuf::from("/")];
        wide.options = vec!["x".repeat(publish::page_size())];
        let error = by_text(&wide, &why).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("mount of 1 layers"), "{error}");
    }
}
