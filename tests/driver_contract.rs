//! What every driver promises, with each of them, as root and as an ordinary user.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use plyfs::driver::{Create, MountOptions, Quota, View};
use plyfs::error::Error;
use plyfs::mount::plan;

use crate::driver_kit::{id, server};
use crate::every_driver;

every_driver! {
    an_empty_layer_is_an_empty_directory, |store| {
        store.read_write("empty", None);
        assert!(store.driver.exists(&id("empty")).unwrap());
        store.see("empty", |root| {
            let found = fs::symlink_metadata(root).unwrap();
            assert_eq!(found.mode() & 0o7777, 0o755);
            assert_eq!((found.uid(), found.gid()), (0, 0));
            assert!(fs::read_dir(root).unwrap().next().is_none());
        });
    };

    a_child_shows_its_parents_tree, |store| {
        store.read_only("base", None);
        fill_base(&store.own("base"));
        store.read_write("child", Some("base"));
        // Whole copies do not tell what they are copies of.
        let parent = (store.driver.name() != "vfs").then(|| id("base"));
        assert_eq!(store.driver.parent(&id("child")).unwrap(), parent);
        assert_eq!(store.driver.parent(&id("base")).unwrap(), None);
        for _ in 0..2 {
            store.see("child", check_base);
        }
        store.read_write("grandchild", Some("child"));
        store.see("grandchild", check_base);
    };

    the_root_of_a_child_is_as_its_parents, |store| {
        store.read_only("base", None);
        let own = store.own("base");
        chown(&own, Some(3), Some(4)).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o1770)).unwrap();
        store.read_write("child", Some("base"));
        store.see("child", |root| {
            let found = fs::symlink_metadata(root).unwrap();
            assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o1770, 3, 4));
        });
    };

    what_is_written_stays_in_the_layer, |store| {
        store.read_only("base", None);
        fill_base(&store.own("base"));
        store.read_write("one", Some("base"));
        store.read_write("two", Some("base"));
        store.see("one", |root| {
            fs::write(root.join("new"), "one").unwrap();
            fs::remove_file(root.join("file")).unwrap();
            fs::write(root.join("dir/inner"), "changed").unwrap();
        });
        store.see("one", |root| {
            assert_eq!(fs::read_to_string(root.join("new")).unwrap(), "one");
            assert_eq!(fs::read_to_string(root.join("dir/inner")).unwrap(), "changed");
            assert!(!root.join("file").exists());
        });
        store.see("two", check_base);
        assert!(!store.own("base").join("new").exists());
    };

    a_deep_stack_shows_the_topmost, |store| {
        let depth = 50;
        for n in 0..depth {
            let parent = (n > 0).then(|| format!("layer{}", n - 1));
            store.read_write(&format!("layer{n}"), parent.as_deref());
            let own = store.own(&format!("layer{n}"));
            // A new file: the old one may be one that other layers name too.
            let _ = fs::remove_file(own.join("same"));
            fs::write(own.join("same"), n.to_string()).unwrap();
            fs::write(own.join(format!("own{n}")), n.to_string()).unwrap();
        }
        store.see(&format!("layer{}", depth - 1), |root| {
            assert_eq!(fs::read_to_string(root.join("same")).unwrap(), (depth - 1).to_string());
            for n in 0..depth {
                let text = fs::read_to_string(root.join(format!("own{n}"))).unwrap();
                assert_eq!(text, n.to_string());
            }
        });
    };

    the_list_is_what_was_made, |store| {
        for name in ["b", "a", "c"] {
            store.read_write(name, None);
        }
        store.driver.remove(&id("b")).unwrap();
        assert_eq!(store.driver.list().unwrap(), [id("a"), id("c")]);
        assert!(!store.driver.exists(&id("b")).unwrap());
        store.read_write("b", None);
        assert_eq!(store.driver.list().unwrap(), [id("a"), id("b"), id("c")]);
    };

    removing_is_done_once_and_again, |store| {
        store.driver.remove(&id("none")).unwrap();
        store.read_write("base", None);
        fill_base(&store.own("base"));
        store.driver.remove(&id("base")).unwrap();
        store.driver.remove(&id("base")).unwrap();
        assert!(!store.driver.exists(&id("base")).unwrap());
        store.driver.sweep().unwrap();
        assert_eq!(store.driver.sweep().unwrap(), Vec::<String>::new());
    };

    a_name_is_given_once, |store| {
        store.read_write("a", None);
        fs::write(store.own("a").join("kept"), "").unwrap();
        let again = store.driver.create(&id("a"), None, &Create::default());
        assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
        assert!(store.own("a").join("kept").exists());
        let orphan = store.driver.create(&id("b"), Some(&id("none")), &Create::default());
        assert!(matches!(orphan, Err(Error::NotFound { .. })), "{orphan:?}");
        assert!(!store.driver.exists(&id("b")).unwrap());
        assert_eq!(store.driver.sweep().unwrap(), Vec::<String>::new());
    };

    what_is_not_there_is_not_found, |store| {
        let (driver, none) = (&store.driver, id("none"));
        assert!(matches!(driver.parts(&none), Err(Error::NotFound { .. })));
        assert!(matches!(driver.view(&none, &MountOptions::default()), Err(Error::NotFound { .. })));
        assert!(matches!(driver.metadata(&none), Err(Error::NotFound { .. })));
        assert!(matches!(driver.usage(&none), Err(Error::NotFound { .. })));
        assert!(matches!(driver.quota(&none), Err(Error::NotFound { .. })));
        assert!(matches!(driver.parent(&none), Err(Error::NotFound { .. })));
    };

    options_nobody_knows_are_refused, |store| {
        let spec = |read_only, key: &str, value: &str| Create {
            read_only,
            options: [(key.to_owned(), value.to_owned())].into(),
            ..Create::default()
        };
        for (read_only, key, value) in
            [(false, "colour", "red"), (true, "size", "1G"), (false, "size", "much"), (false, "size", "1")]
        {
            let made = store.driver.create(&id("a"), None, &spec(read_only, key, value));
            assert!(matches!(made, Err(Error::Invalid { .. })), "{key}={value}: {made:?}");
        }
        assert_eq!(store.driver.list().unwrap(), []);
        store.read_write("a", None);
        assert_eq!(store.driver.quota(&id("a")).unwrap(), Quota::default());
    };

    usage_counts_a_file_with_two_names_once, |store| {
        store.read_write("a", None);
        let empty = store.driver.usage(&id("a")).unwrap();
        let own = store.own("a");
        fs::write(own.join("f"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(own.join("f"), own.join("g")).unwrap();
        let full = store.driver.usage(&id("a")).unwrap();
        assert_eq!(full.inodes, empty.inodes + 1);
        let grown = full.bytes - empty.bytes;
        assert!((1 << 20..(1 << 20) + 65536).contains(&grown), "{grown}");
    };

    facts_tell_where_things_are, |store| {
        store.read_write("a", None);
        store.read_write("b", Some("a"));
        for name in ["a", "b"] {
            let facts = store.driver.metadata(&id(name)).unwrap();
            assert!(!facts.is_empty());
            let own = store.own(name).display().to_string();
            assert!(facts.iter().any(|(_, value)| *value == own), "{facts:?}");
        }
        let status = store.driver.status();
        assert!(status.iter().any(|(key, _)| *key == "Backing Filesystem"), "{status:?}");
        assert!(store.driver.home().starts_with(store.root()));
        store.driver.cleanup().unwrap();
    };

    a_parent_is_not_changed_through_a_mount, |store| {
        store.read_write("base", None);
        fill_base(&store.own("base"));
        store.read_write("middle", Some("base"));
        store.read_write("top", Some("middle"));
        if let View::Mount(mount) = store.driver.view(&id("middle"), &MountOptions::default()).unwrap() {
            let mounted = plan::perform(&mount, &server()).unwrap();
            let written = fs::write(mounted.target().join("x"), "");
            // The hardlink driver's containers copy what their parent has changed.
            if store.driver.name() != "overlay" {
                assert_eq!(written.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
            }
            check_base(mounted.target());
        }
        store.see("top", |root| assert!(!root.join("x").exists()));
        let read_only = MountOptions { read_only: true, ..MountOptions::default() };
        if let View::Mount(mount) = store.driver.view(&id("top"), &read_only).unwrap() {
            assert_eq!(mount.upper, None);
            let mounted = plan::perform(&mount, &server()).unwrap();
            check_base(mounted.target());
            assert!(fs::write(mounted.target().join("x"), "").is_err());
        }
    };

    a_mounted_layer_is_not_removed, |store| {
        store.read_write("base", None);
        store.read_write("top", Some("base"));
        if let View::Mount(mount) = store.driver.view(&id("top"), &MountOptions::default()).unwrap() {
            let mounted = plan::perform(&mount, &server()).unwrap();
            assert!(matches!(plan::perform(&mount, &server()), Err(Error::InUse { .. })));
            let removed = store.driver.remove(&id("top"));
            assert!(matches!(removed, Err(Error::InUse { .. })), "{removed:?}");
            mounted.unmount().unwrap();
        }
        store.driver.remove(&id("top")).unwrap();
    };

    extra_options_reach_the_mount, |store| {
        store.read_write("base", None);
        fill_base(&store.own("base"));
        store.read_write("top", Some("base"));
        let options = MountOptions { extra: vec!["no_such_option=1".to_owned()], ..MountOptions::default() };
        if let View::Mount(mount) = store.driver.view(&id("top"), &options).unwrap() {
            let refused = plan::perform(&mount, &server()).unwrap_err();
            assert!(refused.to_string().contains("no_such_option"), "{refused}");
            assert!(!mount.target.exists());
        }
        let options = MountOptions { volatile: true, ..MountOptions::default() };
        for text in ["one", "two"] {
            store.see_with("top", &options, |root| fs::write(root.join("file"), text).unwrap());
        }
        store.see("top", |root| {
            assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "two");
        });
    };

    a_difference_applied_to_a_copy_gives_the_same, |store| {
        store.read_only("base", None);
        store.read_write("source", None);
        fill_base(&store.own("source"));
        fs::create_dir_all(store.own("source").join("deep/er")).unwrap();
        fs::write(store.own("source").join("deep/er/file"), vec![7; 100_000]).unwrap();
        store.apply("base", &store.diff("source", None)).unwrap();
        assert_eq!(store.differences("source", "base"), Vec::<String>::new());
        store.read_write("child", Some("base"));
        store.see("child", |root| {
            change(root);
        });
        let lines = ["C /deep", "C /deep/er", "A /deep/er/more", "C /dir", "D /dir/inner", "D /marked", "A /new"];
        assert_eq!(store.changes("child", Some("base")), lines);
        let archive = store.diff("child", Some("base"));
        assert!(archive == store.diff("child", Some("base")), "two differences differ");
        store.read_only("copy", Some("base"));
        let applied = store.apply("copy", &archive).unwrap();
        assert_eq!(applied.size, 4);
        assert_eq!(store.differences("child", "copy"), Vec::<String>::new());
        assert_eq!(store.changes("copy", Some("base")), lines);
        store.see("copy", |root| {
            assert_eq!(fs::read_to_string(root.join("new")).unwrap(), "new!");
            assert!(!root.join("marked").exists());
        });
        // Nothing of this has touched the parent.
        assert_eq!(store.differences("source", "base"), Vec::<String>::new());
        store.read_write("above", Some("copy"));
        assert_eq!(store.differences("copy", "above"), Vec::<String>::new());
    };

    an_archive_that_fails_leaves_nothing, |store| {
        store.read_write("source", None);
        fill_base(&store.own("source"));
        let archive = store.diff("source", None);
        store.read_only("base", None);
        store.apply("base", &archive).unwrap();
        store.read_only("broken", Some("base"));
        let half = &archive[..archive.len() / 2 / 512 * 512 + 100];
        assert!(store.apply("broken", half).is_err());
        assert_eq!(store.differences("base", "broken"), Vec::<String>::new());
        assert_eq!(store.driver.sweep().unwrap(), Vec::<String>::new());
        store.apply("broken", &archive).unwrap();
        assert_eq!(store.differences("source", "broken"), Vec::<String>::new());
        if store.driver.name() != "vfs" {
            assert!(store.apply("broken", &archive).is_err(), "an archive fills a layer once");
        }
    };

    each_of_ten_layers_tells_what_it_changed, |store| {
        for n in 0..10 {
            let parent = (n > 0).then(|| format!("layer{}", n - 1));
            let name = format!("layer{n}");
            store.read_write(&name, parent.as_deref());
            let own = store.own(&name);
            fs::write(own.join(format!("file{n}")), n.to_string()).unwrap();
        }
        for n in 1..10 {
            let lines = store.changes(&format!("layer{n}"), Some(&format!("layer{}", n - 1)));
            assert_eq!(lines, [format!("A /file{n}")]);
        }
    };

    sweeping_does_not_disturb_who_is_at_work, |store| {
        store.read_write("source", None);
        fill_base(&store.own("source"));
        let archive = store.diff("source", None);
        let second = crate::driver_kit::open(store.driver.name(), &store.root());
        let busy = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while busy.load(std::sync::atomic::Ordering::Relaxed) {
                    second.sweep().unwrap();
                }
            });
            let work = || {
                for n in 0..20 {
                    let name = format!("a{n}");
                    store.read_only(&name, None);
                    store.apply(&name, &archive).unwrap();
                    store.read_write("child", Some(&name));
                    assert_eq!(store.differences("source", "child"), Vec::<String>::new());
                    store.driver.remove(&id("child")).unwrap();
                    store.driver.remove(&id(&name)).unwrap();
                }
            };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            busy.store(false, std::sync::atomic::Ordering::Relaxed);
            done.unwrap();
        });
        store.driver.sweep().unwrap();
        assert_eq!(store.driver.list().unwrap(), [id("source")]);
    };

    files_are_found_by_their_names_in_the_archive, |store| {
        store.read_write("a", None);
        fill_base(&store.own("a"));
        let files = store.driver.files(&id("a")).unwrap();
        let mut text = String::new();
        files.open(b"./dir/inner").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "inner");
        for wrong in [&b"dir/../../x"[..], b"link", b"dir", b"none", b"", b"../a"] {
            assert!(files.open(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    };
}

fn change(root: &Path) {
    fs::write(root.join("new"), "new!").unwrap();
    fs::remove_file(root.join("marked")).unwrap();
    fs::remove_dir_all(root.join("dir")).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    symlink("nowhere", root.join("deep/er/more")).unwrap();
}

fn fill_base(root: &Path) {
    let dir = root.join("subdir");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(1), Some(2)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o1705)).unwrap();
    fs::write(root.join("file"), "hello").unwrap();
    fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4222)).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/inner"), "inner").unwrap();
    symlink("dir/inner", root.join("link")).unwrap();
    fs::hard_link(root.join("dir/inner"), root.join("second")).unwrap();
    fs::write(root.join("marked"), "").unwrap();
    rustix::fs::setxattr(
        root.join("marked"),
        "user.key",
        b"value",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
}

fn check_base(root: &Path) {
    let dir = fs::symlink_metadata(root.join("subdir")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.gid()), (0o1705, 1, 2));
    let file = fs::symlink_metadata(root.join("file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.len()), (0o4222, 5));
    assert_eq!(fs::read_to_string(root.join("link")).unwrap(), "inner");
    assert_eq!(fs::read_to_string(root.join("second")).unwrap(), "inner");
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(root.join("marked"), "user.key", &mut value).unwrap();
    assert_eq!(&value[..length], b"value");
}
