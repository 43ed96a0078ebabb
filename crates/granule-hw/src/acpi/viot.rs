//! VIOT: which endpoints of a machine are behind a virtio-iommu.
//!
//! Source: ACPI 6.5, section 5.2.33 "Virtual I/O Translation Table".
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use granule::addr::PhysAddr;

use super::AcpiError;
use super::table::{Bytes, check};

/// Where a virtio-iommu is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViommuPlace {
    /// A PCI function.
    Pci {
        /// The segment.
        segment: u16,
        /// The requester id.
        function: u16,
    },
    /// Registers in memory.
    Mmio {
        /// Where they lie.
        base: PhysAddr,
    },
}

/// Endpoints, and how their ids follow from where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// PCI functions: the first one has the endpoint id `first_id`, the others follow.
    Pci {
        /// The first and last segment.
        segments: (u16, u16),
        /// The first and last requester id.
        functions: (u16, u16),
        /// The endpoint id of the first.
        first_id: u32,
        /// Which of [`Viot::viommus`] serves them.
        viommu: usize,
    },
    /// One device with registers in memory.
    Mmio {
        /// Where its registers lie.
        base: PhysAddr,
        /// Its endpoint id.
        id: u32,
        /// Which of [`Viot::viommus`] serves it.
        viommu: usize,
    },
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Viot {
    /// The IOMMUs.
    pub viommus: Vec<ViommuPlace>,
    /// Who is behind them.
    pub endpoints: Vec<Endpoints>,
}

impl Viot {
    /// Reads the table.
    ///
    /// # Errors
    /// [`AcpiError`] if it is no VIOT, or is broken as a whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let table = check(bytes, *b"VIOT")?;
        let count = usize::from(table.u16(36).unwrap_or(0));
        let start = usize::from(table.u16(38).unwrap_or(0)).max(40);
        let nodes = || {
            let mut at = start;
            let all = table.structures(start, 4, |bytes| bytes.u16(2).map(usize::from));
            all.take(count).map(move |node| {
                let place = at;
                at += node.0.len();
                (place, node)
            })
        };
        let places: Vec<(usize, ViommuPlace)> =
            nodes().filter_map(|(at, node)| Some((at, place(node)?))).collect();
        let serves = |offset: Option<u16>| {
            let offset = usize::from(offset?);
            places.iter().position(|(at, _)| *at == offset)
        };
        let endpoints = nodes().filter_map(|(_, node)| endpoints(node, serves)).collect();
        Ok(Self { viommus: places.into_iter().map(|(_, place)| place).collect(), endpoints })
    }

    /// The IOMMU of a PCI function, and its endpoint id there. `None` for an IOMMU itself, even where
    /// the table counts it in (QEMU's names the whole bus).
    pub fn of_function(&self, segment: u16, function: u16) -> Option<(usize, u32)> {
        if self.viommus.contains(&ViommuPlace::Pci { segment, function }) {
            return None;
        }
        self.endpoints.iter().find_map(|range| match *range {
            Endpoints::Pci { segments, functions, first_id, viommu } => {
                let inside = (segments.0..=segments.1).contains(&segment)
                    && (functions.0..=functions.1).contains(&function);
                let offset = u32::from(segment.checked_sub(segments.0)?) << 16
                    | u32::from(function.checked_sub(functions.0)?);
                inside.then_some((viommu, first_id.checked_add(offset)?))
            }
            Endpoints::Mmio { .. } => None,
        })
    }
}

fn place(node: Bytes<'_>) -> Option<ViommuPlace> {
    match node.u8(0)? {
        3 => Some(ViommuPlace::Pci { segment: node.u16(4)?, function: node.u16(6)? }),
        4 => Some(ViommuPlace::Mmio { base: PhysAddr::new(node.u64(8)?) }),
        _ => None,
    }
}

fn endpoints(node: Bytes<'_>, serves: impl Fn(Option<u16>) -> Option<usize>) -> Option<Endpoints> {
    match node.u8(0)? {
        1 => Some(Endpoints::Pci {
            first_id: node.u32(4)?,
            segments: (node.u16(8)?, node.u16(10)?),
            functions: (node.u16(12)?, node.u16(14)?),
            viommu: serves(node.u16(16))?,
        }),
        2 => Some(Endpoints::Mmio {
            id: node.u32(4)?,
            base: PhysAddr::new(node.u64(8)?),
            viommu: serves(node.u16(16))?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::table::testing::{join, table};
    use proptest::prelude::*;

    /// The IOMMU at 00:02.0, and two ranges behind it, of which one counts it in, as QEMU's does.
    fn sample() -> Vec<u8> {
        table(
            *b"VIOT",
            &join(&[
                &[3, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[3, 0, 16, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 48, 0, 0, 0, 0, 0, 0, 0],
                &[
                    1, 0, 24, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0xff, 0, 48, 0, 0, 0, 0, 0, 0,
                    0,
                ],
            ]),
        )
    }

    #[test]
    fn endpoints_have_their_ids() {
        let viot = Viot::parse(&sample()).expect("a table");
        assert_eq!(viot.viommus, [ViommuPlace::Pci { segment: 0, function: 0x10 }]);
        assert_eq!(viot.of_function(0, 8), Some((0, 8)));
        assert_eq!(viot.of_function(0, 0x18), Some((0, 0x18)));
        assert_eq!(viot.of_function(0, 0x10), None);
        assert_eq!(viot.of_function(1, 8), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_to_an_end(body in proptest::collection::vec(any::<u8>(), 0..300), segment: u16, function: u16) {
            if let Ok(viot) = Viot::parse(&table(*b"VIOT", &body)) {
                let _ = viot.of_function(segment, function);
            }
        }

        #[test]
        fn a_damaged_table_is_read_to_an_end(at in 36usize..112, value: u8, function: u16) {
            let mut bytes = sample();
            bytes[at] = value;
            let viot = Viot::parse(&table(*b"VIOT", &bytes[36..])).expect("the header is whole");
            let _ = viot.of_function(0, function);
        }
    }
}
