//! Entries become files: each goes to its directory, makes way for itself and gets what it has.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use plyfs_fuse::sys::{self, Stat};
use plyfs_fuse::whiteout::{self, Dialect, Space, Style};

use super::attributes::{Born, Setter, has_default_acl, refused};
use super::dirs::{At, DIR, Dir, Dirs};
use super::input::Input;
use super::lower::Below;
use super::paths::Paths;
use super::reader::{Entry, Kind, Reader};
use super::remove::{Brought, Kept, set_opaque};
use super::way::{Step, Wanted};
use super::writeback::Writeback;
use super::{BLOCK, Limits, Owners, Target, Whiteouts, beyond};
use crate::error::{Context, Result};
use crate::layer::split::{Recorder, Source, clean};
use crate::sys::{tree, unpack};

/// An archive being unpacked.
pub(super) struct Unpack<'a> {
    pub(super) target: &'a Target,
    pub(super) limits: &'a Limits,
    pub(super) dirs: Dirs,
    pub(super) below: Below,
    pub(super) dialect: Option<Dialect>,
    pub(super) brought: Option<Brought>,
    /// What an overlay's directory has for the sake of the lower layers only: nothing in it is the archive's.
    pub(super) lent: Paths,
    pub(super) kept: Option<Kept>,
    pub(super) record: Option<Recorder>,
    pub(super) setter: Setter,
    writeback: Writeback,
    umask: u32,
    pub(super) is_root: bool,
    /// Attributes hide something.
    pub(super) marked: bool,
    size: u64,
    entries: u64,
}

impl<'a> Unpack<'a> {
    pub(super) fn new(
        target: &'a Target,
        limits: &'a Limits,
        recorded: bool,
    ) -> Result<Unpack<'a>> {
        let dirs = Dirs::open(&target.root)?;
        let space = |user| if user { Space::User } else { Space::Trusted };
        let unnamed = || sys::open_unnamed(dirs.root(), 0o600).map(File::from);
        let record = match recorded {
            true => {
                let files = unnamed().and_then(|record| Ok((record, unnamed()?)));
                let (record, late) = files.on("make a temporary file in", &target.root)?;
                Some(Recorder::new(record, late)?)
            }
            false => None,
        };
        let (dialect, brought) = match target.whiteouts {
            Whiteouts::Overlay { user } => {
                (Some(Dialect { space: space(user), style: Style::Device }), None)
            }
            Whiteouts::Remove => (None, Some(Brought::default())),
        };
        Ok(Unpack {
            target,
            limits,
            below: Below::open(&target.lowers, target.belief)?,
            dialect,
            brought,
            lent: Paths::default(),
            kept: None,
            record,
            setter: Setter { owners: target.owners },
            writeback: Writeback::start()?,
            umask: umask(),
            is_root: sys::effective_ids().0 == 0,
            marked: false,
            size: 0,
            entries: 0,
            dirs,
        })
    }

    /// Unpacks everything, to the end of the bytes.
    pub(super) fn all(&mut self, input: &mut Input<'_>) -> Result<()> {
        let mut scratch = Vec::new();
        loop {
            scratch.clear();
            let raw = self.record.as_mut().map_or(&mut scratch, |record| &mut record.raw);
            let Some(entry) = (Reader { input, raw }).next()? else { break };
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(beyond("entries", self.limits.entries, "entries"));
            }
            self.entry(&entry, input)?;
            let padding = u64::try_from(BLOCK).unwrap_or(1);
            self.skip(input, entry.stored.wrapping_neg() % padding)?;
        }
        loop {
            let length = input.available()?.len();
            if length == 0 {
                return Ok(());
            }
            self.skip(input, u64::try_from(length).unwrap_or(0))?;
        }
    }

    /// Ends the work; bytes of files and entries.
    pub(super) fn finish(mut self, split: Option<&mut dyn Write>) -> Result<(u64, u64)> {
        self.dirs.keep(0)?;
        self.drop_kept()?;
        self.dirs.leave()?;
        self.writeback.finish();
        if let Some((record, out)) = self.record.zip(split) {
            record.finish(out)?;
        }
        Ok((self.size, self.entries))
    }

    /// Goes over bytes that become nothing.
    fn skip(&mut self, input: &mut Input<'_>, length: u64) -> Result<()> {
        let mut left = length;
        while left > 0 {
            let part = input.part(left)?;
            if let Some(record) = &mut self.record {
                record.data(Source::Record, part)?;
            }
            let length = part.len();
            input.consume(length);
            left = left.saturating_sub(u64::try_from(length).unwrap_or(left));
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, input: &mut Input<'_>) -> Result<()> {
        let names = clean(&entry.name);
        self.check_names(entry, &names)?;
        if entry.kind == Kind::File && entry.size > 0 {
            self.count(entry.size)?;
        } else if let Some(record) = &mut self.record {
            record.entry(&entry.name)?;
        }
        if self.is_mark(entry, &names)? {
            return self.kept_or_skipped(entry, &names, input);
        }
        let Some((name, above)) = names.split_last() else {
            return self.root_entry(entry, input);
        };
        let name = OsStr::from_bytes(name);
        match entry.kind {
            Kind::Link => return self.link(entry, above, name),
            _ => drop(self.enter(above, Wanted::Content, entry)?),
        }
        let wrapped = |error| super::remove::name_entry(error, entry);
        match entry.kind {
            Kind::File => self.file(entry, name, input)?,
            Kind::Dir => self.dir(entry, name)?,
            Kind::Symlink => self.symlink(entry, name)?,
            Kind::Char | Kind::Block | Kind::Fifo => self.node(entry, name).map_err(wrapped)?,
            Kind::Link => {}
        }
        let changed = self.dirs.depth() - usize::from(entry.kind == Kind::Dir);
        self.dirs.all()[changed].changed = true;
        let path = match entry.kind {
            Kind::Dir => self.dirs.path(),
            _ => self.dirs.path_of(name.as_bytes()),
        };
        self.bring(&path)
    }

    /// Counts bytes of a file.
    pub(super) fn count(&mut self, bytes: u64) -> Result<()> {
        self.size = self.size.saturating_add(bytes);
        match self.size > self.limits.bytes {
            true => Err(beyond("bytes", self.limits.bytes, "bytes")),
            false => Ok(()),
        }
    }

    fn check_names(&self, entry: &Entry, names: &[&[u8]]) -> Result<()> {
        let length = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let (depth, longest) = (self.limits.depth, self.limits.name);
        if length(names.len()) > depth {
            return Err(entry.wrong(format!("has more than {depth} names, the limit 'depth'")));
        }
        let (path, bytes) =
            (self.limits.path, names.iter().map(|name| name.len() + 1).sum::<usize>());
        if length(bytes.saturating_sub(1)) > path {
            return Err(
                entry.wrong(format!("has a path of more than {path} bytes, the limit 'path'"))
            );
        }
        // A deletion of the longest name has a longer one.
        let plain =
            |name: &[u8]| name.strip_prefix(whiteout::PREFIX).map_or(name.len(), <[u8]>::len);
        match names.iter().any(|name| length(plain(name)) > longest) {
            true => {
                Err(entry
                    .wrong(format!("has a name of more than {longest} bytes, the limit 'name'")))
            }
            false => Ok(()),
        }
    }

    /// An entry whose name is the root's own.
    fn root_entry(&mut self, entry: &Entry, input: &mut Input<'_>) -> Result<()> {
        if entry.kind != Kind::Dir {
            log::warn!("{}", entry.wrong("is the root and no directory, left out"));
            return self.skip(input, entry.stored);
        }
        self.dirs.keep(0)?;
        self.dress_dir(entry, true)
    }

    /// Makes a directory, or takes the one that is there, and goes into it.
    pub(super) fn dir(&mut self, entry: &Entry, name: &OsStr) -> Result<()> {
        let bytes = name.as_bytes();
        let mut replaced = false;
        let old = loop {
            match sys::mkdir(self.dirs.fd(), name, 0o700) {
                Err(error) if sys::errno(&error) == sys::EEXIST => {}
                made => {
                    made.at("make directory", &self.dirs, bytes)?;
                    break false;
                }
            }
            let stat = sys::stat(self.dirs.fd(), name).at("stat", &self.dirs, bytes)?;
            if stat.is_dir() {
                break true;
            }
            self.make_way(name)?;
            replaced = true;
        };
        let acl = self.dirs.top().acl;
        if old {
            match self.step(bytes, entry)? {
                Step::In => {}
                _ => return Err(entry.wrong("is no longer a directory")),
            }
        } else {
            let fd = sys::open(self.dirs.fd(), name, DIR).at("open", &self.dirs, bytes)?;
            let stat = sys::fstat(&fd).at("stat", &self.dirs, bytes)?;
            self.dirs.push(Dir::new(bytes, fd, &stat));
            let top = self.dirs.top_mut();
            top.fresh = None;
            (top.acl, top.changed) = (acl, true);
            top.times.0 = (stat.atime.sec, stat.atime.nsec);
            if let Some(dialect) = self.dialect.filter(|_| replaced) {
                let marked = set_opaque(dialect, self.dirs.fd(), OsStr::new(""));
                marked.at("mark as opaque", &self.dirs, b"")?;
                self.marked = true;
                let top = self.dirs.top_mut();
                (top.opaque, top.below) = (true, Some(Vec::new()));
            }
        }
        self.dress_dir(entry, old)
    }

    /// Gives the last directory what the entry has.
    fn dress_dir(&mut self, entry: &Entry, old: bool) -> Result<()> {
        let stat = sys::fstat(self.dirs.fd()).at("stat", &self.dirs, b"")?;
        let inherits = !old && self.dirs.top().acl;
        let born = Born { owner: (stat.uid, stat.gid), mode: None, acl: inherits, old };
        self.setter.set(self.dirs.fd(), OsStr::new(""), entry, born).at(
            "set attributes of",
            &self.dirs,
            b"",
        )?;
        let acl = has_default_acl(self.dirs.fd()).at("read xattrs of", &self.dirs, b"")?;
        let (is_root, records) = (self.is_root, self.target.owners == Owners::Record);
        let top = self.dirs.top_mut();
        // What is made in it may belong to another now.
        (top.acl, top.fresh) = (acl, None);
        top.times = (entry.atime.unwrap_or(entry.mtime), entry.mtime);
        top.changed = true;
        top.mode = None;
        if !is_root && !records && entry.mode & 0o700 != 0o700 {
            top.mode = Some(entry.mode);
            unpack::chmod(self.dirs.fd(), entry.mode | 0o700).at("chmod", &self.dirs, b"")?;
        }
        Ok(())
    }

    /// Makes a file that is open for writing, where nothing is left in the way.
    pub(super) fn create(&mut self, name: &OsStr, mode: u32) -> Result<File> {
        loop {
            match unpack::create(self.dirs.fd(), name, mode) {
                Err(error) if sys::errno(&error) == sys::EEXIST => self.make_way(name)?,
                made => return made.at("create", &self.dirs, name.as_bytes()),
            }
        }
    }

    fn file(&mut self, entry: &Entry, name: &OsStr, input: &mut Input<'_>) -> Result<()> {
        let plain = entry.mode & 0o777;
        let file = Arc::new(self.create(name, plain | 0o200)?);
        let path = self.dirs.path_of(name.as_bytes());
        // A name that leads through a symlink is recorded as where it led.
        let same = clean(&entry.name).join(&b'/') == path;
        let source = Source::File(if same { &entry.name } else { &path });
        let mut written = 0;
        match &entry.map {
            None => written = self.data(&file, (None, entry.size), source, input)?,
            Some(map) => {
                file.set_len(entry.size).at("set size of", &self.dirs, name.as_bytes())?;
                for (offset, length) in map {
                    self.data(&file, (Some(*offset), *length), source, input)?;
                }
            }
        }
        self.dress(&file, name, entry, plain | 0o200)?;
        self.writeback.hand_over(&file, written, entry.size);
        Ok(())
    }

    /// Copies data from the archive to a file. Returns up to where it is on its way to the disk.
    pub(super) fn data(
        &mut self,
        file: &Arc<File>,
        (offset, whole): (Option<u64>, u64),
        source: Source<'_>,
        input: &mut Input<'_>,
    ) -> Result<u64> {
        let (start, mut left) = (offset.unwrap_or(0), whole);
        let mut begun = start;
        while left > 0 {
            let part = input.part(left)?;
            let written = offset.map(|offset| offset + (whole - left));
            unpack::write(file, part, written).on("write", self.dirs.shown(b""))?;
            if let Some(record) = &mut self.record {
                record.data(source, part)?;
            }
            let length = part.len();
            input.consume(length);
            left = left.saturating_sub(u64::try_from(length).unwrap_or(left));
            begun = self.writeback.wrote(file, begun, start + (whole - left));
        }
        if let Some(record) = self.record.as_mut().filter(|_| whole > 0) {
            record.end(source, whole, offset)?;
        }
        Ok(begun)
    }

    /// Gives a file that was just made what the entry has.
    pub(super) fn dress(
        &mut self,
        file: &File,
        name: &OsStr,
        entry: &Entry,
        mode: u32,
    ) -> Result<()> {
        let owner = match self.dirs.top().fresh {
            Some(owner) => owner,
            None => {
                let stat = sys::fstat(file).at("stat", &self.dirs, name.as_bytes())?;
                *self.dirs.top_mut().fresh.insert((stat.uid, stat.gid))
            }
        };
        let acl = self.dirs.top().acl;
        let known = (mode & self.umask == 0 && !acl).then_some(mode);
        let born = Born { owner, mode: known, acl, old: false };
        let set = self.setter.set(file, OsStr::new(""), entry, born).and_then(|()| {
            unpack::set_times(file.as_fd(), entry.atime.unwrap_or(entry.mtime), entry.mtime)
        });
        set.at("set attributes of", &self.dirs, name.as_bytes())
    }

    fn symlink(&mut self, entry: &Entry, name: &OsStr) -> Result<()> {
        let target = OsStr::from_bytes(&entry.link);
        loop {
            match sys::symlink(self.dirs.fd(), name, target) {
                Err(error) if sys::errno(&error) == sys::EEXIST => self.make_way(name)?,
                Err(error) if sys::errno(&error) == sys::ENOENT && target.is_empty() => {
                    return Err(entry.wrong("is a symlink to nothing"));
                }
                made => {
                    made.at("make symlink", &self.dirs, name.as_bytes())?;
                    return self.dress_at(entry, name);
                }
            }
        }
    }

    /// Makes a device or a fifo, or what stands for one.
    pub(super) fn node(&mut self, entry: &Entry, name: &OsStr) -> Result<()> {
        let kind = match entry.kind {
            Kind::Char => sys::S_IFCHR,
            Kind::Block => sys::S_IFBLK,
            _ => sys::S_IFIFO,
        };
        if self.target.owners == Owners::Record {
            return self.stand_in(entry, name, kind);
        }
        if kind == sys::S_IFCHR && entry.device == (0, 0) && self.dialect.is_some() {
            return self.nested_whiteout(entry, name);
        }
        let device = unpack::device(entry.device.0, entry.device.1);
        loop {
            match sys::mknod(self.dirs.fd(), name, kind | 0o600, device) {
                Err(error) if sys::errno(&error) == sys::EEXIST => self.make_way(name)?,
                Err(error) if self.target.owners == Owners::Ignore && refused(&error) => {
                    log::warn!("{}", entry.wrong(format!("left out: {error}")));
                    return Ok(());
                }
                // Whoever may set owners, but is root of a user namespace only, makes no devices.
                Err(error)
                    if self.target.owners == Owners::Set && self.has_no_privilege(&error) =>
                {
                    log::debug!("{}", entry.wrong("no device is made here: noted in an attribute"));
                    return self.stand_in(entry, name, kind);
                }
                made => {
                    made.at("make node", &self.dirs, name.as_bytes())?;
                    return self.dress_at(entry, name);
                }
            }
        }
    }

    fn has_no_privilege(&self, error: &io::Error) -> bool {
        sys::errno(error) == sys::EPERM && !tree::has_initial_privilege()
    }

    /// Makes an empty file that says in an attribute what it stands for.
    fn stand_in(&mut self, entry: &Entry, name: &OsStr, kind: u32) -> Result<()> {
        let file = self.create(name, 0o600)?;
        let (major, minor) = entry.device;
        let rdev = minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12;
        let record = self.setter.record(&file, OsStr::new(""), entry, (kind | entry.mode, rdev));
        record.at("set attributes of", &self.dirs, name.as_bytes())?;
        let mut plain = entry.clone();
        if self.target.owners == Owners::Record {
            // Nobody reads or sets attributes where he may not read or write the file.
            plain.mode = entry.mode & 0o777 | 0o600;
        }
        self.dress(&file, name, &plain, 0o600)
    }

    /// Gives what has no descriptor what the entry has.
    pub(super) fn dress_at(&mut self, entry: &Entry, name: &OsStr) -> Result<()> {
        let stat = sys::stat(self.dirs.fd(), name).at("stat", &self.dirs, name.as_bytes())?;
        let acl = self.dirs.top().acl && entry.kind != Kind::Symlink;
        let born = Born { owner: (stat.uid, stat.gid), mode: None, acl, old: false };
        let fd = self.dirs.fd();
        let set = self.setter.set(fd, name, entry, born).and_then(|()| {
            unpack::set_times_at(fd, name, entry.atime.unwrap_or(entry.mtime), entry.mtime)
        });
        set.at("set attributes of", &self.dirs, name.as_bytes())
    }

    /// Whether what is at a name is a whiteout that was written here.
    pub(super) fn is_whiteout(&self, name: &OsStr, stat: &Stat) -> Result<bool> {
        let Some(dialect) = self.dialect else { return Ok(false) };
        let by_xattr = dialect.style == Style::Xattr;
        whiteout::is_whiteout(self.dirs.fd(), name, stat, by_xattr).at(
            "read xattrs of",
            &self.dirs,
            name.as_bytes(),
        )
    }

    /// Goes over the data of an entry that is none of the layer's, or keeps it for links to it.
    fn kept_or_skipped(
        &mut self,
        entry: &Entry,
        names: &[&[u8]],
        input: &mut Input<'_>,
    ) -> Result<()> {
        match names {
            [dir, name]
                if *dir == super::remove::LINKED
                    && entry.kind == Kind::File
                    && entry.map.is_none() =>
            {
                let file = Arc::new(self.keep_aside(name)?);
                self.data(&file, (None, entry.size), Source::Record, input)?;
                self.dress_kept(&file, entry)
            }
            _ => {
                self.size -= if entry.kind == Kind::File { entry.size } else { 0 };
                self.skip(input, entry.stored)
            }
        }
    }
}

/// The bits that new files do not get; all where they cannot be told.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|bits| u32::from_str_radix(bits.trim(), 8).ok()).unwrap_or(0o777)
}
