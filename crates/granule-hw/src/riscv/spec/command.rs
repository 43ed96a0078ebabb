//! Commands (RISC-V IOMMU 1.0, "Command-Queue"): 16 bytes each.
#![forbid(unsafe_code)]

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `IOTINVAL.VMA` without operands: everything cached for every address space.
    DropAll,
    /// `IOTINVAL.VMA` with `PSCV`: everything cached for one address space.
    DropSpace {
        /// The `PSCID`.
        space: u32,
    },
    /// `IOTINVAL.VMA` with `PSCV` and `AV`: the leaf entries of one page.
    DropPage {
        /// The `PSCID`.
        space: u32,
        /// An address of the page.
        address: u64,
        /// `NL`: pointers to tables too; only with `capabilities.NL`.
        tables: bool,
    },
    /// `IODIR.INVAL_DDT`: a device's context changed, or (`None`) any.
    ContextChanged {
        /// The device id.
        device: Option<u32>,
    },
    /// `IOFENCE.C` with `PR` and `PW`: all before is done, and what devices read and wrote through
    /// what was dropped has completed.
    Fence,
}

const IOTINVAL_VMA: u64 = 1;
const IOFENCE_C: u64 = 2;
const IODIR_INVAL_DDT: u64 = 3;
const ADDRESS_VALID: u64 = 1 << 10;
const SPACE_VALID: u64 = 1 << 32;
const NON_LEAF: u64 = 1 << 34;
const DEVICE_VALID: u64 = 1 << 33;
const READS_AND_WRITES: u64 = 0b11 << 12;

impl Command {
    /// The two words that go into the queue.
    pub fn words(&self) -> [u64; 2] {
        let space_in = |space: u32| SPACE_VALID | u64::from(space & 0xf_ffff) << 12;
        match *self {
            Self::DropAll => [IOTINVAL_VMA, 0],
            Self::DropSpace { space } => [IOTINVAL_VMA | space_in(space), 0],
            Self::DropPage { space, address, tables } => {
                let tables = if tables { NON_LEAF } else { 0 };
                let first = IOTINVAL_VMA | ADDRESS_VALID | space_in(space) | tables;
                [first, address >> 12 << 10]
            }
            Self::ContextChanged { device: None } => [IODIR_INVAL_DDT, 0],
            Self::ContextChanged { device: Some(id) } => {
                [IODIR_INVAL_DDT | DEVICE_VALID | u64::from(id & 0xff_ffff) << 40, 0]
            }
            Self::Fence => [IOFENCE_C | READS_AND_WRITES, 0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iotinval() {
        assert_eq!(Command::DropAll.words(), [1, 0]);
        assert_eq!(Command::DropSpace { space: 0xabcde }.words(), [0x1_abcd_e001, 0]);
        let page = Command::DropPage { space: 7, address: 0x3f_1234_5678, tables: false };
        assert_eq!(page.words(), [0x1_0000_7401, 0x3f1_2345 << 10]);
        let tables = Command::DropPage { space: 7, address: 0x1000, tables: true };
        assert_eq!(tables.words(), [0x5_0000_7401, 1 << 10]);
    }

    #[test]
    fn iodir_and_iofence() {
        assert_eq!(Command::ContextChanged { device: None }.words(), [3, 0]);
        let one = Command::ContextChanged { device: Some(0x12_3456) };
        assert_eq!(one.words(), [0x1234_5602_0000_0003, 0]);
        assert_eq!(Command::Fence.words(), [0x3002, 0]);
    }
}
