//! A plan: which devices, which constraints, and whether they can be met.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::{Constraints, ShareError, Windows};
use crate::addr::{Access, DmaRange, Granule, PageSizes};
use crate::dma::{BlockRequest, Blocks, Demands, Device, FrameSource};

/// One buffer for several devices, not yet solved.
///
/// ```no_run
/// # use granule::{addr::Access, dma::Device, share::{Plan, ShareError}};
/// # fn f(dcp: Device, piodma: Device) -> Result<(), ShareError> {
/// let plan = Plan::new(8 << 20).device(&dcp, Access::all()).device(&piodma, Access::READ).solve()?;
/// let shared = plan.allocate()?;
/// for contiguous in shared.ranges() {
///     println!("{} sees it at {}", contiguous.device().name(), contiguous.address());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a plan does nothing until it is solved"]
pub struct Plan {
    len: u64,
    parties: Vec<(Device, Access)>,
    later: Vec<Device>,
    guard: bool,
    same_address: bool,
}

impl Plan {
    /// A plan for `len` bytes.
    pub fn new(len: u64) -> Self {
        Self { len, parties: Vec::new(), later: Vec::new(), guard: false, same_address: false }
    }

    /// Adds a device and what it may do.
    pub fn device(mut self, device: &Device, access: Access) -> Self {
        self.parties.push((device.clone(), access));
        self
    }

    /// Counts on a device that will be given the buffer later, by [`Shared::attach`](super::Shared::attach):
    /// the memory meets its constraints, but nothing is mapped for it yet.
    pub fn later(mut self, device: &Device) -> Self {
        self.later.push(device.clone());
        self
    }

    /// Leaves a granule unmapped before and after the range, in every translated space.
    pub fn guard(mut self, guard: bool) -> Self {
        self.guard = guard;
        self
    }

    /// Asks for the same DMA address in every device's space. Devices of one domain then have one
    /// mapping there, which allows what any of them was given.
    pub fn same_address(mut self, same: bool) -> Self {
        self.same_address = same;
        self
    }

    /// Unites what the devices demand.
    ///
    /// # Errors
    /// [`ShareError`], naming the devices and the constraint that clash. Nothing is allocated.
    pub fn solve(self) -> Result<Solved, ShareError> {
        if self.len == 0 {
            return Err(ShareError::Empty);
        }
        let parties = self.parties()?;
        let first = parties.iter().find(|party| !party.later).ok_or(ShareError::NoDevice)?;
        let source = first.device.ops().frames();
        check_machines(&parties)?;
        let none = Constraints::none(source.cpu_page());
        let united = parties.iter().fold(none, |sum, party| sum.union(&party.constraints));
        let align = united.align;
        let size = align
            .round_up(self.len)
            .ok_or(ShareError::TooLong { len: self.len, granule: align })?;
        check_lengths(&parties, self.len, size, self.guard)?;
        check_windows(&parties, &united, size)?;
        if self.same_address {
            check_addresses(&parties)?;
        }
        let sizes = page_sizes(&parties);
        let (len, guard, same_address) = (self.len, self.guard, self.same_address);
        Ok(Solved { len, size, parties, united, sizes, guard, same_address, source })
    }

    fn parties(&self) -> Result<Vec<Party>, ShareError> {
        let mut parties: Vec<Party> = Vec::with_capacity(self.parties.len());
        for (device, access) in &self.parties {
            if access.is_empty() {
                return Err(ShareError::NoAccess { device: device.name().into() });
            }
            if parties.iter().any(|party| party.device.is(device)) {
                return Err(ShareError::Twice { device: device.name().into() });
            }
            parties.push(Party::new(device, *access));
        }
        for device in &self.later {
            // Named among the others too, it simply has the buffer from the start.
            if !parties.iter().any(|party| party.device.is(device)) {
                parties.push(Party { later: true, ..Party::new(device, Access::empty()) });
            }
        }
        Ok(parties)
    }
}

/// A device of a plan and what it demands.
#[derive(Clone, Debug)]
pub struct Party {
    pub(super) device: Device,
    pub(super) access: Access,
    pub(super) demands: Demands,
    constraints: Constraints,
    /// Counted on, but not mapped for yet.
    later: bool,
}

impl Party {
    pub(super) fn new(device: &Device, access: Access) -> Self {
        let demands = device.ops().demands();
        let constraints = constraints(device, &demands);
        Self { device: device.clone(), access, demands, constraints, later: false }
    }

    /// Whether the device will be given the buffer later.
    pub fn is_later(&self) -> bool {
        self.later
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// What it alone demands.
    pub fn constraints(&self) -> &Constraints {
        &self.constraints
    }

    /// The DMA addresses that it can be given.
    pub fn addresses(&self) -> DmaRange {
        self.demands.addresses
    }

    /// The granule of its domain, if one translates.
    pub fn granule(&self) -> Option<Granule> {
        self.demands.translated.map(|translated| translated.granule)
    }

    /// Tells address spaces apart: two devices of one domain whose addresses mean the same there.
    /// `None` for a direct device.
    pub(super) fn space(&self) -> Option<(usize, u64)> {
        self.demands.translated.map(|translated| (translated.domain, translated.base))
    }

    /// Whether the device's descriptors take a range of `len` bytes.
    pub(super) fn check_descriptors(&self, len: u64) -> Result<(), ShareError> {
        let Constraints { boundary, max_segment: max, .. } = self.constraints;
        if len > max {
            return Err(ShareError::Segment { device: self.name(), max, len });
        }
        if boundary != 0 && len > boundary {
            return Err(ShareError::Boundary { device: self.name(), boundary, len });
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.device.name().into()
    }
}

fn constraints(device: &Device, demands: &Demands) -> Constraints {
    let cpu_page = device.ops().frames().cpu_page();
    Constraints {
        align: demands.translated.map_or(cpu_page, |translated| translated.granule.max(cpu_page)),
        contiguous: demands.translated.is_none(),
        windows: Windows::new(demands.windows.iter().map(|(window, _)| *window)),
        boundary: device.spec().boundary,
        max_segment: device.spec().max_segment,
    }
}

fn check_machines(parties: &[Party]) -> Result<(), ShareError> {
    let Some((first, rest)) = parties.split_first() else {
        return Ok(());
    };
    let machine = first.device.ops().frames().machine();
    match rest.iter().find(|party| party.device.ops().frames().machine() != machine) {
        Some(other) => Err(ShareError::Machines { first: first.name(), second: other.name() }),
        None => Ok(()),
    }
}

/// What a device cannot take whatever the memory is. It is told of `len` bytes, and `size` are mapped.
fn check_lengths(parties: &[Party], len: u64, size: u64, guard: bool) -> Result<(), ShareError> {
    for party in parties {
        party.check_descriptors(len)?;
        let guards =
            if guard { party.granule().map_or(0, |granule| 2 * granule.size()) } else { 0 };
        let needed = size.saturating_add(guards);
        let addresses = party.addresses();
        if party.granule().is_some() && addresses.len() < needed {
            return Err(ShareError::AddressSpace { device: party.name(), addresses, len: needed });
        }
    }
    Ok(())
}

/// Finds the two devices whose windows clash.
fn check_windows(parties: &[Party], united: &Constraints, size: u64) -> Result<(), ShareError> {
    let needed = if united.contiguous { size } else { united.align.size() };
    if united.windows.longest(united.align) >= needed {
        return Ok(());
    }
    // The pair that leaves the least tells most.
    let pairs = parties
        .iter()
        .enumerate()
        .flat_map(|(index, a)| parties[index..].iter().map(move |b| (a, b)));
    let left = |a: &Party, b: &Party| {
        let both = a.constraints.windows.intersection(&b.constraints.windows);
        (both.longest(united.align), both.is_empty())
    };
    let worst = pairs.min_by_key(|(a, b)| left(a, b).0);
    let Some((a, b)) = worst else {
        return Err(ShareError::NoDevice);
    };
    let (available, empty) = left(a, b);
    if empty {
        return Err(ShareError::Windows {
            first: a.name(),
            first_windows: a.constraints.windows.clone(),
            second: b.name(),
            second_windows: b.constraints.windows.clone(),
        });
    }
    let (first, second) = (a.name(), b.name());
    Err(ShareError::WindowTooSmall { first, second, available, align: united.align, len: needed })
}

fn check_addresses(parties: &[Party]) -> Result<(), ShareError> {
    for (index, a) in parties.iter().enumerate() {
        for b in &parties[index + 1..] {
            if !a.addresses().overlaps(&b.addresses()) {
                return Err(ShareError::NoCommonAddress {
                    first: a.name(),
                    first_addresses: a.addresses(),
                    second: b.name(),
                    second_addresses: b.addresses(),
                });
            }
        }
    }
    Ok(())
}

/// Block sizes that help somebody's tables: each domain later picks its own pages.
fn page_sizes(parties: &[Party]) -> PageSizes {
    let sizes = parties.iter().filter_map(|party| party.demands.translated);
    sizes.fold(PageSizes::default(), |sum, translated| sum.union(translated.page_sizes))
}

/// A plan that can be carried out, and how it was found.
#[derive(Clone)]
pub struct Solved {
    pub(super) len: u64,
    size: u64,
    pub(super) parties: Vec<Party>,
    united: Constraints,
    sizes: PageSizes,
    pub(super) guard: bool,
    pub(super) same_address: bool,
    source: Arc<dyn FrameSource>,
}

impl Solved {
    /// The devices, in the order in which they were named.
    pub fn parties(&self) -> &[Party] {
        &self.parties
    }

    /// What all demand together.
    pub fn constraints(&self) -> &Constraints {
        &self.united
    }

    /// The length asked for, in bytes.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The length in whole granules of the largest kind: what will be allocated.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Allocates memory that meets the constraints, zeroed; nobody has it yet.
    pub(super) fn blocks(&self) -> Result<Blocks, ShareError> {
        let request = BlockRequest {
            len: self.len,
            align: self.united.align,
            sizes: self.sizes,
            contiguous: self.united.contiguous,
            boundary: self.united.boundary,
            windows: self.united.windows.ranges().to_vec(),
        };
        let uncached = self.parties.iter().any(|party| !party.device.spec().snoops);
        // Memory for devices that do not snoop is kept in step by explicit syncs if the platform
        // has no uncached view.
        let blocks =
            Blocks::new(self.source.clone(), &request, uncached).or_else(|error| match error {
                crate::mem::FrameError::Unsupported if uncached => {
                    Blocks::new(self.source.clone(), &request, false)
                }
                error => Err(error),
            });
        blocks.map_err(|cause| ShareError::Memory {
            len: self.size,
            align: self.united.align,
            shape: if self.united.contiguous { "one block" } else { "any number of blocks" },
            cause,
        })
    }
}

impl fmt::Display for Solved {
    /// How the plan was found: what each device demands, what that makes together, and what each
    /// alone would have allowed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "demands on {:#x} bytes of memory:", self.len)?;
        for party in &self.parties {
            writeln!(f, "  {:<20} {}", party.device.name(), party.constraints)?;
            writeln!(f, "  {:<20} addresses {}", "", party.addresses())?;
        }
        writeln!(f, "together:")?;
        writeln!(f, "  {:<20} {}", "", self.united)?;
        if self.same_address {
            writeln!(f, "  {:<20} the same address for all", "")?;
        }
        writeln!(f, "so {:#x} bytes are allocated in {}", self.size, self.shape())?;
        writeln!(f, "alone each would have had:")?;
        for party in &self.parties {
            let size = party.constraints.align.round_up(self.len).unwrap_or(u64::MAX);
            writeln!(
                f,
                "  {:<20} {:#x} bytes in {}",
                party.device.name(),
                size,
                shape(&party.constraints)
            )?;
        }
        Ok(())
    }
}

impl Solved {
    fn shape(&self) -> String {
        shape(&self.united)
    }
}

fn shape(constraints: &Constraints) -> String {
    match constraints.contiguous {
        true => alloc::format!("one block aligned to {}", constraints.align),
        false => alloc::format!("blocks of at least {}", constraints.align),
    }
}

impl fmt::Debug for Solved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Solved")
            .field("len", &self.len)
            .field("united", &self.united)
            .finish_non_exhaustive()
    }
}
