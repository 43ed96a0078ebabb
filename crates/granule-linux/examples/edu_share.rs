//! Two of QEMU's `edu` devices share one buffer, each through an IOMMU of its own address space.
//!
//! ```text
//! edu_share BDF BDF [--backend vfio|iommufd]
//! ```
//!
//! Give QEMU `-device edu,dma_mask=0xffffffffffffffff` twice, each behind a root port of its own, and
//! bind both to vfio-pci. Registers: QEMU's documentation, "EDU device".

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use granule::addr::{Access, DmaAddr};
use granule::dma::DeviceSpec;
use granule::share::{Plan, Shared};
use granule_linux::{Backend, Bar, Bdf, Device, Host};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The identification register of every `edu` ends with this.
const EDU: u32 = 0xed;
/// Where the device's own buffer of one page lies in its address space.
const INSIDE: u64 = 0x40000;
const PAGE: u64 = 4096;

/// Registers in BAR 0.
mod register {
    pub(crate) const ID: u64 = 0x00;
    pub(crate) const SOURCE: u64 = 0x80;
    pub(crate) const DESTINATION: u64 = 0x88;
    pub(crate) const COUNT: u64 = 0x90;
    pub(crate) const COMMAND: u64 = 0x98;
}

/// The command that starts a transfer, and the bit that turns it round.
const START: u64 = 1;
const TO_MEMORY: u64 = 2;

struct Edu {
    device: Device,
    registers: Bar,
}

impl Edu {
    fn open(host: &Host, backend: Backend, address: Bdf) -> Outcome<Self> {
        let spec = DeviceSpec::new(format!("edu {address}"));
        let device = host.space(backend).device(address, spec).open()?;
        let registers = device.pci().bar(0)?;
        let id: u32 = registers.read(register::ID)?;
        if id & 0xff != EDU {
            return Err(format!("{address} is no edu device: it says {id:#x}").into());
        }
        device.pci().enable_bus_mastering()?;
        Ok(Self { device, registers })
    }

    fn transfer(&self, source: u64, destination: u64, len: u64, command: u64) -> Outcome<()> {
        self.registers.write(register::SOURCE, source)?;
        self.registers.write(register::DESTINATION, destination)?;
        self.registers.write(register::COUNT, len)?;
        self.registers.write(register::COMMAND, command)?;
        let start = Instant::now();
        while self.registers.read::<u64>(register::COMMAND)? & START != 0 {
            if start.elapsed() > Duration::from_secs(20) {
                return Err("a transfer does not end".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The device reads memory into its buffer.
    fn load(&self, from: DmaAddr, len: u64) -> Outcome<()> {
        self.transfer(from.raw(), INSIDE, len, START)
    }

    /// The device writes its buffer to memory.
    fn store(&self, to: DmaAddr, len: u64) -> Outcome<()> {
        self.transfer(INSIDE, to.raw(), len, START | TO_MEMORY)
    }

    /// What the device has in its buffer, by way of memory that is its own.
    fn contents(&self, len: u64) -> Outcome<Vec<u8>> {
        let own = self.device.dma().alloc_coherent(PAGE)?;
        self.store(own.address(), len)?;
        let mut bytes = vec![0; len as usize];
        own.read(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// Bytes that tell by themselves where they belong.
fn pattern(seed: u8) -> Vec<u8> {
    (0..PAGE).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

/// Counts what was as it should be.
#[derive(Default)]
struct Checks {
    passed: u32,
    failed: u32,
}

impl Checks {
    fn check(&mut self, what: &str, good: bool) {
        let (word, count) =
            if good { ("ok", &mut self.passed) } else { ("FAILED", &mut self.failed) };
        *count += 1;
        println!("{word}: {what}");
    }
}

fn at(address: DmaAddr, offset: u64) -> DmaAddr {
    DmaAddr::new(address.raw() + offset)
}

fn read(shared: &Shared, page: u64) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0; PAGE as usize];
    shared.read(page * PAGE, &mut bytes)?;
    Ok(bytes)
}

fn run(backend: Backend, addresses: [Bdf; 2]) -> Outcome<Checks> {
    let mut checks = Checks::default();
    let host = Host::new();
    let first = Edu::open(&host, backend, addresses[0])?;
    let second = Edu::open(&host, backend, addresses[1])?;
    for edu in [&first, &second] {
        println!("{} is in group {}", edu.device.address(), edu.device.group());
    }
    both_write(&mut checks, &first, &second)?;
    rights_hold(&mut checks, &first, &second)?;
    late_dma_is_blocked(&mut checks, &first, &second)?;
    Ok(checks)
}

/// The first device copies page 0 to page 1, the second one page 1 to page 2, byte by byte the same.
fn both_write(checks: &mut Checks, first: &Edu, second: &Edu) -> Outcome<()> {
    let plan = Plan::new(1 << 20)
        .device(first.device.dma(), Access::all())
        .device(second.device.dma(), Access::all())
        .guard(true);
    let shared = plan.solve()?.allocate()?;
    for range in shared.ranges() {
        println!("{} sees {} bytes at {}", range.device().name(), range.len(), range.address());
    }
    let (Some(a), Some(b)) =
        (shared.range_of(first.device.dma()), shared.range_of(second.device.dma()))
    else {
        return Err("a device has no range".into());
    };
    let (a, b) = (a.address(), b.address());
    shared.write(0, &pattern(1))?;
    first.load(a, PAGE)?;
    first.store(at(a, PAGE), PAGE)?;
    checks.check("the first device copied a page", read(&shared, 1)? == pattern(1));
    second.load(at(b, PAGE), PAGE)?;
    second.store(at(b, 2 * PAGE), PAGE)?;
    checks.check(
        "the second device copied what the first one wrote",
        read(&shared, 2)? == pattern(1),
    );
    // The last bytes of the range, across a page's border, at an odd address.
    shared.write((1 << 20) - PAGE, &pattern(2))?;
    let last = (1 << 20) - 1001;
    second.load(at(b, last), 1001)?;
    second.store(at(b, 3 * PAGE - 501), 1001)?;
    let mut bytes = vec![0; 1001];
    shared.read(3 * PAGE - 501, &mut bytes)?;
    checks.check("the last bytes of the range went to an odd address", bytes == pattern(2)[3095..]);
    shared.free()?;
    Ok(())
}

/// A device that may only read cannot write.
fn rights_hold(checks: &mut Checks, first: &Edu, second: &Edu) -> Outcome<()> {
    let plan = Plan::new(4 * PAGE)
        .device(first.device.dma(), Access::all())
        .device(second.device.dma(), Access::READ);
    let shared = plan.solve()?.allocate()?;
    let Some(range) = shared.range_of(second.device.dma()) else {
        return Err("a device has no range".into());
    };
    shared.write(0, &pattern(3))?;
    second.load(range.address(), PAGE)?;
    checks.check("a device that may read, reads", second.contents(PAGE)? == pattern(3));
    second.store(at(range.address(), PAGE), PAGE)?;
    checks.check("its write is blocked", read(&shared, 1)? == vec![0; PAGE as usize]);
    Ok(())
}

/// A device that lost the buffer reaches it no more, while the other one still has it.
fn late_dma_is_blocked(checks: &mut Checks, first: &Edu, second: &Edu) -> Outcome<()> {
    let plan = Plan::new(4 * PAGE)
        .device(first.device.dma(), Access::all())
        .device(second.device.dma(), Access::all());
    let mut shared = plan.solve()?.allocate()?;
    let Some(range) = shared.range_of(first.device.dma()) else {
        return Err("a device has no range".into());
    };
    let (address, key) = (range.address(), range.key());
    shared.write(0, &pattern(4))?;
    first.load(address, PAGE)?;
    first.store(at(address, PAGE), PAGE)?;
    checks.check("its translation is in the IOTLB", read(&shared, 1)? == pattern(4));
    shared.detach(key)?;
    shared.write(0, &pattern(5))?;
    shared.write(PAGE, &pattern(6))?;
    first.store(at(address, PAGE), PAGE)?;
    checks.check("a late write is blocked", read(&shared, 1)? == pattern(6));
    first.load(address, PAGE)?;
    checks.check("a late read sees nothing", first.contents(PAGE)? != pattern(5));
    let Some(range) = shared.range_of(second.device.dma()) else {
        return Err("the other device lost the buffer".into());
    };
    second.load(range.address(), PAGE)?;
    checks.check("the other device still has it", second.contents(PAGE)? == pattern(5));
    Ok(())
}

fn arguments() -> Outcome<(Backend, [Bdf; 2])> {
    let usage = "usage: edu_share BDF BDF [--backend vfio|iommufd]";
    let mut backend = Backend::Vfio;
    let mut addresses = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--backend" {
            backend = arguments.next().ok_or(usage)?.parse()?;
        } else {
            addresses.push(argument.parse()?);
        }
    }
    Ok((backend, addresses.try_into().map_err(|_| usage)?))
}

fn main() -> ExitCode {
    match arguments().and_then(|(backend, addresses)| run(backend, addresses)) {
        Ok(Checks { passed, failed }) => {
            println!("edu_share: {passed} passed, {failed} failed");
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
