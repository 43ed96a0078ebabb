//! One entry, decoded: pure functions written from the formats' tables, sharing nothing with any
//! encoder.
//!
//! Two choices that a specification leaves to the machine: devices are *unprivileged* masters, so a
//! leaf that only privileged ones may use (`AP[1]` clear, `U` clear) gives no right; and no walker
//! sets accessed or dirty bits, so a leaf without them faults (Arm and RISC-V).

use granule::addr::{Access, PhysAddr};

use super::format::{Geometry, SimFormat};

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nothing.
    NotPresent,
    /// Look further in the table at `next`; what lies below has at most these rights.
    Table { next: PhysAddr, limit: Rights },
    /// A page of the height's size, and its place in a group that hardware may cache as one.
    Page(Page),
    /// Bits that break this rule: the walk faults.
    Malformed(&'static str),
}

/// What a leaf grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) access: Access,
    pub(crate) execute: bool,
}

impl Rights {
    pub(crate) const ALL: Self = Self { access: Access::all(), execute: true };

    pub(crate) fn and(self, other: Self) -> Self {
        Self { access: self.access & other.access, execute: self.execute && other.execute }
    }
}

/// A leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) phys: PhysAddr,
    pub(crate) rights: Rights,
    /// The logarithm of the number of entries in the group, 0 for a page alone.
    pub(crate) group: u32,
    /// First and last byte inside the page that may be reached, if not the whole page.
    pub(crate) fence: Option<(u64, u64)>,
}

const fn bit(raw: u64, index: u32) -> bool {
    raw >> index & 1 != 0
}

/// Bits `high..=low` of `raw`, in place.
const fn field(raw: u64, high: u32, low: u32) -> u64 {
    let width = high - low + 1;
    raw & (((1 << width) - 1) << low)
}

const fn rights(read: bool, write: bool, execute: bool) -> Rights {
    let access = match (read, write) {
        (true, true) => Access::all(),
        (true, false) => Access::READ,
        (false, true) => Access::WRITE,
        (false, false) => Access::empty(),
    };
    Rights { access, execute }
}

/// Decodes the entry `raw`, number `index` of a table at `height`.
pub(crate) fn decode(geometry: &Geometry, height: u32, index: u64, raw: u64) -> Entry {
    match geometry.format {
        SimFormat::Dart1 | SimFormat::Dart2 => dart(geometry.format, height, raw),
        SimFormat::Lpae4k | SimFormat::Lpae16k | SimFormat::Lpae64k => lpae(geometry, height, raw),
        SimFormat::Vtd2 => vtd2(geometry, height, raw),
        SimFormat::Vtd1 => vtd1(geometry, height, raw),
        SimFormat::AmdV1 => amd(geometry, height, index, raw),
        SimFormat::Sv39 | SimFormat::Sv48 | SimFormat::Sv57 => riscv(geometry, height, index, raw),
    }
}

/// Bit 0 valid. DART 1: address 35:12, no-read 8, no-write 7, sub-page protection off 1. DART 2:
/// address 37:10 holds the address shifted right by 4, no-read 3, no-write 2. Sub-page start 63:52
/// and inclusive end 51:40, in units of the page divided by 4096 (inferred).
fn dart(format: SimFormat, height: u32, raw: u64) -> Entry {
    if !bit(raw, 0) {
        return Entry::NotPresent;
    }
    let first = format == SimFormat::Dart1;
    let address = if first { field(raw, 35, 12) } else { field(raw, 37, 10) << 4 };
    let page = format.granule();
    if address & page.mask() != 0 {
        return Entry::Malformed("a DART address must be a multiple of the page");
    }
    let phys = PhysAddr::new(address);
    if height > 0 {
        return Entry::Table { next: phys, limit: Rights::ALL };
    }
    let (no_read, no_write) = if first { (8, 7) } else { (3, 2) };
    let unfenced = first && bit(raw, 1);
    let (start, end) = (raw >> 52, raw >> 40 & 0xfff);
    let unit = page.size() / 4096;
    let fence = (start * unit, end * unit + (unit - 1));
    let whole = unfenced || (start == 0 && end == 0xfff);
    Entry::Page(Page {
        phys,
        rights: rights(!bit(raw, no_read), !bit(raw, no_write), false),
        group: 0,
        fence: (!whole).then_some(fence),
    })
}

/// Bits 1:0: 01 block, 11 table or page. Access flag 10, AP[2:1] 7:6, contiguous 52, PXN 53, UXN 54;
/// in a table descriptor APTable 62:61 and UXNTable 60.
fn lpae(geometry: &Geometry, height: u32, raw: u64) -> Entry {
    let shift = geometry.shift(height);
    let address = lpae_address(geometry.format, raw);
    let is_leaf = match (raw & 3, height) {
        (3, 0) => true,
        (3, _) => false,
        (1, 0) => return Entry::NotPresent,
        (1, _) => true,
        _ => return Entry::NotPresent,
    };
    if !is_leaf {
        let limit = rights(!bit(raw, 61), !bit(raw, 61) && !bit(raw, 62), !bit(raw, 60));
        return Entry::Table { next: PhysAddr::new(address), limit };
    }
    if height > 0 && !lpae_has_block(geometry.format, height) {
        return Entry::Malformed("this level has no block descriptors");
    }
    if address & ((1 << shift) - 1) != 0 {
        return Entry::Malformed("a block's address must be a multiple of its size");
    }
    if !bit(raw, 10) {
        return Entry::Malformed("the access flag is clear");
    }
    let user = bit(raw, 6);
    Entry::Page(Page {
        phys: PhysAddr::new(address),
        rights: rights(user, user && !bit(raw, 7), !bit(raw, 54)),
        group: if bit(raw, 52) { lpae_group(geometry.format, height) } else { 0 },
        fence: None,
    })
}

fn lpae_address(format: SimFormat, raw: u64) -> u64 {
    match format {
        SimFormat::Lpae16k => field(raw, 47, 14),
        SimFormat::Lpae64k => field(raw, 47, 16) | field(raw, 15, 12) << 36,
        _ => field(raw, 47, 12),
    }
}

const fn lpae_has_block(format: SimFormat, height: u32) -> bool {
    match format {
        SimFormat::Lpae4k => height == 1 || height == 2,
        _ => height == 1,
    }
}

/// The logarithm of the number of adjacent entries that the contiguous bit joins (DDI 0487, D8.6.1).
const fn lpae_group(format: SimFormat, height: u32) -> u32 {
    match (format, height) {
        (SimFormat::Lpae4k, _) => 4,
        (SimFormat::Lpae16k, 0) => 7,
        _ => 5,
    }
}

/// Read 0, write 1, page size 7 (2 MiB and 1 GiB levels), address 51:12. Present means that read or
/// write is set.
fn vtd2(geometry: &Geometry, height: u32, raw: u64) -> Entry {
    if raw & 3 == 0 {
        return Entry::NotPresent;
    }
    let limit = rights(bit(raw, 0), bit(raw, 1), false);
    let address = field(raw, 51, 12);
    let large = height > 0 && bit(raw, 7);
    if large && height > 2 {
        return Entry::Malformed("the page-size bit is reserved at this level");
    }
    if height > 0 && !large {
        return Entry::Table { next: PhysAddr::new(address), limit };
    }
    if address & ((1 << geometry.shift(height)) - 1) != 0 {
        return Entry::Malformed("the low address bits of a large page are reserved");
    }
    Entry::Page(Page { phys: PhysAddr::new(address), rights: limit, group: 0, fence: None })
}

/// Present 0, write 1, user 2, page size 7 (2 MiB and 1 GiB levels), address 51:12, execute-disable
/// 63. Hardware sets accessed and dirty by itself here.
fn vtd1(geometry: &Geometry, height: u32, raw: u64) -> Entry {
    if !bit(raw, 0) {
        return Entry::NotPresent;
    }
    let user = bit(raw, 2);
    let limit = rights(user, user && bit(raw, 1), !bit(raw, 63));
    let address = field(raw, 51, 12);
    let large = height > 0 && bit(raw, 7);
    if large && height > 2 {
        return Entry::Malformed("the page-size bit is reserved at this level");
    }
    if height > 0 && !large {
        return Entry::Table { next: PhysAddr::new(address), limit };
    }
    // Bit 12 of a large page is its memory type (PAT), not its address.
    let address = if large { address & !(1 << 12) } else { address };
    if address & ((1 << geometry.shift(height)) - 1) != 0 {
        return Entry::Malformed("the low address bits of a large page are reserved");
    }
    Entry::Page(Page { phys: PhysAddr::new(address), rights: limit, group: 0, fence: None })
}

/// Present 0, next level 11:9 (0 a page of the level's size, 7 a page whose size stands in the
/// address), address 51:12, read 61, write 62.
fn amd(geometry: &Geometry, height: u32, index: u64, raw: u64) -> Entry {
    if !bit(raw, 0) {
        return Entry::NotPresent;
    }
    let limit = rights(bit(raw, 61), bit(raw, 62), false);
    let address = field(raw, 51, 12);
    let shift = geometry.shift(height);
    match raw >> 9 & 7 {
        0 if address & ((1 << shift) - 1) != 0 => {
            Entry::Malformed("a page's address must be a multiple of its size")
        }
        0 => {
            Entry::Page(Page { phys: PhysAddr::new(address), rights: limit, group: 0, fence: None })
        }
        7 => amd_between(shift, index, address, limit),
        next if u64::from(height) == next => Entry::Table { next: PhysAddr::new(address), limit },
        next if next < u64::from(height) => {
            Entry::Malformed("the entry skips levels, which this walker does not follow")
        }
        _ => Entry::Malformed("the next level must be below this one"),
    }
}

/// The lowest zero bit of the address, from bit 12 on, says half the size: the entry is repeated for
/// each of the level's pages inside.
fn amd_between(shift: u32, index: u64, address: u64, limit: Rights) -> Entry {
    let size = (address >> 12).trailing_ones() + 13;
    if size <= shift || size >= shift + 9 {
        return Entry::Malformed("the page size in the address does not belong to this level");
    }
    let group = size - shift;
    let base = address & !((1 << size) - 1);
    let own = base | (index & ((1 << group) - 1)) << shift;
    Entry::Page(Page { phys: PhysAddr::new(own), rights: limit, group, fence: None })
}

/// V 0, R 1, W 2, X 3, U 4, A 6, D 7, PPN 53:10, reserved 60:54, N 63.
fn riscv(geometry: &Geometry, height: u32, index: u64, raw: u64) -> Entry {
    if !bit(raw, 0) {
        return Entry::NotPresent;
    }
    if field(raw, 60, 54) != 0 {
        return Entry::Malformed("bits 60:54 are reserved");
    }
    let (read, write, execute) = (bit(raw, 1), bit(raw, 2), bit(raw, 3));
    let address = field(raw, 53, 10) << 2;
    if !read && !write && !execute {
        return riscv_table(height, raw, address);
    }
    if write && !read {
        return Entry::Malformed("write without read is reserved");
    }
    if !bit(raw, 6) {
        return Entry::Malformed("the accessed bit is clear");
    }
    let (address, group) = match riscv_napot(height, index, raw, address) {
        Ok(place) => place,
        Err(rule) => return Entry::Malformed(rule),
    };
    if address & ((1 << geometry.shift(height)) - 1) != 0 {
        return Entry::Malformed("a superpage's address must be a multiple of its size");
    }
    let user = bit(raw, 4);
    let granted = rights(read && user, write && user && bit(raw, 7), execute && user);
    Entry::Page(Page { phys: PhysAddr::new(address), rights: granted, group, fence: None })
}

fn riscv_table(height: u32, raw: u64, address: u64) -> Entry {
    if height == 0 {
        return Entry::Malformed("a pointer at the last level");
    }
    if bit(raw, 4) || bit(raw, 6) || bit(raw, 7) || raw >> 61 != 0 {
        return Entry::Malformed("D, A, U, PBMT and N are reserved in a pointer");
    }
    Entry::Table { next: PhysAddr::new(address), limit: Rights::ALL }
}

/// Svnapot: N with the low PPN bits 1000 is this page's place in a 64 KiB group.
fn riscv_napot(
    height: u32,
    index: u64,
    raw: u64,
    address: u64,
) -> Result<(u64, u32), &'static str> {
    if !bit(raw, 63) {
        return Ok((address, 0));
    }
    if height > 0 || address >> 12 & 0xf != 0x8 {
        return Err("N is set with an encoding that Svnapot does not have");
    }
    Ok((address & !0xffff | (index & 0xf) << 12, 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(format: SimFormat, bits: u32, height: u32, raw: u64) -> Page {
        let geometry = Geometry::new(format, bits, 1).unwrap();
        match decode(&geometry, height, 0, raw) {
            Entry::Page(page) => page,
            other => panic!("{raw:#x} is {other:?}"),
        }
    }

    #[test]
    fn dart_entries_from_the_bit_table() {
        // Valid, whole page, 0x8_1234_4000, read and write.
        let whole = page(SimFormat::Dart1, 32, 0, 0x000f_ff08_1234_4001);
        assert_eq!(whole.phys.raw(), 0x8_1234_4000);
        assert_eq!((whole.rights.access, whole.fence), (Access::all(), None));
        // The same, no-read (bit 8); then no-write (bit 7).
        assert_eq!(
            page(SimFormat::Dart1, 32, 0, 0x000f_ff08_1234_4101).rights.access,
            Access::WRITE
        );
        assert_eq!(
            page(SimFormat::Dart1, 32, 0, 0x000f_ff08_1234_4081).rights.access,
            Access::READ
        );
        // DART 2: 0x100_0000_4000 >> 4 = 0x10_0000_0400.
        let second = page(SimFormat::Dart2, 32, 0, 0x000f_ff10_0000_0401);
        assert_eq!(second.phys.raw(), 0x100_0000_4000);
        assert_eq!(
            page(SimFormat::Dart2, 32, 0, 0x000f_ff10_0000_0409).rights.access,
            Access::WRITE
        );
    }

    #[test]
    fn dart_fences_count_in_four_byte_units() {
        // Start 0x400, end 0x7ff: the second 4 KiB of a 16 KiB page.
        let raw = 0x4007_ff08_0000_0001;
        assert_eq!(page(SimFormat::Dart1, 32, 0, raw).fence, Some((0x1000, 0x1fff)));
        // Bit 1 switches sub-page protection off.
        assert_eq!(page(SimFormat::Dart1, 32, 0, raw | 2).fence, None);
    }

    #[test]
    fn lpae_leaves_need_the_access_flag() {
        let geometry = Geometry::new(SimFormat::Lpae4k, 48, 1).unwrap();
        let raw = 0x4000_0743; // page, AF, SH inner, AP[1]
        assert_eq!(page(SimFormat::Lpae4k, 48, 0, raw).rights.access, Access::all());
        assert_eq!(page(SimFormat::Lpae4k, 48, 0, raw | 0x80).rights.access, Access::READ);
        assert_eq!(page(SimFormat::Lpae4k, 48, 0, raw & !0x40).rights.access, Access::empty());
        assert!(matches!(decode(&geometry, 0, 0, raw & !0x400), Entry::Malformed(_)));
        assert_eq!(decode(&geometry, 0, 0, raw & !2), Entry::NotPresent);
        assert!(matches!(decode(&geometry, 3, 0, raw & !2), Entry::Malformed(_)));
    }

    #[test]
    fn lpae_64k_keeps_the_top_address_bits_low() {
        let leaf = page(SimFormat::Lpae64k, 48, 0, 0x0000_0000_0001_3443);
        assert_eq!(leaf.phys.raw(), 0x3_0000_0001_0000);
    }

    #[test]
    fn hierarchical_limits_are_read() {
        let geometry = Geometry::new(SimFormat::Lpae4k, 48, 1).unwrap();
        let Entry::Table { limit, next } = decode(&geometry, 2, 0, 1 << 62 | 0x5003) else {
            panic!("a table")
        };
        assert_eq!((limit.access, next.raw()), (Access::READ, 0x5000));
    }

    #[test]
    fn vtd_large_pages_stop_at_one_gigabyte() {
        assert_eq!(page(SimFormat::Vtd2, 48, 2, 0x4000_0083).phys.raw(), 0x4000_0000);
        let geometry = Geometry::new(SimFormat::Vtd2, 48, 1).unwrap();
        assert!(matches!(decode(&geometry, 3, 0, 0x83), Entry::Malformed(_)));
        assert!(matches!(decode(&geometry, 1, 0, 0x1083), Entry::Malformed(_)));
        assert_eq!(decode(&geometry, 0, 0, 0x1000), Entry::NotPresent);
    }

    #[test]
    fn vtd_first_stage_needs_the_user_bit() {
        let leaf = page(SimFormat::Vtd1, 48, 1, 0x8000_0000_4020_1087);
        assert_eq!((leaf.phys.raw(), leaf.rights.access), (0x4020_0000, Access::all()));
        assert!(!leaf.rights.execute);
        assert_eq!(page(SimFormat::Vtd1, 48, 0, 0x1005).rights.access, Access::READ);
        assert_eq!(page(SimFormat::Vtd1, 48, 0, 0x1003).rights.access, Access::empty());
    }

    #[test]
    fn amd_sizes_stand_in_the_address() {
        // 16 KiB at 0x8_0000_0000: bits 13:12 are 01, so that bit 13 is the lowest zero.
        let raw = 0x6000_0008_0000_1e01;
        let geometry = Geometry::new(SimFormat::AmdV1, 48, 1).unwrap();
        let Entry::Page(third) = decode(&geometry, 0, 6, raw) else { panic!("a page") };
        assert_eq!((third.phys.raw(), third.group), (0x8_0000_2000, 2));
        assert_eq!(page(SimFormat::AmdV1, 48, 0, raw & !(1 << 61)).rights.access, Access::WRITE);
        assert_eq!(page(SimFormat::AmdV1, 48, 1, 0x6000_0000_0020_0001).phys.raw(), 0x20_0000);
        let table = decode(&geometry, 2, 0, 0x6000_0000_0000_5401);
        assert_eq!(
            table,
            Entry::Table { next: PhysAddr::new(0x5000), limit: rights(true, true, false) }
        );
        assert!(matches!(decode(&geometry, 2, 0, 0x5201), Entry::Malformed(_)));
        assert!(matches!(decode(&geometry, 0, 0, 0x5401), Entry::Malformed(_)));
        assert!(matches!(decode(&geometry, 1, 0, raw), Entry::Malformed(_)));
        assert!(matches!(decode(&geometry, 0, 0, 0x000f_ffff_ffff_fe01), Entry::Malformed(_)));
    }

    #[test]
    fn riscv_reserved_encodings_are_malformed() {
        let geometry = Geometry::new(SimFormat::Sv39, 39, 1).unwrap();
        let leaf = 0x2000_00d7; // V R W U A D
        assert_eq!(page(SimFormat::Sv39, 39, 0, leaf).rights.access, Access::all());
        assert_eq!(page(SimFormat::Sv39, 39, 0, leaf & !0x80).rights.access, Access::READ);
        assert!(matches!(decode(&geometry, 0, 0, leaf & !2), Entry::Malformed(_)));
        assert!(matches!(decode(&geometry, 0, 0, leaf | 1 << 54), Entry::Malformed(_)));
        assert!(matches!(decode(&geometry, 0, 0, 1), Entry::Malformed(_)));
        let napot = decode(&geometry, 0, 5, leaf | 1 << 63 | 8 << 10);
        let Entry::Page(napot) = napot else { panic!("{napot:?}") };
        assert_eq!((napot.phys.raw(), napot.group), (0x8000_5000, 4));
    }
}
