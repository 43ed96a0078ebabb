//! The lengths of a list's entries, which `dma_map_sg` does not print.
//!
//! It prints the entries' physical addresses and the segments that the recorder's IOMMU made of
//! them. The `iommu:map` lines before it hold the physical runs in the order in which they were
//! mapped, at consecutive IOVAs. Laying entries out along these runs gives where each begins; it
//! ends where the next begins or its segment ends, whichever is first. (Linux, `iommu_dma_map_sg`
//! and `__finalise_sg`: an entry is joined to the one before it only if that one ended at a page's
//! end and it begins at a page's start.)

/// One `iommu:map` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) iova: u64,
    pub(super) phys: u64,
    pub(super) size: u64,
}

impl Run {
    fn iova_end(&self) -> u64 {
        self.iova.saturating_add(self.size)
    }

    /// Where `phys` lies in IOVA space by this run.
    fn place(&self, phys: u64) -> Option<u64> {
        let offset = phys.checked_sub(self.phys).filter(|offset| *offset < self.size)?;
        self.iova.checked_add(offset)
    }
}

/// The entries with lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entries {
    /// Address and length.
    pub(super) list: Vec<(u64, u64)>,
    /// Whether the lengths are estimates.
    pub(super) estimated: bool,
}

/// Finds the lengths. `dma` and `sizes` are the segments, of equal number.
pub(super) fn entries(phys: &[u64], dma: &[u64], sizes: &[u64], runs: &[Run]) -> Entries {
    if phys.len() == dma.len() {
        // Nothing was joined.
        let list = phys.iter().copied().zip(sizes.iter().copied()).collect();
        return Entries { list, estimated: false };
    }
    match along(phys, dma, sizes, runs) {
        Some(list) => Entries { list, estimated: false },
        None => Entries { list: estimate(phys, sizes), estimated: true },
    }
}

/// Lays entries out along the runs.
fn along(phys: &[u64], dma: &[u64], sizes: &[u64], runs: &[Run]) -> Option<Vec<(u64, u64)>> {
    let first = *dma.first()?;
    let begin = *phys.first()?;
    let mut at = runs.iter().position(|run| run.place(begin) == Some(first))?;
    let mut begins = vec![first];
    for addr in phys.iter().skip(1) {
        let before = *begins.last()?;
        let here = runs.get(at)?.place(*addr).filter(|iova| *iova > before);
        begins.push(match here {
            Some(iova) => iova,
            None => {
                at += 1;
                runs.get(at)?.place(*addr)?
            }
        });
    }
    let mut list = Vec::with_capacity(phys.len());
    for (index, begin) in begins.iter().enumerate() {
        let (start, size) = dma
            .iter()
            .zip(sizes)
            .find(|(start, size)| (**start..start.saturating_add(**size)).contains(begin))?;
        let segment_end = start.saturating_add(*size);
        let end = begins.get(index + 1).map_or(segment_end, |next| segment_end.min(*next));
        list.push((*phys.get(index)?, end.checked_sub(*begin).filter(|len| *len != 0)?));
    }
    let total = list.iter().try_fold(0u64, |sum, (_, len)| sum.checked_add(*len))?;
    let wanted = sizes.iter().try_fold(0u64, |sum, len| sum.checked_add(*len))?;
    (total == wanted).then_some(list)
}

/// Without runs: each entry ends at its page's end, the last takes what is left.
fn estimate(phys: &[u64], sizes: &[u64]) -> Vec<(u64, u64)> {
    let mut left = sizes.iter().fold(0u64, |sum, size| sum.saturating_add(*size));
    let mut list = Vec::with_capacity(phys.len());
    for (index, addr) in phys.iter().enumerate() {
        let rest = (phys.len() - index - 1) as u64;
        let page = 0x1000 - (addr & 0xfff);
        let len = if rest == 0 { left } else { page.min(left.saturating_sub(rest)) };
        if len != 0 {
            list.push((*addr, len));
        }
        left = left.saturating_sub(len);
    }
    list
}

/// The runs that hold the IOVA range from `dma` on, out of those seen lately.
pub(super) fn chain(recent: &[Run], dma: u64) -> &[Run] {
    let holds = |run: &Run| (run.iova..run.iova_end()).contains(&dma);
    let Some(first) = recent.iter().rposition(holds) else { return &[] };
    let joined = recent[first..].windows(2).take_while(|pair| pair[0].iova_end() == pair[1].iova);
    &recent[first..=first + joined.count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(iova: u64, phys: u64, size: u64) -> Run {
        Run { iova, phys, size }
    }

    #[test]
    fn an_unaligned_start_and_a_joined_rest() {
        // As in the recorded trace: 0x200 bytes, then 0xe00.
        let runs = [run(0xfff9_e000, 0xc7c_1000, 0x1000), run(0xfff9_f000, 0xc7c_e000, 0x1000)];
        let found = entries(&[0xc7c_1e00, 0xc7c_e000], &[0xfff9_ee00], &[0x1000], &runs);
        let list = vec![(0xc7c_1e00, 0x200), (0xc7c_e000, 0xe00)];
        assert_eq!(found, Entries { list, estimated: false });
    }

    #[test]
    fn entries_that_are_neighbours_share_a_run() {
        let runs = [run(0x10_0000, 0x5000, 0x3000), run(0x10_3000, 0x9000, 0x4000)];
        let found = entries(&[0x5800, 0x7000, 0x9000], &[0x10_0800], &[0x6000], &runs);
        assert_eq!(found.list, [(0x5800, 0x1800), (0x7000, 0x1000), (0x9000, 0x3800)]);
    }

    #[test]
    fn segments_end_entries() {
        // The second entry begins inside a page: a segment of its own.
        let runs = [run(0x10_0000, 0x5000, 0x1000), run(0x10_1000, 0x9000, 0x2000)];
        let dma = [0x10_0000, 0x10_1800];
        let found = entries(&[0x5000, 0x9800, 0xa000], &dma, &[0x100, 0x900], &runs);
        assert_eq!(found.list, [(0x5000, 0x100), (0x9800, 0x800), (0xa000, 0x100)]);
        assert!(!found.estimated);
    }

    #[test]
    fn without_runs_lengths_are_estimated_and_add_up() {
        let found = entries(&[0x5e00, 0x9000, 0xb000], &[0xf000], &[0x1600], &[]);
        assert_eq!(found.list, [(0x5e00, 0x200), (0x9000, 0x1000), (0xb000, 0x400)]);
        assert!(found.estimated);
        let short = entries(&[0x5000, 0x9000, 0xb000], &[0xf000], &[2], &[]);
        assert_eq!(short.list.iter().map(|(_, len)| len).sum::<u64>(), 2);
    }

    #[test]
    fn chains_stop_where_iovas_do() {
        let runs = [
            run(0x1000, 0, 0x1000),
            run(0x8000, 0, 0x1000),
            run(0x9000, 0, 0x1000),
            run(0x4000, 0, 1),
        ];
        assert_eq!(chain(&runs, 0x8123), &runs[1..3]);
        assert!(chain(&runs, 0x7000).is_empty());
    }
}
