//! A request to its handler.

use super::encode::Form;
use super::reply::Pending;
use super::wire::{Header, Long, Request};
use crate::server::Server;
use crate::server::answer::{Answer, Code, Reply};
use crate::server::handlers::Change;

/// Serves a request whose answer takes the body.
pub(super) fn long(server: &Server, header: &Header, request: Result<Long, Code>, reply: Pending) {
    let node = header.node;
    let request = match request {
        Ok(request) => request,
        Err(code) => return reply.error(code),
    };
    match request {
        Long::Readlink => server.readlink(node, reply),
        Long::Read { offset, size } => server.read(node, (offset, size), reply),
        Long::Readdir { handle, offset, .. } => server.readdir(handle, offset, reply),
        Long::Readdirplus { handle, offset, .. } => {
            server.readdirplus(node, (handle, offset), reply);
        }
        Long::Getxattr { name, size } => server.getxattr(node, &name, size, reply),
        Long::Listxattr { size } => server.listxattr(node, size, reply),
    }
}

/// Serves a request on a name or on attributes.
pub(super) fn short(
    server: &Server,
    header: &Header,
    request: Result<Request<'_>, Code>,
    reply: Pending,
) {
    let (node, asker) = (header.node, header.asker);
    let request = match request {
        Ok(request) => request,
        Err(code) => return reply.error(code),
    };
    match request {
        Request::Lookup { name } => server.lookup(node, name, reply),
        Request::Getattr => server.getattr(node, reply),
        Request::Statx => server.getattr(node, reply.formed(Form::Statx)),
        Request::Setattr { set, kills } => {
            let mut asker = asker;
            // The kernel has judged whether the caller keeps set-id bits: root's do, nobody's do not.
            match kills {
                Some(true) => asker.uid = u32::MAX,
                Some(false) => asker.uid = 0,
                None => {}
            }
            server.setattr(asker, node, Change { set, kills }, reply);
        }
        Request::Mknod { name, new, rdev } => {
            server.mknod(asker, (node, name), (new, rdev), reply);
        }
        Request::Mkdir { name, new } => server.mkdir(asker, (node, name), new, reply),
        Request::Unlink { name } => server.unlink(node, name, reply),
        Request::Rmdir { name } => server.rmdir(node, name, reply),
        Request::Symlink { name, target } => server.symlink(asker, (node, name), target, reply),
        Request::Rename { name, to, new_name, flags } => {
            server.rename((node, name), (to, new_name), flags, reply);
        }
        Request::Link { node: target, name } => server.link(target, (node, name), reply),
        Request::Create { name, new } => server.create(asker, (node, name), new, reply),
        Request::Tmpfile { new } => server.tmpfile(asker, node, new, reply),
        Request::Setxattr { name, value, flags } => {
            server.setxattr(node, (name, value), flags, reply);
        }
        Request::Removexattr { name } => server.removexattr(node, name, reply),
        request => on_open(server, header, request, reply),
    }
}

fn on_open(server: &Server, header: &Header, request: Request<'_>, reply: Pending) {
    let node = header.node;
    match request {
        Request::Open { flags } => server.open(header.asker, node, flags, reply),
        Request::Write { offset, data, kill, cached } => {
            server.write(node, (offset, data), (kill, cached), reply);
        }
        Request::Release => server.release(node, reply),
        Request::Fsync { data_only } => server.fsync(node, data_only, reply),
        Request::Opendir => server.opendir(node, reply),
        Request::Releasedir { handle } => server.releasedir(handle, reply),
        Request::Fsyncdir { data_only } => server.fsyncdir(node, data_only, reply),
        Request::Statfs => server.statfs(reply),
        Request::Syncfs => server.syncfs(reply),
        Request::Ioctl { command, input, out_size } => {
            server.ioctl(node, (command, input), out_size, reply);
        }
        Request::Fallocate { mode, offset, length } => {
            server.fallocate(node, mode, (offset, length), reply);
        }
        Request::Lseek { offset, whence } => server.lseek(node, offset, whence, reply),
        Request::CopyFileRange { offset, to, length, wide } => {
            let reply = if wide { reply.formed(Form::Wide) } else { reply };
            server.copy_file_range((node, offset), to, length, reply);
        }
        Request::Destroy => reply.answer(Answer::Done),
        // Those of `short`.
        other => log::error!("a request without a handler: {other:?}"),
    }
}
