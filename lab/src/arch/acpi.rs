//! Finds ACPI tables by signature. They lie unaligned, and are read byte by byte.

use core::ptr;

/// Bytes of every table's header.
pub(crate) const HEADER: usize = 36;

/// The table with this signature, header included.
pub(crate) fn find(root: u64, signature: &[u8; 4]) -> Option<&'static [u8]> {
    // The root pointer: revision at 15, RSDT at 16, and from revision 2 on XSDT at 24.
    let pointer = bytes(root, 36);
    let (table, width) = match pointer.get(15)? {
        0 => (u64::from(read_u32(pointer, 16)?), 4),
        _ => (read_u64(pointer, 24)?, 8),
    };
    let entries = table_at(table).get(HEADER..)?;
    entries.chunks_exact(width).find_map(|entry| {
        let address = match width {
            4 => u64::from(read_u32(entry, 0)?),
            _ => read_u64(entry, 0)?,
        };
        let table = table_at(address);
        table.starts_with(signature).then_some(table)
    })
}

/// A table with its header, which says its length.
fn table_at(address: u64) -> &'static [u8] {
    let length = read_u32(bytes(address, HEADER), 4).unwrap_or(0);
    bytes(address, length as usize)
}

fn bytes(address: u64, len: usize) -> &'static [u8] {
    // SAFETY: firmware's tables stay where they are, in memory that the image never takes; memory
    // is mapped one to one.
    unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(address as usize), len) }
}

/// A little-endian word of a table.
pub(crate) fn read_u32(table: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(table.get(at..at + 4)?.try_into().ok()?))
}

/// A little-endian double word of a table.
pub(crate) fn read_u64(table: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(table.get(at..at + 8)?.try_into().ok()?))
}
