//! Layers of additional stores with deletions that not everybody looks at.

use std::fs;
use std::path::Path;

use crate::common::cmd::Cmd;
use crate::common::mount::own_namespace;
use crate::driver_kit;
use crate::needs;
use crate::store_additional::{Pair, as_user, names};

/// Takes from a record what older versions did not note.
fn unnote(root: &Path, id: &str) {
    let path = root.join("layers").join(id).join("layer.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(record["content"].as_object_mut().unwrap().remove("marks").is_some());
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
}

#[test]
fn deletions_that_nobody_here_would_look_at_are_refused() {
    needs!(UserNs, Root, KernelOverlay, Fuse);
    own_namespace();
    let store = driver_kit::Store::open("overlay2");
    let pair = Pair::new(&store);
    let upper = store.sandbox.dir("opaque");
    fs::create_dir(upper.join("d")).unwrap();
    fs::write(upper.join("d/.wh..wh..opq"), "").unwrap();
    let archive = store.sandbox.at("opaque.tar");
    Cmd::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&upper).arg(".").succeeds();
    pair.fill_there(&pair.other, "bare", Some("base"), &archive);
    assert_eq!(names(&pair.mounted("bare").join("d")), [] as [&str; 0]);
    pair.does(&["layer", "umount", "bare"]);
    Cmd::new("chmod").args(["-R", "a+rX"]).arg(&pair.other).succeeds();
    let home = store.sandbox.dir("home");
    std::os::unix::fs::chown(&home, Some(54321), Some(54321)).unwrap();
    let archive = archive.to_str().unwrap();
    let program = |driver: &str, words: &str| {
        let (h, plyfs) = (home.display(), env!("CARGO_BIN_EXE_plyfs"));
        format!(
            "mkdir -p {h}/run; export XDG_RUNTIME_DIR={h}/run; p() {{ {plyfs} --root {h}/own --driver {driver} \"$@\"; }}; {words}"
        )
    };
    let option = format!("--storage-opt additionalimagestore={}", pair.other.display());
    for driver in ["overlay2", "fuse-overlay"] {
        for verb in ["mount bare", "create --parent bare box"] {
            let words = format!("p {option} layer {verb}");
            let done = as_user(&["sh", "-c", &program(driver, &words)]).exits(1);
            done.complains("'bare'").complains("only root of the host reads");
        }
    }
    // Where nobody has noted it, it is looked for.
    unnote(&pair.other, "bare");
    let words = format!("p {option} layer mount bare");
    let done = as_user(&["sh", "-c", &program("overlay2", &words)]).exits(1);
    done.complains("'bare'").complains("only root of the host reads");
    assert_eq!(names(&pair.mounted("bare").join("d")), [] as [&str; 0]);
    pair.does(&["layer", "umount", "bare"]);
    // And the other way round.
    let words = format!(
        "tar -cf {h}/base.tar -C {h} --exclude=./own --exclude=./run .; set -e; \
         mkdir -p {h}/t/d; echo x >{h}/t/d/a; tar -cf {h}/t.tar -C {h}/t .; \
         p layer create --read-only low; p layer apply low {h}/t.tar; \
         p layer create --read-only --parent low bare2; p layer apply bare2 {archive}",
        h = home.display()
    );
    as_user(&["sh", "-c", &program("overlay2", &words)]).succeeds();
    let theirs = home.join("own");
    for noted in [true, false] {
        if !noted {
            unnote(&theirs, "bare2");
        }
        pair.with(&[&theirs], &["layer", "mount", "bare2"])
            .exits(1)
            .complains("use --driver fuse-overlay");
    }
    let option = format!("additionalimagestore={}", theirs.display());
    let fuse = |words: &[&str]| {
        let words = [&["--storage-opt", &option], words].concat();
        pair.own.plyfs_on("fuse-overlay", &words).succeeds().stdout
    };
    let at = fuse(&["layer", "mount", "bare2"]);
    assert_eq!(names(&Path::new(at.trim_end()).join("d")), [] as [&str; 0]);
    fuse(&["layer", "umount", "bare2"]);
}
