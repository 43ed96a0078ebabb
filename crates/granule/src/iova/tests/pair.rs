//! The allocator beside the model: each call is made of both, and they must agree.

use super::*;

/// One allocator and its model.
pub(super) struct Pair {
    pub(super) real: IovaAllocator<Cpus>,
    pub(super) model: Model,
    pub(super) granule: u64,
}

impl Pair {
    fn span(&self, start: u64, len: u64) -> IovaRange {
        range(start * self.granule, len * self.granule)
    }

    /// A range inside the model's aperture.
    fn inside(&self, offset: u64, len: u64) -> (u64, u64) {
        let size = self.model.end - self.model.low;
        let start = self.model.low + offset % size;
        (start, len.min(self.model.end - start))
    }

    /// A request, and between which granules that is.
    fn request(&self, len: u64, align: u32, window: Option<(u64, u64)>) -> (IovaRequest, u64, u64) {
        let window = window.map(|(offset, len)| self.inside(offset, len));
        let (low, end) =
            window.map_or((self.model.low, self.model.end), |(start, len)| (start, start + len));
        let request = IovaRequest::new(len * self.granule - 1)
            .aligned(self.granule << align)
            .within(window.map(|(start, len)| self.span(start, len)));
        (request, low, end)
    }

    fn highest(&self, len: u64, align: u32, window: Option<(u64, u64)>) {
        let (request, low, end) = self.request(len, align, window);
        let found = self.real.highest_free(&request).map(|iova| iova.raw() / self.granule);
        assert_eq!(found, self.model.highest(len, 1 << align, low, end));
    }

    fn alloc(&mut self, len: u64, align: u32, window: Option<(u64, u64)>) {
        let (request, low, end) = self.request(len, align, window);
        let natural = len.next_power_of_two().min((1u64 << 30) / self.granule);
        let align = natural.max(1 << align);
        match self.real.alloc(&request) {
            Ok(iova) => {
                assert_eq!(iova.raw() % self.granule, 0);
                let start = iova.raw() / self.granule;
                assert_eq!(start % align, 0, "alignment of {len} granules at {start}");
                assert!(start >= low && start + len <= end, "outside the window");
                assert!(self.model.all_free(start, len), "overlaps at {start}");
                self.model.live.insert(start, len);
            }
            Err(error) => {
                let place = self.model.highest(len, align, low, end);
                assert_eq!(place, None, "refused with room: {error}");
                self.check_refusal(error, len, align, low, end);
            }
        }
    }

    fn check_refusal(&self, error: IovaError, len: u64, align: u64, low: u64, end: u64) {
        let (sum, longest) = self.model.free_within(low, end);
        let bytes = |granules: u64| granules * self.granule;
        if matches!(error, IovaError::Full { .. } | IovaError::Fragmented { .. }) {
            assert!(low.next_multiple_of(align) + len <= end, "can never be met: {error}");
        }
        match error {
            IovaError::TooLarge { limit, .. } => {
                assert!(len > end - low);
                assert_eq!(limit, bytes(end - low));
            }
            IovaError::WindowTooSmall { align: told, .. } => {
                assert_eq!(told, bytes(align));
                assert!(len <= end - low && low.next_multiple_of(align) + len > end);
            }
            IovaError::Full { free, .. } => {
                assert!(sum < len);
                assert_eq!(free, bytes(sum));
            }
            IovaError::Fragmented { free, largest, .. } => {
                assert!(sum >= len);
                assert_eq!((free, largest), (bytes(sum), bytes(longest)));
            }
            other => panic!("an unexpected refusal: {other}"),
        }
    }

    fn alloc_at(&mut self, offset: u64, len: u64) {
        let (start, len) = self.inside(offset, len);
        match self.real.alloc_at(self.span(start, len)) {
            Ok(()) => {
                assert!(self.model.all_free(start, len));
                self.model.live.insert(start, len);
            }
            Err(IovaError::Reserved { reserved, range }) => {
                assert!(reserved.overlaps(&range));
                assert!(
                    (start..start + len).any(|granule| self.model.reserved.contains_key(&granule))
                );
            }
            Err(IovaError::InUse { at, .. }) => {
                let first = (start..start + len).find(|granule| !self.model.is_free(*granule));
                assert_eq!(Some(at.raw() / self.granule), first);
            }
            Err(other) => panic!("an unexpected refusal: {other}"),
        }
    }

    fn reserve(&mut self, offset: u64, len: u64) {
        let (start, len) = self.inside(offset, len);
        // One byte inside the first and the last granule is enough.
        let bytes = range(start * self.granule + 17, (len - 1) * self.granule + 1);
        let live = (start..start + len).any(|granule| self.model.is_live(granule));
        match self.real.reserve(bytes) {
            Ok(()) => {
                assert!(!live);
                self.model.reserved.extend((start..start + len).map(|granule| (granule, ())));
            }
            Err(error) => assert!(live && matches!(error, IovaError::InUse { .. }), "{error}"),
        }
    }

    fn free(&mut self, which: usize) {
        let count = self.model.live.len();
        let chosen =
            self.model.live.iter().nth(which % count.max(1)).map(|(start, len)| (*start, *len));
        if let Some((start, len)) = chosen {
            self.model.live.remove(&start);
            assert_eq!(self.real.free(self.span(start, len)), Ok(()));
        }
    }

    pub(super) fn run(&mut self, step: Step) {
        match step {
            Step::Alloc { len, align, window } => self.alloc(len, align, window),
            Step::AllocAt { offset, len } => self.alloc_at(offset, len),
            Step::Reserve { offset, len } => self.reserve(offset, len),
            Step::Highest { len, align, window } => self.highest(len, align, window),
            Step::Free { which } => self.free(which),
            Step::Flush => self.real.flush_caches(),
            Step::Cpu(cpu) => run_on(cpu),
        }
    }

    pub(super) fn check_usage(&self) {
        let usage = self.real.usage();
        let size = self.model.end - self.model.low;
        let (live, reserved) = (self.model.live_granules(), self.model.reserved.len() as u64);
        assert_eq!(usage.live, live * self.granule);
        assert_eq!(usage.reserved, reserved * self.granule);
        assert_eq!(usage.free, (size - live - reserved) * self.granule);
        assert!(usage.cached <= usage.free);
    }

    /// Frees everything; then every granule that is not reserved can be had again, one by one.
    pub(super) fn check_coverage(&mut self) {
        while !self.model.live.is_empty() {
            self.free(0);
        }
        self.real.flush_caches();
        let (sum, longest) = self.model.free_within(self.model.low, self.model.end);
        let usage = self.real.usage();
        assert_eq!((usage.live, usage.cached), (0, 0));
        assert_eq!(usage.largest_free, longest * self.granule);
        for _ in 0..sum {
            self.alloc(1, 0, None);
        }
        assert_eq!(self.model.live_granules(), sum);
        assert!(matches!(
            self.real.alloc(&IovaRequest::new(1)),
            Err(IovaError::Full { free: 0, .. })
        ));
    }
}
