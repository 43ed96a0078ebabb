//! The built-in board is what DESIGN says about Apple's t8103.

use granule::addr::{DmaAddr, PageSizes, PhysAddr};
use granule_board::{
    Board, BoardIommu, DEFAULT_BOARD, IommuKind, IovaRegionKind, Master, TableFormat, Warning,
};

fn board() -> Board {
    Board::from_dtb(DEFAULT_BOARD).expect("the built-in board loads")
}

fn at<'b>(board: &'b Board, device: &str) -> Vec<(&'b BoardIommu, u32)> {
    let device = board.device(device).expect("the device is there");
    device.streams.iter().map(|stream| (&board.iommus[stream.iommu], stream.id)).collect()
}

fn register(iommu: &BoardIommu) -> u64 {
    iommu.registers[0].start().raw()
}

#[test]
fn memory_is_8_gib() {
    let board = board();
    assert_eq!(board.memory.len(), 1);
    assert_eq!(board.memory[0].start().raw(), 0x8_0000_0000);
    assert_eq!(board.memory[0].len(), 8 << 30);
}

#[test]
fn every_dart_has_16_kib_pages_and_32_bits_of_input() {
    let board = board();
    assert_eq!(board.iommus.len(), 10);
    for iommu in &board.iommus {
        assert_eq!(iommu.kind, IommuKind::Dart);
        assert_eq!(iommu.page_sizes, PageSizes::from_bits(1 << 14));
        assert_eq!(iommu.formats, [TableFormat::Dart1]);
        assert_eq!((iommu.input_bits, iommu.output_bits), (Some(32), Some(36)));
        assert!(iommu.enabled && !iommu.probed);
    }
}

#[test]
fn the_display_and_its_coprocessor() {
    let board = board();
    let [(disp0, 0)] = at(&board, "display-subsystem")[..] else { panic!("stream 0 of one DART") };
    let [(piodma, 4)] = at(&board, "piodma")[..] else { panic!("stream 4 of one DART") };
    let [(dcp, 0)] = at(&board, "dcp")[..] else { panic!("stream 0 of one DART") };
    assert_eq!(disp0, piodma);
    assert_eq!(register(disp0), 0x2_3130_4000);
    assert_eq!(register(dcp), 0x2_3130_c000);
    assert_eq!(disp0.locked_streams, [0, 4]);
    assert!(dcp.locked_streams.is_empty());
    let window = disp0.window.expect("a window");
    assert_eq!((window.start().raw(), window.len()), (0, 0xfc00_0000));
    let window = dcp.window.expect("a window");
    assert_eq!((window.start().raw(), window.len()), (0xf_0000_0000, 0xfc00_0000));
    assert_eq!(board.iommu("disp0_dart").expect("a label"), disp0);
    assert_eq!(board.iommu("dcp_dart").expect("a label"), dcp);
}

#[test]
fn the_isp_is_behind_three_darts_at_once() {
    let board = board();
    let isp = at(&board, "isp");
    let registers: Vec<u64> = isp.iter().map(|(iommu, _)| register(iommu)).collect();
    assert_eq!(registers, [0x2_2c0e_8000, 0x2_2c0f_4000, 0x2_2c0f_c000]);
    assert!(
        isp.iter()
            .all(|(iommu, id)| *id == 0 && iommu.window.expect("a window").len() == 0xa000_0000)
    );
    let device = board.device("isp").expect("the isp is there");
    assert_eq!(board.iommus_of(device).count(), 3);
}

#[test]
fn usb_controllers_and_audio() {
    let board = board();
    for (name, darts) in
        [("usb0", [0x3_82f0_0000, 0x3_82f8_0000]), ("usb1", [0x5_02f0_0000, 0x5_02f8_0000])]
    {
        let [(first, 0), (second, 1)] = at(&board, name)[..] else { panic!("two DARTs") };
        assert_eq!([register(first), register(second)], darts);
    }
    let [(sio, 2)] = at(&board, "admac")[..] else { panic!("stream 2 of one DART") };
    assert_eq!(register(sio), 0x2_3500_4000);
}

#[test]
fn direct_devices() {
    let board = board();
    assert!(board.device("nvme").expect("a real one").is_direct());
    let direct = board.device("direct-master").expect("a made-up one");
    assert!(direct.is_direct());
    assert_eq!(direct.master, Master::Compatible);
    assert_eq!(direct.phys_to_bus(PhysAddr::new(0x8_0000_4000)), Some(DmaAddr::new(0x8000_4000)));
    assert_eq!(direct.bus_to_phys(DmaAddr::new(0xffff_ffff)), Some(PhysAddr::new(0x8_7fff_ffff)));
    assert_eq!(direct.phys_to_bus(PhysAddr::new(0x8_8000_0000)), None);
    assert_eq!(direct.bus_to_phys(DmaAddr::new(0x7fff_ffff)), None);
    assert_eq!(direct.windows[0].offset(), 0x7_8000_0000);
}

#[test]
fn the_framebuffer_that_firmware_left_running() {
    let board = board();
    let display = board.device("display-subsystem").expect("a display");
    let [region] = display.iova_regions[..] else { panic!("one region") };
    assert_eq!(region.kind(), IovaRegionKind::Translated);
    assert_eq!(region.iova.start().raw(), 0xa000_0000);
    assert_eq!(board.reserved[region.reserved].name, "framebuffer@9fe000000");
    let phys = region.phys.expect("memory behind it");
    assert_eq!(Some(&phys), board.reserved[region.reserved].ranges.first());
    assert!(board.memory[0].contains_range(&phys));
    assert_eq!(phys.start().raw() % 0x4000 + phys.len() % 0x4000, 0);
    assert_eq!(display.memory_regions, [region.reserved]);
    assert!(matches!(board.warnings[..], [Warning::TranslatedRegion { .. }]));
}

#[test]
fn no_two_devices_share_a_stream() {
    let board = board();
    let groups: std::collections::BTreeSet<_> = board.devices.iter().map(|d| d.group).collect();
    assert_eq!(groups.len(), board.devices.len());
    assert!(board.devices.iter().all(|device| device.enabled && !device.unresolved));
}
