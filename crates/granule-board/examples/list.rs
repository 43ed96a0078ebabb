//! Prints the DMA topology of a device tree: `cargo run -p granule-board --example list [FILE.dtb]`.

use granule_board::{Board, BoardDevice, DEFAULT_BOARD};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let board = match std::env::args_os().nth(1) {
        Some(file) => Board::from_dtb(&std::fs::read(file)?)?,
        None => Board::from_dtb(DEFAULT_BOARD)?,
    };
    println!("{} ({})", board.model, board.compatible.join(", "));
    for range in &board.memory {
        println!("memory {range}");
    }
    for region in &board.reserved {
        let (no_map, reusable) = (region.no_map, region.reusable);
        let (path, ranges, size) = (&region.path, &region.ranges, region.size);
        println!("reserved {path} {ranges:?} size {size:x?} no-map {no_map} reusable {reusable}");
    }
    for (index, iommu) in board.iommus.iter().enumerate() {
        let formats: Vec<_> = iommu.formats.iter().map(|format| format.name()).collect();
        println!(
            "iommu {index} {} {} [{}] {} in {:?} out {:?} window {:?} probed {} enabled {} locked {:?}",
            iommu.path,
            iommu.kind,
            iommu.page_sizes,
            formats.join("/"),
            iommu.input_bits,
            iommu.output_bits,
            iommu.window,
            iommu.probed,
            iommu.enabled,
            iommu.locked_streams,
        );
    }
    for msi in &board.msi {
        println!("msi {} {:?}", msi.path, msi.doorbells);
    }
    for device in &board.devices {
        print_device(device);
    }
    for warning in &board.warnings {
        println!("warning: {warning}");
    }
    Ok(())
}

fn print_device(device: &BoardDevice) {
    let streams = device.streams.iter();
    let streams: Vec<_> =
        streams.map(|s| format!("{}:{:#x}/{:#x}", s.iommu, s.id, s.mask)).collect();
    let windows = device.windows.iter();
    let windows: Vec<_> = windows.map(|w| format!("{} -> {}", w.bus, w.phys)).collect();
    println!(
        "device {} {:?} group {} streams [{}]{} windows [{}] {}{}{}",
        device.path,
        device.master,
        device.group,
        streams.join(" "),
        if device.unresolved { " UNRESOLVED" } else { "" },
        windows.join(", "),
        if device.coherent { "coherent" } else { "non-coherent" },
        if device.enabled { "" } else { " disabled" },
        device.msi.map(|msi| format!(" msi {msi}")).unwrap_or_default(),
    );
}
