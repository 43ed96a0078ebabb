//! The `Hal` on a simulated machine: what drivers rely on, and what happens when nothing goes.

use std::ptr::NonNull;

use granule::addr::{DmaAddr, Iova, IovaRange, PhysAddr, PhysRange};
use granule::dma::{Device, DeviceSpec};
use granule::domain::{Domain, DomainConfig, Iommu, Paged, Stream};
use granule::mem::SpinLock;
use granule::table::Dart1;
use granule_sim::faults::{FaultPlan, Point};
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{DeviceSpec as SimSpec, Machine};
use granule_sim::platform::SimPlatform;
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;
use granule_virtio::{BindError, Binding, GranuleHal, NOWHERE, Slot};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE};

/// DART's granule: four CPU pages.
const GRANULE: u64 = 0x4000;

/// A machine, and a device whose domain has room for `granules` granules.
fn machine(faults: &FaultPlan, granules: u64) -> (Machine, Device) {
    let ram = PhysRange::new(PhysAddr::new(0x8_0000_0000), 1 << 24).expect("a legal range");
    let machine = Machine::builder()
        .ram(ram)
        .faults(faults)
        .iommu(IommuConfig::new("dart", SimFormat::Dart1, 32))
        .device(SimSpec::behind("disk", "dart", 0))
        .build()
        .expect("a machine");
    let unit = SimUnit::new(machine.iommu("dart").expect("as built")).expect("a known format");
    let tables = Paged::<Dart1, SimPlatform, _>::new(machine.platform(), &[Iommu::new(unit)]);
    let window = IovaRange::new(Iova::new(GRANULE), granules * GRANULE).expect("a legal range");
    let config = DomainConfig { window: Some(window), ..DomainConfig::default() };
    let domain = Domain::new(machine.platform(), tables.expect("memory"), &config);
    let domain = domain.expect("a domain");
    let device = domain.attach(DeviceSpec::new("disk"), &[Stream::new(0)], None);
    (machine, device.expect("attached"))
}

/// A binding with a slot of its own, for one test.
macro_rules! binding {
    ($name:ident) => {
        struct $name;
        // SAFETY: no registers are ever asked for.
        unsafe impl Binding for $name {
            type Lock = SpinLock;
            fn slot() -> &'static Slot {
                static SLOT: Slot = Slot::new();
                &SLOT
            }
            fn registers(_: usize, _: usize) -> NonNull<u8> {
                NonNull::dangling()
            }
        }
    };
}

fn share<B: Binding>(buffer: &mut [u8], direction: BufferDirection) -> usize {
    // SAFETY: the buffer outlives its sharing in every test, and is left alone meanwhile.
    unsafe { GranuleHal::<B>::share(NonNull::from(buffer), direction) }
}

fn unshare<B: Binding>(address: usize, buffer: &mut [u8], direction: BufferDirection) {
    // SAFETY: as it was shared.
    unsafe { GranuleHal::<B>::unshare(address, NonNull::from(buffer), direction) };
}

fn read(machine: &Machine, address: usize, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let device = machine.device("disk").expect("as built");
    device.read(DmaAddr::new(address as u64), &mut bytes).ok().map(|()| bytes)
}

fn write(machine: &Machine, address: usize, bytes: &[u8]) -> bool {
    machine.device("disk").expect("as built").write(DmaAddr::new(address as u64), bytes).is_ok()
}

/// Memory of the simulated machine: what lies elsewhere has no physical address there.
fn buffer(machine: &Machine, len: u64) -> &'static mut [u8] {
    use granule::mem::{FrameRequest, Platform};
    let request = FrameRequest::new(len.next_multiple_of(4096), 4096);
    let frames = machine.platform().alloc_frames(&request).expect("memory");
    let start = machine.platform().ptr(frames.start());
    // SAFETY: frames that are never freed, valid for the machine's life, which the test outlives.
    unsafe {
        start.write_bytes(0x11, len as usize);
        std::slice::from_raw_parts_mut(start, len as usize)
    }
}

#[test]
fn queue_memory_is_zeroed_aligned_and_the_devices_until_it_is_freed() {
    binding!(One);
    let (machine, device) = machine(&FaultPlan::new(), 64);
    One::slot().bind(device, 0).expect("free");
    let (address, ptr) = GranuleHal::<One>::dma_alloc(3, BufferDirection::Both);
    assert!(address != 0 && ptr.addr().get() % PAGE_SIZE == 0);
    assert_eq!(read(&machine, address, 3 * PAGE_SIZE), Some(vec![0; 3 * PAGE_SIZE]));
    // SAFETY: the first byte of the block.
    unsafe { ptr.write_volatile(0x77) };
    assert_eq!(read(&machine, address, 1), Some(vec![0x77]));
    assert!(One::slot().unbind().is_none(), "the device has memory from us");
    // SAFETY: as allocated.
    assert_eq!(unsafe { GranuleHal::<One>::dma_dealloc(address, ptr, 3) }, 0);
    assert_eq!(read(&machine, address, 1), None);
    assert!(One::slot().unbind().is_some());
}

#[test]
fn buffers_are_carried_both_ways_and_lost_to_the_device_afterwards() {
    binding!(Two);
    let (machine, device) = machine(&FaultPlan::new(), 64);
    Two::slot().bind(device, 0).expect("free");
    let bytes = buffer(&machine, 777);
    bytes.fill(0x5a);
    let address = share::<Two>(bytes, BufferDirection::DriverToDevice);
    assert_eq!(read(&machine, address, 777), Some(vec![0x5a; 777]));
    assert!(!write(&machine, address, &[1]), "the device may only read");
    unshare::<Two>(address, bytes, BufferDirection::DriverToDevice);
    assert_eq!(read(&machine, address, 1), None);

    let address = share::<Two>(bytes, BufferDirection::DeviceToDriver);
    assert!(write(&machine, address, &[0xa5; 777]));
    unshare::<Two>(address, bytes, BufferDirection::DeviceToDriver);
    assert_eq!(bytes, [0xa5; 777]);
    let stats = Two::slot().stats();
    assert_eq!((stats.shared, stats.reserved, stats.refused, stats.lost), (0, 0, 0, 0));
}

#[test]
fn when_no_address_is_left_the_reserve_serves_and_then_nothing_is_touched() {
    binding!(Three);
    // One granule for the reserve, one for a buffer.
    let (machine, device) = machine(&FaultPlan::new(), 2);
    Three::slot().bind(device, GRANULE).expect("free");
    let first = buffer(&machine, 64);
    let mapped = share::<Three>(first, BufferDirection::Both);
    assert_ne!(mapped, NOWHERE);

    // No address is left: each is copied.
    let (second, third) = (buffer(&machine, 0x2000), buffer(&machine, 0x2000));
    second.fill(0x22);
    let one = share::<Three>(second, BufferDirection::Both);
    let two = share::<Three>(third, BufferDirection::DeviceToDriver);
    assert_eq!(Three::slot().stats().reserved, 2);
    assert_eq!(read(&machine, one, 0x2000), Some(vec![0x22; 0x2000]));
    assert!(write(&machine, one, &[0x33; 0x10]) && write(&machine, two, &[0x44; 0x2000]));

    // The reserve is used up.
    let fourth = buffer(&machine, 1);
    let nowhere = share::<Three>(fourth, BufferDirection::DeviceToDriver);
    assert_eq!((nowhere, Three::slot().stats().refused), (NOWHERE, 1));
    assert!(!write(&machine, nowhere, &[1]) && read(&machine, nowhere, 1).is_none());
    unshare::<Three>(nowhere, fourth, BufferDirection::DeviceToDriver);
    assert_eq!(fourth, [0x11]);

    unshare::<Three>(one, second, BufferDirection::Both);
    unshare::<Three>(two, third, BufferDirection::DeviceToDriver);
    assert_eq!((&second[..0x10], &second[0x10..0x20]), (&[0x33; 0x10][..], &[0x22; 0x10][..]));
    assert_eq!(third, [0x44; 0x2000]);
    // What was lent is there again.
    assert_ne!(share::<Three>(fourth, BufferDirection::DriverToDevice), NOWHERE);
}

#[test]
fn after_an_invalidation_that_failed_nothing_more_is_given() {
    binding!(Four);
    let faults = FaultPlan::new();
    let (machine, device) = machine(&faults, 64);
    Four::slot().bind(device, GRANULE).expect("free");
    let bytes = buffer(&machine, 64);
    let address = share::<Four>(bytes, BufferDirection::Both);
    assert!(read(&machine, address, 1).is_some());
    faults.fail_from(Point::Invalidation, 0);
    unshare::<Four>(address, bytes, BufferDirection::Both);
    assert_eq!(Four::slot().stats().lost, 1);
    assert_eq!(share::<Four>(bytes, BufferDirection::Both), NOWHERE);
    assert_eq!(GranuleHal::<Four>::dma_alloc(1, BufferDirection::Both).0, 0);
}

#[test]
fn a_slot_has_one_device_and_without_one_gives_nothing() {
    binding!(Five);
    assert_eq!(GranuleHal::<Five>::dma_alloc(1, BufferDirection::Both).0, 0);
    assert_eq!(share::<Five>(&mut [1], BufferDirection::Both), NOWHERE);
    assert_eq!(Five::slot().stats().refused, 1);
    let (_machine, device) = machine(&FaultPlan::new(), 4);
    let refused = Five::slot().bind(device.clone(), 64 * GRANULE);
    assert!(matches!(refused, Err(BindError::Reserve { .. })), "{refused:?}");
    Five::slot().bind(device.clone(), 0).expect("free");
    let again = Five::slot().bind(device, 0);
    assert_eq!(again, Err(BindError::Bound { device: "disk".into() }));
}
