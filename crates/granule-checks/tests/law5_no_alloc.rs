//! Law 5: unmap and drop never allocate, and a map in the steady state does not either. The heap is
//! counted; platform and IOMMU are ones that never touch it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use granule::addr::{Access, Direction, Granule};
use granule::bounce::{BounceConfig, BouncePool};
use granule::dma::{BusWindow, Device, DeviceSpec, MapFlags, Mapping, Reservation, ScatterList};
use granule::domain::{Domain, DomainConfig, InvalidationPolicy, Iommu, Paged, Stream};
use granule::share::Plan;
use granule::table::{Format, Lpae4k};
use granule_checks::phys_range;
use granule_checks::quiet::{Quiet, QuietUnit};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting for each thread.
struct Counting;

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// Asserts that `act` allocates neither heap nor frames.
#[track_caller]
fn quietly<R>(platform: &Quiet, what: &str, act: impl FnOnce() -> R) -> R {
    let before = (ALLOCATIONS.get(), platform.allocations());
    let result = act();
    let after = (ALLOCATIONS.get(), platform.allocations());
    assert_eq!(after.0 - before.0, 0, "{what}: heap allocations");
    assert_eq!(after.1 - before.1, 0, "{what}: frame allocations");
    result
}

fn device(platform: &Quiet, policy: InvalidationPolicy, spec: DeviceSpec) -> Device {
    let iommu = Iommu::<Quiet, _>::new(QuietUnit::new(Lpae4k::ID));
    let tables = Paged::<Lpae4k, _, _>::new(platform, &[iommu]).expect("tables");
    let config = DomainConfig { policy, ..DomainConfig::default() };
    let domain = Domain::new(platform, tables, &config).expect("a domain");
    domain.attach(spec, &[Stream::new(0)], Some(pool(platform))).expect("a device")
}

fn pool(platform: &Quiet) -> Arc<BouncePool<Quiet>> {
    let config = BounceConfig { align: Granule::K4, ..BounceConfig::new(0x1_0000) };
    Arc::new(BouncePool::new(platform, config).expect("frames"))
}

fn everywhere() -> BusWindow {
    BusWindow::identity(phys_range(0x1000, 1 << 47))
}

/// A buffer's round trip: after some warm rounds neither map nor unmap nor drop allocates.
fn single(platform: &Quiet, device: &Device, len: usize, bounced: bool) {
    let mut buffer = vec![7u8; len];
    for round in 0..300 {
        let map = |buffer| device.map(buffer, Direction::Bidirectional).expect("mapped");
        let mapping =
            if round < 200 { map(buffer) } else { quietly(platform, "map", || map(buffer)) };
        assert_eq!(mapping.is_bounced(), bounced);
        buffer = quietly(platform, "unmap", || mapping.unmap()).expect("unmapped");
    }
    let mapping = device.map(buffer, Direction::Bidirectional).expect("mapped");
    let pending = quietly(platform, "unmap_later", || mapping.unmap_later()).expect("unmapped");
    let buffer = quietly(platform, "finish", || pending.finish()).expect("flushed");
    let mapping = device.map(buffer, Direction::Bidirectional).expect("mapped");
    quietly(platform, "drop", || drop(mapping));
    quietly(platform, "flush", || device.flush()).expect("flushed");
}

/// The same for a list, which is mapped again and again.
fn list(platform: &Quiet, device: &Device) {
    let mut list = ScatterList::new((1..8).map(|n| vec![1u8; n * 1000]));
    for round in 0..300 {
        let map = |list| device.map_list(list, Direction::FromDevice).expect("mapped");
        let mapping = if round < 200 { map(list) } else { quietly(platform, "map", || map(list)) };
        list = quietly(platform, "unmap", || mapping.unmap()).expect("unmapped");
    }
    let mapping = device.map_list(list, Direction::FromDevice).expect("mapped");
    quietly(platform, "drop", || drop(mapping));
    quietly(platform, "flush", || device.flush()).expect("flushed");
}

#[test]
fn strict_and_deferred() {
    for policy in [InvalidationPolicy::Strict, InvalidationPolicy::DEFERRED] {
        let platform = Quiet::default();
        let device = device(&platform, policy, DeviceSpec::new("dev"));
        single(&platform, &device, 5000, false);
        list(&platform, &device);
    }
}

#[test]
fn untrusted_devices_bounce_without_the_heap() {
    for policy in [InvalidationPolicy::Strict, InvalidationPolicy::DEFERRED] {
        let platform = Quiet::default();
        let device = device(&platform, policy, DeviceSpec::new("dev").untrusted());
        single(&platform, &device, 5000, true);
        list(&platform, &device);
    }
}

#[test]
fn direct_devices() {
    let platform = Quiet::default();
    let spec = DeviceSpec::new("pci");
    let device = Device::direct(&platform, spec, &[everywhere()], None).expect("a device");
    single(&platform, &device, 5000, false);
    list(&platform, &device);
}

#[test]
fn direct_devices_bounce_without_the_heap() {
    let platform = Quiet::default();
    let pool = pool(&platform);
    // All that the device reaches is the pool's own block: every buffer is bounced.
    let window = BusWindow::identity(pool.ranges().next().expect("a block"));
    let spec = DeviceSpec::new("pci");
    let device = Device::direct(&platform, spec, &[window], Some(pool)).expect("a device");
    single(&platform, &device, 5000, true);
    list(&platform, &device);
}

#[test]
fn every_other_guard_ends_without_the_heap() {
    let platform = Quiet::default();
    let device = device(&platform, InvalidationPolicy::DEFERRED, DeviceSpec::new("dev"));
    let warm: Vec<_> = (0..20).map(|_| device.alloc_coherent(100).expect("allocated")).collect();
    drop(warm);
    let coherent = device.alloc_coherent(0x1000).expect("allocated");
    quietly(&platform, "free", || coherent.free()).expect("freed");
    let coherent = device.alloc_coherent(0x1000).expect("allocated");
    quietly(&platform, "drop", || drop(coherent));
    let mut reservation = Reservation::new(&device, 0x4000).expect("reserved");
    reservation.link(vec![0u8; 100], Direction::FromDevice).expect("linked");
    let buffer = quietly(&platform, "unlink", || reservation.unlink()).expect("unlinked");
    reservation.link(buffer.expect("it was linked"), Direction::FromDevice).expect("linked");
    quietly(&platform, "drop", || drop(reservation));
    // SAFETY: nobody programs the device that does not exist.
    let resource = unsafe { device.map_resource(phys_range(0x1000, 0x1000), Access::READ) };
    let resource = resource.expect("mapped");
    quietly(&platform, "unmap", || resource.unmap()).expect("unmapped");
    let plan = Plan::new(0x2000).device(&device, Access::all()).solve().expect("solved");
    let shared = plan.allocate().expect("allocated");
    quietly(&platform, "drop", || drop(shared));
    let pool = granule::dma::CoherentPool::new(&device, 64, 64).expect("a pool");
    let object = pool.alloc().expect("an object");
    quietly(&platform, "drop", || drop(object));
}

#[test]
fn the_cpu_looks_without_the_heap() {
    let platform = Quiet::default();
    let device = device(&platform, InvalidationPolicy::Strict, DeviceSpec::new("dev"));
    let buffer = vec![5u8; 100];
    let mapping = Mapping::new(&device, buffer, Direction::Bidirectional, MapFlags::empty());
    let mut mapping = mapping.expect("mapped");
    let mut seen = [0; 10];
    quietly(&platform, "sync", || {
        let mut access = mapping.sync_for_cpu(10..30).expect("inside");
        access.read(5, &mut seen).expect("inside");
        access.write(0, &[1, 2, 3]).expect("inside");
    });
    assert_eq!(seen, [5; 10]);
    assert_eq!(mapping.unmap().expect("unmapped")[9..14], [5, 1, 2, 3, 5]);
}
