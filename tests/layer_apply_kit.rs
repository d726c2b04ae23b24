//! Archives made byte by byte, and places to apply them to.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use plyfs::driver::FileGetter;
use plyfs::layer::apply::{self, Applied, Limits, Owners, Target, Whiteouts};
use plyfs::layer::split;

use crate::common::rootless;
use crate::common::sandbox::Sandbox;

/// The test as root of the host, and as an ordinary user in a namespace.
#[macro_export]
macro_rules! as_both {
    ($name:ident, $body:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn root() {
                $crate::needs!(Root);
                $body();
            }

            #[test]
            fn rootless() {
                $crate::needs!(UserNs);
                if !$crate::common::rootless::run($crate::this_test!()) {
                    $body();
                }
            }
        }
    };
}

/// An archive in the making.
#[derive(Clone, Debug, Default)]
pub struct Tar(pub Vec<u8>);

/// A header block of the old format with the POSIX magic; the checksum is that of what `edit` leaves.
pub fn header(kind: u8, name: &[u8], size: u64, edit: impl FnOnce(&mut [u8; 512])) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(if kind == b'5' { b"0000755" } else { b"0000644" });
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"07346545000");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

impl Tar {
    pub fn raw(mut self, bytes: &[u8]) -> Tar {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn edited(
        self,
        kind: u8,
        name: &str,
        data: &[u8],
        edit: impl FnOnce(&mut [u8; 512]),
    ) -> Tar {
        let tar = self.raw(&header(kind, name.as_bytes(), data.len() as u64, edit)).raw(data);
        let padding = tar.0.len().next_multiple_of(512) - tar.0.len();
        tar.raw(&vec![0; padding])
    }

    pub fn dir(self, name: &str) -> Tar {
        self.edited(b'5', name, b"", |_| {})
    }

    pub fn dir_mode(self, name: &str, mode: &str) -> Tar {
        self.edited(b'5', name, b"", |block| block[100..107].copy_from_slice(mode.as_bytes()))
    }

    pub fn file(self, name: &str, data: &str) -> Tar {
        self.edited(b'0', name, data.as_bytes(), |_| {})
    }

    pub fn whiteout(self, name: &str) -> Tar {
        self.file(name, "")
    }

    fn linked(self, kind: u8, name: &str, to: &str) -> Tar {
        self.edited(kind, name, b"", |block| {
            block[157..157 + to.len()].copy_from_slice(to.as_bytes());
        })
    }

    pub fn symlink(self, name: &str, to: &str) -> Tar {
        self.linked(b'2', name, to)
    }

    pub fn link(self, name: &str, to: &str) -> Tar {
        self.linked(b'1', name, to)
    }

    pub fn node(self, kind: u8, name: &str, major: u32, minor: u32) -> Tar {
        self.edited(kind, name, b"", |block| {
            block[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
            block[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
        })
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        self.extended(b'x', records)
    }

    pub fn pax_global(self, records: &[(&str, &[u8])]) -> Tar {
        self.extended(b'g', records)
    }

    fn extended(self, kind: u8, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            if rest + length.to_string().len() > length {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.edited(kind, "PaxHeaders", &data, |_| {})
    }

    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

/// Files of a directory, for an archive to be put together again.
pub struct Files(pub PathBuf);

impl FileGetter for Files {
    fn open(&self, path: &[u8]) -> plyfs::Result<Box<dyn Read>> {
        let at = self.0.join(std::ffi::OsStr::from_bytes(path));
        let open = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&at);
        Ok(Box::new(open.map_err(|error| plyfs::Error::io("open", at, error))?))
    }
}

/// Directories to apply archives to: `root` above `lower1`.., and something beside them that has to stay as
/// it is.
pub struct Place {
    pub sandbox: Sandbox,
    pub target: Target,
    pub limits: Limits,
}

/// Owners are set by who may set them.
pub fn owners() -> Owners {
    if rustix::process::geteuid().is_root() { Owners::Set } else { Owners::Ignore }
}

impl Place {
    pub fn new() -> Place {
        let sandbox = Sandbox::new();
        let root = sandbox.dir("root");
        fs::create_dir(sandbox.at("etc")).unwrap();
        fs::write(sandbox.at("etc/passwd"), "outside").unwrap();
        let whiteouts = Whiteouts::Overlay { user: rootless::inside() };
        let belief = plyfs::layer::Belief::standing();
        let target = Target { root, lowers: Vec::new(), belief, whiteouts, owners: owners() };
        Place { sandbox, target, limits: Limits::default() }
    }

    /// The same for a copy of a parent layer.
    pub fn removing() -> Place {
        let mut place = Place::new();
        place.target.whiteouts = Whiteouts::Remove;
        place
    }

    /// With a lower layer that an archive makes.
    pub fn over(lower: Tar) -> Place {
        let mut place = Place::new();
        let dir = place.sandbox.lower(1);
        let target = Target { root: dir.clone(), ..place.target.clone() };
        apply::apply(&mut lower.end().as_slice(), &target, &place.limits, None).unwrap();
        place.target.lowers = vec![dir];
        place
    }

    pub fn root(&self) -> &Path {
        &self.target.root
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// Applies an archive and puts it together again, which has to give the very bytes.
    pub fn apply(&self, archive: &[u8]) -> plyfs::Result<Applied> {
        let mut record = Vec::new();
        let (mut input, target) = (archive, &self.target);
        let applied = apply::apply(&mut input, target, &self.limits, Some(&mut record))?;
        if applied.diff_id == applied.digest {
            let mut bytes = Vec::new();
            let files = Files(self.root().to_path_buf());
            split::assemble(&mut record.as_slice(), &files, &mut bytes).unwrap();
            assert!(bytes == archive, "other bytes than went in");
            assert_eq!(split::check(&mut record.as_slice(), &files).unwrap(), []);
        }
        let outside = fs::read_to_string(self.sandbox.at("etc/passwd")).unwrap();
        assert_eq!(outside, "outside");
        Ok(applied)
    }

    pub fn applied(&self, tar: Tar) -> &Place {
        self.apply(&tar.end()).unwrap();
        self
    }

    pub fn refusal(&self, archive: &[u8]) -> String {
        let error = self.apply(archive).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }

    /// What is in the root: `d path`, `- path=data`, `l path -> target`, `w path` for a whiteout.
    pub fn tree(&self) -> Vec<String> {
        lines(self.root())
    }

    pub fn ino(&self, path: &str) -> u64 {
        fs::symlink_metadata(self.at(path)).unwrap().ino()
    }

    pub fn xattr(&self, path: &str, key: &str) -> Option<String> {
        let mut value = [0; 256];
        match rustix::fs::lgetxattr(self.at(path), key, &mut value[..]) {
            Ok(length) => Some(String::from_utf8_lossy(&value[..length]).into_owned()),
            Err(_) => None,
        }
    }

    pub fn opaque(&self, path: &str) -> bool {
        let space = if rootless::inside() { "user" } else { "trusted" };
        self.xattr(path, &format!("{space}.overlay.opaque")).as_deref() == Some("y")
    }
}

/// What is in a directory, as [`Place::tree`] says it.
pub fn lines(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(dir, "", &mut lines);
    lines
}

fn walk(dir: &Path, prefix: &str, lines: &mut Vec<String>) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = format!("{prefix}{}", name.to_string_lossy());
        let at = dir.join(&name);
        let found = fs::symlink_metadata(&at).unwrap();
        let kind = found.file_type();
        lines.push(if kind.is_dir() {
            format!("d {path}")
        } else if kind.is_symlink() {
            format!("l {path} -> {}", fs::read_link(&at).unwrap().display())
        } else if kind.is_char_device() && found.rdev() == 0 {
            format!("w {path}")
        } else if kind.is_file() {
            format!("- {path}={}", String::from_utf8_lossy(&fs::read(&at).unwrap()))
        } else {
            format!("? {path}")
        });
        if kind.is_dir() {
            walk(&at, &format!("{path}/"), lines);
        }
    }
}
