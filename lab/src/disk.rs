//! A disk behind an IOMMU: the driver of the crate `virtio-drivers`, unchanged, on `granule-virtio`.
//!
//! The launcher fills the disk's file, and compares all of it afterwards: the guest reads the first
//! half and writes its bytes, each changed, to the second.

use alloc::format;
use alloc::vec;
use core::ptr::NonNull;

use granule::dma::DeviceSpec;
use granule::domain::InvalidationPolicy;
use granule::mem::SpinLock;
use granule_hw::virtio_iommu::pci::Structures;
use granule_hw::{Mmio, Registers};
use granule_virtio::{AccessPlatform, Binding, GranuleHal, Slot};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{Cam, DeviceFunction, MmioCam, PciRoot};

use crate::arch::Boot;
use crate::pci::{Bus, Function};
use crate::ram::{difference, failure};
use crate::report::Report;
use crate::rig::{Failure, Rig, domain};

/// Vendor and device of a virtio disk, version 1.
const ID: (u16, u16) = (0x1af4, 0x1042);

/// Sectors a request: not a power of two, so that the last one is shorter.
const SECTORS: usize = 21;

/// What a byte of the second half is of the first half's.
fn changed(byte: u8) -> u8 {
    byte.wrapping_mul(3) ^ 0x5a
}

/// What the launcher puts at a place of the disk: a generator that it has too.
fn first(place: usize) -> u8 {
    let mixed = (place as u32 ^ 0x9e37).wrapping_mul(0x9e37_79b9);
    (mixed >> 13) as u8 ^ mixed as u8
}

/// The disk.
struct Disk;

static SLOT: Slot = Slot::new();

// SAFETY: registers are mapped one to one, for ever.
unsafe impl Binding for Disk {
    type Lock = SpinLock;

    fn slot() -> &'static Slot {
        &SLOT
    }

    fn registers(address: usize, _: usize) -> NonNull<u8> {
        match NonNull::new(core::ptr::with_exposed_provenance_mut(address)) {
            Some(start) => start,
            None => panic!("the disk's registers are at address 0"),
        }
    }
}

/// Drives the disk, with nothing left over.
pub(crate) fn run<R: Rig>(
    rig: &R,
    boot: &Boot,
    bus: &Bus,
    report: &mut Report,
) -> Result<(), Failure> {
    let function = bus.find(ID).next().ok_or_else(|| failure("there is no virtio disk"))?;
    function.enable();
    let domain = domain(rig, None, function.rid, InvalidationPolicy::DEFERRED)?;
    let stream = rig.stream(function.rid)?;
    SLOT.bind(domain.attach(DeviceSpec::new("disk"), &[stream], None)?, 64 << 10)?;
    copy(boot, function, report)?;
    let stats = SLOT.stats();
    let left = (stats.shared, stats.blocks, stats.refused, stats.lost);
    report.check(
        "disk: nothing is shared any more, nothing was lost",
        left == (0, 0, 0, 0),
        || format!("{stats:?}"),
    );
    let device = SLOT.unbind().ok_or_else(|| failure("the slot is still in use"))?;
    let detached = device.detach().is_ok();
    report.check("disk: the device is detached", detached, || "mappings live".into());
    rig.take_faults(&mut |fault| report.broken("disk: a fault", &fault));
    Ok(())
}

fn transport(boot: &Boot, place: DeviceFunction) -> Result<PciTransport, Failure> {
    let ecam = core::ptr::with_exposed_provenance_mut(boot.ecam.0 as usize);
    // SAFETY: configuration space, mapped one to one; the image reads it from one place at a time.
    let cam = unsafe { MmioCam::new(ecam, Cam::Ecam) };
    Ok(PciTransport::new::<GranuleHal<Disk>, _>(&mut PciRoot::new(cam), place)?)
}

/// The upper half of the features that the driver acknowledged (virtio 1.2, 4.1.4.3).
fn acknowledged(function: &Function) -> Result<u32, Failure> {
    let common = Structures::find(function, "disk")?.common;
    let start = function.bar(common.bar.into()).ok_or_else(|| failure("no such BAR"))?;
    let start = start + u64::from(common.offset);
    let start = core::ptr::with_exposed_provenance_mut(start as usize);
    // SAFETY: a part of the device's BAR, mapped one to one; the register that selects a half is
    // used by nobody else once the driver has begun.
    let registers = unsafe { Mmio::new(start, common.len as usize) };
    registers.write32(8, 1);
    Ok(registers.read32(12))
}

fn copy(boot: &Boot, function: &Function, report: &mut Report) -> Result<(), Failure> {
    let place = DeviceFunction {
        bus: (function.rid >> 8) as u8,
        device: (function.rid >> 3 & 0x1f) as u8,
        function: (function.rid & 7) as u8,
    };
    let transport = AccessPlatform::new(transport(boot, place)?)?;
    let mut disk = VirtIOBlk::<GranuleHal<Disk>, _>::new(transport)?;
    // QEMU's device does not insist on it.
    let features = acknowledged(function)?;
    report.check("disk: the driver acknowledged ACCESS_PLATFORM", features >> 1 & 1 != 0, || {
        format!("features 63 to 32: {features:#x}")
    });
    let half = usize::try_from(disk.capacity())? / 2;
    let mut wrong = None;
    let mut at = 0;
    while at < half {
        let count = SECTORS.min(half - at);
        let mut bytes = vec![0xe9; count * SECTOR_SIZE];
        disk.read_blocks(at, &mut bytes)?;
        let start = at * SECTOR_SIZE;
        let wanted: vec::Vec<u8> = (start..start + bytes.len()).map(first).collect();
        wrong = wrong.or(difference(&wanted, &bytes).map(|what| format!("sector {at}: {what}")));
        bytes.iter_mut().for_each(|byte| *byte = changed(*byte));
        disk.write_blocks(half + at, &bytes)?;
        at += count;
    }
    disk.flush()?;
    let what = format!("disk: {half} sectors are read and written");
    report.check(&what, wrong.is_none() && half > 0, || wrong.unwrap_or_default());
    Ok(())
}
