//! What is to be replayed, and on what.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use granule::addr::Granule;
use granule::table::{Format, FormatId, FormatVisitor};
use serde::Serialize;

use crate::ReplayError;

/// When caches are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Invalidate {
    /// At each unmap.
    #[default]
    Strict,
    /// For 64 unmaps together, or after 10 ms.
    Deferred,
}

impl core::str::FromStr for Invalidate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "strict" => Ok(Self::Strict),
            "deferred" => Ok(Self::Deferred),
            _ => Err(format!("`{text}` is neither `strict` nor `deferred`")),
        }
    }
}

/// Which devices may see nothing but what they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Untrusted {
    /// None of them.
    #[default]
    None,
    /// These.
    Devices(BTreeSet<String>),
    /// Every one.
    All,
}

impl Untrusted {
    pub(crate) fn contains(&self, device: &str) -> bool {
        match self {
            Self::None => false,
            Self::Devices(names) => names.contains(device),
            Self::All => true,
        }
    }
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Lines read.
    pub lines: u64,
    /// DMA events performed.
    pub dma_events: u64,
    /// Bytes of the file read, packed as they are.
    pub read: u64,
    /// The size of the file, if it is one.
    pub total: Option<u64>,
}

/// Called now and then with how far the replay is.
pub type OnProgress = Box<dyn FnMut(Progress) + Send>;

/// What is to be replayed, and on what. [`Options::default`] is a trusted machine of 4 KiB pages
/// everywhere with strict invalidation.
#[derive(Default)]
pub struct Options {
    /// The granules to compare. None means the format's, and without a format 4 KiB.
    pub granules: Vec<Granule>,
    /// The page-table format; `None` is Arm's for the granule (`lpae4k`, `lpae16k`, `lpae64k`).
    pub format: Option<FormatId>,
    /// The CPU's page; `None` is 4 KiB.
    pub cpu_page: Option<Granule>,
    /// When caches are dropped.
    pub invalidate: Invalidate,
    /// Which devices are not trusted.
    pub untrusted: Untrusted,
    /// Only this device.
    pub device: Option<String>,
    /// Only so many DMA events.
    pub limit: Option<u64>,
    /// The width of the addresses that are handed out, in bits; `None` is 32, from which Linux
    /// serves PCI devices first.
    pub iova_bits: Option<u32>,
    /// The size of the untrusted devices' bounce pool in bytes; `None` is 64 MiB, as Linux has it.
    pub bounce_pool: Option<u64>,
    /// Called every thousand events.
    pub progress: Option<OnProgress>,
    /// Set it to end the replay early, with what was measured so far.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl core::fmt::Debug for Options {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Options")
            .field("granules", &self.granules)
            .field("format", &self.format)
            .field("invalidate", &self.invalidate)
            .field("untrusted", &self.untrusted)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// The runs to make: a format for each granule, without repetition.
    ///
    /// # Errors
    /// [`ReplayError::NoFormat`], [`ReplayError::FormatGranule`].
    pub fn formats(&self) -> Result<Vec<FormatId>, ReplayError> {
        let mut granules = self.granules.clone();
        if granules.is_empty() {
            granules.push(self.format.map_or(Granule::K4, granule_of));
        }
        let mut formats = Vec::new();
        for granule in granules {
            let format = self.format_for(granule)?;
            if !formats.contains(&format) {
                formats.push(format);
            }
        }
        Ok(formats)
    }

    /// The format for a granule. In a comparison the format asked for serves its own granule, and
    /// Arm's serve the others.
    fn format_for(&self, granule: Granule) -> Result<FormatId, ReplayError> {
        match self.format {
            Some(format) if granule_of(format) == granule => return Ok(format),
            Some(format) if self.granules.len() == 1 => {
                let has = granule_of(format);
                return Err(ReplayError::FormatGranule { format, has, granule });
            }
            _ => {}
        }
        match granule {
            Granule::K4 => Ok(FormatId::Lpae4k),
            Granule::K16 => Ok(FormatId::Lpae16k),
            Granule::K64 => Ok(FormatId::Lpae64k),
            _ => Err(ReplayError::NoFormat { granule }),
        }
    }
}

/// The granule of a format.
pub fn granule_of(format: FormatId) -> Granule {
    struct GranuleOf;
    impl FormatVisitor for GranuleOf {
        type Output = Granule;
        fn visit<F: Format>(self) -> Granule {
            F::GRANULE
        }
    }
    format.visit(GranuleOf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_follow_granules() {
        let all = vec![Granule::K4, Granule::K16, Granule::K64, Granule::K16];
        let mut options = Options { granules: all, ..Options::default() };
        let arm = [FormatId::Lpae4k, FormatId::Lpae16k, FormatId::Lpae64k];
        assert_eq!(options.formats().expect("known"), arm);
        options.format = Some(FormatId::Dart1);
        assert_eq!(options.formats().expect("known")[1], FormatId::Dart1);
        options.granules.clear();
        assert_eq!(options.formats().expect("known"), [FormatId::Dart1]);
        options.granules = vec![Granule::K4];
        assert!(matches!(options.formats(), Err(ReplayError::FormatGranule { .. })));
        options =
            Options { granules: vec![Granule::new(1 << 20).expect("legal")], ..Options::default() };
        assert!(matches!(options.formats(), Err(ReplayError::NoFormat { .. })));
        assert_eq!(Options::default().formats().expect("known"), [FormatId::Lpae4k]);
    }
}
