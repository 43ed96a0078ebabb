//! The ioctls that `vfio-ioctls` and `iommufd-ioctls` have no safe form of: what a container or an IOAS
//! can map, a mapping with fewer rights than all, and the same pages in a second IOAS.
//!
//! Source: `include/uapi/linux/vfio.h` and `include/uapi/linux/iommufd.h`, Linux 6.12.

use std::io;
use std::os::fd::AsRawFd;

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_COPY, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_TYPE, iommu_ioas_copy,
    iommu_ioas_iova_ranges, iommu_iova_range,
};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, VFIO_TYPE, vfio_iommu_type1_dma_map, vfio_iommu_type1_info,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_IOMMU_GET_INFO, VFIO_TYPE as u32, VFIO_BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 13);
ioctl_io_nr!(IOMMU_IOAS_COPY, IOMMUFD_TYPE as u32, IOMMUFD_CMD_IOAS_COPY);
ioctl_io_nr!(IOMMU_IOAS_IOVA_RANGES, IOMMUFD_TYPE as u32, IOMMUFD_CMD_IOAS_IOVA_RANGES);

/// Most a kernel is believed to say about a container, in bytes.
const INFO_MOST: usize = 64 << 10;

/// What a container says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerInfo {
    /// A bit for each page size; `None` if the kernel does not say.
    pub(crate) page_sizes: Option<u64>,
    /// First and last addresses that can be mapped; `None` if the kernel does not say.
    pub(crate) ranges: Option<Vec<(u64, u64)>>,
    /// How many more mappings it takes.
    pub(crate) mappings_left: Option<u32>,
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// VFIO_IOMMU_GET_INFO with its chain of capabilities.
pub(crate) fn container_info(container: &impl AsRawFd) -> io::Result<ContainerInfo> {
    let size = size_of::<vfio_iommu_type1_info>();
    let mut head = vfio_iommu_type1_info { argsz: size as u32, ..Default::default() };
    // SAFETY: the structure is as long as it says, and the kernel writes no more than that.
    check(unsafe { ioctl_with_mut_ref(container, VFIO_IOMMU_GET_INFO(), &mut head) })?;
    let needed = (head.argsz as usize).clamp(size, INFO_MOST);
    // Words, so that the structure at its start is aligned.
    let mut words = vec![0u64; needed.div_ceil(8)];
    words[0] = u64::from_ne_bytes(head_bytes(needed as u32));
    // SAFETY: the buffer is at least as long as its first word says.
    check(unsafe { ioctl_with_mut_ptr(container, VFIO_IOMMU_GET_INFO(), words.as_mut_ptr()) })?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(parse_info(&bytes))
}

/// `argsz` and `flags` as they lie in memory.
fn head_bytes(argsz: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
    bytes
}

fn parse_info(bytes: &[u8]) -> ContainerInfo {
    let mut info = ContainerInfo::default();
    let flags = u32_at(bytes, 4).unwrap_or(0);
    if flags & VFIO_IOMMU_INFO_PGSIZES != 0 {
        info.page_sizes = u64_at(bytes, 8);
    }
    if flags & VFIO_IOMMU_INFO_CAPS == 0 {
        return info;
    }
    let mut at = u32_at(bytes, 16).unwrap_or(0) as usize;
    // Each capability lies behind the last one: a chain that turns back ends.
    while at >= 24 {
        let (Some(id), Some(next)) = (u32_at(bytes, at), u32_at(bytes, at + 4)) else { break };
        match id & 0xffff {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => info.ranges = ranges(bytes, at + 8),
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => info.mappings_left = u32_at(bytes, at + 8),
            _ => {}
        }
        if next as usize <= at {
            break;
        }
        at = next as usize;
    }
    info
}

/// `nr_iovas`, a reserved word, then pairs.
fn ranges(bytes: &[u8], at: usize) -> Option<Vec<(u64, u64)>> {
    let count = u32_at(bytes, at)? as usize;
    let pair = |index: usize| {
        let at = at + 8 + index * 16;
        Some((u64_at(bytes, at)?, u64_at(bytes, at + 8)?))
    };
    (0..count.min(INFO_MOST / 16)).map(pair).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// VFIO_IOMMU_MAP_DMA with the rights that `flags` say.
///
/// # Safety
/// As [`Kernel::map`](crate::kernel::Kernel::map).
pub(crate) unsafe fn container_map(
    container: &impl AsRawFd,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
) -> io::Result<()> {
    let argsz = size_of::<vfio_iommu_type1_dma_map>() as u32;
    let request = vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size };
    // SAFETY: the kernel reads the structure; the memory is the caller's promise.
    check(unsafe { ioctl_with_ref(container, VFIO_IOMMU_MAP_DMA(), &request) })
}

/// IOMMU_IOAS_COPY: the pages of a mapping of one IOAS, in another one.
///
/// # Safety
/// As [`Kernel::map`](crate::kernel::Kernel::map), for the memory behind the source.
pub(crate) unsafe fn ioas_copy(
    iommufd: &impl AsRawFd,
    copy: &mut iommu_ioas_copy,
) -> io::Result<()> {
    copy.size = size_of::<iommu_ioas_copy>() as u32;
    // SAFETY: the structure is as long as it says; the memory is the caller's promise.
    check(unsafe { ioctl_with_mut_ref(iommufd, IOMMU_IOAS_COPY(), copy) })
}

/// IOMMU_IOAS_IOVA_RANGES: first and last addresses, and the alignment.
pub(crate) fn ioas_ranges(iommufd: &impl AsRawFd, ioas: u32) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let mut ranges = vec![iommu_iova_range::default(); 16];
    loop {
        let mut query = iommu_ioas_iova_ranges {
            size: size_of::<iommu_ioas_iova_ranges>() as u32,
            ioas_id: ioas,
            num_iovas: ranges.len() as u32,
            __reserved: 0,
            allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
            out_iova_alignment: 0,
        };
        // SAFETY: the structure is as long as it says, and the array as long as `num_iovas`.
        let done =
            check(unsafe { ioctl_with_mut_ref(iommufd, IOMMU_IOAS_IOVA_RANGES(), &mut query) });
        let count = query.num_iovas as usize;
        match done {
            // EMSGSIZE, with the number that is needed.
            Err(_) if count > ranges.len() && count < INFO_MOST => {
                ranges.resize(count, iommu_iova_range::default());
            }
            Err(error) => return Err(error),
            Ok(()) => {
                let found = ranges.iter().take(count).map(|range| (range.start, range.last));
                return Ok((found.collect(), query.out_iova_alignment));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut Vec<u8>, words: &[u32]) {
        words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
    }

    /// What a container of QEMU's VT-d says (LE words on the wire; native here).
    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, &[112, 3]);
        bytes.extend(0x4020_1000u64.to_ne_bytes());
        put(&mut bytes, &[24, 0]);
        // At 24: the mappings that are left; next at 40.
        put(&mut bytes, &[VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL | 1 << 16, 40, 65_535, 0]);
        put(&mut bytes, &[VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE | 1 << 16, 0, 2, 0]);
        for number in [0, 0xfedf_ffffu64, 0xfef0_0000, 0xffff_ffff_ffff] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_containers_capabilities_are_read() {
        let info = parse_info(&sample());
        assert_eq!(info.page_sizes, Some(0x4020_1000));
        assert_eq!(info.ranges, Some(vec![(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)]));
        assert_eq!(info.mappings_left, Some(65_535));
    }

    #[test]
    fn rubbish_ends_the_chain() {
        let sample = sample();
        for len in 0..sample.len() {
            parse_info(&sample[..len]);
        }
        let mut turned = sample.clone();
        turned[44..48].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(parse_info(&turned).mappings_left, Some(65_535));
        let mut huge = sample;
        huge[48..52].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse_info(&huge).ranges, None);
    }
}
