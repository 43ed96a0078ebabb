//! Registers (IHI 0070, chapter 6 "Memory map and registers"), by byte offset.
#![forbid(unsafe_code)]

use bitflags::bitflags;

/// `SMMU_IDR0`: features, 6.3.1.
pub const IDR0: usize = 0x00;
/// `SMMU_IDR1`: sizes, 6.3.2.
pub const IDR1: usize = 0x04;
/// `SMMU_IDR3`: features, 6.3.4.
pub const IDR3: usize = 0x0c;
/// `SMMU_IDR5`: granules and address sizes, 6.3.6.
pub const IDR5: usize = 0x14;
/// `SMMU_CR0`: what is enabled, 6.3.9.
pub const CR0: usize = 0x20;
/// `SMMU_CR0ACK`: what has been enabled, 6.3.10.
pub const CR0ACK: usize = 0x24;
/// `SMMU_CR1`: memory attributes of tables and queues, 6.3.11.
pub const CR1: usize = 0x28;
/// `SMMU_CR2`, 6.3.12.
pub const CR2: usize = 0x2c;
/// `SMMU_GBPA`: what happens to everything while the unit is disabled, 6.3.14.
pub const GBPA: usize = 0x44;
/// `SMMU_IRQ_CTRL`: which interrupts are enabled, 6.3.16.
pub const IRQ_CTRL: usize = 0x50;
/// `SMMU_GERROR`: global errors, each a bit that toggles, 6.3.18.
pub const GERROR: usize = 0x60;
/// `SMMU_GERRORN`: the errors that software has seen, 6.3.19.
pub const GERRORN: usize = 0x64;
/// `SMMU_STRTAB_BASE`, 6.3.23.
pub const STRTAB_BASE: usize = 0x80;
/// `SMMU_STRTAB_BASE_CFG`, 6.3.24.
pub const STRTAB_BASE_CFG: usize = 0x88;
/// `SMMU_CMDQ_BASE`, 6.3.25.
pub const CMDQ_BASE: usize = 0x90;
/// `SMMU_CMDQ_PROD`, 6.3.26.
pub const CMDQ_PROD: usize = 0x98;
/// `SMMU_CMDQ_CONS`, 6.3.27: index in bits 19:0, error in bits 30:24.
pub const CMDQ_CONS: usize = 0x9c;
/// `SMMU_EVENTQ_BASE`, 6.3.28.
pub const EVENTQ_BASE: usize = 0xa0;
/// `SMMU_EVENTQ_PROD`, 6.3.29, in the second page: index, and the overflow flag in bit 31.
pub const EVENTQ_PROD: usize = 0x1_00a8;
/// `SMMU_EVENTQ_CONS`, 6.3.30, in the second page: index, and the flag's acknowledgement.
pub const EVENTQ_CONS: usize = 0x1_00ac;
/// The registers that are used end here.
pub const LEN: usize = 0x1_00b0;

/// `GBPA.ABORT`: what comes while the unit is disabled is aborted.
pub const GBPA_ABORT: u32 = 1 << 20;
/// `GBPA.UPDATE`: written 1 with a new value, reads 1 until that is in force.
pub const GBPA_UPDATE: u32 = 1 << 31;
/// `GERROR.CMDQ_ERR`: the command queue stopped at a command.
pub const GERROR_CMDQ: u32 = 1;
/// `EVENTQ_PROD.OVFLG`, `EVENTQ_CONS.OVACKFLG`.
pub const OVERFLOW: u32 = 1 << 31;
/// Read- and write-allocate hints of base registers (bit 62).
pub const ALLOCATE: u64 = 1 << 62;
/// `STRTAB_BASE_CFG.FMT`: two levels.
pub const TWO_LEVELS: u32 = 1 << 16;
/// `CR2.RECINVSID` and `CR2.PTM`: record transactions whose StreamID is out of range, and take no
/// part in the CPUs' broadcast invalidation.
pub const CR2_RECORD_PRIVATE: u32 = 0b110;
/// `CR1`: tables and queues are normal write-back memory, inner shareable.
pub const CR1_COHERENT: u32 = 0b11_01_01 << 6 | 0b11_01_01;
/// `CR1`: tables and queues are normal non-cacheable memory, outer shareable.
pub const CR1_NON_COHERENT: u32 = 0b10_00_00 << 6 | 0b10_00_00;

bitflags! {
    /// The bits of `SMMU_CR0` and `SMMU_CR0ACK`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Enable: u32 {
        /// `SMMUEN`: streams are looked up and translated.
        const TRANSLATION = 1;
        /// `EVENTQEN`.
        const EVENTS = 1 << 2;
        /// `CMDQEN`.
        const COMMANDS = 1 << 3;
    }
}

/// How the unit treats a transaction that faults (`IDR0.STALL_MODEL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// It can stall or terminate it; an entry says which.
    Choice,
    /// It always terminates it.
    Never,
    /// It always stalls it, until a command says what becomes of it.
    Always,
}

/// What the identification registers say, as far as it is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `IDR0.S1P`: stage 1 translation.
    pub stage1: bool,
    /// `IDR0.TTF`: the AArch64 table format.
    pub aarch64: bool,
    /// `IDR0.TTENDIAN`: tables may be little-endian.
    pub little_endian: bool,
    /// `IDR0.COHACC`: the unit snoops the CPUs' caches.
    pub coherent: bool,
    /// `IDR0.HYP`: it has EL2 contexts, whose cached entries are dropped at the start.
    pub hypervisor: bool,
    /// `IDR0.ASID16`: 16 or 8.
    pub asid_bits: u32,
    /// `IDR0.STALL_MODEL`.
    pub stall: Stall,
    /// `IDR0.ST_LEVEL`: stream tables may have two levels.
    pub two_levels: bool,
    /// `IDR1.SIDSIZE`.
    pub stream_bits: u32,
    /// `IDR1.CMDQS`: the logarithm of the longest command queue.
    pub command_bits: u32,
    /// `IDR1.EVENTQS`.
    pub event_bits: u32,
    /// `IDR1.TABLES_PRESET` or `QUEUES_PRESET`: the bases are fixed, not ours to choose.
    pub preset: bool,
    /// `IDR3.RIL`: invalidation by range.
    pub ranges: bool,
    /// `IDR5.OAS`, in bits.
    pub output_bits: u32,
    /// `IDR5.GRAN4K`, `GRAN16K`, `GRAN64K`.
    pub granules: [bool; 3],
    /// `IDR5.VAX`: input addresses of 52 bits (48 are used here).
    pub large_input: bool,
}

const fn bit(register: u32, bit: u32) -> bool {
    (register >> bit) & 1 == 1
}

impl Features {
    /// Decodes `IDR0`, `IDR1`, `IDR3` and `IDR5`.
    pub const fn decode(idr0: u32, idr1: u32, idr3: u32, idr5: u32) -> Self {
        Self {
            stage1: bit(idr0, 1),
            aarch64: bit(idr0, 3),
            little_endian: (idr0 >> 21) & 3 != 3,
            coherent: bit(idr0, 4),
            hypervisor: bit(idr0, 9),
            asid_bits: if bit(idr0, 12) { 16 } else { 8 },
            stall: match (idr0 >> 24) & 3 {
                0 => Stall::Choice,
                2 => Stall::Always,
                _ => Stall::Never,
            },
            two_levels: (idr0 >> 27) & 3 == 1,
            stream_bits: idr1 & 0x3f,
            command_bits: (idr1 >> 21) & 0x1f,
            event_bits: (idr1 >> 16) & 0x1f,
            preset: bit(idr1, 29) || bit(idr1, 30),
            ranges: bit(idr3, 10),
            output_bits: output_bits(idr5 & 7),
            granules: [bit(idr5, 4), bit(idr5, 5), bit(idr5, 6)],
            large_input: (idr5 >> 10) & 3 == 1,
        }
    }
}

/// The widths that `IDR5.OAS` and a context's `IPS` can name, in bits.
const OUTPUT_BITS: [u32; 8] = [32, 36, 40, 42, 44, 48, 52, 56];

const fn output_bits(field: u32) -> u32 {
    OUTPUT_BITS[(field & 7) as usize]
}

/// The `IPS` field for an output of so many bits: the smallest width that holds them.
pub fn ips(bits: u32) -> u64 {
    OUTPUT_BITS.iter().position(|width| *width >= bits).map_or(7, |field| field as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identification_registers_of_qemu_10() {
        // QEMU 10.0 `-M virt,iommu=smmuv3`: IDR5 as measured, the others by its model's settings.
        let idr0 = 1 << 1 | 2 << 2 | 1 << 4 | 1 << 12 | 1 << 18 | 2 << 21 | 1 << 24 | 1 << 27;
        let features = Features::decode(idr0, 19 << 21 | 19 << 16 | 16, 1 << 10 | 1 << 2, 0x74);
        assert!(features.stage1 && features.aarch64 && features.coherent && features.two_levels);
        assert!(features.ranges && features.little_endian && !features.preset);
        assert_eq!((features.asid_bits, features.stream_bits), (16, 16));
        assert_eq!((features.command_bits, features.event_bits), (19, 19));
        assert_eq!((features.output_bits, features.granules), (44, [true; 3]));
        assert_eq!((features.stall, features.large_input), (Stall::Never, false));
    }

    #[test]
    fn output_sizes_6_3_6() {
        assert_eq!((ips(32), ips(33), ips(44), ips(48), ips(52)), (0, 1, 4, 5, 6));
        for field in 0..8 {
            assert_eq!(ips(output_bits(field)), u64::from(field));
        }
    }
}
