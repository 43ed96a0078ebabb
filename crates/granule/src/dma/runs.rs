//! From the CPU's view of a buffer to physical runs, and to parts that the CPU can copy.

use super::{Memory, Piece};
use crate::addr::PhysRange;
use crate::mem::Platform;

/// The physical runs of a buffer, neighbours joined. Ends early with `Err` at memory whose physical
/// address the platform does not know.
#[derive(Clone)]
pub(crate) struct Runs<'a, P: Platform> {
    platform: &'a P,
    pieces: &'a [Piece],
    /// Bytes of the first piece that were handed out.
    done: u64,
    /// A run that was read ahead.
    pending: Option<PhysRange>,
}

/// The physical address of some memory is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown;

impl<'a, P: Platform> Runs<'a, P> {
    pub(crate) fn new(platform: &'a P, pieces: &'a [Piece]) -> Self {
        Self { platform, pieces, done: 0, pending: None }
    }

    /// The next run as the pieces give it, without looking whether it joins the one before.
    fn raw(&mut self) -> Option<Result<PhysRange, Unknown>> {
        loop {
            let (piece, rest) = self.pieces.split_first()?;
            if self.done >= piece.len() {
                self.pieces = rest;
                self.done = 0;
                continue;
            }
            let Some(run) = run_at(self.platform, piece, self.done) else {
                self.pieces = &[];
                return Some(Err(Unknown));
            };
            self.done += run.len();
            return Some(Ok(run));
        }
    }
}

impl<P: Platform> Iterator for Runs<'_, P> {
    type Item = Result<PhysRange, Unknown>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run = match self.pending.take() {
            Some(run) => run,
            None => match self.raw()? {
                Ok(run) => run,
                Err(unknown) => return Some(Err(unknown)),
            },
        };
        loop {
            match self.raw() {
                Some(Ok(next)) if run.is_followed_by(&next) => match join(run, next) {
                    Some(joined) => run = joined,
                    None => {
                        self.pending = Some(next);
                        return Some(Ok(run));
                    }
                },
                Some(Ok(next)) => {
                    self.pending = Some(next);
                    return Some(Ok(run));
                }
                Some(Err(unknown)) => return Some(Err(unknown)),
                None => return Some(Ok(run)),
            }
        }
    }
}

fn join(a: PhysRange, b: PhysRange) -> Option<PhysRange> {
    PhysRange::new(a.start(), a.len().checked_add(b.len())?).ok()
}

/// The physical run that starts `offset` bytes into a piece.
fn run_at<P: Platform>(platform: &P, piece: &Piece, offset: u64) -> Option<PhysRange> {
    match piece {
        Piece::Phys(range) => range.slice(offset, range.len() - offset),
        Piece::Cpu { ptr, len } => {
            let offset = usize::try_from(offset).ok()?;
            platform.phys(ptr.wrapping_add(offset), len.checked_sub(offset)?)
        }
    }
}

/// The whole of a piece as one physical run, if it is one.
#[inline]
pub(crate) fn whole<P: Platform>(platform: &P, piece: &Piece) -> Option<PhysRange> {
    match piece {
        Piece::Phys(range) => Some(*range),
        Piece::Cpu { ptr, len } => platform.phys(*ptr, *len).filter(|run| run.len() == *len as u64),
    }
}

/// Calls `visit` with the offset, the CPU pointer and the length of every part of
/// `[offset, offset + len)` of a buffer, in order.
pub(crate) fn for_each_part<P: Platform>(
    platform: &P,
    memory: Memory<'_>,
    offset: u64,
    len: u64,
    mut visit: impl FnMut(u64, *mut u8, usize),
) {
    let end = offset.saturating_add(len);
    let mut start = 0u64;
    for piece in memory.pieces() {
        let (from, to) = (offset.max(start), end.min(start.saturating_add(piece.len())));
        if from < to {
            let base = match piece {
                Piece::Cpu { ptr, .. } => *ptr,
                Piece::Phys(range) => platform.ptr(range.start()),
            };
            // Lengths of memory fit a pointer's width: the piece is mapped by the CPU.
            visit(from, base.wrapping_add((from - start) as usize), (to - from) as usize);
        }
        start = start.saturating_add(piece.len());
    }
}

/// Calls `visit` with every physical run of `[offset, offset + len)` of a buffer whose physical
/// addresses are known.
pub(crate) fn for_each_run<P: Platform>(
    platform: &P,
    memory: Memory<'_>,
    offset: u64,
    len: u64,
    mut visit: impl FnMut(PhysRange),
) {
    let end = offset.saturating_add(len);
    let mut start = 0u64;
    for run in Runs::new(platform, memory.pieces()).map_while(Result::ok) {
        let (from, to) = (offset.max(start), end.min(start.saturating_add(run.len())));
        if from < to {
            if let Some(part) = run.slice(from - start, to - from) {
                visit(part);
            }
        }
        start = start.saturating_add(run.len());
    }
}
