//! RAM of a board: several ranges at their physical addresses, sparse and cheap.
//!
//! One memfd backs all ranges and is mapped without reservation, so 8 GiB cost nothing until they
//! are touched; the same pages can be mapped a second time (see [`View`]), and the kernel knows
//! which pages were touched, which makes a dump cheap too (see [`Image`]).
//!
//! The only unsafe code of this folder is in `view.rs`.

mod image;
mod view;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use granule::addr::{Granule, PhysAddr, PhysRange};
use rustix::fs::{FallocateFlags, MemfdFlags};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::walk::PhysRead;

pub use image::{Image, ImageError};
pub use view::View;

/// Why there is no such RAM, or no such byte in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// The machine has no memory at all.
    #[error("a machine needs at least one range of RAM")]
    Empty,
    /// A range of RAM must be whole host pages.
    #[error("RAM at {range} is not aligned to 64 KiB")]
    Misaligned {
        /// The range.
        range: PhysRange,
    },
    /// Two ranges share an address.
    #[error("RAM at {first} overlaps RAM at {second}")]
    Overlap {
        /// One range.
        first: PhysRange,
        /// The other.
        second: PhysRange,
    },
    /// An access left RAM.
    #[error("{len:#x} bytes at {addr:#x} are not all RAM")]
    Outside {
        /// Where the access began.
        addr: PhysAddr,
        /// How long it was, in bytes.
        len: u64,
    },
    /// The host refused the mapping.
    #[error("the host cannot map the RAM: {0}")]
    Host(String),
    /// The host's file operations failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A range and its place in the memfd.
#[derive(Clone, Copy, Debug)]
struct Placed {
    range: PhysRange,
    offset: u64,
}

/// The RAM of a machine.
#[derive(Debug)]
pub struct Ram {
    memory: GuestMemoryMmap,
    file: Arc<File>,
    placed: Vec<Placed>,
}

impl Ram {
    /// RAM at these ranges, all zeroes.
    ///
    /// # Errors
    /// [`RamError`] if a range is not aligned to 64 KiB, two overlap, or the host refuses.
    pub fn new(ranges: &[PhysRange]) -> Result<Self, RamError> {
        let mut sorted = ranges.to_vec();
        sorted.sort();
        check(&sorted)?;
        let fd = rustix::fs::memfd_create("granule-sim-ram", MemfdFlags::CLOEXEC)
            .map_err(io::Error::from)?;
        let file = Arc::new(File::from(fd));
        let mut offset = 0;
        let mut placed = Vec::new();
        for range in sorted {
            placed.push(Placed { range, offset });
            offset += range.len();
        }
        file.set_len(offset)?;
        let memory = GuestMemoryMmap::from_ranges_with_files(placed.iter().map(|part| {
            let backing = FileOffset::from_arc(file.clone(), part.offset);
            (GuestAddress(part.range.start().raw()), part.range.len() as usize, Some(backing))
        }))
        .map_err(|error| RamError::Host(error.to_string()))?;
        Ok(Self { memory, file, placed })
    }

    /// The ranges, in order of address.
    pub fn ranges(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.placed.iter().map(|part| part.range)
    }

    /// Whether all of `range` is RAM (of one range).
    pub fn contains(&self, range: &PhysRange) -> bool {
        self.place(range).is_some()
    }

    /// Reads by physical address.
    ///
    /// # Errors
    /// [`RamError::Outside`]; nothing is then read.
    pub fn read(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), RamError> {
        self.check_inside(addr, out.len())?;
        self.memory.read_slice(out, GuestAddress(addr.raw())).map_err(|_| outside(addr, out.len()))
    }

    /// Writes by physical address, in the CPU's view.
    ///
    /// # Errors
    /// [`RamError::Outside`]; nothing is then written.
    pub fn write(&self, addr: PhysAddr, data: &[u8]) -> Result<(), RamError> {
        self.check_inside(addr, data.len())?;
        self.memory
            .write_slice(data, GuestAddress(addr.raw()))
            .map_err(|_| outside(addr, data.len()))
    }

    /// Writes one aligned word, atomically.
    ///
    /// # Errors
    /// [`RamError::Outside`] if there is no RAM, or `addr` is not a multiple of 8.
    pub fn write_u64(&self, addr: PhysAddr, value: u64) -> Result<(), RamError> {
        self.memory
            .store(value, GuestAddress(addr.raw()), Ordering::Release)
            .map_err(|_| outside(addr, 8))
    }

    /// Fills `range` with `byte`.
    ///
    /// # Errors
    /// [`RamError::Outside`]; nothing is then written.
    pub fn fill(&self, range: PhysRange, byte: u8) -> Result<(), RamError> {
        let chunk = [byte; 4096];
        self.place(&range).ok_or(outside(range.start(), 0))?;
        let mut done = 0;
        while done < range.len() {
            let step = (range.len() - done).min(chunk.len() as u64);
            let at = PhysAddr::new(range.start().raw() + done);
            self.write(at, &chunk[..step as usize])?;
            done += step;
        }
        Ok(())
    }

    /// Gives the pages of `range` back to the host; they read as zero afterwards.
    ///
    /// # Errors
    /// [`RamError::Outside`], or the host's error.
    pub fn discard(&self, range: PhysRange) -> Result<(), RamError> {
        let offset = self.place(&range).ok_or(outside(range.start(), 0))?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&*self.file, flags, offset, range.len()).map_err(io::Error::from)?;
        Ok(())
    }

    /// The host's pointer to the byte at `addr`, valid to the end of its range of RAM for as long as
    /// this RAM lives. `None` outside RAM.
    pub fn host_ptr(&self, addr: PhysAddr) -> Option<*mut u8> {
        self.memory.get_host_address(GuestAddress(addr.raw())).ok()
    }

    /// The physical memory behind a host pointer into the ordinary mapping: its first run of at most
    /// `len` bytes. `None` if the pointer is not into RAM or `len` is zero.
    pub fn phys_of(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        let wanted = ptr as usize as u64;
        self.memory.iter().find_map(|region| {
            let host = region.as_ptr() as usize as u64;
            let offset = wanted.checked_sub(host).filter(|offset| *offset < region.len())?;
            let run = (len as u64).min(region.len() - offset);
            PhysRange::new(PhysAddr::new(region.start_addr().0 + offset), run).ok()
        })
    }

    /// How many bytes the host has given pages to.
    ///
    /// # Errors
    /// The host's error.
    pub fn resident(&self) -> Result<u64, RamError> {
        Ok(rustix::fs::fstat(&*self.file).map_err(io::Error::from)?.st_blocks as u64 * 512)
    }

    /// The place of `range` in the memfd.
    fn place(&self, range: &PhysRange) -> Option<u64> {
        let part = self.placed.iter().find(|part| part.range.contains_range(range))?;
        Some(part.offset + (range.start().raw() - part.range.start().raw()))
    }

    fn check_inside(&self, addr: PhysAddr, len: usize) -> Result<(), RamError> {
        match PhysRange::new(addr, len as u64) {
            Err(_) if len == 0 => Ok(()),
            Ok(range) if self.contains(&range) => Ok(()),
            _ => Err(outside(addr, len)),
        }
    }
}

impl PhysRead for Ram {
    fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        self.memory.load(GuestAddress(addr.raw()), Ordering::Acquire).ok()
    }
}

fn outside(addr: PhysAddr, len: usize) -> RamError {
    RamError::Outside { addr, len: len as u64 }
}

fn check(sorted: &[PhysRange]) -> Result<(), RamError> {
    if sorted.is_empty() {
        return Err(RamError::Empty);
    }
    for range in sorted {
        if !range.is_aligned(Granule::K64) {
            return Err(RamError::Misaligned { range: *range });
        }
    }
    for pair in sorted.windows(2) {
        if pair[0].overlaps(&pair[1]) {
            return Err(RamError::Overlap { first: pair[0], second: pair[1] });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
    }

    #[test]
    fn eight_gigabytes_cost_nothing_until_touched() {
        let ram = Ram::new(&[range(0x8_0000_0000, 8 << 30)]).expect("RAM");
        assert_eq!(ram.resident().expect("stat"), 0);
        let last = PhysAddr::new(0x9_ffff_fff8);
        ram.write_u64(last, 42).expect("inside");
        assert_eq!(ram.read_u64(last), Some(42));
        assert!(ram.resident().expect("stat") <= 1 << 21);
        ram.discard(range(0x9_ffff_0000, 0x1_0000)).expect("inside");
        assert_eq!(ram.read_u64(last), Some(0));
    }

    #[test]
    fn accesses_do_not_leave_a_range() {
        let ram = Ram::new(&[range(0x1_0000, 0x1_0000), range(0x4_0000, 0x1_0000)]).expect("RAM");
        assert!(ram.write(PhysAddr::new(0x1_fffc), &[1; 8]).is_err());
        assert_eq!(ram.read_u64(PhysAddr::new(0x1_fff8)), Some(0));
        assert!(ram.read(PhysAddr::new(u64::MAX), &mut [0; 2]).is_err());
        assert_eq!(ram.read_u64(PhysAddr::new(0x1_0004)), None);
        assert_eq!(ram.read_u64(PhysAddr::new(0x3_0000)), None);
    }

    #[test]
    fn impossible_layouts_are_refused() {
        assert!(matches!(Ram::new(&[]), Err(RamError::Empty)));
        assert!(matches!(Ram::new(&[range(0x1000, 0x1_0000)]), Err(RamError::Misaligned { .. })));
        let twice = [range(0, 0x2_0000), range(0x1_0000, 0x1_0000)];
        assert!(matches!(Ram::new(&twice), Err(RamError::Overlap { .. })));
    }

    #[test]
    fn host_pointers_lead_back() {
        let ram = Ram::new(&[range(0x1_0000, 0x1_0000), range(0x4_0000, 0x1_0000)]).expect("RAM");
        let ptr = ram.host_ptr(PhysAddr::new(0x4_1234)).expect("inside");
        assert_eq!(ram.phys_of(ptr, 0x10_0000), Some(range(0x4_1234, 0xedcc)));
        assert_eq!(ram.phys_of(ptr, 0), None);
        let heap = Box::new(0u8);
        assert_eq!(ram.phys_of(&*heap, 1), None);
    }
}
