//! Scenes of copy-up, removal and creation.

use plyfs_fuse::Options;

use super::scene::{Act, Scene, has_ids};
use crate::common::model::Who;
use crate::common::ops::{Fill, Op};
use crate::common::tree::Stamp;

/// Every scene there is.
pub fn all() -> Vec<Scene> {
    let rooms = [copy_up, metacopy, remove, create];
    let moves = [super::moves::files, super::moves::directories, super::moves::exchanges];
    rooms.into_iter().chain(moves).flat_map(|room| room()).collect()
}

pub fn create_op(path: &str, len: usize) -> Op {
    Op::Create { path: path.into(), mode: 0o640, fill: Fill { seed: 99, len } }
}

pub fn write(path: &str, at: u64) -> Op {
    Op::Write { path: path.into(), at, fill: Fill { seed: 77, len: 600 } }
}

pub fn truncate(path: &str, size: u64) -> Op {
    Op::Truncate { path: path.into(), size }
}

pub fn chmod(path: &str) -> Op {
    Op::Chmod { path: path.into(), mode: 0o711 }
}

pub fn utimes(path: &str) -> Op {
    Op::Utimes { path: path.into(), mtime: Stamp { sec: 1_111_111_111, nsec: 5 } }
}

pub fn chown(path: &str) -> Op {
    Op::Chown { path: path.into(), uid: Some(33), gid: Some(44) }
}

pub fn set_xattr(path: &str, name: &str) -> Op {
    Op::SetXattr { path: path.into(), name: name.into(), value: "new".into(), flags: 0 }
}

pub fn unlink(path: &str) -> Op {
    Op::Unlink { path: path.into() }
}

pub fn rmdir(path: &str) -> Op {
    Op::Rmdir { path: path.into() }
}

pub fn mkdir(path: &str) -> Op {
    Op::Mkdir { path: path.into(), mode: 0o750 }
}

pub fn link(from: &str, to: &str) -> Op {
    Op::Link { from: from.into(), to: to.into() }
}

pub fn symlink(path: &str) -> Op {
    Op::Symlink { path: path.into(), target: "some/where".into() }
}

pub fn fifo(path: &str) -> Op {
    Op::Mknod { path: path.into(), mode: libc::S_IFIFO | 0o600, rdev: (0, 0) }
}

pub fn rename(from: &str, to: &str, flags: u32) -> Op {
    Op::Rename { from: from.into(), to: to.into(), flags }
}

fn hold(path: &str) -> Op {
    Op::Hold { slot: 0, path: path.into(), write: true }
}

pub fn with_metacopy(options: &mut Options) {
    options.metacopy = true;
}

/// A lower object changes.
pub fn copy_up() -> Vec<Scene> {
    let at = |name: &str, op: Op, path: &str| Scene::new(name, op).touches(path);
    let group = |name: &str, op: Op| {
        Scene::new(name, op).touches("hard1").touches("d/hard2").touches("hard3")
    };
    let held = Op::HeldWrite { slot: 0, at: 5, fill: Fill { seed: 1, len: 50 } };
    let range =
        Op::CopyRange { from: "a".into(), from_at: 0, to: "low".into(), to_at: 100, len: 4000 };
    let reserve = Op::Fallocate { path: "low".into(), mode: 0, at: 4096, len: 9000 };
    let forget = Op::RemoveXattr { path: "a".into(), name: "user.a".into() };
    let mut scenes = vec![
        at("write", write("a", 10), "a"),
        at("write nested", write("d/sub/x", 10), "d/sub/x"),
        at("write holes", write("sparse", 20_000), "sparse"),
        at("write upper", write("low", 10), "low").before([chmod("low")]),
        at("write held", held, "low").warm(hold("low")),
        at("truncate to less", truncate("low", 100), "low"),
        at("truncate to nothing", truncate("low", 0), "low"),
        at("truncate to more", truncate("low", 20_000), "low"),
        at("copy range", range, "low"),
        at("fallocate", reserve, "low"),
        Scene::new("chmod", chmod("a")),
        Scene::new("chmod nested", chmod("d/sub/x")),
        Scene::new("chmod holes", chmod("sparse")),
        Scene::new("utimes", utimes("a")),
        Scene::new("set xattr", set_xattr("a", "user.b")),
        Scene::new("replace xattr", set_xattr("a", "user.a")),
        Scene::new("remove xattr", forget),
        Scene::new("chmod directory", chmod("d")),
        Scene::new("chmod nested directory", chmod("d/sub")),
        Scene::new("set xattr of a directory", set_xattr("d/sub", "user.b")),
        Scene::new("utimes symlink", utimes("lnk")),
        Scene::new("chmod fifo", chmod("pipe")),
        Scene::new("utimes symlink group", utimes("twin2")),
        Scene::new("utimes symlink group again", utimes("twin1")).before([utimes("twin2")]),
        group("write group", write("hard1", 10)),
        group("write group nested", write("d/hard2", 10)),
        group("truncate group", truncate("hard3", 10)),
        Scene::new("chmod group", chmod("d/hard2")),
        group("write group again", write("d/hard2", 10)).before([chmod("hard1")]),
        Scene::new("chmod group of fewer", chmod("hard1")).before([unlink("hard3")]),
        at("write far", write("big", 10), "big").afar(),
        Scene::new("chmod far", chmod("big")).afar(),
    ];
    if has_ids() {
        scenes.push(Scene::new("chown", chown("a")));
        scenes.push(Scene::new("chown nested", chown("d/sub/y")));
        scenes.push(Scene::new("chown symlink", chown("lnk")));
        scenes.push(Scene::new("chown group", chown("hard1")));
    }
    scenes
}

/// A lower file changes, its data stays below; and comes up later.
pub fn metacopy() -> Vec<Scene> {
    let metacopy = |name: &str, op: Op| Scene::new(name, op).with(with_metacopy);
    let fill =
        |name: &str, path: &str, op: Op| metacopy(name, op).before([chmod(path)]).touches(path);
    vec![
        metacopy("metacopy", chmod("low")),
        metacopy("metacopy small", chmod("d/f")),
        metacopy("metacopy with xattr", chmod("a")),
        metacopy("metacopy holes", chmod("sparse")),
        metacopy("metacopy nested", utimes("d/sub/x")),
        metacopy("metacopy set xattr", set_xattr("low", "user.b")),
        metacopy("metacopy again", utimes("low")).before([chmod("low")]),
        metacopy("metacopy far", chmod("big")).afar(),
        fill("fill", "low", write("low", 10)),
        fill("fill small", "d/f", write("d/f", 10)),
        fill("fill holes", "sparse", write("sparse", 20_000)),
        fill("fill with xattr", "a", write("a", 10)),
        fill("fill to less", "low", truncate("low", 100)),
        fill("fill to nothing", "low", truncate("low", 0)),
        fill("fill to more", "low", truncate("low", 20_000)),
        fill("fill far", "big", write("big", 10)).afar(),
        fill("fill far to less", "big", truncate("big", 300_000)).afar(),
        fill("link metacopy", "low", link("low", "d/new")).touches("d/new"),
        fill("rename metacopy", "low", rename("low", "d/new", 0)).touches("d/new"),
        fill("rename onto metacopy", "low", rename("a", "low", 0)),
        fill("unlink metacopy", "low", unlink("low")),
    ]
}

/// Names go.
pub fn remove() -> Vec<Scene> {
    let empty = [unlink("w/1"), unlink("w/2")];
    let group = |name: &str, path: &str| Scene::new(name, unlink(path));
    vec![
        Scene::new("unlink upper", unlink("n")).before([create_op("n", 300)]),
        Scene::new("unlink lower", unlink("low")),
        Scene::new("unlink lower nested", unlink("d/sub/y")),
        Scene::new("unlink copied", unlink("low")).before([chmod("low")]),
        Scene::new("unlink over a lower whiteout", unlink("d/gone"))
            .before([create_op("d/gone", 5)]),
        Scene::new("unlink recreated", unlink("low")).before([unlink("low"), create_op("low", 9)]),
        Scene::new("unlink open", unlink("low")).warm(hold("low")),
        Scene::new("unlink open copied", unlink("low")).before([chmod("low")]).warm(hold("low")),
        Scene::new("unlink symlink", unlink("lnk")),
        Scene::new("unlink copied symlink", unlink("lnk")).before([utimes("lnk")]),
        Scene::new("unlink fifo", unlink("pipe")),
        Scene::new("unlink upper link", unlink("n"))
            .before([create_op("n", 300), link("n", "d/n2")]),
        group("unlink group member", "hard1"),
        group("unlink nested group member", "d/hard2"),
        group("unlink copied group member", "hard1").before([chmod("hard1")]),
        group("unlink member of a copied group", "d/hard2").before([chmod("hard1")]),
        group("unlink the last but one", "hard1").before([unlink("hard3")]),
        group("unlink the last member", "hard1").before([unlink("hard3"), unlink("d/hard2")]),
        group("unlink the last copied member", "d/hard2").before([
            chmod("hard1"),
            unlink("hard3"),
            unlink("hard1"),
        ]),
        group("unlink symlink group member", "twin1"),
        group("unlink the last of a symlink group", "twin2").before([unlink("twin1")]),
        Scene::new("rmdir upper", rmdir("u")).before([mkdir("u")]),
        Scene::new("rmdir lower", rmdir("e")),
        Scene::new("rmdir copied", rmdir("e")).before([chmod("e")]),
        Scene::new("rmdir with whiteouts", rmdir("w")).before(empty.clone()),
        Scene::new("rmdir with more whiteouts", rmdir("w")).before(empty.clone()).before([
            mkdir("w/u"),
            rmdir("w/u"),
            create_op("w/1", 5),
            unlink("w/1"),
        ]),
        Scene::new("rmdir opaque", rmdir("w")).before(empty).before([
            rmdir("w"),
            mkdir("w"),
            create_op("w/3", 5),
            unlink("w/3"),
        ]),
        Scene::new("rmdir nested", rmdir("d/sub")).before([unlink("d/sub/x"), unlink("d/sub/y")]),
    ]
}

/// Names come.
pub fn create() -> Vec<Scene> {
    let no_low = [unlink("low")];
    let no_e = [rmdir("e")];
    let no_w = [unlink("w/1"), unlink("w/2"), rmdir("w")];
    let held = Op::HeldLink { slot: 1, to: "d/new".into() };
    let unnamed = Op::HoldTmp { slot: 1, path: "d".into(), mode: 0o600 };
    let mut scenes = vec![
        Scene::new("create", create_op("n", 0)),
        Scene::new("create nested", create_op("d/sub/n", 0)),
        Scene::new("create in a set-group-id directory", create_op("s/n", 0)),
        Scene::new("create over a whiteout", create_op("low", 0)).before(no_low.clone()),
        Scene::new("create over a lower whiteout", create_op("d/gone", 0)),
        Scene::new("create over a directory's whiteout", create_op("w", 0)).before(no_w.clone()),
        Scene::new("mkdir", mkdir("d/n")),
        Scene::new("mkdir over a whiteout", mkdir("e")).before(no_e),
        Scene::new("mkdir over a full directory's whiteout", mkdir("w")).before(no_w.clone()),
        Scene::new("mkdir over a file's whiteout", mkdir("low")).before(no_low.clone()),
        Scene::new("mkdir over a lower whiteout", mkdir("d/gone")),
        Scene::new("symlink", symlink("d/n")),
        Scene::new("symlink over a whiteout", symlink("low")).before(no_low.clone()),
        Scene::new("mknod", fifo("d/n")),
        Scene::new("mknod over a whiteout", fifo("low")).before(no_low.clone()),
        Scene::new("link lower", link("low", "d/new")),
        Scene::new("link copied", link("low", "d/new")).before([chmod("low")]),
        Scene::new("link upper", link("n", "d/new")).before([create_op("n", 300)]),
        Scene::new("link over a whiteout", link("a", "low")).before(no_low.clone()),
        Scene::new("link group", link("hard1", "d/new")),
        Scene::new("link copied group", link("d/hard2", "d/new")).before([chmod("hard1")]),
        Scene::new("link group over a whiteout", link("hard1", "low")).before(no_low.clone()),
        Scene::new("link symlink", link("lnk", "d/new")),
        Scene::new("link symlink group", link("twin1", "d/new")),
        Scene::new("link unnamed", held.clone()).warm(unnamed.clone()).touches("d/new"),
    ];
    let foreign = |kind: char, name: &str, path: &str| {
        Scene::of(format!("foreign {name}"), Act::Foreign(kind, path.into()))
    };
    if has_ids() {
        scenes.extend([
            foreign('-', "create", "d/n"),
            foreign('-', "create in a set-group-id directory", "s/n"),
            foreign('-', "create over a whiteout", "low").before(no_low.clone()),
            foreign('d', "mkdir", "d/n"),
            foreign('d', "mkdir in a set-group-id directory", "s/n"),
            foreign('d', "mkdir over a whiteout", "w").before(no_w.clone()),
            foreign('l', "symlink", "d/n"),
            foreign('l', "symlink over a whiteout", "low").before(no_low.clone()),
            foreign('p', "mknod", "d/n"),
            foreign('p', "mknod over a whiteout", "low").before(no_low),
        ]);
    }
    if Who::me().privileged {
        let null = Op::Mknod { path: "d/n".into(), mode: libc::S_IFCHR | 0o600, rdev: (1, 3) };
        scenes.push(Scene::new("mknod device", null));
    }
    scenes
}
