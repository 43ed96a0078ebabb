//! Device trees by construction, from tree to board to machine to plan to a buffer that every device
//! has filled: `granule share` with any options.

use arbitrary::{Arbitrary, Unstructured};
use granule_board::Board;
use granule_cli::offline::share;
use vm_fdt::{Error, FdtReserveEntry, FdtWriter};

const COMPATIBLE: [&str; 14] = [
    "apple,t8103-dart",
    "apple,t6000-dart",
    "apple,t8110-dart",
    "apple,t8103-usb4-dart",
    "arm,smmu-v3",
    "arm,mmu-500",
    "qcom,smmu-500",
    "arm,smmu-v1",
    "arm,smmu-v2",
    "virtio,pci-iommu",
    "riscv,iommu",
    "rockchip,iommu",
    "riscv,pci-iommu",
    "no,iommu",
];

/// Numbers that matter: around powers of two.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Number {
    shift: u8,
    pages: i8,
    odd: u8,
}

impl Number {
    fn get(self) -> u64 {
        let base = 1u64.checked_shl(u32::from(self.shift % 66)).unwrap_or(0);
        let odd = if self.odd < 200 { 0 } else { i64::from(self.odd) };
        base.wrapping_add_signed(i64::from(self.pages) * 4096 + odd)
    }
}

#[derive(Arbitrary, Debug)]
struct Tree {
    memory: Vec<(Number, Number)>,
    memory_is_there: bool,
    iommus: Vec<IommuNode>,
    devices: Vec<DeviceNode>,
    regions: Vec<Region>,
    blocks: Vec<(Number, Number)>,
}

#[derive(Arbitrary, Debug)]
struct IommuNode {
    compatible: u8,
    cells: u8,
    disabled: bool,
    coherent: bool,
    window: Option<(Number, Number)>,
    locked: Option<u8>,
}

#[derive(Arbitrary, Debug)]
struct DeviceNode {
    streams: Vec<(u8, u16, u8)>,
    windows: Option<Vec<(Number, Number, Number)>>,
    coherent: bool,
    region: Option<u8>,
    pci: bool,
}

#[derive(Arbitrary, Debug)]
struct Region {
    place: Option<(Number, Number)>,
    iova: Option<(u8, Number, Number)>,
}

#[derive(Arbitrary, Debug)]
struct Options {
    size: Number,
    between: Vec<u8>,
    page: u8,
    same: bool,
    explain: bool,
    json: bool,
    untrusted: Option<u8>,
    mask: Option<(u8, u8)>,
    memory: Option<(Number, Number)>,
}

/// Builds a tree and shares on it.
pub fn run(data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let Ok(options) = Options::arbitrary(&mut bytes) else { return };
    let Ok(tree) = Tree::arbitrary_take_rest(bytes) else { return };
    let Ok(blob) = blob(&tree) else { return };
    let Ok(board) = Board::from_dtb(&blob) else { return };
    crate::board::check(&board);
    let words = words(&options);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match share(&board, &words) {
        Ok(text) => assert!(!text.is_empty()),
        Err(refusal) => {
            assert!(refusal.kind != "verification", "granule share {words:?}: {refusal:?}");
            assert!(!refusal.message.is_empty());
        }
    }
}

fn device_name(index: u8) -> String {
    format!("d{}", index % 4)
}

fn words(options: &Options) -> Vec<String> {
    // More than a megabyte shows nothing new, and is slow to fill.
    let size = options.size.get() & 0xf_ffff;
    let page = ["4K", "16K", "64K"][usize::from(options.page % 3)];
    let mut words = vec!["--size".into(), size.to_string(), "--cpu-page".into(), page.into()];
    for device in options.between.iter().take(4) {
        words.extend(["--between".into(), device_name(*device)]);
    }
    let flags =
        [("--same-iova", options.same), ("--explain", options.explain), ("--json", options.json)];
    words.extend(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| (*flag).to_string()));
    if let Some(device) = options.untrusted {
        words.extend(["--untrusted".into(), device_name(device)]);
    }
    if let Some((device, bits)) = options.mask {
        words.extend(["--mask".into(), format!("{}={}", device_name(device), bits % 66)]);
    }
    if let Some((base, size)) = options.memory {
        let (base, size) = (base.get(), size.get() & ((1 << 36) - 1));
        words.extend(["--memory".into(), format!("{base:#x}+{size}")]);
    }
    words
}

fn blob(tree: &Tree) -> Result<Vec<u8>, Error> {
    let blocks = tree.blocks.iter().take(2);
    let blocks = blocks.map(|(at, size)| FdtReserveEntry::new(at.get(), size.get()));
    let blocks: Result<Vec<_>, _> = blocks.collect();
    let mut fdt = FdtWriter::new_with_mem_reserv(&blocks.unwrap_or_default())?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    memory(&mut fdt, tree)?;
    regions(&mut fdt, &tree.regions)?;
    for (index, iommu) in tree.iommus.iter().take(4).enumerate() {
        iommu_node(&mut fdt, index as u32, iommu)?;
    }
    let soc = fdt.begin_node("soc")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    // Each behind a bus of its own, whose windows limit it.
    for (index, device) in tree.devices.iter().take(4).enumerate() {
        device_node(&mut fdt, index as u32, device, &tree.iommus)?;
    }
    fdt.end_node(soc)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn memory(fdt: &mut FdtWriter, tree: &Tree) -> Result<(), Error> {
    let node = fdt.begin_node("memory@0")?;
    fdt.property_string("device_type", "memory")?;
    let mut reg = Vec::new();
    if tree.memory_is_there {
        reg.extend([0x8000_0000, 0x1000_0000]);
    }
    reg.extend(
        tree.memory.iter().take(3).flat_map(|(at, size)| [at.get(), size.get() & ((1 << 36) - 1)]),
    );
    fdt.property_array_u64("reg", &reg)?;
    fdt.end_node(node)
}

fn regions(fdt: &mut FdtWriter, regions: &[Region]) -> Result<(), Error> {
    let all = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    for (index, region) in regions.iter().take(4).enumerate() {
        let node = fdt.begin_node(&format!("r{index}"))?;
        fdt.property_u32("phandle", 0x200 + index as u32)?;
        if let Some((at, size)) = region.place {
            fdt.property_array_u64("reg", &[at.get(), size.get()])?;
        }
        if let Some((device, at, size)) = region.iova {
            let (at, size) = (at.get(), size.get());
            let cells = [at, size].into_iter().flat_map(|word| [(word >> 32) as u32, word as u32]);
            let cells: Vec<u32> =
                [0x300 + u32::from(device % 4)].into_iter().chain(cells).collect();
            fdt.property_array_u32("iommu-addresses", &cells)?;
        }
        fdt.end_node(node)?;
    }
    fdt.end_node(all)
}

fn iommu_node(fdt: &mut FdtWriter, index: u32, iommu: &IommuNode) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("iommu@{:x}", (index + 1) << 16))?;
    let compatible = COMPATIBLE[usize::from(iommu.compatible) % COMPATIBLE.len()];
    fdt.property_string("compatible", compatible)?;
    fdt.property_array_u64("reg", &[u64::from((index + 1) << 16), 0x1000])?;
    fdt.property_u32("#iommu-cells", u32::from(iommu.cells % 3))?;
    fdt.property_u32("phandle", 0x100 + index)?;
    if iommu.disabled {
        fdt.property_string("status", "disabled")?;
    }
    if iommu.coherent {
        fdt.property_null("dma-coherent")?;
    }
    if let Some((at, size)) = iommu.window {
        fdt.property_array_u64("apple,dma-range", &[at.get(), size.get()])?;
    }
    if let Some(stream) = iommu.locked {
        fdt.property_array_u32("granule,locked-streams", &[u32::from(stream)])?;
    }
    fdt.end_node(node)
}

fn device_node(
    fdt: &mut FdtWriter,
    index: u32,
    device: &DeviceNode,
    iommus: &[IommuNode],
) -> Result<(), Error> {
    let bus = fdt.begin_node(&format!("bus{index}"))?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    if let Some(windows) = &device.windows {
        let cells = windows.iter().take(3);
        let cells = cells.flat_map(|(bus, phys, size)| [bus.get(), phys.get(), size.get()]);
        fdt.property_array_u64("dma-ranges", &cells.collect::<Vec<_>>())?;
    }
    let node = fdt.begin_node(&format!("d{index}"))?;
    fdt.property_string("compatible", "granule,direct-master")?;
    fdt.property_u32("phandle", 0x300 + index)?;
    let mut cells = Vec::new();
    let mut map = Vec::new();
    for (iommu, id, mask) in device.streams.iter().take(4) {
        let iommu = u32::from(iommu % 4);
        let wanted = iommus.get(iommu as usize).map_or(1, |iommu| iommu.cells % 3);
        cells.push(0x100 + iommu);
        cells.extend([u32::from(*id), u32::from(*mask)].iter().take(usize::from(wanted)));
        map.extend([u32::from(*id), 0x100 + iommu, u32::from(*mask), 1 + u32::from(*mask)]);
    }
    if device.pci {
        fdt.property_string("device_type", "pci")?;
        fdt.property_array_u32("iommu-map", &map)?;
    } else if !cells.is_empty() {
        fdt.property_array_u32("iommus", &cells)?;
    }
    if device.coherent {
        fdt.property_null("dma-coherent")?;
    }
    if let Some(region) = device.region {
        fdt.property_array_u32("memory-region", &[0x200 + u32::from(region % 4)])?;
    }
    fdt.end_node(node)?;
    fdt.end_node(bus)
}
