//! The drop-in mount helper: the arguments of fuse-overlayfs, of mount(8)'s helpers and of libfuse.
//!
//! Silent when all is well, since callers quote every line of standard error as a failure. What is
//! not known is warned about once and never fatal: callers pass on options of other programs. The
//! last word that is no option is the mountpoint; those before it name a source and are ignored.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use plyfs_fuse::Options;
use plyfs_fuse::options::{RedirectDir, Whiteouts};

use super::{DROP_IN_VERSION, Failure, mount};
use crate::error::Error;
use crate::mount::serve::{self, Lifetime};
use crate::sys;

/// The name we stand in for; shown as subtype and source of the mount.
const DROP_IN: &str = "fuse-overlayfs";

/// The names under which mount(8) calls us.
const MOUNT_HELPERS: [&str; 2] = ["mount.plyfs", "mount.fuse.plyfs"];

/// Put in front of every list, so that the caller's own options win.
const DEFAULTS_OF_ROOT: &str = "default_permissions,allow_other,suid,noatime";
const DEFAULTS: &str = "default_permissions,noatime";

/// Set by callers whose stores can hold no whiteout devices.
const NO_DEVICES: &str = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT";

const HELP: &str = "\
usage: fuse-overlayfs [options] [-o LIST]... MOUNTPOINT

    -o LIST          options separated by commas: lowerdir=A:B, upperdir=U, workdir=W, ...
    -f               stay in the foreground
    -d, --debug      log every request; implies -f
    -h, --help       this text
    -V, --version    the version

`plyfs mount --help` explains the options of a list.";

/// A command line, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    lists: Vec<OsString>,
    target: Option<OsString>,
    foreground: bool,
    debug: bool,
    help: bool,
    version: bool,
    unknown: BTreeSet<String>,
}

/// The name the mount is to show, when we are called as the drop-in.
pub(super) fn name(arguments: &[OsString]) -> Option<&'static str> {
    let program = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    if program == DROP_IN {
        return Some(DROP_IN);
    }
    if MOUNT_HELPERS.into_iter().any(|helper| program == helper) {
        return Some("plyfs");
    }
    let first = arguments.get(1)?;
    first.as_bytes().starts_with(b"-o").then_some(DROP_IN)
}

/// Does what the arguments (without the program's name) ask for.
pub(super) fn run(name: &str, arguments: &[OsString]) -> Result<u8, Failure> {
    let call = parse(arguments)?;
    if call.version {
        super::print(
            format!("{DROP_IN_VERSION}\nplyfs: version {}\n", env!("CARGO_PKG_VERSION")).as_bytes(),
        )?;
        return Ok(0);
    }
    if call.help {
        super::print(format!("{HELP}\n").as_bytes())?;
        return Ok(0);
    }
    if let Some(target) = &call.target {
        if mount::remount(&call.lists, Path::new(target))? {
            return Ok(0);
        }
    }
    let no_devices = std::env::var_os(NO_DEVICES).is_some();
    let options = options(&call, name, sys::is_root(), no_devices)?;
    super::start_log(options.mount.debug);
    let unknown = call.unknown.iter().map(|flag| format!("unknown argument '{flag}' is ignored"));
    unknown.chain(options.warnings.iter().cloned()).for_each(|text| super::warn(&text));
    let target = call.target.ok_or_else(|| Error::invalid("mountpoint", "missing"))?;
    let (options, target) = serve::absolute(options, Path::new(&target))?;
    if call.foreground || options.mount.debug {
        serve::foreground(options, &target, || Ok(()))?;
    } else {
        serve::start(options, &target, Lifetime::Detached)?;
    }
    Ok(0)
}

fn parse(arguments: &[OsString]) -> crate::Result<Call> {
    let mut call = Call::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_bytes() {
            b"-o" => match rest.next() {
                Some(list) => call.lists.push(list.clone()),
                None => return Err(Error::invalid("argument '-o'", "needs a list of options")),
            },
            [b'-', b'o', list @ ..] => call.lists.push(OsStr::from_bytes(list).to_owned()),
            b"-f" | b"--foreground" => call.foreground = true,
            b"-d" | b"--debug" => call.debug = true,
            b"-h" | b"--help" => call.help = true,
            b"-V" | b"--version" => call.version = true,
            // Of libfuse (single thread) and of mount(8) (sloppy, no mtab, verbose): nothing to do.
            b"-s" | b"-n" | b"-v" => {}
            // Of mount(8), with a word of their own: the type and the namespace.
            b"-t" | b"-N" => drop(rest.next()),
            b"--" => call.target = rest.next_back().cloned().or(call.target.take()),
            [b'-', _, ..] => drop(call.unknown.insert(argument.to_string_lossy().into_owned())),
            _ => call.target = Some(argument.clone()),
        }
        if call.target.is_some() && argument == "--" {
            break;
        }
    }
    Ok(call)
}

fn options(call: &Call, name: &str, is_root: bool, no_devices: bool) -> crate::Result<Options> {
    let mut lists = vec![OsString::from(if is_root { DEFAULTS_OF_ROOT } else { DEFAULTS })];
    lists.extend(call.lists.iter().cloned());
    let mut options = mount::parse(&mount::join(&lists))?;
    mount::name(&mut options, name);
    options.mount.debug |= call.debug;
    // Stores that call us share their layers with programs that read no redirects.
    if options.redirect_dir == RedirectDir::Auto {
        options.redirect_dir = RedirectDir::Copy;
    }
    if no_devices {
        options.whiteouts = Whiteouts::Dot;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn names_we_answer_to() {
        let table = [
            ("/usr/bin/fuse-overlayfs", Some(DROP_IN)),
            ("fuse-overlayfs --version", Some(DROP_IN)),
            ("/sbin/mount.plyfs a b", Some("plyfs")),
            ("mount.fuse.plyfs a b", Some("plyfs")),
            ("plyfs -o lowerdir=/a /m", Some(DROP_IN)),
            ("plyfs -olowerdir=/a /m", Some(DROP_IN)),
            ("plyfs mount -o lowerdir=/a /m", None),
            ("/opt/fuse-overlayfs/plyfs --version", None),
            ("plyfs", None),
            ("", None),
        ];
        for (line, wanted) in table {
            assert_eq!(name(&words(line)), wanted, "{line}");
        }
    }

    #[test]
    fn lists_and_target_in_any_order() {
        let table = [
            ("-o a,b /m", "a,b", "/m"),
            ("/m -o a,b", "a,b", "/m"),
            ("-oa -o b /m", "a,b", "/m"),
            ("source /m -o a -o b", "a,b", "/m"),
            ("source /m -ob -s -n -v -t fuse.plyfs -N 3", "b", "/m"),
            ("-o a -- /m", "a", "/m"),
            ("-o a -- source -m", "a", "-m"),
            ("-o a /m --", "a", "/m"),
            ("- -o a", "a", "-"),
        ];
        for (line, list, target) in table {
            let call = parse(&words(line)).unwrap();
            assert_eq!(mount::join(&call.lists), list, "{line}");
            assert_eq!(call.target.as_deref(), Some(OsStr::new(target)), "{line}");
            assert!(call.unknown.is_empty(), "{line}");
        }
    }

    #[test]
    fn flags_are_understood_or_remembered_once() {
        let call = parse(&words("-f -d -h -V --weird -z --weird /m")).unwrap();
        assert!(call.foreground && call.debug && call.help && call.version);
        assert_eq!(call.unknown.into_iter().collect::<Vec<_>>(), ["--weird", "-z"]);
        assert!(parse(&words("/m -o")).is_err());
    }

    #[test]
    fn defaults_come_first() {
        let call = parse(&words("-o lowerdir=/a,nosuid,atime /m")).unwrap();
        let root = options(&call, DROP_IN, true, false).unwrap();
        assert_eq!((root.mount.allow_other, root.mount.suid), (Some(true), Some(false)));
        assert_eq!(root.mount.atime, Some(true));
        assert_eq!((root.redirect_dir, root.whiteouts), (RedirectDir::Copy, Whiteouts::Auto));
        assert_eq!(root.mount.subtype.as_deref(), Some(DROP_IN));
        let user =
            options(&parse(&words("-o lowerdir=/a /m")).unwrap(), "plyfs", false, true).unwrap();
        assert_eq!((user.mount.allow_other, user.mount.suid), (None, None));
        assert_eq!((user.mount.atime, user.whiteouts), (Some(false), Whiteouts::Dot));
        assert_eq!(user.mount.fsname.as_deref(), Some("plyfs"));
    }

    #[test]
    fn asked_for_redirects_are_kept() {
        let call = parse(&words("-o lowerdir=/a,redirect_dir=off /m")).unwrap();
        assert_eq!(options(&call, DROP_IN, true, false).unwrap().redirect_dir, RedirectDir::Off);
    }
}
