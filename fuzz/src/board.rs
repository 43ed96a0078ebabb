//! Device trees as bytes: headers that lie, structures that are none, properties of any length.

use granule_board::{Board, MAX_WARNINGS};

/// Reads a blob.
pub fn run(data: &[u8]) {
    let Ok(board) = Board::from_dtb(data) else { return };
    check(&board);
    #[cfg(feature = "command")]
    show(&board);
}

#[cfg(feature = "command")]
fn show(board: &Board) {
    let json = granule_cli::offline::show(board, true);
    assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "no JSON: {json}");
    let _ = granule_cli::offline::show(board, false);
}

/// What the types of a board promise.
pub(crate) fn check(board: &Board) {
    for device in &board.devices {
        assert!(device.streams.iter().all(|stream| stream.iommu < board.iommus.len()));
        assert!(device.memory_regions.iter().all(|&region| region < board.reserved.len()));
        assert!(device.iova_regions.iter().all(|region| region.reserved < board.reserved.len()));
        assert!(device.msi.is_none_or(|msi| msi < board.msi.len()));
        assert!(device.windows.iter().all(|window| window.bus.len() == window.phys.len()));
        assert!(!device.unresolved || !board.warnings.is_empty());
        let same = board.devices.iter().filter(|other| other.path == device.path).count();
        assert!(board.device(&device.path).is_ok() || same > 1, "{} is lost", device.path);
        let _ = board.device_or_direct(&device.name);
    }
    let _ = board.device("no such thing");
    assert!(board.memory.windows(2).all(|pair| pair[0].last() < pair[1].start()));
    assert!(board.warnings.len() <= MAX_WARNINGS + 1);
    for warning in &board.warnings {
        assert!(!warning.to_string().is_empty());
    }
}
