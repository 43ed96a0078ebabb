//! What a device can do and needs: its limits, as its driver and its bus state them.

use alloc::string::String;

use crate::addr::DmaRange;

/// What a driver says of its device. Every limit has the loosest default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its name in messages and reports.
    pub name: String,
    /// The highest DMA address it can emit for streaming mappings (`dma_set_mask`).
    pub mask: u64,
    /// The same for coherent memory (`dma_set_coherent_mask`).
    pub coherent_mask: u64,
    /// The longest segment one of its descriptors holds, in bytes (`dma_set_max_seg_size`).
    pub max_segment: u64,
    /// A power of two that no segment may cross a multiple of, in bytes, or 0 for none
    /// (`dma_set_seg_boundary` plus one).
    pub boundary: u64,
    /// Low bits of an address that a bounce buffer must keep, as a mask
    /// (`dma_set_min_align_mask`); NVMe wants 0xfff.
    pub min_align_mask: u64,
    /// Whether its accesses snoop the CPU's caches (`dma-coherent`).
    pub snoops: bool,
    /// Whether it may see bytes beside what it was given, inside the same granule.
    pub trusted: bool,
    /// The addresses it emits, where its bus gives it a window (`apple,dma-range`).
    pub window: Option<DmaRange>,
    /// Let the IOMMU fence mappings inside a granule, and count fenced bytes as not exposed. Only
    /// DART's entries can; the meaning of their fields was inferred and never checked on hardware,
    /// hence the name.
    pub unverified_fences: bool,
}

impl DeviceSpec {
    /// A trusted, snooping device of 64 address bits without any other limit.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            mask: u64::MAX,
            coherent_mask: u64::MAX,
            max_segment: u64::MAX,
            boundary: 0,
            min_align_mask: 0,
            snoops: true,
            trusted: true,
            window: None,
            unverified_fences: false,
        }
    }

    /// Addresses of `bits` bits, for streaming and coherent memory alike. 64 and more mean no limit.
    #[must_use]
    pub fn mask_bits(mut self, bits: u32) -> Self {
        self.mask = bits_to_mask(bits);
        self.coherent_mask = self.mask;
        self
    }

    /// Coherent memory below `bits` bits only.
    #[must_use]
    pub fn coherent_mask_bits(mut self, bits: u32) -> Self {
        self.coherent_mask = bits_to_mask(bits);
        self
    }

    /// Segments of at most `bytes`.
    #[must_use]
    pub fn max_segment(mut self, bytes: u64) -> Self {
        self.max_segment = bytes;
        self
    }

    /// No segment crosses a multiple of `bytes`, a power of two.
    #[must_use]
    pub fn boundary(mut self, bytes: u64) -> Self {
        self.boundary = bytes;
        self
    }

    /// Bounce buffers keep these low address bits.
    #[must_use]
    pub fn min_align_mask(mut self, mask: u64) -> Self {
        self.min_align_mask = mask;
        self
    }

    /// The device does not snoop the CPU's caches.
    #[must_use]
    pub fn non_snooping(mut self) -> Self {
        self.snoops = false;
        self
    }

    /// The device may see nothing but what it was given.
    #[must_use]
    pub fn untrusted(mut self) -> Self {
        self.trusted = false;
        self
    }

    /// The device emits only these addresses.
    #[must_use]
    pub fn window(mut self, window: DmaRange) -> Self {
        self.window = Some(window);
        self
    }

    /// Sets [`Self::unverified_fences`].
    #[must_use]
    pub fn unverified_fences(mut self) -> Self {
        self.unverified_fences = true;
        self
    }
}

const fn bits_to_mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

bitflags::bitflags! {
    /// How a mapping is made; the attributes of Linux that mean something here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct MapFlags: u8 {
        /// The caller keeps caches and bounce buffers in step itself, by explicit syncs: neither
        /// map nor unmap copies or maintains anything (`DMA_ATTR_SKIP_CPU_SYNC`). A bounce buffer
        /// behind an IOMMU is filled all the same: a device of the domain that is not trusted could
        /// find in it what its last owner left.
        const SKIP_CPU_SYNC = 1;
        /// Refuse rather than pad: coherent memory whose length is not whole granules is an error.
        const NO_PADDING = 2;
        /// Leave an unmapped granule before and after the range, where an IOMMU translates.
        const GUARD = 4;
        /// The coherent memory must be one physical block.
        const CONTIGUOUS = 8;
    }
}
