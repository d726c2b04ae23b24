//! Whether the kernel's overlay really works: a mount that succeeds proves nothing, since in the
//! wrong mode everything that needs an xattr fails later with EIO.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use super::scratch::Scratch;
use super::trial::{Answers, reason, while_doing};
use super::{Standing, namespace};
use crate::error::{Context, Result};
use crate::sys::probe;

/// One way of mounting.
struct Mode {
    keys: [&'static str; 3],
    /// Where the kernel keeps its marks.
    space: &'static str,
    options: &'static str,
}

const TRUSTED: Mode = Mode {
    keys: ["overlay.trusted", "overlay.trusted_redirect_dir", "overlay.trusted_metacopy"],
    space: "trusted",
    options: "",
};

const USER: Mode = Mode {
    keys: ["overlay.user", "overlay.user_redirect_dir", "overlay.user_metacopy"],
    space: "user",
    options: ",userxattr",
};

/// Tries both modes.
pub(super) fn probe(standing: Standing, scratch: &Scratch, answers: &mut Answers) -> Result<()> {
    if standing == Standing::User {
        answers.say(TRUSTED.keys[0], false, "needs root");
        TRUSTED.keys[1..].iter().for_each(|key| answers.say(key, false, "needs root"));
    } else {
        try_mode(&TRUSTED, namespace::enter_mounts, scratch, answers)?;
    }
    let enter =
        if standing == Standing::Inside { namespace::enter_mounts } else { namespace::enter_user };
    try_mode(&USER, enter, scratch, answers)?;
    if answers.get("overlay.kernel").is_none() {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        match known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
            true => answers.say("overlay.kernel", true, ""),
            false => answers.leave("overlay.kernel", "not listed in /proc/filesystems"),
        }
    }
    Ok(())
}

fn try_mode(
    mode: &Mode,
    enter: fn() -> io::Result<()>,
    scratch: &Scratch,
    answers: &mut Answers,
) -> Result<()> {
    let dir = scratch.dir(mode.space).on("create a directory in", "the state directory")?;
    answers.trial(&mode.keys, |answers| {
        let [plain, redirect, metacopy] = mode.keys;
        if let Err(error) = enter() {
            answers.say(plain, false, reason(&error));
            [redirect, metacopy]
                .iter()
                .for_each(|key| answers.say(key, false, "needs a working mount"));
            return;
        }
        let result = in_tree(&dir, "plain", mode, "")
            .and_then(|()| work(mode.space, Path::new("merged"), Path::new("upper")));
        match &result {
            Ok(()) => answers.say(plain, true, "copy-up, deletion, rename and re-creation work"),
            Err(error) => {
                if error.raw_os_error() == Some(probe::ENODEV) {
                    answers.say("overlay.kernel", false, "unknown to the kernel");
                }
                answers.say(plain, false, reason(error));
                [redirect, metacopy]
                    .iter()
                    .for_each(|key| answers.say(key, false, "needs a working mount"));
                return;
            }
        }
        let result = in_tree(&dir, "redirect", mode, ",redirect_dir=on").and_then(|()| move_dir());
        answers.tried(redirect, &result);
        let result =
            in_tree(&dir, "metacopy", mode, ",metacopy=on").and_then(|()| change_mode(mode));
        answers.tried(metacopy, &result);
    })
}

/// Makes layers in a directory of their own, goes there and mounts them. The options hold relative
/// names, so the state directory's path needs no escapes.
fn in_tree(dir: &Path, name: &str, mode: &Mode, options: &str) -> io::Result<()> {
    let dir = dir.join(name);
    make_layers(&dir)?;
    std::env::set_current_dir(&dir)?;
    let options_only = !options.is_empty();
    let options = format!("lowerdir=lower,upperdir=upper,workdir=work{}{options}", mode.options);
    probe::mount("overlay", "plyfs-doctor", Path::new("merged"), &options).map_err(|error| {
        match error.raw_os_error() {
            Some(probe::ENODEV) => error,
            Some(probe::EINVAL) if options_only => {
                io::Error::other("refused by the kernel in this mode")
            }
            Some(probe::EINVAL) => {
                io::Error::other("mount: this filesystem cannot hold an upper directory")
            }
            _ => while_doing("mount", &error),
        }
    })
}

/// Makes the directories of a small mount: `lower`, with content, `upper`, `work` and `merged`.
pub(crate) fn make_layers(dir: &Path) -> io::Result<()> {
    for part in ["lower/gone/inner", "lower/dir", "upper", "work", "merged"] {
        fs::create_dir_all(dir.join(part))?;
    }
    for file in ["lower/file", "lower/old", "lower/gone/inner/file", "lower/dir/file"] {
        fs::write(dir.join(file), "lower")?;
    }
    Ok(())
}

/// What a container does to its layers, in a mount of [`make_layers`] whose marks are in the xattrs of `space`.
pub(crate) fn work(space: &str, merged: &Path, upper: &Path) -> io::Result<()> {
    step("copy-up", || {
        fs::File::options().append(true).open(merged.join("file"))?.write_all(b"+")?;
        expect(fs::read(upper.join("file"))? == b"lower+", "the upper file is not whole")
    })?;
    step("deletion of a lower directory", || {
        fs::remove_dir_all(merged.join("gone"))?;
        expect(probe::is_whiteout(&upper.join("gone"))?, "no whiteout was left")
    })?;
    step("rename of a lower file", || {
        fs::rename(merged.join("old"), merged.join("new"))?;
        expect(probe::is_whiteout(&upper.join("old"))?, "no whiteout was left")
    })?;
    step("re-creation of a lower directory", || {
        fs::create_dir(merged.join("gone"))?;
        let mark = probe::xattr(&upper.join("gone"), &format!("{space}.overlay.opaque"))?;
        expect(mark.as_deref() == Some(b"y"), "it is not marked opaque")?;
        expect(fs::read_dir(merged.join("gone"))?.next().is_none(), "the old content is back")
    })
}

fn move_dir() -> io::Result<()> {
    match fs::rename("merged/dir", "merged/moved") {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            return Err(io::Error::other("accepted, but directories cannot be renamed"));
        }
        other => other?,
    }
    expect(fs::read("merged/moved/file")? == b"lower", "a renamed directory lost its content")
}

fn change_mode(mode: &Mode) -> io::Result<()> {
    fs::set_permissions("merged/file", std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let mark = probe::xattr(Path::new("upper/file"), &format!("{}.overlay.metacopy", mode.space))?;
    expect(mark.is_some(), "accepted, but data is copied")
}

fn step(what: &str, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    action().map_err(|error| io::Error::other(format!("mounts, but {what}: {}", reason(&error))))
}

fn expect(holds: bool, otherwise: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(otherwise.to_owned())) }
}
