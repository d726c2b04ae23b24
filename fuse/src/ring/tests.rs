//! Requests and answers as bytes written by hand, posts, and any bytes at all.

use std::ffi::OsString;
use std::time::Duration;

use super::encode::{self, Form};
use super::wire::{self, HEADER, Header, Long, Request, op};
use super::{Post, count, posts};
use crate::attr::{Attr, SetTime, Statfs, Time};
use crate::inode::Ino;
use crate::readdir::DirEntry;
use crate::server::answer::{Answer, Opened};
use crate::sys;

/// A head with a request's structure, and what it decodes with.
fn request(opcode: u32, structure: &[u8], payload: usize) -> (Vec<u8>, Header) {
    let mut head = vec![0; HEADER];
    head[4..8].copy_from_slice(&opcode.to_ne_bytes());
    head[8..16].copy_from_slice(&77_u64.to_ne_bytes());
    head[16..24].copy_from_slice(&5_u64.to_ne_bytes());
    for (at, id) in [(24, 1000_u32), (28, 1001), (32, 42)] {
        head[at..at + 4].copy_from_slice(&id.to_ne_bytes());
    }
    head[128..128 + structure.len()].copy_from_slice(structure);
    head[264..272].copy_from_slice(&78_u64.to_ne_bytes());
    head[272..276].copy_from_slice(&u32::try_from(payload).unwrap().to_ne_bytes());
    let header = wire::header(&head).unwrap();
    (head, header)
}

/// Bytes of numbers, one after the other.
macro_rules! bytes {
    ($($number:expr),*) => {{
        let mut bytes = Vec::new();
        $(bytes.extend_from_slice(&$number.to_ne_bytes());)*
        bytes
    }};
}

fn shown(opcode: u32, structure: &[u8], payload: &[u8]) -> String {
    let (head, header) = request(opcode, structure, payload.len());
    match wire::long(&header, &head, payload) {
        Some(request) => format!("{request:?}"),
        None => format!("{:?}", wire::request(&header, &head, payload)),
    }
}

#[test]
fn a_header_says_what_about_what_and_for_whom() {
    let (_, header) = request(op::GETATTR, &[], 9);
    assert_eq!((header.opcode, header.unique, header.commit), (3, 77, 78));
    assert_eq!((header.node, header.payload), (Ino(5), 9));
    assert_eq!((header.asker.uid, header.asker.gid, header.asker.pid), (1000, 1001, 42));
}

/// The kind of a request, its structure, its body, and what it is read as.
type Row<'a> = (u32, Vec<u8>, &'a [u8], &'a str);

fn all_read(rows: &[Row<'_>]) {
    for (opcode, structure, payload, text) in rows {
        assert_eq!(shown(*opcode, structure, payload), *text, "{opcode}");
    }
}

#[test]
fn requests_on_names_are_read() {
    let lookup = r#"Ok(Lookup { name: "ab" })"#;
    all_read(&[
        (op::LOOKUP, vec![], b"ab\0", lookup),
        (op::LOOKUP, vec![], b"ab\0\0", lookup),
        (op::GETATTR, bytes![0_u64, 0_u64], b"", "Ok(Getattr)"),
        (op::STATX, bytes![0_u64, 0_u64, 0_u64], b"", "Ok(Statx)"),
        (op::UNLINK, vec![], b"a\0", r#"Ok(Unlink { name: "a" })"#),
        (op::RMDIR, vec![], b"a\0", r#"Ok(Rmdir { name: "a" })"#),
        (op::SYMLINK, vec![], b"s\0to/it\0", r#"Ok(Symlink { name: "s", target: "to/it" })"#),
        (
            op::MKNOD,
            bytes![0o644_u32, 259_u32, 0o22_u32, 0_u32],
            b"n\0",
            r#"Ok(Mknod { name: "n", new: New { mode: 420, umask: 18 }, rdev: 259 })"#,
        ),
        (
            op::MKDIR,
            bytes![0o755_u32, 0o22_u32],
            b"d\0",
            r#"Ok(Mkdir { name: "d", new: New { mode: 493, umask: 18 } })"#,
        ),
        (
            op::RENAME,
            bytes![9_u64],
            b"a\0b\0",
            r#"Ok(Rename { name: "a", to: Ino(9), new_name: "b", flags: 0 })"#,
        ),
        (
            op::RENAME2,
            bytes![9_u64, 2_u32, 0_u32],
            b"a\0b\0",
            r#"Ok(Rename { name: "a", to: Ino(9), new_name: "b", flags: 2 })"#,
        ),
        (op::LINK, bytes![8_u64], b"l\0", r#"Ok(Link { node: Ino(8), name: "l" })"#),
    ]);
}

#[test]
fn requests_that_open_or_change_an_object_are_read() {
    all_read(&[
        (op::OPEN, bytes![0o2000_u32, 0_u32], b"", "Ok(Open { flags: 1024 })"),
        (
            op::CREATE,
            bytes![1_u32, 0o644_u32, 0o22_u32, 0_u32],
            b"c\0",
            r#"Ok(Create { name: "c", new: New { mode: 420, umask: 18 } })"#,
        ),
        (
            op::TMPFILE,
            bytes![1_u32, 0o600_u32, 0o22_u32, 0_u32],
            b"/\0",
            "Ok(Tmpfile { new: New { mode: 384, umask: 18 } })",
        ),
        (
            op::SETXATTR,
            bytes![2_u32, 1_u32],
            b"user.a\0xy",
            r#"Ok(Setxattr { name: "user.a", value: [120, 121], flags: 1 })"#,
        ),
        (op::REMOVEXATTR, vec![], b"user.a\0", r#"Ok(Removexattr { name: "user.a" })"#),
        (
            op::WRITE,
            bytes![0_u64, 0_u64, 2_u32, 1_u32, 0_u64, 0_u64],
            b"xy",
            "Ok(Write { offset: 0, data: [120, 121], kill: false, cached: true })",
        ),
        (
            op::WRITE,
            bytes![0_u64, 4096_u64, 2_u32, 4_u32, 0_u64, 0_u64],
            b"xy",
            "Ok(Write { offset: 4096, data: [120, 121], kill: true, cached: false })",
        ),
    ]);
}

#[test]
fn requests_on_what_is_open_are_read() {
    all_read(&[
        (op::RELEASE, bytes![0_u64], b"", "Ok(Release)"),
        (op::FSYNC, bytes![0_u64, 1_u64], b"", "Ok(Fsync { data_only: true })"),
        (op::OPENDIR, bytes![0_u64], b"", "Ok(Opendir)"),
        (op::RELEASEDIR, bytes![3_u64], b"", "Ok(Releasedir { handle: 3 })"),
        (op::FSYNCDIR, bytes![0_u64, 0_u64], b"", "Ok(Fsyncdir { data_only: false })"),
        (op::STATFS, vec![], b"", "Ok(Statfs)"),
        (op::SYNCFS, bytes![0_u64], b"", "Ok(Syncfs)"),
        (
            op::IOCTL,
            bytes![0_u64, 0_u32, 7_u32, 0_u64, 1_u32, 4_u32],
            b"i",
            "Ok(Ioctl { command: 7, input: [105], out_size: 4 })",
        ),
        (
            op::FALLOCATE,
            bytes![0_u64, 1_u64, 2_u64, 3_u32, 0_u32],
            b"",
            "Ok(Fallocate { mode: 3, offset: 1, length: 2 })",
        ),
        (
            op::LSEEK,
            bytes![0_u64, -1_i64, 4_u32, 0_u32],
            b"",
            "Ok(Lseek { offset: -1, whence: 4 })",
        ),
        (op::DESTROY, vec![], b"", "Ok(Destroy)"),
        (op::READLINK, vec![], b"", "Ok(Readlink)"),
        (
            op::READ,
            bytes![0_u64, 4096_u64, 512_u32, 0_u32],
            b"",
            "Ok(Read { offset: 4096, size: 512 })",
        ),
        (
            op::READDIR,
            bytes![3_u64, 7_u64, 512_u32, 0_u32],
            b"",
            "Ok(Readdir { handle: 3, offset: 7, size: 512 })",
        ),
        (
            op::READDIRPLUS,
            bytes![3_u64, 7_u64, 512_u32, 0_u32],
            b"",
            "Ok(Readdirplus { handle: 3, offset: 7, size: 512 })",
        ),
        (
            op::GETXATTR,
            bytes![64_u32, 0_u32],
            b"user.a\0",
            r#"Ok(Getxattr { name: "user.a", size: 64 })"#,
        ),
        (op::LISTXATTR, bytes![64_u32, 0_u32], b"", "Ok(Listxattr { size: 64 })"),
    ]);
}

#[test]
fn a_copy_of_a_range_is_counted_as_widely_as_it_was_asked_for() {
    let structure = bytes![0_u64, 1_u64, 2_u64, 0_u64, 3_u64, 4_u64, 0_u64];
    for (opcode, wide) in [(op::COPY_FILE_RANGE, false), (op::COPY_FILE_RANGE_64, true)] {
        let text =
            format!("Ok(CopyFileRange {{ offset: 1, to: (Ino(2), 3), length: 4, wide: {wide} }})");
        assert_eq!(shown(opcode, &structure, b""), text);
    }
}

#[test]
fn attributes_to_set_are_those_that_are_marked_valid() {
    let structure = |valid: u32| {
        let times = bytes![-1_i64, 20_u64, 30_u64, 5_u32, 6_u32, 7_u32];
        let ids = bytes![0o644_u32, 0_u32, 1_u32, 2_u32, 0_u32];
        [bytes![valid, 0_u32, 0_u64, 99_u64, 0_u64], times, ids].concat()
    };
    let set = |valid: u32| {
        let (head, header) = request(op::SETATTR, &structure(valid), 0);
        match wire::request(&header, &head, b"") {
            Ok(Request::Setattr { set, kills }) => (set, kills),
            other => panic!("{other:?}"),
        }
    };
    let (nothing, kills) = set(0);
    assert!(nothing.is_nothing() && kills.is_none());
    let (all, kills) = set(0b11_1111);
    assert_eq!((all.mode, all.uid, all.gid, all.size), (Some(0o644), Some(1), Some(2), Some(99)));
    assert_eq!(all.atime, Some(SetTime::At(Time { sec: -1, nsec: 5 })));
    assert_eq!(all.mtime, Some(SetTime::At(Time { sec: 20, nsec: 6 })));
    assert_eq!(kills, Some(false));
    assert_eq!(set(1 << 3 | 1 << 11).1, Some(true));
    assert_eq!(set(1 << 11).1, None, "said of a new length only");
    let (now, _) = set(1 << 4 | 1 << 7 | 1 << 5 | 1 << 8);
    assert_eq!((now.atime, now.mtime), (Some(SetTime::Now), Some(SetTime::Now)));
}

#[test]
fn what_is_cut_short_or_unknown_is_an_error() {
    for (opcode, structure, payload, code) in [
        (op::LOOKUP, vec![], &b""[..], sys::EIO),
        (op::LOOKUP, vec![], b"no end", sys::EIO),
        (op::LOOKUP, vec![], b"\0", sys::EIO),
        (op::RENAME, vec![], b"one\0", sys::EIO),
        (op::SETXATTR, bytes![9_u32, 0_u32], b"a\0xy", sys::EIO),
        (op::WRITE, bytes![0_u64, 0_u64, 3_u32, 0_u32], b"xy", sys::EIO),
        (op::IOCTL, bytes![0_u64, 0_u64, 0_u64, u32::MAX, 0_u32], b"", sys::EIO),
        (2, vec![], b"", sys::ENOSYS),
        (25, vec![], b"", sys::ENOSYS),
        (34, vec![], b"", sys::ENOSYS),
        (4096, vec![], b"", sys::ENOSYS),
    ] {
        assert_eq!(shown(opcode, &structure, payload), format!("Err({code})"), "{opcode}");
    }
}

#[test]
fn any_bytes_are_a_request_or_an_error() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..200_000_u32 {
        let mut head: Vec<u8> = (0..HEADER / 8).flat_map(|_| random().to_ne_bytes()).collect();
        head[4..8].copy_from_slice(&(round % 64).to_ne_bytes());
        let length = usize::try_from(random() % 24).unwrap();
        let payload: Vec<u8> = (0..length).map(|_| (random() % 4) as u8).collect();
        if random() % 2 == 0 {
            // Sizes that may fit.
            for at in [16, 24] {
                head[128 + at..132 + at].copy_from_slice(&((random() % 24) as u32).to_ne_bytes());
            }
        }
        head.truncate(if random() % 8 == 0 { (random() % 289) as usize } else { HEADER });
        let Ok(header) = wire::header(&head) else { continue };
        if wire::long(&header, &head, &payload).is_none() {
            drop(wire::request(&header, &head, &payload));
        }
        wire::answer(&mut head, header.unique, Err(sys::EIO));
    }
}

fn attr() -> Attr {
    let time = |sec, nsec| Time { sec, nsec };
    Attr {
        ino: Ino(11),
        generation: 2,
        mode: sys::S_IFREG | 0o644,
        nlink: 3,
        uid: 4,
        gid: 5,
        rdev: 0x0103,
        size: 6,
        blocks: 7,
        blksize: 4096,
        atime: time(-8, 1),
        mtime: time(9, 2),
        ctime: time(10, 3),
        btime: Some(time(12, 4)),
    }
}

fn encoded(answer: &Answer<'_>, form: Form) -> Vec<u8> {
    let mut room = vec![0xaa; 512];
    let ttl = Duration::new(5, 6);
    let length = encode::answer(&mut room, answer, form, ttl).unwrap();
    assert!(room[length..].iter().all(|byte| *byte == 0xaa), "nothing is written behind it");
    room.truncate(length);
    room
}

/// `struct fuse_attr` of [`attr`].
fn fuse_attr() -> Vec<u8> {
    let times = bytes![-8_i64, 9_u64, 10_u64, 1_u32, 2_u32, 3_u32];
    let ids = bytes![0o100_644_u32, 3_u32, 4_u32, 5_u32, 0x0103_u32, 4096_u32, 0_u32];
    [bytes![11_u64, 6_u64, 7_u64], times, ids].concat()
}

#[test]
fn every_answer_has_the_kernel_s_layout() {
    let (attr, usual) = (attr(), Form::Usual);
    let entry = [bytes![11_u64, 2_u64, 5_u64, 5_u64, 6_u32, 6_u32], fuse_attr()].concat();
    assert_eq!((fuse_attr().len(), entry.len()), (88, 128));
    assert_eq!(encoded(&Answer::Done, usual), []);
    assert_eq!(encoded(&Answer::Entry(&attr), usual), entry);
    assert_eq!(
        encoded(&Answer::Attr(&attr), usual),
        [bytes![5_u64, 6_u32, 0_u32], fuse_attr()].concat()
    );
    let opened = Opened { handle: 7, flags: 8, backing: None };
    let created = encoded(&Answer::Created(&attr, opened), usual);
    assert_eq!(created, [entry, bytes![7_u64, 8_u32, 0_u32]].concat());
    let backed = encoded(&Answer::Opened(Opened { backing: Some(9), ..opened }), usual);
    assert_eq!(backed, bytes![7_u64, 8_u32, 9_u32]);
    let absent = encoded(&Answer::Absent, usual);
    assert_eq!(
        (absent.len(), &absent[..8], &absent[16..24]),
        (128, &[0; 8][..], &bytes![5_u64][..])
    );
    assert_eq!(encoded(&Answer::Opened(opened), usual), bytes![7_u64, 8_u32, 0_u32]);
    assert_eq!(encoded(&Answer::Data(b"abc"), usual), b"abc");
    assert_eq!(encoded(&Answer::Size(3), usual), bytes![3_u32, 0_u32]);
    assert_eq!(encoded(&Answer::Written(3), usual), bytes![3_u32, 0_u32]);
    assert_eq!(encoded(&Answer::Written(3), Form::Wide), bytes![3_u64]);
    assert_eq!(encoded(&Answer::Offset(-1), usual), bytes![-1_i64]);
    assert_eq!(encoded(&Answer::Ioctl(b"x"), usual), [&[0; 16][..], b"x"].concat());
    let stat = Statfs {
        blocks: 1,
        bfree: 2,
        bavail: 3,
        files: 4,
        ffree: 5,
        bsize: 6,
        namelen: 7,
        frsize: 8,
        magic: 0,
    };
    let words = bytes![1_u64, 2_u64, 3_u64, 4_u64, 5_u64, 6_u32, 7_u32, 8_u32, 0_u32];
    assert_eq!(encoded(&Answer::Statfs(&stat), usual), [words, vec![0; 24]].concat());
}

#[test]
fn statx_tells_the_birth_time_where_there_is_one() {
    let mut attr = attr();
    let time = |sec: i64, nsec: u32| bytes![sec, nsec, 0_u32];
    let head = bytes![5_u64, 6_u32, 0_u32, 0_u64, 0_u64];
    let basic = bytes![0xfff_u32, 4096_u32, 0_u64, 3_u32, 4_u32, 5_u32, 0o100_644_u16, 0_u16];
    let numbers = bytes![11_u64, 6_u64, 7_u64, 0_u64];
    let times = [time(-8, 1), time(12, 4), time(10, 3), time(9, 2)].concat();
    let rest = [bytes![1_u32, 3_u32, 0_u32, 0_u32], vec![0; 112]].concat();
    let expected = [head, basic, numbers, times, rest].concat();
    assert_eq!(expected.len(), 288);
    assert_eq!(encoded(&Answer::Attr(&attr), Form::Statx), expected);
    attr.btime = None;
    assert_eq!(encoded(&Answer::Attr(&attr), Form::Statx)[32..36], bytes![0x7ff_u32]);
}

#[test]
fn an_answer_that_does_not_fit_is_none() {
    let mut room = [0; 127];
    let answer = encode::answer(&mut room, &Answer::Entry(&attr()), Form::Usual, Duration::ZERO);
    assert_eq!(answer, None);
}

#[test]
fn names_of_a_listing_start_at_multiples_of_eight_and_stop_where_the_room_ends() {
    let entry = DirEntry { ino: Ino(11), kind: sys::S_IFDIR, name: OsString::from("abc") };
    let mut room = [0xaa; 64];
    assert_eq!(encode::dirent(&mut room, 9, &entry, None), Some(32));
    let words = bytes![11_u64, 9_u64, 3_u32, 4_u32];
    assert_eq!(room[..32], [&words[..], b"abc\0\0\0\0\0"].concat());
    assert_eq!(room[32], 0xaa);
    assert_eq!(encode::dirent(&mut room[..31], 9, &entry, None), None);
    let mut room = [0xaa; 160];
    let plus = Some((&attr(), Duration::new(5, 6)));
    assert_eq!(encode::dirent(&mut room, 9, &entry, plus), Some(160));
    assert_eq!(room[40..128], fuse_attr());
    assert_eq!(room[128..], [&bytes![11_u64, 9_u64, 3_u32, 8_u32][..], b"abc\0\0\0\0\0"].concat());
}

#[test]
fn the_header_of_an_answer_counts_itself_and_negates_errors() {
    let (mut head, header) = request(op::GETATTR, &[], 5);
    wire::answer(&mut head, header.unique, Ok(104));
    assert_eq!(head[..16], bytes![120_u32, 0_i32, 77_u64]);
    assert_eq!((&head[264..272], &head[272..276]), (&bytes![78_u64][..], &bytes![104_u32][..]));
    wire::answer(&mut head, header.unique, Err(sys::ENOENT));
    assert_eq!(head[..16], bytes![16_u32, -sys::ENOENT, 77_u64]);
    assert_eq!(head[272..276], bytes![0_u32]);
}

#[test]
fn a_request_for_a_list_is_no_longer_than_asked() {
    let (head, header) = request(op::READDIR, &bytes![3_u64, 0_u64, 512_u32, 0_u32], 0);
    let request = wire::long(&header, &head, b"");
    assert!(matches!(request, Some(Ok(Long::Readdir { size: 512, .. }))));
}

#[test]
fn lists_of_processors_are_counted() {
    for (list, all) in
        [("0", Some(1)), ("0-1\n", Some(2)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None)]
    {
        assert_eq!(count(list), all, "{list}");
    }
}

#[test]
fn every_possible_processor_has_a_queue_and_ours_a_thread() {
    let own = |cpu: u16| Post { queues: vec![cpu], cpu: Some(usize::from(cpu)) };
    assert_eq!(posts(2, &[0, 1]), [own(0), own(1)]);
    assert_eq!(posts(4, &[1]), [own(1), Post { queues: vec![0, 2, 3], cpu: None }]);
    assert_eq!(posts(1, &[]), [Post { queues: vec![0], cpu: None }]);
}
