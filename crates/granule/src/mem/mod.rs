//! The platform: frames, the CPU's access to them, cache maintenance, locks, CPU numbers.
//!
//! [`Platform`] is what a port implements, and all that it implements. The defaults describe the
//! simple machine, in which every device snoops the caches and memory is identity-mapped; on it a
//! port takes the frame allocator and the lock, and nothing else: see the example `port`
//! (`cargo run -p granule --example port`), which is one to copy.

mod frames;
mod percpu;
mod platform;

pub use frames::{FrameError, FrameRequest, OwnedFrames};
pub use percpu::{CachePadded, PerCpu};
pub use platform::{Platform, SpinLock};
