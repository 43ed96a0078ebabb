//! Where a shared buffer may lie in the spaces of its devices: one address for all, or any place that
//! is left in one.

use super::plan::Party;
use super::{Key, ShareError, Shared};
use crate::addr::DmaAddr;

impl Shared {
    /// Finds one address that is free for all, from the highest down, and maps there.
    ///
    /// Each device in turn lowers the candidate to its own highest free address; when a full round
    /// changes nothing, it suits all. The candidate only sinks, so this ends.
    pub(super) fn map_at_one_address(&mut self, parties: &[&Party]) -> Result<(), ShareError> {
        let fixed = self.direct_address(parties)?;
        loop {
            let address = match fixed {
                Some(address) => address,
                None => self.common_address(parties).or_else(|_| {
                    parties.iter().for_each(|party| drop(party.device.flush()));
                    self.common_address(parties) // What waited in quarantine is free now.
                })?,
            };
            let Err((party, error)) = self.try_all_at(parties, address) else {
                return Ok(());
            };
            match error {
                error if error.is_taken() => self.drop_legs()?,
                error => return Err(error),
            }
            if fixed.is_some() {
                return Err(ShareError::AddressesTaken { device: party.device.name().into() });
            }
            // Somebody took it meanwhile: look again.
        }
    }

    fn try_all_at<'p>(
        &mut self,
        parties: &[&'p Party],
        address: DmaAddr,
    ) -> Result<(), (&'p Party, ShareError)> {
        for &party in parties {
            let space = party.space();
            let twin = self.legs.iter().find(|leg| space.is_some() && leg.space == space);
            if let Some(live) = twin.map(|leg| leg.live) {
                // One domain has one mapping there, for all its devices.
                party.device.ops().join(&live);
                self.push(party, live);
                continue;
            }
            let together = parties.iter().filter(|other| space.is_some() && other.space() == space);
            let access = together.fold(party.access, |sum, other| sum | other.access);
            self.add(party, access, Some(address)).map_err(|error| (party, error))?;
        }
        Ok(())
    }

    fn common_address(&self, parties: &[&Party]) -> Result<DmaAddr, ShareError> {
        let align = self.common_align(parties);
        let mut candidate = DmaAddr::new(u64::MAX);
        loop {
            let before = candidate;
            for party in parties {
                let taken = || ShareError::AddressesTaken { device: party.device.name().into() };
                let most = candidate.min(party.addresses().last());
                let free =
                    party.device.ops().highest_free(most, self.blocks.size(), align, self.guard);
                candidate = free.ok_or_else(taken)?;
            }
            if candidate == before {
                return Ok(candidate);
            }
        }
    }

    /// A direct device's address is where the memory is: all others must use that.
    fn direct_address(&self, parties: &[&Party]) -> Result<Option<DmaAddr>, ShareError> {
        let mut fixed: Option<(DmaAddr, &Party)> = None;
        for party in parties.iter().filter(|party| party.granule().is_none()) {
            let address = self.bus_address(party);
            match (fixed, address) {
                (_, None) => {
                    return Err(ShareError::AddressesTaken { device: party.device.name().into() });
                }
                (Some((known, first)), Some(address)) if known != address => {
                    return Err(ShareError::NoCommonAddress {
                        first: first.device.name().into(),
                        first_addresses: first.addresses(),
                        second: party.device.name().into(),
                        second_addresses: party.addresses(),
                    });
                }
                (_, Some(address)) => fixed = Some((address, party)),
            }
        }
        Ok(fixed.map(|(address, _)| address))
    }

    fn bus_address(&self, party: &Party) -> Option<DmaAddr> {
        let [block] = self.blocks.blocks() else {
            return None;
        };
        let found = party.demands.windows.iter().find(|(window, _)| window.contains_range(block));
        let (window, bus) = found?;
        bus.checked_add(block.start().offset_from(window.start())?)
    }

    /// The alignment that the largest pages of all these devices need.
    fn common_align(&self, parties: &[&Party]) -> u64 {
        let sizes = parties.iter().filter_map(|party| party.demands.translated);
        let best = sizes.flat_map(|translated| {
            let blocks = self.blocks.blocks().iter();
            blocks.filter_map(move |block| {
                translated.page_sizes.best(0, block.start().raw(), block.len())
            })
        });
        best.max().unwrap_or(1).max(self.least_align(parties))
    }

    /// The alignment without which these devices cannot be served.
    fn least_align(&self, parties: &[&Party]) -> u64 {
        let granules = parties.iter().filter_map(|party| party.granule());
        let granule = granules.max().map_or(1, |granule| granule.size());
        // Aligned to its own size a range crosses no boundary that is at least as long.
        let natural = self.blocks.size().checked_next_power_of_two().unwrap_or(1 << 63);
        let boundary = parties.iter().map(|party| party.device.spec().boundary).max();
        granule.max(natural.min(boundary.unwrap_or(0)))
    }

    /// Maps the buffer for a device wherever there is room.
    ///
    /// Ranges are naturally aligned as a rule, so that large pages fit. In a space that is small or
    /// broken up, a place without that is looked for before the device is refused.
    pub(super) fn add_anywhere(&mut self, party: &Party) -> Result<Key, ShareError> {
        loop {
            let error = match self.add(party, party.access, None) {
                Err(error) if error.lacks_space() => error,
                result => return result,
            };
            let Some(address) = self.tight_address(party) else {
                return Err(error);
            };
            match self.add(party, party.access, Some(address)) {
                Err(error) if error.is_taken() => {} // Somebody took it meanwhile: look again.
                result => return result,
            }
        }
    }

    /// The highest address at which the buffer fits, with large pages if possible.
    fn tight_address(&self, party: &Party) -> Option<DmaAddr> {
        let (most, size) = (party.addresses().last(), self.blocks.size());
        [self.common_align(&[party]), self.least_align(&[party])]
            .into_iter()
            .find_map(|align| party.device.ops().highest_free(most, size, align, self.guard))
    }
}
