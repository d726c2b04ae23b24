//! The same format in other stores: short names that no layer here has lead to layers there.

use std::path::PathBuf;

use super::Layout;
use crate::driver::LayerId;
use crate::driver::shelf::Shelf;
use crate::error::{Error, Result};

impl Layout {
    /// Takes the directories of other stores, in the order in which they are looked at.
    pub(in crate::driver) fn look_at(&mut self, homes: Vec<PathBuf>) {
        self.others = homes;
    }

    /// Reads one of the other stores, by its place. Layers there may lie on others still.
    pub(in crate::driver) fn other(&self, place: usize) -> Result<Layout> {
        let home = self.others.get(place);
        let home = home.ok_or_else(|| Error::invalid("additional store", "there is none such"))?;
        Ok(Layout { shelf: Shelf::reader(home.clone()), ..self.clone() })
    }

    /// The layer that a short name means, and its content: by the links first, since who claims a name is known only when all
    /// layers have been looked at.
    pub(super) fn named(&self, short: &str) -> Result<Option<(LayerId, PathBuf)>> {
        let others = (0..self.others.len()).map(|place| self.other(place));
        let stores: Vec<Layout> =
            std::iter::once(Ok(self.clone())).chain(others).collect::<Result<_>>()?;
        for store in &stores {
            if let Some(id) = store.target(short)? {
                let diff = store.at(&id).join("diff");
                return Ok(Some((id, diff)));
            }
        }
        // The link is lost; the layer itself still tells.
        for store in &stores {
            if let Some(id) = store.shorts()?.remove(short) {
                let diff = store.at(&id).join("diff");
                return Ok(Some((id, diff)));
            }
        }
        Ok(None)
    }
}
