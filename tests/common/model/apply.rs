//! What each operation does and says, in the order in which Linux notices what is wrong.

use std::collections::BTreeMap;

use libc::{
    EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENODATA, ENOENT, ENOTDIR, ENOTEMPTY, ENXIO, EOPNOTSUPP,
    EPERM,
};

use super::super::ops::{EXCHANGE, NOREPLACE, Op, Outcome, Said, split};
use super::super::tree::{Stamp, kind_letter};
use super::{Body, Held, Id, Inode, Model, ROOT};

type Res<T> = Result<T, i32>;

const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

const FALLOC_KEEP: u32 = 1;
const FALLOC_PUNCH: u32 = 2;

impl Model {
    /// Does one operation.
    pub(super) fn answer(&mut self, op: &Op) -> Said {
        let done = |()| Outcome::Done;
        match op {
            Op::Create { path, mode, fill } => {
                let id = self.make(path, Body::File(fill.bytes()), *mode & !self.who.umask)?;
                if fill.len > 0 {
                    self.written(id);
                }
                Ok(Outcome::Done)
            }
            Op::Overwrite { path, fill } => self.data(path, true).map(|id| {
                self.resize(id, 0);
                self.put(id, 0, &fill.bytes());
                Outcome::Done
            }),
            Op::Write { path, at, fill } => self.data(path, true).map(|id| {
                self.put(id, *at, &fill.bytes());
                Outcome::Count(fill.len as u64)
            }),
            Op::Truncate { path, size } => {
                self.data(path, true).map(|id| self.resize(id, *size)).map(done)
            }
            Op::Fallocate { path, mode, at, len } => {
                self.data(path, true).map(|id| self.allocate(id, *mode, *at, *len)).map(done)
            }
            Op::CopyRange { from, from_at, to, to_at, len } => {
                let (from, to) = (self.data(from, false)?, self.data(to, true)?);
                self.copy_range((from, *from_at), (to, *to_at), *len).map(Outcome::Count)
            }
            Op::Mkdir { path, mode } => self
                .make(path, Body::Dir(BTreeMap::new()), *mode & !self.who.umask)
                .map(|_| Outcome::Done),
            Op::Mknod { path, mode, rdev } => {
                let kind = kind_letter(*mode);
                let body = if kind == '-' { Body::File(Vec::new()) } else { Body::Special(kind) };
                let id = self.make(path, body, *mode & 0o7777 & !self.who.umask)?;
                self.nodes[id].rdev = *rdev;
                Ok(Outcome::Done)
            }
            Op::Symlink { path, target } => {
                self.make(path, Body::Link(target.clone()), 0o777).map(|_| Outcome::Done)
            }
            Op::Link { from, to } => {
                let id = self.find(from)?;
                let (dir, name) = self.vacant(to)?;
                if self.kind(id) == 'd' {
                    return Err(EPERM);
                }
                self.attach(dir, &name, id);
                Ok(Outcome::Done)
            }
            Op::Rename { from, to, flags } => self.rename(from, to, *flags).map(done),
            Op::Unlink { path } => {
                let (dir, name, id) = self.present(path)?;
                if self.kind(id) == 'd' {
                    return Err(EISDIR);
                }
                self.detach(dir, &name);
                Ok(Outcome::Done)
            }
            Op::Rmdir { path } => {
                let (dir, name, id) = self.present(path)?;
                if !self.names(id)?.is_empty() {
                    return Err(ENOTEMPTY);
                }
                self.detach(dir, &name);
                Ok(Outcome::Done)
            }
            Op::Chmod { path, mode } => {
                let id = self.find(path)?;
                if self.kind(id) == 'l' {
                    return Err(EOPNOTSUPP);
                }
                self.nodes[id].mode = *mode;
                Ok(Outcome::Done)
            }
            Op::Chown { path, uid, gid } => {
                let id = self.find(path)?;
                if self.kind(id) != 'd' {
                    self.drop_set_id(id);
                }
                let node = &mut self.nodes[id];
                (node.uid, node.gid) = (uid.unwrap_or(node.uid), gid.unwrap_or(node.gid));
                Ok(Outcome::Done)
            }
            Op::Utimes { path, mtime } => {
                self.find(path).map(|id| self.nodes[id].mtime = *mtime).map(done)
            }
            Op::SetXattr { path, name, value, flags } => {
                let id = self.find(path)?;
                self.may_change_xattr(id, name)?;
                match (flags, self.nodes[id].xattrs.contains_key(name)) {
                    (1, true) => return Err(EEXIST),
                    (2, false) => return Err(ENODATA),
                    _ => {}
                }
                self.nodes[id].xattrs.insert(name.clone(), value.clone());
                Ok(Outcome::Done)
            }
            Op::RemoveXattr { path, name } => {
                let id = self.find(path)?;
                self.may_change_xattr(id, name)?;
                self.nodes[id].xattrs.remove(name).map(|_| Outcome::Done).ok_or(ENODATA)
            }
            Op::GetXattr { path, name } => {
                let id = self.find(path)?;
                let value = self.nodes[id].xattrs.get(name).ok_or(ENODATA)?;
                Ok(Outcome::Bytes(value.clone().into_bytes()))
            }
            Op::Read { path, at, len } => {
                self.data(path, false).map(|id| self.slice(id, *at, *len))
            }
            Op::ReadLink { path } => match &self.nodes[self.find(path)?].body {
                Body::Link(target) => Ok(Outcome::Bytes(target.clone().into_bytes())),
                _ => Err(EINVAL),
            },
            Op::ReadDir { path } => {
                let names = self.names(self.find(path)?)?;
                Ok(Outcome::Names(
                    names.iter().map(|(name, id)| (name.clone(), self.kind(*id))).collect(),
                ))
            }
            Op::Stat { path } => self.find(path).map(|id| Outcome::Stat(self.meta(id))),
            _ => self.answer_held(op),
        }
    }

    fn answer_held(&mut self, op: &Op) -> Said {
        match op {
            Op::Hold { slot, path, write } => {
                let id = self.data(path, *write)?;
                self.held.insert(*slot, Held { id, write: *write });
            }
            Op::HoldTmp { slot, path, mode } => {
                let dir = self.find(path)?;
                self.names(dir)?;
                let id = self.fresh(dir, Body::File(Vec::new()), *mode & !self.who.umask);
                self.nodes[id].linkable = true;
                self.held.insert(*slot, Held { id, write: true });
            }
            Op::HeldWrite { slot, at, fill } => {
                let held = self.open(*slot)?;
                if !held.write {
                    return Err(EBADF);
                }
                self.put(held.id, *at, &fill.bytes());
                return Ok(Outcome::Count(fill.len as u64));
            }
            Op::HeldRead { slot, at, len } => {
                return self.open(*slot).map(|held| self.slice(held.id, *at, *len));
            }
            Op::HeldStat { slot } => {
                return self.open(*slot).map(|held| Outcome::Stat(self.meta(held.id)));
            }
            Op::HeldTruncate { slot, size } => {
                let held = self.open(*slot)?;
                if !held.write {
                    return Err(EINVAL);
                }
                self.resize(held.id, *size);
            }
            Op::HeldChmod { slot, mode } => {
                let id = self.open(*slot)?.id;
                self.nodes[id].mode = *mode;
            }
            Op::HeldLink { slot, to } => {
                let id = self.open(*slot)?.id;
                let (dir, name) = self.vacant(to)?;
                if self.nodes[id].nlink == 0 && !self.nodes[id].linkable {
                    return Err(ENOENT);
                }
                self.nodes[id].linkable = false;
                self.attach(dir, &name, id);
            }
            Op::Close { slot } => drop(self.held.remove(slot).ok_or(EBADF)?),
            Op::Reopen => self.held.clear(),
            other => unreachable!("{other}"),
        }
        Ok(Outcome::Done)
    }

    // Names.

    fn names(&self, id: Id) -> Res<&BTreeMap<String, Id>> {
        if let Body::Dir(names) = &self.nodes[id].body { Ok(names) } else { Err(ENOTDIR) }
    }

    fn names_mut(&mut self, id: Id) -> &mut BTreeMap<String, Id> {
        if let Body::Dir(names) = &mut self.nodes[id].body {
            names
        } else {
            unreachable!("checked by the caller")
        }
    }

    /// The directory that has the last name of a path.
    fn parent(&self, path: &str) -> Res<(Id, String)> {
        let (dirs, name) = split(path);
        let mut id = ROOT;
        for part in dirs.split('/').filter(|part| !part.is_empty()) {
            id = *self.names(id)?.get(part).ok_or(ENOENT)?;
            match self.kind(id) {
                'd' => {}
                'l' => return Err(ELOOP),
                _ => return Err(ENOTDIR),
            }
        }
        Ok((id, name.to_owned()))
    }

    pub(super) fn find(&self, path: &str) -> Res<Id> {
        if path.is_empty() {
            return Ok(ROOT);
        }
        let (dir, name) = self.parent(path)?;
        self.names(dir)?.get(&name).copied().ok_or(ENOENT)
    }

    fn present(&self, path: &str) -> Res<(Id, String, Id)> {
        let (dir, name) = self.parent(path)?;
        let id = *self.names(dir)?.get(&name).ok_or(ENOENT)?;
        Ok((dir, name, id))
    }

    fn vacant(&self, path: &str) -> Res<(Id, String)> {
        let (dir, name) = self.parent(path)?;
        if self.names(dir)?.contains_key(&name) { Err(EEXIST) } else { Ok((dir, name)) }
    }

    fn attach(&mut self, dir: Id, name: &str, id: Id) {
        self.names_mut(dir).insert(name.to_owned(), id);
        self.nodes[id].nlink += 1;
        self.nodes[dir].mtime = Stamp::NOW;
    }

    fn detach(&mut self, dir: Id, name: &str) {
        if let Some(id) = self.names_mut(dir).remove(name) {
            self.nodes[id].nlink -= 1;
        }
        self.nodes[dir].mtime = Stamp::NOW;
    }

    /// A new object that has no name yet, as made in `dir`.
    fn fresh(&mut self, dir: Id, body: Body, mode: u32) -> Id {
        let (inherits, is_dir) = (self.nodes[dir].mode & SGID != 0, matches!(body, Body::Dir(_)));
        self.nodes.push(Inode {
            body,
            mode: if inherits && is_dir { mode | SGID } else { mode },
            uid: self.who.uid,
            gid: if inherits { self.nodes[dir].gid } else { self.who.gid },
            rdev: (0, 0),
            nlink: 0,
            xattrs: BTreeMap::new(),
            mtime: Stamp::NOW,
            linkable: false,
        });
        self.nodes.len() - 1
    }

    fn make(&mut self, path: &str, body: Body, mode: u32) -> Res<Id> {
        let (dir, name) = self.vacant(path)?;
        let id = self.fresh(dir, body, mode);
        self.attach(dir, &name, id);
        Ok(id)
    }

    fn rename(&mut self, from: &str, to: &str, flags: u32) -> Res<()> {
        let ((dir, name), (new_dir, new_name)) = (self.parent(from)?, self.parent(to)?);
        let id = *self.names(dir)?.get(&name).ok_or(ENOENT)?;
        let target = self.names(new_dir)?.get(&new_name).copied();
        match (flags, target) {
            (NOREPLACE, Some(_)) => return Err(EEXIST),
            (EXCHANGE, None) => return Err(ENOENT),
            _ => {}
        }
        // Neither may lie below the other. No object but a directory has anything below it, and a
        // directory has one path, so paths decide.
        if to.starts_with(&format!("{from}/")) {
            return Err(EINVAL);
        }
        if from.starts_with(&format!("{to}/")) {
            return Err(if flags == EXCHANGE { EINVAL } else { ENOTEMPTY });
        }
        if target == Some(id) {
            return Ok(());
        }
        if let Some(old) = target.filter(|_| flags != EXCHANGE) {
            match (self.kind(id), self.kind(old)) {
                ('d', 'd') if !self.names(old)?.is_empty() => return Err(ENOTEMPTY),
                ('d', 'd') => {}
                ('d', _) => return Err(ENOTDIR),
                (_, 'd') => return Err(EISDIR),
                _ => {}
            }
        }
        self.detach(dir, &name);
        if let Some(old) = target {
            self.detach(new_dir, &new_name);
            if flags == EXCHANGE {
                self.attach(dir, &name, old);
            }
        }
        self.attach(new_dir, &new_name, id);
        Ok(())
    }

    // Contents.

    fn open(&self, slot: usize) -> Res<Held> {
        self.held.get(&slot).copied().ok_or(EBADF)
    }

    /// A regular file, opened for its contents.
    fn data(&self, path: &str, _write: bool) -> Res<Id> {
        let id = self.find(path)?;
        match self.kind(id) {
            '-' => Ok(id),
            'd' => Err(EISDIR),
            'l' => Err(ELOOP),
            _ => Err(ENXIO),
        }
    }

    fn bytes(&mut self, id: Id) -> &mut Vec<u8> {
        if let Body::File(bytes) = &mut self.nodes[id].body {
            bytes
        } else {
            unreachable!("checked by the caller")
        }
    }

    fn written(&mut self, id: Id) {
        self.nodes[id].mtime = Stamp::NOW;
        // Only root of the host keeps them: the kernel asks for the capability there.
        if !self.who.privileged {
            self.drop_set_id(id);
        }
    }

    fn drop_set_id(&mut self, id: Id) {
        let node = &mut self.nodes[id];
        let group = if node.mode & GROUP_EXEC != 0 { SGID } else { 0 };
        node.mode &= !(SUID | group);
    }

    fn put(&mut self, id: Id, at: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let (at, bytes) = (at as usize, self.bytes(id));
        if bytes.len() < at + data.len() {
            bytes.resize(at + data.len(), 0);
        }
        bytes[at..at + data.len()].copy_from_slice(data);
        self.written(id);
    }

    fn resize(&mut self, id: Id, size: u64) {
        self.bytes(id).resize(size as usize, 0);
        self.written(id);
    }

    fn allocate(&mut self, id: Id, mode: u32, at: u64, len: u64) {
        let (at, end) = (at as usize, (at + len) as usize);
        let bytes = self.bytes(id);
        if mode & FALLOC_KEEP == 0 && bytes.len() < end {
            bytes.resize(end, 0);
        }
        if mode & FALLOC_PUNCH != 0 {
            let size = bytes.len();
            bytes[at.min(size)..end.min(size)].fill(0);
        }
        self.written(id);
    }

    fn slice(&self, id: Id, at: u64, len: usize) -> Outcome {
        let Body::File(bytes) = &self.nodes[id].body else { unreachable!("checked by the caller") };
        let start = (at as usize).min(bytes.len());
        Outcome::Bytes(bytes[start..(start + len).min(bytes.len())].to_vec())
    }

    fn copy_range(
        &mut self,
        (from, from_at): (Id, u64),
        (to, to_at): (Id, u64),
        len: u64,
    ) -> Res<u64> {
        let count = len.min((self.bytes(from).len() as u64).saturating_sub(from_at));
        if from == to && to_at + count > from_at && to_at < from_at + count {
            return Err(EINVAL);
        }
        let Outcome::Bytes(data) = self.slice(from, from_at, count as usize) else {
            unreachable!()
        };
        self.put(to, to_at, &data);
        Ok(count)
    }

    fn may_change_xattr(&self, id: Id, name: &str) -> Res<()> {
        let data = matches!(self.kind(id), '-' | 'd');
        if name.starts_with("user.") && !data { Err(EPERM) } else { Ok(()) }
    }
}
