//! Commands (IHI 0070, chapter 4 "Commands"): 16 bytes each.
#![forbid(unsafe_code)]

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `CMD_CFGI_STE`, 4.3.1: an entry of the stream table changed, or (not `leaf`) its level 1
    /// descriptor too.
    StreamChanged {
        /// The StreamID.
        stream: u32,
        /// Only the entry changed.
        leaf: bool,
    },
    /// `CMD_CFGI_ALL`, 4.3.2: everything may have changed.
    AllChanged,
    /// `CMD_CFGI_CD_ALL`, 4.3.4: all contexts of a stream may have changed.
    ContextsChanged {
        /// The StreamID.
        stream: u32,
    },
    /// `CMD_TLBI_NH_ASID`, 4.4.2: everything cached under an ASID.
    DropAsid {
        /// The ASID.
        asid: u16,
    },
    /// `CMD_TLBI_NH_VA`, 4.4.2: what is cached of one address or, where `IDR3.RIL` says so, of a
    /// range.
    DropAddresses {
        /// The ASID.
        asid: u16,
        /// The first address.
        address: u64,
        /// Leaf entries only, not pointers to tables.
        leaf: bool,
        /// More than one page: only with `IDR3.RIL`.
        range: Option<Pages>,
    },
    /// `CMD_TLBI_EL2_ALL`, 4.4.3.
    DropHypervisor,
    /// `CMD_TLBI_NSNH_ALL`, 4.4.4: everything else.
    DropAll,
    /// `CMD_RESUME`, 4.6.1, with Abort: a stalled transaction is ended.
    EndStalled {
        /// The StreamID.
        stream: u32,
        /// The tag from the event record.
        tag: u16,
    },
    /// `CMD_SYNC`, 4.7.3, completion by the consumer index (`CS` 0b00): all before is done.
    Sync,
}

/// So many granules: `(NUM + 1) << SCALE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// `NUM`, 0 to 31.
    pub num: u32,
    /// `SCALE`, 0 to 31.
    pub scale: u32,
    /// Logarithm of the granule: 12, 14 or 16.
    pub granule_shift: u32,
}

impl Pages {
    /// The largest piece, from the low end, of `count` granules that one command covers; `None` for
    /// a single granule, which the plain form covers (a range of one, at no level, is reserved).
    pub const fn first_of(count: u64, granule_shift: u32) -> Option<Self> {
        if count <= 1 {
            return None;
        }
        let trailing = count.trailing_zeros();
        let scale = if trailing < 31 { trailing } else { 31 };
        let rest = count >> scale;
        // The low five bits; where they are all zero (only at scale 31) a full 32.
        let num = match rest & 0x1f {
            0 => 31,
            low => low as u32 - 1,
        };
        match (num, scale) {
            (0, 0) => None,
            _ => Some(Self { num, scale, granule_shift }),
        }
    }

    /// How many granules it covers.
    pub const fn count(&self) -> u64 {
        (self.num as u64 + 1) << self.scale
    }
}

impl Command {
    /// The two words that go into the queue.
    pub fn words(&self) -> [u64; 2] {
        let stream_in = |stream: u32| u64::from(stream) << 32;
        let asid_in = |asid: u16| u64::from(asid) << 48;
        match *self {
            Self::StreamChanged { stream, leaf } => [0x03 | stream_in(stream), u64::from(leaf)],
            Self::AllChanged => [0x04, 31],
            Self::ContextsChanged { stream } => [0x06 | stream_in(stream), 0],
            Self::DropAsid { asid } => [0x11 | asid_in(asid), 0],
            Self::DropAddresses { asid, address, leaf, range } => {
                let (low, high) = range.map_or((0, 0), range_fields);
                [0x12 | low | asid_in(asid), u64::from(leaf) | high | address & !0xfff]
            }
            Self::DropHypervisor => [0x20, 0],
            Self::DropAll => [0x30, 0],
            Self::EndStalled { stream, tag } => [0x44 | 1 << 13 | stream_in(stream), tag.into()],
            Self::Sync => [0x46, 0],
        }
    }
}

/// `NUM` and `SCALE` in word 0, `TG` in word 1.
fn range_fields(pages: Pages) -> (u64, u64) {
    let granule: u64 = match pages.granule_shift {
        14 => 2,
        16 => 3,
        _ => 1,
    };
    (u64::from(pages.num & 0x1f) << 12 | u64::from(pages.scale & 0x1f) << 20, granule << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_commands_4_3() {
        let changed = Command::StreamChanged { stream: 0x1234, leaf: true };
        assert_eq!(changed.words(), [0x1234_0000_0003, 1]);
        assert_eq!(Command::AllChanged.words(), [4, 31]);
        assert_eq!(Command::ContextsChanged { stream: 7 }.words(), [0x7_0000_0006, 0]);
    }

    #[test]
    fn tlb_commands_4_4() {
        assert_eq!(Command::DropAsid { asid: 0x12 }.words(), [0x0012_0000_0000_0011, 0]);
        let plain =
            Command::DropAddresses { asid: 3, address: 0x7f_ffff_f000, leaf: true, range: None };
        assert_eq!(plain.words(), [0x0003_0000_0000_0012, 0x7f_ffff_f001]);
        let range = Some(Pages { num: 4, scale: 2, granule_shift: 14 });
        let ranged = Command::DropAddresses { asid: 3, address: 0x8000, leaf: false, range };
        assert_eq!(ranged.words(), [0x0003_0000_0020_4012, 0x8000 | 2 << 10]);
        assert_eq!(Command::DropAll.words()[0], 0x30);
        assert_eq!(Command::DropHypervisor.words()[0], 0x20);
    }

    #[test]
    fn other_commands_4_6_and_4_7() {
        let end = Command::EndStalled { stream: 5, tag: 0xbeef };
        assert_eq!(end.words(), [0x5_0000_2044, 0xbeef]);
        assert_eq!(Command::Sync.words(), [0x46, 0]);
    }

    #[test]
    fn pieces_add_up_to_the_range() {
        for count in (1..5000).chain([1 << 20, (1 << 36) - 1, 1 << 36, 0xf_1234_5678]) {
            let (mut left, mut commands) = (count, 0);
            while left > 0 {
                let piece = Pages::first_of(left, 12);
                assert!(piece.is_none_or(|pages| pages.num < 32 && pages.scale < 32));
                assert!(piece.is_none_or(|pages| (pages.num, pages.scale) != (0, 0)));
                left -= piece.map_or(1, |pages| pages.count());
                commands += 1;
            }
            assert!(commands <= 9, "{count:#x} takes {commands}");
        }
    }
}
