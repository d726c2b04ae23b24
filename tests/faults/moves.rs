//! Scenes of rename.

use plyfs_fuse::Options;
use plyfs_fuse::options::RedirectDir;

use super::scene::Scene;
use super::scenes::{chmod, create_op, link, mkdir, rename, rmdir, unlink, utimes, write};
use crate::common::ops::{EXCHANGE, NOREPLACE, Op};

fn redirects(options: &mut Options) {
    options.redirect_dir = RedirectDir::On;
}

fn copies(options: &mut Options) {
    options.redirect_dir = RedirectDir::Copy;
}

fn empty_w() -> Vec<Op> {
    vec![unlink("w/1"), unlink("w/2")]
}

/// A file moves.
pub fn files() -> Vec<Scene> {
    let sources: [(&str, &str, &[Op]); 3] = [
        ("upper", "n", &[create_op("n", 300)]),
        ("lower", "low", &[]),
        ("copied", "a", &[chmod("a")]),
    ];
    let targets: [(&str, &str, &[Op]); 6] = [
        ("nothing", "d/new", &[]),
        ("upper", "d/m", &[create_op("d/m", 20)]),
        ("lower", "d/g", &[]),
        ("copied", "d/f", &[write("d/f", 0)]),
        ("a lower whiteout", "d/gone", &[]),
        ("a whiteout", "d/dead", &[unlink("d/dead")]),
    ];
    let mut scenes = Vec::new();
    for (what, from, made) in &sources {
        for (onto, to, ready) in &targets {
            let scene = Scene::new(format!("rename {what} onto {onto}"), rename(from, to, 0));
            scenes.push(scene.before(made.to_vec()).before(ready.to_vec()));
        }
    }
    scenes.extend([
        Scene::new("rename beside", rename("low", "new", 0)),
        Scene::new("rename beside onto lower", rename("low", "a", 0)),
        Scene::new("rename beside onto a whiteout", rename("a", "low", 0)).before([unlink("low")]),
        Scene::new("rename out", rename("d/sub/y", "new", 0)),
        Scene::new("rename without replacing", rename("low", "d/new", NOREPLACE)),
        Scene::new("rename there and back", rename("d/new", "low", 0))
            .before([rename("low", "d/new", 0)]),
        Scene::new("rename over an open file", rename("a", "low", 0)).warm(Op::Hold {
            slot: 0,
            path: "low".into(),
            write: true,
        }),
        Scene::new("rename group member", rename("hard1", "d/new", 0)),
        Scene::new("rename copied group member", rename("hard1", "d/new", 0))
            .before([chmod("hard1")]),
        Scene::new("rename member of a copied group", rename("d/hard2", "new", 0))
            .before([chmod("hard1")]),
        Scene::new("rename member of a copied group onto lower", rename("d/hard2", "d/g", 0))
            .before([chmod("hard1")]),
        Scene::new("rename onto group member", rename("low", "hard1", 0)),
        Scene::new("rename onto member of a copied group", rename("low", "d/hard2", 0))
            .before([chmod("hard1")]),
        Scene::new("rename onto the last member", rename("low", "hard1", 0))
            .before([unlink("hard3"), unlink("d/hard2")]),
        Scene::new("rename onto upper link", rename("low", "n", 0))
            .before([create_op("n", 30), link("n", "d/n2")]),
        Scene::new("rename symlink", rename("lnk", "d/new", 0)),
        Scene::new("rename copied symlink", rename("lnk", "d/g", 0)).before([utimes("lnk")]),
        Scene::new("rename symlink group member", rename("twin1", "d/new", 0)),
        Scene::new("rename onto symlink", rename("low", "lnk", 0)),
        Scene::new("rename onto copied symlink", rename("low", "lnk", 0)).before([utimes("lnk")]),
        Scene::new("rename fifo", rename("pipe", "d/new", 0)),
    ]);
    scenes
}

fn one_way(how: &str, set: fn(&mut Options)) -> Vec<Scene> {
    let go = |name: &str, from: &str, to: &str| {
        Scene::new(format!("{how}: {name}"), rename(from, to, 0)).with(set)
    };
    let made = || vec![mkdir("u"), create_op("u/file", 20)];
    let used = || vec![chmod("d/f"), unlink("d/g"), create_op("d/sub/n", 5)];
    vec![
        go("move empty", "e", "new"),
        go("move merged", "d", "new"),
        go("move nested", "d/sub", "new"),
        go("move into", "d", "e/new"),
        go("move used", "d", "new").before(used()),
        go("move again", "new", "newer").before(used()).before([rename("d", "new", 0)]),
        go("move back", "new", "d").before([rename("d", "new", 0)]),
        go("move onto lower", "d", "e"),
        go("move onto upper", "d", "u").before([mkdir("u")]),
        go("move onto emptied", "d", "w").before(empty_w()),
        go("move onto a whiteout", "d", "e").before([rmdir("e")]),
        go("move onto a file's whiteout", "d", "low").before([unlink("low")]),
        go("move nested onto a whiteout", "d/sub", "d/dead").before([unlink("d/dead")]),
        go("move below moved", "new/sub", "top").before([rename("d", "new", 0)]),
        go("move upper", "u", "e/new").before(made()),
        go("move upper onto lower", "u", "e").before(made()),
        go("move upper onto emptied", "u", "w").before(made()).before(empty_w()),
        go("move upper onto a whiteout", "u", "w")
            .before(made())
            .before(empty_w())
            .before([rmdir("w")]),
        go("move upper onto a file's whiteout", "u", "low").before(made()).before([unlink("low")]),
        go("move opaque", "w", "new").before(empty_w()).before([
            rmdir("w"),
            mkdir("w"),
            create_op("w/2", 7),
        ]),
    ]
}

/// A directory moves, with a redirect and by copying.
pub fn directories() -> Vec<Scene> {
    let mut scenes = one_way("redirect", redirects);
    scenes.extend(one_way("whole", copies));
    scenes
}

/// Two names change places.
pub fn exchanges() -> Vec<Scene> {
    let mut scenes = Vec::new();
    let swap = |name: &str, a: &str, b: &str| {
        Scene::new(format!("exchange {name}"), rename(a, b, EXCHANGE))
    };
    scenes.extend([
        swap("lower files", "low", "a"),
        swap("lower files apart", "low", "d/g"),
        swap("copied files", "low", "d/f").before([chmod("low"), chmod("d/f")]),
        swap("upper and lower", "n", "d/g").before([create_op("n", 20)]),
        swap("file and symlink", "low", "lnk"),
        swap("group member", "hard1", "low"),
        swap("two of a group", "hard1", "d/hard2"),
        swap("member of a copied group", "d/hard2", "low").before([chmod("hard1")]),
        swap("upper directories", "u", "v").before([mkdir("u"), create_op("u/x", 3), mkdir("v")]),
    ]);
    for (how, set) in [("redirect", redirects as fn(&mut Options)), ("whole", copies)] {
        scenes.extend([
            swap(&format!("directories, {how}"), "d", "w").with(set),
            swap(&format!("directory and file, {how}"), "d", "low").with(set),
            swap(&format!("file and nested directory, {how}"), "low", "d/sub").with(set),
            swap(&format!("lower and upper directory, {how}"), "w", "u")
                .with(set)
                .before([mkdir("u"), create_op("u/x", 3)]),
        ]);
    }
    scenes
}
