//! One value a CPU, each on cache lines of its own, so that CPUs do not fight over counters.

use alloc::boxed::Box;
use core::ops::Deref;

use super::Platform;

/// A value alone on its cache lines (128 bytes: two lines, for the adjacent-line prefetcher).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CachePadded<T>(pub T);

impl<T> Deref for CachePadded<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// One value for each CPU. The CPU's number is a hint that may be stale, so the values are shared
/// (`&T`) and must be safe to use from several CPUs.
#[derive(Debug)]
pub struct PerCpu<T> {
    values: Box<[CachePadded<T>]>,
}

impl<T> PerCpu<T> {
    /// One value for each CPU of `platform`.
    pub fn new<P: Platform>(platform: &P, mut make: impl FnMut() -> T) -> Self {
        let cpus = platform.cpus().max(1);
        Self { values: (0..cpus).map(|_| CachePadded(make())).collect() }
    }

    /// The value of the CPU that asks.
    #[inline]
    pub fn local<P: Platform>(&self, platform: &P) -> &T {
        self.at(platform.cpu())
    }

    /// The value of CPU `cpu`, counted modulo their number.
    #[inline]
    pub fn at(&self, cpu: usize) -> &T {
        let index = if cpu < self.values.len() { cpu } else { cpu % self.values.len() };
        &self.values[index].0
    }

    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|value| &value.0)
    }

    /// How many there are, at least one.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> usize {
        self.values.len()
    }
}
