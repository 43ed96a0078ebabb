//! Names: aliases and labels of nodes, and finding a device or IOMMU by what a person calls it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::tree::{NodeId, Tree};
use crate::{Board, BoardDevice, BoardIommu, LookupError};

/// How many candidates an error lists.
const MAX_CANDIDATES: usize = 8;
/// Names are compared by edit distance up to this many characters.
const MAX_COMPARED: usize = 32;

/// The aliases and labels of every node.
#[derive(Debug, Default)]
pub(crate) struct NameIndex(BTreeMap<NodeId, Vec<String>>);

impl NameIndex {
    /// Reads `/aliases`, then `/__symbols__` (labels, which `dtc -@` writes).
    pub(crate) fn collect(tree: &Tree<'_>) -> Self {
        let paths: BTreeMap<String, NodeId> = tree.ids().map(|id| (tree.path(id), id)).collect();
        let mut index = Self::default();
        let mut seen: BTreeSet<(NodeId, &str)> = BTreeSet::new();
        for holder in ["aliases", "__symbols__"].iter().filter_map(|name| tree.child(0, name)) {
            for (name, _) in tree.props(holder) {
                let target = tree.strings(holder, name).next().and_then(|path| paths.get(path));
                let Some(&target) = target else { continue };
                if seen.insert((target, name)) {
                    index.0.entry(target).or_default().push(name.to_string());
                }
            }
        }
        index
    }

    pub(crate) fn of(&self, id: NodeId) -> Vec<String> {
        self.0.get(&id).cloned().unwrap_or_default()
    }
}

/// What can be looked up.
trait Named {
    fn path(&self) -> &str;
    fn name(&self) -> &str;
    fn aliases(&self) -> &[String];
    fn enabled(&self) -> bool;

    /// How well `wanted` names this: 0 path, 1 alias or label, 2 name with unit address, 3 without.
    fn rank(&self, wanted: &str) -> Option<u32> {
        if self.path() == wanted {
            Some(0)
        } else if self.aliases().iter().any(|alias| alias == wanted) {
            Some(1)
        } else if self.name() == wanted {
            Some(2)
        } else {
            (base_name(self.name()) == wanted).then_some(3)
        }
    }
}

macro_rules! named {
    ($($type:ty),*) => {$(
        impl Named for $type {
            fn path(&self) -> &str {
                &self.path
            }
            fn name(&self) -> &str {
                &self.name
            }
            fn aliases(&self) -> &[String] {
                &self.aliases
            }
            fn enabled(&self) -> bool {
                self.enabled
            }
        }
    )*};
}
named!(BoardDevice, BoardIommu);

fn base_name(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

/// What a search came to: an index, or the indices that compete.
enum Search {
    One(usize),
    None,
    Many(Vec<usize>),
}

/// The best rank decides; of several with that rank, one that alone is enabled.
fn search<T: Named>(list: &[T], wanted: &str) -> Search {
    let ranked = list.iter().enumerate().filter_map(|(i, item)| Some((item.rank(wanted)?, i)));
    let ranked: Vec<(u32, usize)> = ranked.collect();
    let Some(best) = ranked.iter().map(|&(rank, _)| rank).min() else { return Search::None };
    let matching: Vec<usize> =
        ranked.iter().filter(|&&(rank, _)| rank == best).map(|&(_, i)| i).collect();
    let is_enabled = |i: &&usize| list.get(**i).is_some_and(Named::enabled);
    let enabled: Vec<usize> = matching.iter().filter(is_enabled).copied().collect();
    match (matching.as_slice(), enabled.as_slice()) {
        ([one], _) | (_, [one]) => Search::One(*one),
        (_, []) => Search::Many(matching),
        _ => Search::Many(enabled),
    }
}

fn find<'b, T: Named>(list: &'b [T], wanted: &str) -> Result<Option<&'b T>, LookupError> {
    match search(list, wanted) {
        Search::One(index) => Ok(list.get(index)),
        Search::None => Ok(None),
        Search::Many(indices) => {
            let paths = indices.iter().filter_map(|&i| list.get(i)).map(|item| item.path());
            Err(LookupError::Ambiguous {
                name: wanted.to_string(),
                candidates: paths.take(MAX_CANDIDATES).map(ToString::to_string).collect(),
                matches: indices.len(),
            })
        }
    }
}

impl Board {
    /// The device with this name: its full path, an alias or label, its node name, or its node name
    /// without the unit address; the first of these that fits decides. Where several fit equally,
    /// one that alone is enabled is meant. A disabled device is found, too: see
    /// [its `enabled`](field@BoardDevice::enabled).
    ///
    /// # Errors
    /// [`LookupError::Ambiguous`] or [`LookupError::Unknown`] with candidates, or
    /// [`LookupError::NotADevice`] for the name of an IOMMU or of reserved memory.
    pub fn device(&self, name: &str) -> Result<&BoardDevice, LookupError> {
        if let Some(device) = find(&self.devices, name)? {
            return Ok(device);
        }
        if let Some(path) = self.path_of_no_device(name) {
            return Err(LookupError::NotADevice { name: name.to_string(), path });
        }
        Err(self.unknown(name, &self.devices))
    }

    /// The enabled device with this name; a node that no rule makes a device is taken as a direct
    /// one. It then has a group of its own, past those of [`Board::devices`], and
    /// [`Master::Named`](crate::Master::Named).
    ///
    /// # Errors
    /// As [`Board::device`], and [`LookupError::Disabled`] for a disabled node.
    pub fn device_or_direct(&self, name: &str) -> Result<BoardDevice, LookupError> {
        let device = match find(&self.devices, name)? {
            Some(device) => device.clone(),
            None => match find(&self.others, name)? {
                Some(other) => other.clone(),
                None => self.device(name)?.clone(),
            },
        };
        if device.enabled {
            return Ok(device);
        }
        Err(LookupError::Disabled { name: name.to_string(), path: device.path })
    }

    /// The IOMMU with this name, found like [`Board::device`].
    ///
    /// # Errors
    /// [`LookupError::Ambiguous`] or [`LookupError::Unknown`] with candidates.
    pub fn iommu(&self, name: &str) -> Result<&BoardIommu, LookupError> {
        find(&self.iommus, name)?.ok_or_else(|| self.unknown(name, &self.iommus))
    }

    fn path_of_no_device(&self, name: &str) -> Option<String> {
        let iommu = self.iommus.iter().find(|iommu| iommu.rank(name).is_some());
        let region = || {
            let named = |n: &str, path: &str| path == name || n == name || base_name(n) == name;
            self.reserved.iter().find(|r| !r.path.is_empty() && named(&r.name, &r.path))
        };
        iommu.map(|iommu| iommu.path.clone()).or_else(|| region().map(|r| r.path.clone()))
    }

    fn unknown<T: Named>(&self, wanted: &str, list: &[T]) -> LookupError {
        let mut scored: Vec<(usize, &str)> =
            list.iter().filter_map(|item| closest_of(item, wanted)).collect();
        scored.sort_unstable();
        scored.dedup_by(|a, b| a.1 == b.1);
        let candidates = scored.iter().take(MAX_CANDIDATES).map(|(_, name)| name.to_string());
        LookupError::Unknown { name: wanted.to_string(), candidates: candidates.collect() }
    }
}

/// The name of `item` that is closest to `wanted`, and how far it is.
fn closest_of<'b, T: Named>(item: &'b T, wanted: &str) -> Option<(usize, &'b str)> {
    let wanted = base_name(wanted.rsplit('/').next().unwrap_or(wanted));
    let names = item.aliases().iter().map(String::as_str).chain([item.name()]);
    names.map(|name| (distance(wanted, base_name(name)), name)).min()
}

/// Edit distance without regard to case; a common beginning counts as nearly equal.
fn distance(a: &str, b: &str) -> usize {
    let fold = |s: &str| -> Vec<char> {
        s.chars().take(MAX_COMPARED).map(|c| c.to_ascii_lowercase()).collect()
    };
    let (a, b) = (fold(a), fold(b));
    if !a.is_empty() && !b.is_empty() && (a.starts_with(&b) || b.starts_with(&a)) {
        return usize::from(a.len() != b.len());
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cb, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            let best = (diagonal + usize::from(ca != cb)).min(above + 1).min(left + 1);
            (diagonal, left, *cell) = (above, best, best);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("dcp", "dcp"), 0);
        assert_eq!(distance("dcq", "dcp"), 1);
        assert_eq!(distance("disp", "display-subsystem"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
    }
}
