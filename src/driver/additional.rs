//! Additional stores: what other stores keep is seen, and built on, and never changed. They may be on a filesystem that takes
//! no changes, and belong to somebody else, so nothing is made, locked or swept there.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Driver;
use super::options::Config;
use crate::error::{Context, Error, Result};

/// The option that names them, as containers/storage has it, and its plural.
const KEYS: [&str; 2] = ["additionalimagestore", "additionalimagestores"];

/// What stores keep their layers in, and who reads it.
const FORMATS: [(&str, &str); 3] =
    [("overlay2", "overlay2 or fuse-overlay"), ("vfs/dir", "vfs"), ("overlay", "overlay")];

/// Another store.
#[derive(Debug)]
pub struct Additional {
    /// Its root.
    pub root: PathBuf,
    /// Reads its layers. What would change anything is refused.
    pub driver: Box<dyn Driver>,
}

/// An additional store as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The driver that it is for; all of them without.
    driver: Option<String>,
    /// Its root.
    root: PathBuf,
}

impl Config {
    /// A store at `root`, with options as they were given. An additional store is named by `additionalimagestore`, with or
    /// without a driver's name before it, several by commas or by giving it again.
    pub fn new(
        root: PathBuf,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config> {
        let mut config = Config { root, ..Config::default() };
        for (key, value) in options {
            let (driver, own) = key.split_once('.').map_or((None, &*key), |(a, b)| (Some(a), b));
            if !KEYS.contains(&own) {
                config.options.insert(key, value);
                continue;
            }
            for dir in value.split(',') {
                if dir.is_empty() {
                    return Err(Error::invalid(format!("option '{key}'"), "names no directory"));
                }
                let root = std::path::absolute(dir).on("resolve", dir)?;
                config.additional.push(Wanted { driver: driver.map(str::to_owned), root });
            }
        }
        Ok(config)
    }

    /// Names of the drivers that additional stores are for.
    pub(super) fn named_by_additional(&self) -> impl Iterator<Item = &str> {
        self.additional.iter().filter_map(|wanted| wanted.driver.as_deref())
    }

    /// The additional stores that the driver `name` was given, those too that are not there.
    pub fn additional(&self, name: &str) -> Vec<PathBuf> {
        let wanted = |one: &&Wanted| one.driver.as_deref().is_none_or(|driver| driver == name);
        self.additional.iter().filter(wanted).map(|one| one.root.clone()).collect()
    }
}

/// The roots of the additional stores that are there, for the driver `name`, which keeps its layers in `home`.
pub(super) fn roots(config: &Config, name: &str, home: &str) -> Result<Vec<PathBuf>> {
    let mut roots = Vec::new();
    for root in config.additional(name) {
        let layers = root.join("layers");
        match std::fs::read_dir(&layers) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                log::warn!(
                    "additional store {}: there is none, its layers are not seen",
                    root.display()
                );
                continue;
            }
            other => drop(other.on("list", &layers)?),
        }
        let real = root.canonicalize().on("resolve", &root)?;
        if config.root.canonicalize().is_ok_and(|own| own == real) {
            return Err(Error::invalid(told(&root), "is this store itself"));
        }
        refuse_format(&real, name, home)?;
        if !roots.contains(&real) {
            roots.push(real);
        }
    }
    Ok(roots)
}

/// A store whose layers lie otherwise on disk cannot be read.
fn refuse_format(root: &Path, name: &str, home: &str) -> Result<()> {
    let used = |home: &str| {
        let entries = std::fs::read_dir(root.join(home)).ok();
        entries.into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name();
            name != "l" && !name.as_encoded_bytes().starts_with(b".")
        })
    };
    if used(home) {
        return Ok(());
    }
    match FORMATS.iter().find(|(other, _)| *other != home && used(other)) {
        None => Ok(()),
        Some((_, who)) => {
            let why = format!(
                "its layers are those of driver {who}, which {name} does not read; use --driver"
            );
            Err(Error::invalid(told(root), why))
        }
    }
}

/// One of them, by its place.
pub(super) fn at(stores: &[Additional], place: usize) -> Result<&Additional> {
    stores.get(place).ok_or_else(|| Error::invalid("additional store", "there is none such"))
}

fn told(root: &Path) -> String {
    format!("additional store {}", root.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(options: &[(&str, &str)]) -> Vec<(String, String)> {
        options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn stores_are_named_one_by_one_or_together_for_all_drivers_or_one() {
        let options = pairs(&[
            ("additionalimagestore", "/a"),
            ("overlay2.additionalimagestore", "/b"),
            ("additionalimagestores", "/c,/d"),
            ("overlay2.size", "1G"),
        ]);
        let config = Config::new("/root".into(), options).unwrap();
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(config.additional("overlay2"), paths(&["/a", "/b", "/c", "/d"]));
        assert_eq!(config.additional("vfs"), paths(&["/a", "/c", "/d"]));
        assert_eq!(config.options.len(), 1);
        for value in ["", "/a,", ",/a"] {
            let options = pairs(&[("additionalimagestore", value)]);
            assert!(Config::new("/root".into(), options).is_err(), "{value}");
        }
    }

    #[test]
    fn a_store_of_another_format_and_the_store_itself_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("other");
        std::fs::create_dir_all(root.join("layers")).unwrap();
        std::fs::create_dir_all(root.join("vfs/dir")).unwrap();
        std::fs::create_dir_all(root.join("overlay2/l")).unwrap();
        let option = || [("additionalimagestore".to_owned(), root.display().to_string())];
        let config = Config::new(dir.path().join("own"), option()).unwrap();
        assert_eq!(roots(&config, "overlay2", "overlay2").unwrap().len(), 1, "it has no layers");
        std::fs::create_dir(root.join("vfs/dir/a")).unwrap();
        let error = roots(&config, "overlay2", "overlay2").unwrap_err().to_string();
        assert!(error.contains("driver vfs, which overlay2 does not read"), "{error}");
        assert_eq!(roots(&config, "vfs", "vfs/dir").unwrap().len(), 1);
        let config = Config::new(root.clone(), option()).unwrap();
        assert!(roots(&config, "vfs", "vfs/dir").is_err());
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(roots(&config, "vfs", "vfs/dir").unwrap().len(), 0);
    }
}
