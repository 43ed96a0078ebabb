//! PCI: finds functions, reads and writes their configuration, gives BARs addresses where no
//! firmware did. (PCI Local Bus Specification 3.0, chapter 6.)

use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;

use crate::arch::{Boot, Span};

/// Offsets in configuration space.
const COMMAND: u16 = 0x04;
const HEADER_TYPE: u16 = 0x0c;
const FIRST_BAR: u16 = 0x10;
const SUBORDINATE: u16 = 0x18;

/// Bits of the command register: memory space, bus mastering.
const MEMORY_AND_MASTER: u32 = 0b110;

/// One function of a device, by bus, device and function number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Function {
    ecam: u64,
    /// The requester id: bus, device and function in one number.
    pub rid: u16,
    /// Vendor and device.
    pub id: (u16, u16),
}

impl Function {
    fn at(ecam: u64, rid: u16) -> Option<Self> {
        let mut this = Self { ecam, rid, id: (0, 0) };
        let word = this.read(0);
        this.id = (word as u16, (word >> 16) as u16);
        (this.id.0 != 0xffff).then_some(this)
    }

    fn register(&self, offset: u16) -> *mut u32 {
        let address = self.ecam + (u64::from(self.rid) << 12) + u64::from(offset & 0xffc);
        core::ptr::with_exposed_provenance_mut(address as usize)
    }

    /// The 32-bit word of configuration space at `offset`, rounded down to whole words.
    pub(crate) fn read(&self, offset: u16) -> u32 {
        // SAFETY: inside this function's page of configuration space, which is mapped one to one.
        unsafe { self.register(offset).read_volatile() }
    }

    /// Writes such a word.
    pub(crate) fn write(&self, offset: u16, value: u32) {
        // SAFETY: as above; what a write may break is the machine's own, which the image owns.
        unsafe { self.register(offset).write_volatile(value) };
    }

    fn is_bridge(&self) -> bool {
        self.read(HEADER_TYPE) >> 16 & 0x7f == 1
    }

    /// Lets the device answer to memory accesses and make its own: firmware leaves the latter off.
    pub(crate) fn enable(&self) {
        self.write(COMMAND, self.read(COMMAND) | MEMORY_AND_MASTER);
    }

    /// The memory behind BAR `index`. Firmware assigned it, or [`Bus::new`] did.
    pub(crate) fn bar(&self, index: u16) -> Option<u64> {
        let low = self.read(FIRST_BAR + 4 * index);
        let high = match low & 0b111 {
            0b000 => 0,
            0b100 => self.read(FIRST_BAR + 4 * index + 4),
            _ => return None,
        };
        let address = u64::from(high) << 32 | u64::from(low & !0xf);
        (address != 0).then_some(address)
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, device, function) = (self.rid >> 8, self.rid >> 3 & 0x1f, self.rid & 7);
        let (vendor, id) = self.id;
        write!(f, "{bus:02x}:{device:02x}.{function} {vendor:04x}:{id:04x}")
    }
}

/// All functions that configuration space shows.
pub(crate) struct Bus {
    functions: Vec<Function>,
}

impl Bus {
    /// Looks for functions, and gives their BARs addresses if the machine says where.
    pub(crate) fn new(boot: &Boot) -> Self {
        let (ecam, len) = boot.ecam;
        let mut functions = Vec::new();
        let mut last = 0;
        let mut bus = 0;
        while bus <= last && u64::from(bus) < len >> 20 {
            for slot in 0..0x100 {
                let Some(function) = Function::at(ecam, bus << 8 | slot) else { continue };
                // Function 0 says whether there are others.
                if slot & 7 != 0 && !functions.iter().any(|one| is_first(one, &function)) {
                    continue;
                }
                if function.is_bridge() {
                    last = last.max((function.read(SUBORDINATE) >> 16 & 0xff) as u16);
                }
                functions.push(function);
            }
            bus += 1;
        }
        if let Some(space) = boot.bars {
            let space = Cell::new(space);
            functions.iter().filter(|one| !one.is_bridge()).for_each(|one| assign(one, &space));
        }
        Self { functions }
    }

    /// The functions, in the order of their requester ids.
    pub(crate) fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Those of this vendor and device.
    pub(crate) fn find(&self, id: (u16, u16)) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(move |function| function.id == id)
    }
}

/// Whether `first` is function 0 of the device of `other`, and says that there are others.
fn is_first(first: &Function, other: &Function) -> bool {
    first.rid == other.rid & !7 && first.read(HEADER_TYPE) >> 23 & 1 != 0
}

/// Gives each memory BAR an address out of `space`, aligned to its size.
fn assign(function: &Function, space: &Cell<Span>) {
    let mut index = 0;
    while index < 6 {
        let offset = FIRST_BAR + 4 * index;
        let wide = function.read(offset) & 0b111 == 0b100;
        function.write(offset, u32::MAX);
        let mask = function.read(offset);
        if mask & 1 == 0 && mask & !0xf != 0 {
            let size = u64::from(!(mask & !0xf)) + 1;
            let (start, len) = space.get();
            let at = start.next_multiple_of(size);
            assert!(at + size <= start + len, "no room for a BAR of {size:#x} bytes");
            space.set((at + size, start + len - at - size));
            function.write(offset, at as u32);
            if wide {
                function.write(offset + 4, (at >> 32) as u32);
            }
        }
        index += if wide { 2 } else { 1 };
    }
}
