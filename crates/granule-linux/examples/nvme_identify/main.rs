//! A disk driver in user space: identifies an NVMe controller and reads a few blocks of its first
//! namespace. Every address that the disk is given comes from granule.
//!
//! ```text
//! nvme_identify BDF [--backend vfio|iommufd] [--lba N] [--blocks N] [--output FILE]
//! ```
//!
//! Nothing is ever written to the disk. Bind it to vfio-pci first; `granule doctor` says how.

mod controller;
mod queue;

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use granule::addr::Direction;
use granule::dma::DeviceSpec;
use granule_linux::{Backend, Bdf, Host};

use controller::{Controller, Namespace};

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Arguments {
    address: Bdf,
    backend: Backend,
    lba: u64,
    blocks: u64,
    output: Option<String>,
}

const USAGE: &str =
    "usage: nvme_identify BDF [--backend vfio|iommufd] [--lba N] [--blocks N] [--output FILE]";

fn arguments() -> Outcome<Arguments> {
    let mut all = std::env::args().skip(1);
    let address = all.next().ok_or(USAGE)?.parse()?;
    let mut parsed = Arguments { address, backend: Backend::Vfio, lba: 0, blocks: 1, output: None };
    while let Some(option) = all.next() {
        let value = all.next().ok_or(USAGE)?;
        match option.as_str() {
            "--backend" => parsed.backend = value.parse()?,
            "--lba" => parsed.lba = value.parse()?,
            "--blocks" => parsed.blocks = value.parse()?,
            "--output" => parsed.output = Some(value),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(parsed)
}

fn run(arguments: &Arguments) -> Outcome<()> {
    // NVMe takes pages, so a bounced buffer keeps its offset in one.
    let spec = DeviceSpec { min_align_mask: 0xfff, ..DeviceSpec::new("nvme") };
    let host = Host::new();
    let device = host.space(arguments.backend).device(arguments.address, spec).open()?;
    let mut controller = Controller::start(&device)?;
    let identity = controller.identify()?;
    println!("controller: {} serial {}", identity.model, identity.serial);
    println!("firmware: {}, {} namespaces", identity.firmware, identity.namespaces);
    let namespace = controller.namespace(1)?;
    println!("namespace 1: {} blocks of {} bytes", namespace.blocks, namespace.block_size);
    controller.create_io_queue()?;
    let data = read(&mut controller, &device, &namespace, arguments)?;
    match &arguments.output {
        Some(path) => {
            fs::write(path, &data)?;
            println!("{} bytes from block {} on are in {path}", data.len(), arguments.lba);
        }
        None => dump(&data),
    }
    controller.stop()
}

/// Reads blocks in transfers as long as the controller takes.
fn read(
    controller: &mut Controller<'_>,
    device: &granule_linux::Device,
    namespace: &Namespace,
    arguments: &Arguments,
) -> Outcome<Vec<u8>> {
    let end = arguments.lba.checked_add(arguments.blocks);
    if end.is_none_or(|end| end > namespace.blocks) {
        return Err(format!("the namespace has only {} blocks", namespace.blocks).into());
    }
    let at_once = (controller.longest_transfer() / namespace.block_size).max(1);
    let mut data = Vec::new();
    let (mut lba, mut left) = (arguments.lba, arguments.blocks);
    while left > 0 {
        let blocks = left.min(at_once);
        let buffer = vec![0u8; usize::try_from(blocks * namespace.block_size)?];
        // The mapping owns the buffer while the disk has it.
        let mapping = device.dma().map(buffer, Direction::FromDevice)?;
        controller.read(1, lba, blocks, mapping.address(), mapping.len())?;
        data.extend(mapping.unmap()?);
        lba += blocks;
        left -= blocks;
    }
    Ok(data)
}

fn dump(data: &[u8]) {
    for (line, bytes) in data.chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{:08x}  {}", line * 16, hex.join(" "));
    }
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
