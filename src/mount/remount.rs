//! `mount -o remount`: the flags of a mount that is there.
//!
//! The flags are the kernel's and may change at any time. Everything else was decided when the layers
//! were opened: saying it again is fine, as a line of /etc/fstab does; saying anything else is refused.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use plyfs_fuse::Options;
use plyfs_fuse::options::{MountFlags, OptionError};

use super::table::MountPoint;
use super::{find, holder};
use crate::error::{Error, Result};
use crate::sys::{self, NewFlags};

/// The options that name layers.
const LAYERS: [&str; 5] = ["lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"];

/// Gives the plyfs mount at `target` the flags that it has, changed by what `list` says. Returns what
/// was not understood.
pub fn remount(target: &Path, list: &OsStr) -> Result<Vec<String>> {
    let found = find(target)?;
    if !found.is_ours() {
        let why = format!("holds a mount of type {}, not one of plyfs", found.kind);
        return Err(Error::invalid(format!("'{}'", target.display()), why));
    }
    let running = running(&found);
    let warnings = check_unchanged(&found, &running, list)?;
    let flags = flags(&found, list)?;
    if !flags.read_only && !running.lowers.is_empty() && running.upper.is_none() {
        return Err(Error::invalid("option 'rw'", "the mount has no upper directory to write to"));
    }
    sys::remount(&found.target, &flags).map_err(|error| match error {
        error if sys::is(&error, sys::EBUSY) => {
            let by = "a process with a file open for writing there".to_owned();
            Error::InUse { kind: "mount", name: target.display().to_string(), by }
        }
        error => Error::io("remount", target, error),
    })?;
    Ok(warnings)
}

/// What the mount was made with, as the command line of its server says; the default where that is not
/// ours to see.
fn running(mount: &MountPoint) -> Options {
    let words = holder::command_line(mount).unwrap_or_default();
    let mut lists: Vec<OsString> = Vec::new();
    let mut rest = words.iter().skip(1);
    while let Some(word) = rest.next() {
        match word.as_bytes() {
            b"-o" => lists.extend(rest.next().cloned()),
            [b'-', b'o', list @ ..] => lists.push(OsStr::from_bytes(list).to_owned()),
            _ => {}
        }
    }
    Options::parse(lists.join(OsStr::new(","))).unwrap_or_default()
}

fn check_unchanged(mount: &MountPoint, running: &Options, list: &OsStr) -> Result<Vec<String>> {
    let before = fixed(running.clone());
    let (mut warnings, mut layers) = (Vec::new(), Vec::new());
    for word in Options::words(list) {
        // mount(8) says again what the table of mounts shows.
        if mount.options.split(',').any(|shown| word == shown) {
            continue;
        }
        let alone = Options::parse(&word).map_err(wrong)?;
        warnings.extend(alone.warnings);
        let name = word.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        if LAYERS.contains(&name.as_str()) {
            layers.push(word);
            continue;
        }
        let both = [running.to_list(), word].join(OsStr::new(","));
        if fixed(Options::parse(both).map_err(wrong)?) != before {
            return Err(changed(&name));
        }
    }
    let given = Options::parse(layers.join(OsStr::new(","))).map_err(wrong)?;
    let same = [
        ("lowerdir", given.lowers.is_empty() || given.lowers == running.lowers),
        ("datadir+", given.data_lowers.is_empty() || given.data_lowers == running.data_lowers),
        ("upperdir", given.upper.is_none() || given.upper == running.upper),
        ("workdir", given.work.is_none() || given.work == running.work),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((name, _)) => Err(changed(name)),
        None => Ok(warnings),
    }
}

/// The options without what a remount may change.
fn fixed(mut options: Options) -> Options {
    let mount = options.mount;
    options.mount = MountFlags {
        fsname: mount.fsname,
        subtype: mount.subtype,
        allow_other: mount.allow_other,
        allow_root: mount.allow_root,
        max_write: mount.max_write,
        max_read: mount.max_read,
        debug: mount.debug,
        context: mount.context,
        ..MountFlags::default()
    };
    options.warnings.clear();
    options
}

/// The flags in force, changed by the list.
fn flags(mount: &MountPoint, list: &OsStr) -> Result<NewFlags> {
    // The table shows these of the mount and of its filesystem: either forbids writing.
    let (writing, mut words): (Vec<&str>, Vec<&str>) =
        mount.options.split(',').partition(|word| ["ro", "rw"].contains(word));
    words.extend(writing.iter().find(|word| **word == "ro"));
    let in_force = OsString::from(words.join(","));
    let wanted =
        Options::parse([in_force.as_os_str(), list].join(OsStr::new(","))).map_err(wrong)?.mount;
    Ok(NewFlags {
        read_only: wanted.read_only,
        nosuid: wanted.suid == Some(false),
        nodev: wanted.dev == Some(false),
        noexec: wanted.exec == Some(false),
        noatime: wanted.atime == Some(false),
        nodiratime: wanted.diratime == Some(false),
        synchronous: wanted.sync,
        dirsync: wanted.dirsync,
    })
}

fn changed(name: &str) -> Error {
    let why = "cannot change while mounted; unmount, and mount again with it";
    Error::invalid(format!("option '{name}'"), why)
}

fn wrong(error: OptionError) -> Error {
    Error::invalid(format!("option '{}'", error.option), error.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(options: &str) -> MountPoint {
        MountPoint {
            id: 1,
            parent: 0,
            device: (0, 1),
            target: "/m".into(),
            kind: "fuse.plyfs".into(),
            source: "plyfs".into(),
            options: options.into(),
            workdir: None,
        }
    }

    #[test]
    fn flags_not_named_stay_as_they_are() {
        let table = [
            ("rw,noatime,rw,user_id=0", "remount,ro", "ro noatime"),
            ("ro,nosuid,rw", "remount,noexec", "ro nosuid noexec"),
            ("rw,noatime,ro", "remount,rw", "noatime"),
            ("ro,nosuid,nodev,ro", "remount,rw,suid,atime", "nodev"),
        ];
        for (shown, list, wanted) in table {
            let flags = flags(&mount(shown), OsStr::new(list)).unwrap();
            let named = [
                (flags.read_only, "ro"),
                (flags.nosuid, "nosuid"),
                (flags.nodev, "nodev"),
                (flags.noexec, "noexec"),
                (flags.noatime, "noatime"),
            ];
            let set: Vec<_> = named.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
            assert_eq!(set.join(" "), wanted, "{shown} {list}");
        }
    }

    #[test]
    fn what_was_said_at_the_mount_may_be_said_again() {
        let running =
            Options::parse("lowerdir=/a:/b,upperdir=/u,workdir=/w,metacopy=on,noatime").unwrap();
        let table = [
            ("ro,remount,user_id=0,default_permissions,allow_other", None),
            ("remount,lowerdir=/a:/b,upperdir=/u,workdir=/w,metacopy=on,x-a.b=c,noauto", None),
            ("remount,lowerdir+=/a,lowerdir+=/b", None),
            ("remount,lowerdir=/a", Some("option 'lowerdir'")),
            ("remount,upperdir=/v", Some("option 'upperdir'")),
            ("remount,metacopy=off", Some("option 'metacopy'")),
            ("remount,timeout=0", Some("option 'timeout'")),
            ("remount,noallow_other", Some("option 'noallow_other'")),
            ("remount,timeout=x", Some("option 'timeout'")),
        ];
        let mount = mount("rw,noatime,rw,user_id=0,default_permissions,allow_other");
        for (list, refused) in table {
            let result = check_unchanged(&mount, &running, OsStr::new(list));
            match (result, refused) {
                (Ok(warnings), None) => assert!(warnings.is_empty(), "{list}: {warnings:?}"),
                (Err(error), Some(start)) => {
                    assert!(error.to_string().starts_with(start), "{list}: {error}");
                }
                (result, _) => panic!("{list}: {result:?}"),
            }
        }
    }
}
