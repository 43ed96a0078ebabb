//! Capabilities, and the registers behind them.

use std::cell::RefCell;
use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use crate::virtio_iommu::pci::{PciConfig, Structure, Structures, VirtioPci};
use crate::virtio_iommu::{QueueAddresses, VirtioTransport};
use crate::{HwError, Mmio, Registers};

struct Space(RefCell<[u32; 64]>);

impl PciConfig for Space {
    fn read32(&self, offset: u16) -> u32 {
        self.0.borrow()[usize::from(offset) / 4]
    }

    fn write32(&self, offset: u16, value: u32) {
        self.0.borrow_mut()[usize::from(offset) / 4] = value;
    }
}

/// An IOMMU with its structures in BAR 4, and a capability of no concern between them.
fn function() -> Space {
    let mut words = [0u32; 64];
    words[0] = 0x1057_1af4;
    words[1] = 0x0010_0000;
    words[0x34 / 4] = 0x40;
    let mut put =
        |at: usize, values: &[u32]| words[at / 4..at / 4 + values.len()].copy_from_slice(values);
    put(0x40, &[0x0110_5009, 4, 0x0000, 0x38]);
    put(0x50, &[0x0000_6011]);
    put(0x60, &[0x0214_8009, 4, 0x3000, 0x100, 4]);
    put(0x80, &[0x0410_0009, 4, 0x2000, 0x28]);
    Space(RefCell::new(words))
}

#[test]
fn structures_are_found_and_driven() {
    let function = function();
    let found = Structures::find(&function, "viommu").expect("all there");
    assert_eq!(found.device_type, 23);
    assert_eq!(found.common, Structure { bar: 4, offset: 0, len: 0x38 });
    assert_eq!((found.notify.offset, found.notify_multiplier), (0x3000, 4));
    assert_eq!(found.device, Structure { bar: 4, offset: 0x2000, len: 0x28 });

    let bar = std::vec![0u64; 0x4000 / 8].leak();
    let base = bar.as_mut_ptr().cast::<u8>();
    let map = |place: Structure| {
        // SAFETY: a part of the leaked block, which nobody else touches.
        Some(unsafe { Mmio::new(base.wrapping_add(place.offset as usize), place.len as usize) })
    };
    // SAFETY: all of the leaked block.
    let registers = unsafe { Mmio::new(base, 0x4000) };
    let pci = VirtioPci::new(&function, "viommu", map).expect("mapped");
    assert_eq!(function.read32(4) & 6, 6, "memory space and bus mastering are on");
    pci.set_status(3);
    assert_eq!((registers.read8(20), pci.status()), (3, 3));
    registers.write16(30, 5);
    pci.notify(1);
    assert_eq!(registers.read16(0x3014), 0, "no notification before the queue is set up");
    let addresses = QueueAddresses { descriptors: 0x1_2345_6000, driver: 0x7000, device: 0x8000 };
    pci.set_queue(1, 64, addresses);
    assert_eq!((registers.read16(22), registers.read16(24), registers.read16(28)), (1, 64, 1));
    assert_eq!(registers.read64(32), 0x1_2345_6000);
    assert_eq!((registers.read64(40), registers.read64(48)), (0x7000, 0x8000));
    pci.notify(1);
    assert_eq!(registers.read16(0x3014), 1, "offset 5, times 4");
    pci.write_config8(36, 7);
    assert_eq!((registers.read8(0x2024), pci.config32(36)), (7, 7));
    pci.set_driver_features(0x5_0000_0003);
    assert_eq!((registers.read32(8), registers.read32(12)), (1, 5));
}

#[test]
fn what_is_missing_is_said() {
    let small = VirtioPci::<Mmio>::new(&function(), "viommu", |_| None);
    assert!(matches!(small.err(), Some(HwError::Registers { len: 0, need: 0x38, .. })));
    for (word, value, lacking) in [
        (0, 0x1000_1af4, "PCI id"),
        (1, 0, "notifications"),
        (0x4c / 4, 8, "common"),
        (0x80 / 4, 9, "device conf"),
    ] {
        let function = function();
        function.0.borrow_mut()[word] = value;
        let error = Structures::find(&function, "viommu").expect_err("not whole");
        assert!(error.to_string().contains(lacking), "{error}");
    }
}

proptest! {
    #[test]
    fn any_configuration_space_is_read_to_an_end(mut words in proptest::collection::vec(any::<u32>(), 64)) {
        words[0] = 0x1057_1af4;
        words[1] = 0x0010_0000;
        let words: Vec<u32> = words;
        let words: [u32; 64] = words.try_into().expect("64");
        let _ = Structures::find(&Space(RefCell::new(words)), "viommu");
    }
}
