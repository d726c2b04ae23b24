//! Layers that are seen with other ids than those on disk, without a copy.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use plyfs::driver::MountOptions;

use crate::common::cmd::Cmd;
use crate::driver_kit;
use crate::every_driver;
use crate::store_kit::{Box_, tree};

/// Who is root in a container, and a few more.
const MAP: &str = "0:100000:1000";
const IDS: [&str; 4] = ["--uidmap", MAP, "--gidmap", MAP];

/// Layers `base`, with two owners, and `box` on it.
fn layers<'a>(kit: &'a driver_kit::Store) -> Box_<'a> {
    let store = Box_(kit);
    let tree = tree(kit);
    if store.can_shift() {
        chown(tree.join("a"), Some(5), Some(6)).unwrap();
        // In no range of the map.
        chown(tree.join("d/c"), Some(2000), Some(0)).unwrap();
    }
    fs::set_permissions(tree.join("d/b"), fs::Permissions::from_mode(0o4751)).unwrap();
    store.fill("base", None, &tree);
    store.does(&["layer", "create", "--parent", "base", "box"]);
    store
}

impl Box_<'_> {
    fn can_shift(&self) -> bool {
        self.does(&["driver", "status"]).stdout.contains("Supports shifting: true")
    }

    /// What a script says in a layer that is mounted with these words, as root of the container where `mapped`.
    fn seen(&self, words: &[&str], name: &str, mapped: bool, script: &str) -> String {
        let mount = [&["layer", "mount"], words, &[name]].concat();
        let path = self.does(&mount).stdout;
        let enter = "cd \"$1\"; shift; exec \"$@\"";
        let cmd = Cmd::new("sh").args(["-ec", enter, "sh", path.trim_end()]);
        let user = ["setpriv", "--reuid", "100000", "--regid", "100000", "--clear-groups"];
        let cmd = if mapped { cmd.args(user) } else { cmd };
        let said = cmd.args(["sh", "-ec", script]).succeeds().stdout;
        self.does(&["layer", "umount", name]);
        said
    }

    fn owners(&self, words: &[&str], name: &str) -> String {
        self.seen(words, name, false, "find . -exec stat -c '%n %u:%g' {} + | sort")
    }
}

/// Where it cannot be, nothing has changed but that somebody was told so.
fn is_refused(store: &Box_<'_>) {
    let mounts = [&["layer", "mount"][..], &IDS, &["box"]].concat();
    let told = store.plyfs(&mounts).exits(1);
    told.complains("mount with other ids: ").complains("plyfs layer create --template");
    assert_eq!(told.stderr.trim_end().lines().count(), 1, "{}", told.stderr);
    let record = fs::read_to_string(store.0.root().join("layers/box/layer.json")).unwrap();
    assert!(!record.contains("below_uid_map"), "{record}");
    assert_eq!(store.seen(&[], "box", false, "cat a; stat -c %u:%g ."), "one\n0:0\n");
    store.plyfs(&["layer", "umount", "box"]).exits(1);
    store.does(&["driver", "status"]).says("Supports shifting: by copies of a template (mounts: ");
    store.does(&["check"]).says("nothing wrong");
}

fn with_other_owners(kit: &driver_kit::Store) {
    let store = layers(kit);
    if !store.can_shift() {
        return is_refused(&store);
    }
    let shown = ". 100000:100000\n./a 100005:100006\n./d 100000:100000\n./d/b 100000:100000\n\
        ./d/c 65534:100000\n./l 100000:100000\n";
    for name in ["base", "box"] {
        assert_eq!(store.owners(&IDS, name), shown, "{name}");
    }
    let own = kit.driver.parts(&driver_kit::id("base")).unwrap().own;
    let stat = own.join("a").symlink_metadata().unwrap();
    assert_eq!((stat.uid(), stat.gid()), (5, 6), "the layer below was changed");
    // Root of the container, whose files these are.
    let script = "cat d/b; stat -c %a d/b; chmod 4711 d/b; echo more >> d/b; echo n > n; chown 100005:100006 n 2>&1 || true; \
        ! cat > d/c 2> /dev/null < /dev/null; rm a; mkdir e; mv n e; rm l";
    assert_eq!(
        store.seen(&IDS, "box", true, script).lines().take(2).collect::<Vec<_>>(),
        ["two", "4751"]
    );
    // Whose owner has no id that could be stored is changed by nobody.
    let refused = "! sh -c 'echo more >> d/c' 2> /dev/null; cat d/c";
    assert_eq!(store.seen(&IDS, "box", false, refused), "three\n");
    let changes = store.does(&["layer", "changes", "box"]).stdout;
    for line in ["C /d/b\n", "D /a\n", "A /e\n", "A /e/n\n", "D /l\n"] {
        assert!(changes.contains(line), "{changes}");
    }
    store.does(&["layer", "diff", "box", "-o", kit.sandbox.at("box.tar").to_str().unwrap()]);
    let now = ". 100000:100000\n./d 100000:100000\n./d/b 100000:100000\n./d/c 65534:100000\n\
        ./e 100000:100000\n./e/n 100000:100000\n";
    assert_eq!(store.owners(&IDS, "box"), now);
    // What was stored as it is seen keeps its map; what is one directory has the ids on disk again.
    let kept = !["vfs"].contains(&kit.driver.name());
    let plain = store.owners(&[], "box");
    assert_eq!(plain == now, kept, "{plain}");
    assert!(kept || plain.contains("./e/n 0:0\n"), "{plain}");
    assert!(store.owners(&[], "base").contains("./a 5:6\n"));
    store.does(&["check"]).says("nothing wrong");
    store.does(&["layer", "rm", "box"]);
    store.does(&["layer", "rm", "base"]);
}

fn only_one_map_at_a_time(kit: &driver_kit::Store) {
    let store = layers(kit);
    let mount = |words: &[&str]| store.plyfs(&[&["layer", "mount"], words].concat());
    mount(&["--uidmap", "0:1", "box"]).exits(2).complains("are not triples");
    mount(&["--uidmap", "0:1000:10:5:2000:10", "box"]).exits(2).complains("overlap on disk");
    mount(&["--gidmap", "0:1000:10:20:1005:10", "box"]).exits(2).complains("overlap presented");
    if !store.can_shift() {
        return is_refused(&store);
    }
    for name in ["base", "box"] {
        let path = mount(&[&IDS[..], &[name]].concat()).succeeds().stdout;
        assert_eq!(mount(&[&IDS[..], &[name]].concat()).succeeds().stdout, path);
        let others: [&[&str]; 2] = [&["--uidmap", "0:7:1", name], &["--gidmap", MAP, name]];
        for other in others {
            let told = mount(other).exits(1);
            assert!(
                told.stderr.contains("in use") || told.stderr.contains("no others"),
                "{}",
                told.stderr
            );
        }
        let noted = name == "box" && kit.driver.name() != "vfs";
        let users = if noted {
            mount(&[name]).succeeds();
            3
        } else {
            mount(&[name]).exits(1).complains("in use by its mount");
            2
        };
        store.plyfs(&["layer", "rm", name]).exits(1);
        for _ in 0..users {
            store.does(&["layer", "umount", name]);
        }
        store.plyfs(&["layer", "umount", name]).exits(1).complains("not found");
    }
    // Who has it as it is keeps it so.
    store.does(&["layer", "mount", "base"]);
    mount(&[&IDS[..], &["base"]].concat()).exits(1).complains("in use by");
    store.does(&["layer", "umount", "base"]);
    store.does(&["check"]).says("nothing wrong");
}

fn what_was_written_has_one_map(kit: &driver_kit::Store) {
    let store = layers(kit);
    if !store.can_shift() {
        return is_refused(&store);
    }
    store.does(&["layer", "create", "--parent", "base", "used"]);
    store.seen(&[], "used", false, "echo u > u");
    let mount = [&["layer", "mount"][..], &IDS, &["used"]].concat();
    if kit.driver.name() == "vfs" {
        assert!(store.owners(&IDS, "used").contains("./u 100000:100000\n"));
        return;
    }
    store.plyfs(&mount).exits(1).complains("holds what was written without a map");
    assert!(store.owners(&[], "used").contains(". 0:0\n"));
    store.seen(&IDS, "box", true, "echo n > n");
    store.does(&["layer", "create", "--template", "box", "copy"]);
    assert_eq!(store.owners(&[], "copy"), store.owners(&[], "box"));
    let create = |words: &[&str]| store.plyfs(&[&["layer", "create"], words].concat());
    create(&["--parent", "box", "child"]).exits(1).complains("written with other ids below it");
    let closed = MountOptions { read_only: true, ..MountOptions::default() };
    let refused = store.open().unwrap().mount(&driver_kit::id("box"), &closed).unwrap_err();
    assert!(refused.to_string().contains("only be mounted to be written"), "{refused}");
    create(&["--template", "box", "--read-only", "fixed"]).exits(1).complains("has the same ids");
    store.does(&["check"]).says("nothing wrong");
}

fn of_a_layer_that_lies_on_no_other(kit: &driver_kit::Store) {
    let store = layers(kit);
    if !store.can_shift() {
        return is_refused(&store);
    }
    store.does(&["layer", "create", "alone"]);
    store.seen(&IDS, "alone", true, "echo a > a; mkdir d; ln a d/b");
    let stat = kit.own("alone").join("d/b").symlink_metadata().unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.nlink()), (0, 0, 2));
    let all = "find . | xargs stat -c %u:%g | sort -u";
    assert_eq!(store.seen(&["--uidmap", "0:7:1"], "alone", false, all), "7:0\n");
    assert_eq!(store.seen(&[], "alone", false, all), "0:0\n");
    store.does(&["layer", "create", "--read-only", "empty"]);
    let closed = store.seen(&IDS, "empty", true, "touch a 2>&1 || true");
    assert!(closed.contains("Read-only file system"), "{closed}");
    store.does(&["layer", "rm", "alone", "empty"]);
}

/// What one driver has written the other one shows, and writes on.
fn of_either_driver(kit: &driver_kit::Store) {
    let mut seen = Vec::new();
    for order in [["overlay2", "fuse-overlay"], ["fuse-overlay", "overlay2"]] {
        let name = format!("box-{}", order[0]);
        let store = Box_(kit);
        store.does(&["layer", "create", "--parent", "base", &name]);
        let on = |driver: &str, words: &[&str], script: &str| {
            let path = store.plyfs_on(driver, &[&["layer", "mount"], words, &[&name]].concat());
            let path = path.succeeds().stdout;
            let enter = "cd \"$1\"; exec setpriv --reuid 100000 --regid 100000 --clear-groups sh -ec \"$2\"";
            let said = Cmd::new("sh").args(["-ec", enter, "sh", path.trim_end(), script]);
            let said = said.succeeds().stdout;
            store.plyfs_on(driver, &["layer", "umount", &name]).succeeds();
            said
        };
        let look = "find . -exec stat -c '%n %u:%g %a %h' {} + | sort; cat a d/b";
        let mut both = Vec::new();
        on(order[0], &IDS, "echo n > n; chmod 600 d/b; mv d/b b; ln b d/b; rm l; mkdir -m 2770 e");
        both.push(on(order[0], &[], look));
        both.push(on(order[1], &[], look));
        on(order[1], &IDS, "echo m > e/m; rm n; echo more >> d/b; mv e f");
        both.push(on(order[1], &[], look));
        both.push(on(order[0], &IDS, look));
        assert_eq!((&both[0], &both[2]), (&both[1], &both[3]));
        assert!(both[3].contains("./f/m 100000:100000"), "{}", both[3]);
        let archives = order.map(|driver| {
            let file = kit.sandbox.at(format!("{driver}.tar"));
            let words = ["layer", "diff", &name, "-o", file.to_str().unwrap()];
            store.plyfs_on(driver, &words).succeeds();
            fs::read(file).unwrap()
        });
        assert!(archives[0] == archives[1], "the differences are not the same");
        seen.push(both);
    }
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn a_layer_with_other_ids_goes_from_driver_to_driver() {
    crate::needs!(Fuse, KernelOverlay);
    driver_kit::with(crate::this_test!(), "overlay2", false, |kit| {
        layers(kit);
        of_either_driver(kit);
    });
}

#[test]
fn a_filesystem_that_cannot_show_other_ids_is_named() {
    crate::needs!(KernelOverlay);
    driver_kit::with(crate::this_test!(), "vfs", false, |kit| {
        let (dir, at) = (|name| kit.sandbox.dir(name), |name| kit.sandbox.at(name));
        let places = ["l", "u", "w", "m"].map(dir).map(|path| path.display().to_string());
        let [lower, upper, work, merged] = &places;
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        Cmd::new("mount").args(["-t", "overlay", "none", "-o", &options, merged]).succeeds();
        let plyfs = |words: &[&str]| {
            Cmd::plyfs().arg("--root").arg(at("m").join("s")).args(["--driver", "vfs"]).args(words)
        };
        plyfs(&["layer", "create", "box"]).succeeds();
        let told = plyfs(&["layer", "mount", "--uidmap", MAP, "box"]).exits(1);
        told.complains("mount with other ids: this kernel cannot show overlay so; copy the layer");
        plyfs(&["driver", "status"])
            .succeeds()
            .says("(mounts: this kernel cannot show overlay so)");
        plyfs(&["layer", "mount", "box"]).succeeds();
        plyfs(&["layer", "umount", "box"]).succeeds();
        Cmd::new("umount").arg(merged).succeeds();
    });
}

every_driver! {
    owners, with_other_owners;
    one_map, only_one_map_at_a_time;
    written, what_was_written_has_one_map;
    alone, of_a_layer_that_lies_on_no_other;
}
