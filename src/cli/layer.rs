//! `plyfs layer`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use plyfs_fuse::options::IdMap;

use super::progress;
use super::state::{StateArgs, pairs};
use crate::driver::options::number;
use crate::driver::{Ids, LayerId, MountOptions};
use crate::error::{Context, Error, Result};
use crate::layer::apply::Limits;
use crate::store::{Listed, Store};

const EXAMPLES: &str = "\
Examples:
  plyfs layer create --read-only base             a layer to be filled from an archive
  plyfs layer apply base rootfs.tar.zst           fill it
  plyfs layer create --parent base box            a layer on top, to be written
  cd $(plyfs layer mount box)                     see it, change it
  plyfs layer mount --uidmap 0:100000:65536 --gidmap 0:100000:65536 other   with the owners of a container
  plyfs layer create --template box again         another one like it, with the same content
  plyfs layer changes box                         what it adds, changes and deletes
  plyfs layer diff box -o box.tar                 the same as an image layer
  plyfs layer dedup                               let files of the same content share their blocks
  plyfs layer quota box --size 10G                limit what it holds; without options: print limits and use
  plyfs layer umount box && plyfs layer rm box";

/// Keep directories as layers: make, fill, mount, compare and remove them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a layer, empty or a copy of another
    Create(Creation),
    /// Fill an empty read-only layer from a tar archive, plain or compressed with gzip or zstd, and print its size
    Apply {
        /// Take archives of more than is usual: bytes, ratio (unpacked to packed), entries, depth, name, path, window (of zstd); N with k, m, g or
        /// t. What is refused says which
        #[arg(long = "limit", value_name = "NAME=N", value_delimiter = ',')]
        limits: Vec<String>,
        /// Its name
        id: String,
        /// The archive; standard input without, or for -
        file: Option<PathBuf>,
    },
    /// Write what a layer adds to its parent as an image layer, the very archive that it was filled from if it was
    Diff {
        /// Write to FILE, which appears when it is complete, and not to standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Its name
        id: String,
    },
    /// List what a layer adds (A), changes (C) and deletes (D)
    Changes {
        /// Its name
        id: String,
    },
    /// Mount a layer and print where; each mount wants its own umount
    Mount {
        /// The SELinux label, instead of the layer's own
        #[arg(long, value_name = "L")]
        label: Option<String>,
        /// Further options of the filesystem
        #[arg(short, value_name = "OPTION", value_delimiter = ',')]
        options: Vec<String>,
        /// Users that it shows in the place of those on disk, without a copy: FROM:TO:LENGTH, further ones after a colon. A layer that
        /// is written keeps the map it was first mounted with
        #[arg(long, value_name = "MAP", value_parser = IdMap::parse)]
        uidmap: Option<IdMap>,
        /// The same for groups
        #[arg(long, value_name = "MAP", value_parser = IdMap::parse)]
        gidmap: Option<IdMap>,
        /// Its name
        id: String,
    },
    /// Take one mount of a layer back; the last one unmounts it
    Umount {
        /// Its name
        id: String,
    },
    /// Remove layers that nothing lies on
    Rm {
        /// Their names
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Succeed if there is such a layer, and fail with 1 and in silence if not
    Exists {
        /// Its name
        id: String,
    },
    /// Print how many bytes a layer adds to its parent
    Size {
        /// Its name
        id: String,
    },
    /// Print the limits of a layer and what it takes; change them first, if any are given
    Quota {
        /// Bytes it may hold, with k, m, g or t; none for no limit
        #[arg(long, value_name = "N")]
        size: Option<String>,
        /// Inodes it may hold; none for no limit
        #[arg(long, value_name = "N")]
        inodes: Option<String>,
        /// Its name
        id: String,
    },
    Dedup(super::dedup::Args),
    /// Print everything that is known of a layer, as JSON
    Inspect {
        /// Its name
        id: String,
    },
    /// List the layers
    Ls,
}

#[derive(Debug, clap::Args)]
struct Creation {
    /// Fill it from an archive instead of writing to it
    #[arg(long)]
    read_only: bool,
    /// The layer it lies on
    #[arg(long, value_name = "ID")]
    parent: Option<String>,
    /// Begin as a copy of this layer: what it holds itself, its parent, label and limits, and whether it is read-only
    #[arg(long, value_name = "ID")]
    template: Option<String>,
    /// Write to it, though its template is read-only
    #[arg(long, requires = "template", conflicts_with = "read_only")]
    read_write: bool,
    /// Users that the copy has in the place of its template's: FROM:TO:LENGTH, further ones after a colon
    #[arg(long, value_name = "MAP", requires = "template", value_parser = IdMap::parse)]
    uidmap: Option<IdMap>,
    /// The same for groups
    #[arg(long, value_name = "MAP", requires = "template", value_parser = IdMap::parse)]
    gidmap: Option<IdMap>,
    /// The SELinux label of its mounts
    #[arg(long, value_name = "L")]
    label: Option<String>,
    /// An option of this layer, as size=BYTES or inodes=N
    #[arg(long = "opt", value_name = "K=V")]
    options: Vec<String>,
    /// Its name
    id: String,
}

/// Does it. The status is 1 for a layer that `exists` does not find.
pub fn run(args: &Args, state: &StateArgs) -> Result<u8> {
    let done = work(args, state);
    super::finish_behind();
    done
}

fn work(args: &Args, state: &StateArgs) -> Result<u8> {
    let store = state.open()?;
    match &args.verb {
        Verb::Create(creation) => create(&store, creation)?,
        Verb::Apply { limits, id, file } => {
            apply(&store, id, file.as_deref(), &self::limits(limits)?, state.json)?
        }
        Verb::Diff { output, id } => diff(&store, &LayerId::new(id)?, output.as_deref())?,
        Verb::Changes { id } => {
            super::changes::show(&store.changes(&LayerId::new(id)?)?, state.json)?
        }
        Verb::Mount { label, options, uidmap, gidmap, id } => {
            let map = |given: &Option<IdMap>| given.clone().unwrap_or_default();
            let options = MountOptions {
                label: label.clone(),
                extra: options.clone(),
                ids: Ids { users: map(uidmap), groups: map(gidmap) },
                ..MountOptions::default()
            };
            let path = store.mount(&LayerId::new(id)?, &options)?;
            match state.json {
                true => super::print_json(&serde_json::json!({ "path": path.to_string_lossy() }))?,
                false => super::print(&[path.as_os_str().as_encoded_bytes(), b"\n"].concat())?,
            }
        }
        Verb::Umount { id } => store.unmount(&LayerId::new(id)?)?,
        Verb::Rm { ids } => {
            ids.iter().try_for_each(|id| store.remove(&LayerId::new(id)?))?;
        }
        Verb::Exists { id } => {
            let id = LayerId::new(id)?;
            return match store.find(&id)?.map_or_else(|| store.look(&id).map(drop), |_| Ok(())) {
                Err(Error::NotFound { .. }) => Ok(1),
                other => other.map(|()| 0),
            };
        }
        Verb::Size { id } => {
            let size = store.size(&LayerId::new(id)?)?;
            tell(&size.to_string(), ("size", size.into()), state.json)?;
        }
        Verb::Quota { size, inodes, id } => {
            let given = [("size", size), ("inodes", inodes)];
            let given = given.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
            let options = given.map(|(key, value)| (key.to_owned(), value.clone())).collect();
            quota(&store, &LayerId::new(id)?, &options, state.json)?;
        }
        Verb::Dedup(args) => return super::dedup::run(&store, args, state.json),
        Verb::Inspect { id } => inspect(&store, &LayerId::new(id)?)?,
        Verb::Ls => list(&store, state.json)?,
    }
    Ok(0)
}

fn create(store: &Store, wanted: &Creation) -> Result<()> {
    let id = LayerId::new(&wanted.id)?;
    let template = wanted.template.as_deref().map(LayerId::new).transpose()?;
    let own = template.map(|template| store.like(&template)).transpose()?;
    let (mut parent, mut spec) = own.unwrap_or_default();
    if let Some(given) = &wanted.parent {
        parent = Some(LayerId::new(given)?);
    }
    spec.read_only = (spec.read_only || wanted.read_only) && !wanted.read_write;
    if spec.read_only {
        spec.options.clear();
    }
    spec.options.extend(pairs(&wanted.options)?);
    spec.ids.users = wanted.uidmap.clone().unwrap_or_default();
    spec.ids.groups = wanted.gidmap.clone().unwrap_or_default();
    spec.label = wanted.label.clone().or(spec.label);
    store.create(&id, parent.as_ref(), &spec)
}

/// Each as `NAME=N`.
fn limits(given: &[String]) -> Result<Limits> {
    let mut limits = Limits::default();
    for text in given {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let what = format!("limit '{name}'");
        if !Limits::NAMES.contains(&name) {
            let why = format!("there are {}", Limits::NAMES.join(", "));
            return Err(Error::invalid(what, why));
        }
        limits.set(name, number(&what, value, 1)?);
    }
    Ok(limits)
}

fn apply(store: &Store, id: &str, file: Option<&Path>, limits: &Limits, json: bool) -> Result<()> {
    let id = LayerId::new(id)?;
    let (archive, size): (Box<dyn Read>, _) = match file.filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let file = File::open(path).on("open", path)?;
            let size = progress::size(&file);
            (Box::new(file), size)
        }
        None if io::stdin().is_terminal() => {
            return Err(Error::invalid(
                "standard input",
                "is a terminal; name an archive or use a pipe",
            ));
        }
        None => (Box::new(io::stdin().lock()), None),
    };
    let mut archive = progress::reading(format!("apply {id}"), size, archive);
    let applied = store.apply(&id, &mut archive, limits)?;
    if json {
        return super::print_json(&applied);
    }
    super::print(format!("{}\n", applied.size).as_bytes())
}

fn diff(store: &Store, id: &LayerId, output: Option<&Path>) -> Result<()> {
    write_diff(store, id, output).map_err(super::cut_short)
}

fn write_diff(store: &Store, id: &LayerId, output: Option<&Path>) -> Result<()> {
    if let Some(path) = output.filter(|path| path.as_os_str() != "-") {
        // A pipe or a device is written to, and stays what it is.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            let file = File::options().write(true).open(path).on("open", path)?;
            return store.diff(id, &mut progress::writing(format!("diff {id}"), file));
        }
        let staged = crate::durable::Staged::beside(path)?;
        store.diff(id, &mut progress::writing(format!("diff {id}"), &staged.file))?;
        return staged.publish(path);
    }
    if io::stdout().is_terminal() {
        return Err(Error::invalid(
            "standard output",
            "is a terminal; name a file with -o or use a pipe",
        ));
    }
    store.diff(id, &mut progress::writing(format!("diff {id}"), super::raw_output()?))
}

/// Changes limits, if there is anything to change, and tells them.
fn quota(
    store: &Store,
    id: &LayerId,
    options: &BTreeMap<String, String>,
    json: bool,
) -> Result<()> {
    store.get(id)?;
    let limits = match options.is_empty() {
        true => store.driver().quota(id)?,
        false => store.limit(id, options)?,
    };
    let usage = store.driver().usage(id)?;
    let facts = [("bytes", usage.bytes, limits.bytes), ("inodes", usage.inodes, limits.inodes)];
    if json {
        let told = facts.map(|(what, used, limit)| {
            (what.to_owned(), serde_json::json!({ "used": used, "limit": limit }))
        });
        return super::print_json(&BTreeMap::from(told));
    }
    let mut text = format!("{:6}  {:>20}  {:>20}\n", "", "USED", "LIMIT");
    for (what, used, limit) in facts {
        let limit = limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        text.push_str(&format!("{what:6}  {used:>20}  {limit:>20}\n"));
    }
    super::print(text.as_bytes())
}

fn inspect(store: &Store, id: &LayerId) -> Result<()> {
    let found = store.look(id)?;
    let driver = store.driver_of(&found);
    let limits = driver.quota(id)?;
    let usage = driver.usage(id)?;
    let metadata: BTreeMap<_, _> = store.metadata(&found)?.into_iter().collect();
    super::print_json(&serde_json::json!({
        "layer": found.record,
        "store": store.root_of(&found).to_string_lossy(),
        "driver": driver.name(),
        "metadata": metadata,
        "quota": { "bytes": limits.bytes, "inodes": limits.inodes },
        "usage": { "bytes": usage.bytes, "inodes": usage.inodes },
    }))
}

fn list(store: &Store, json: bool) -> Result<()> {
    let layers = store.list_all()?;
    if json {
        return super::print_json(&layers);
    }
    let width = layers.iter().map(|layer| layer.record.id.len()).max().unwrap_or(0).max(2);
    // Where there is only one store, nothing is said of it.
    let several = !store.driver().additional().is_empty();
    let mut text = String::new();
    if !layers.is_empty() {
        let from = if several { format!("{:20}  STORE", "SIZE") } else { "SIZE".to_owned() };
        text.push_str(&format!("{:width$}  {:width$}  KIND        {from}\n", "ID", "PARENT"));
    }
    for Listed { record, store } in &layers {
        let kind = if record.read_only { "read-only" } else { "read-write" };
        let parent = record.parent.as_deref().unwrap_or("-");
        let size = record.content.as_ref().map_or_else(|| "-".to_owned(), |x| x.size.to_string());
        let from = if several { format!("{size:20}  {}", store.display()) } else { size };
        text.push_str(&format!("{:width$}  {parent:width$}  {kind:10}  {from}\n", record.id));
    }
    super::print(text.as_bytes())
}

/// One fact, as a line or as an object.
fn tell(line: &str, (key, value): (&str, serde_json::Value), json: bool) -> Result<()> {
    match json {
        true => super::print_json(&serde_json::json!({ key: value })),
        false => super::print(format!("{line}\n").as_bytes()),
    }
}
