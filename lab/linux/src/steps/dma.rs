//! Two devices and one buffer, each through one contiguous range of its own; and what DMA still does
//! after the buffer was taken away.

use std::thread;
use std::time::{Duration, Instant};

use granule::addr::{Access, Direction};
use granule::share::{Plan, Shared};
use granule_linux::Host;

use crate::edu::{self, Edu};
use crate::machine::{Pci, load_vfio};
use crate::{Failure, Guest, shell};

/// The buffer's length in bytes: several of the kernel's pages, and no power of two.
const LEN: usize = 300 << 10;

/// How long the kernel may take to log a fault.
const FAULT_LIMIT: Duration = Duration::from_secs(10);

/// The kernel logs no more than ten lines of faults in five seconds: too few for two devices.
const LOG_WINDOW: Duration = Duration::from_secs(6);

/// Copies, as offset and length: both ends, page edges crossed, lengths that are odd.
const COPIES: &[(usize, usize)] = &[
    (0, 4096),
    (4096 - 7, 14),
    (8192 + 1, 4095),
    (65_536 - 2048, 4096),
    (131_072 - 1, 2),
    (200_000, 4001),
    (LEN - 4096, 4096),
];

/// Bytes that differ from place to place, and by `salt`.
fn bytes(salt: u8, len: usize) -> Vec<u8> {
    let byte = |place: usize| {
        let mixed = (place as u32 ^ u32::from(salt) << 16).wrapping_mul(0x9e37_79b1);
        (mixed >> 24) as u8 ^ (mixed >> 11) as u8
    };
    (0..len).map(byte).collect()
}

/// One device writes, the other reads; then the other way round. The CPU compares all of it.
pub(super) fn copy(guest: &mut Guest) -> Result<(), Failure> {
    let host = Host::new();
    let [first, second] = open_pair(guest, &host)?;
    let plan = Plan::new(LEN as u64).device(first.dma(), Access::all());
    let shared = plan.device(second.dma(), Access::all()).solve()?.allocate()?;
    for range in shared.ranges() {
        println!("{}: {} bytes at {}", range.device().name(), range.len(), range.address());
        let whole = range.len() == LEN as u64;
        guest.report.check("a device sees all of the buffer as one range", whole, || {
            format!("{} bytes of {LEN}", range.len())
        });
    }
    let mut wanted = bytes(1, LEN);
    shared.write(0, &wanted)?;
    for (round, (from, to)) in [(&first, &second), (&second, &first)].into_iter().enumerate() {
        for (index, &(offset, len)) in COPIES.iter().enumerate() {
            let salt = (16 + 32 * round + index) as u8;
            let new = bytes(salt, len);
            write_by(from, &shared, offset, &new)?;
            wanted[offset..offset + len].copy_from_slice(&new);
            let read = read_by(to, &shared, offset, len)?;
            let what = format!(
                "{} writes {len} at {offset}, {} reads it",
                from.dma().name(),
                to.dma().name()
            );
            guest.report.check(&what, read == new, || difference(&read, &new));
        }
    }
    if guest.breaks("flip-bit") {
        wanted[LEN / 2] ^= 1;
    }
    let mut found = vec![0; LEN];
    shared.read(0, &mut found)?;
    guest.report.check("the CPU finds every byte, and no other changed", found == wanted, || {
        difference(&found, &wanted)
    });
    shared.free()?;
    Ok(())
}

fn open_pair(guest: &Guest, host: &Host) -> Result<[Edu; 2], Failure> {
    let [first, second] = guest.machine.pair()?;
    Ok([open(guest, host, first)?, open(guest, host, second)?])
}

fn open(guest: &Guest, host: &Host, pci: &Pci) -> Result<Edu, Failure> {
    load_vfio()?;
    pci.give_to_vfio()?;
    Edu::open(guest, host, pci)
}

/// Has a device write bytes into the shared buffer: it fetches them out of memory that it alone has.
fn write_by(edu: &Edu, shared: &Shared, offset: usize, new: &[u8]) -> Result<(), Failure> {
    let range = shared.range_of(edu.dma()).ok_or("a device without a range")?;
    let source = edu.dma().map_to_device(new.to_vec())?;
    edu.load(source.address().raw(), new.len())?;
    source.unmap()?;
    edu.store(range.address().raw() + offset as u64, new.len())
}

/// Has a device read a part of the shared buffer, and give it to memory that it alone has.
fn read_by(edu: &Edu, shared: &Shared, offset: usize, len: usize) -> Result<Vec<u8>, Failure> {
    let range = shared.range_of(edu.dma()).ok_or("a device without a range")?;
    // What it carried before must not pass for what it reads.
    fill(edu, 0xee)?;
    edu.load(range.address().raw() + offset as u64, len)?;
    contents(edu, len)
}

/// Fills the device's own bytes.
fn fill(edu: &Edu, byte: u8) -> Result<(), Failure> {
    let source = edu.dma().map_to_device(vec![byte; edu::SIZE])?;
    edu.load(source.address().raw(), edu::SIZE)?;
    source.unmap()?;
    Ok(())
}

/// The device's own bytes, fetched by DMA.
fn contents(edu: &Edu, len: usize) -> Result<Vec<u8>, Failure> {
    let sink = edu.dma().map(vec![0x11u8; len], Direction::FromDevice)?;
    edu.store(sink.address().raw(), len)?;
    Ok(sink.unmap()?)
}

fn difference(found: &[u8], wanted: &[u8]) -> String {
    if found.len() != wanted.len() {
        return format!("{} bytes, not {}", found.len(), wanted.len());
    }
    let at = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
    at.map_or_else(String::new, |at| format!("{:#x} at {at}, not {:#x}", found[at], wanted[at]))
}

/// A buffer is read and written, and taken away while the IOMMU has its pages cached: then neither.
pub(super) fn late(guest: &mut Guest) -> Result<(), Failure> {
    const SECRET: u8 = 0x5a;
    let host = Host::new();
    for pci in guest.machine.pair()?.map(Clone::clone) {
        let edu = open(guest, &host, &pci)?;
        thread::sleep(LOG_WINDOW);
        shell::must("dmesg -c")?;
        let mapping = edu.dma().map(vec![SECRET; edu::SIZE], Direction::Bidirectional)?;
        let address = mapping.address().raw();
        edu.load(address, edu::SIZE)?;
        let before = contents(&edu, edu::SIZE)?;
        guest.report.check(
            "DMA while mapped reads the buffer",
            before == [SECRET; edu::SIZE],
            || difference(&before, &[SECRET; edu::SIZE]),
        );
        edu.store(address, edu::SIZE)?;
        let buffer = if guest.breaks("skip-unmap") {
            // What a driver that forgets to unmap has: the memory, and a device that reaches it.
            std::mem::forget(mapping);
            None
        } else {
            Some(mapping.unmap()?)
        };

        fill(&edu, 0xee)?;
        edu.store(address, edu::SIZE)?;
        let kept = buffer.as_deref() == Some(&[SECRET; edu::SIZE]);
        guest.report.check("late DMA changes nothing", kept, || {
            buffer.map_or("the buffer is still the device's".into(), |found| {
                difference(&found, &[SECRET; edu::SIZE])
            })
        });
        // One fault after the other: the IOMMU records none while it has one of the same device.
        check_fault(guest, &pci, address, "DMA Write")?;
        edu.load(address, edu::SIZE)?;
        check_fault(guest, &pci, address, "DMA Read")?;
        let got = contents(&edu, edu::SIZE)?;
        let secret = got.iter().filter(|byte| **byte == SECRET).count();
        guest.report.check("late DMA reads nothing of the buffer", secret == 0, || {
            format!("{secret} bytes of it")
        });
    }
    Ok(())
}

/// The kernel logs what the IOMMU blocked: which way, which device, which page.
fn check_fault(guest: &mut Guest, pci: &Pci, address: u64, way: &str) -> Result<(), Failure> {
    let device = format!("[{}]", pci.address.trim_start_matches("0000:"));
    let page = format!("fault addr {:#x} ", address & !0xfff);
    let told = |line: &str| [way, &device, &page].iter().all(|word| line.contains(word));
    let begin = Instant::now();
    // The kernel has a thread for it.
    let mut log = shell::must("dmesg")?;
    while !log.lines().any(told) && begin.elapsed() < FAULT_LIMIT {
        thread::sleep(Duration::from_millis(50));
        log = shell::must("dmesg")?;
    }
    // It logs a fault before it takes it from the IOMMU.
    thread::sleep(Duration::from_secs(1));
    let what = format!("the IOMMU reports the blocked {way}");
    guest.report.check(&what, log.lines().any(told), || format!("{device} {page}: {log}"));
    Ok(())
}
