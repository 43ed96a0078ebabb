//! What is counted under the allocator's lock: once a success, not at all for a refusal.

use super::*;

fn counting(len: u64) -> IovaAllocator<Cpus, (usize, i64)> {
    IovaAllocator::with_shares(&Cpus(2), Granule::K4, range(0, len), |cpu| (cpu, 0))
        .expect("an allocator")
}

fn sum(real: &IovaAllocator<Cpus, (usize, i64)>) -> i64 {
    let mut sum = 0;
    real.counts(|(_, count)| sum += count);
    sum
}

#[test]
fn each_success_counts_once_on_the_cpu_that_it_happens_on() {
    let real = counting(1 << 30);
    let mut cpus = Vec::new();
    real.counts(|(cpu, _)| cpus.push(*cpu));
    assert_eq!(cpus, [0, 1]);
    // From the tree, from a magazine, and of a size that has none.
    let sizes = [G4, G4, 3 * G4, 5000 * G4];
    let starts = sizes.map(|size| {
        run_on(0);
        real.alloc_counted(&IovaRequest::new(size), |(_, count)| *count += 1).expect("room")
    });
    assert_eq!(sum(&real), 4);
    for (start, size) in starts.into_iter().zip(sizes) {
        run_on(1);
        assert_eq!(real.free_counted(range(start.raw(), size), |(_, count)| *count -= 1), Ok(()));
    }
    run_on(0);
    assert_eq!(real.count(|(cpu, count)| (*cpu, *count)), (0, 4));
    run_on(1);
    assert_eq!(real.count(|(cpu, count)| (*cpu, *count)), (1, -4));
    assert_eq!(real.usage().live, 0);
}

/// Takes only so often.
struct Times<'a>(&'a mut i32);

impl crate::iova::Terms<(usize, i64)> for Times<'_> {
    fn admit(self, (_, count): &mut (usize, i64)) -> bool {
        *self.0 -= 1;
        let admitted = *self.0 >= 0;
        *count += i64::from(admitted);
        admitted
    }
}

#[test]
fn what_is_at_hand_is_taken_on_terms() {
    let real = counting(1 << 30);
    run_on(0);
    let mut times = 2;
    assert_eq!(real.take_counted(G4, Times(&mut times)), None, "nothing is at hand");
    let first = real.alloc_counted(&IovaRequest::new(G4), |_| ()).expect("room");
    let taken = [0, 1].map(|_| real.take_counted(G4, Times(&mut times)).expect("at hand"));
    assert!(taken[0] != taken[1] && taken.iter().all(|start| *start != first));
    assert_eq!(real.take_counted(G4, Times(&mut times)), None, "refused");
    assert_eq!((sum(&real), real.usage().live), (2, 3 * G4));
    times = 1;
    let last = real.take_counted(G4, Times(&mut times)).expect("what was refused is at hand still");
    assert!(last != first && !taken.contains(&last));
    assert_eq!(real.take_counted(3 * G4, Times(&mut times)), None, "not of this size");
    assert_eq!((sum(&real), real.usage().live), (3, 4 * G4));
}

#[test]
fn a_refusal_counts_nothing() {
    let real = counting(16 * G4);
    let refused = real.alloc_counted(&IovaRequest::new(17 * G4), |(_, count)| *count += 1);
    assert!(matches!(refused, Err(IovaError::TooLarge { .. })));
    let bad = range(1, G4);
    assert!(real.free_counted(bad, |(_, count)| *count += 1).is_err());
    assert_eq!(sum(&real), 0);
}

#[test]
fn many_are_freed_although_one_is_refused() {
    let real = counting(1 << 20);
    let mut ranges: Vec<IovaRange> = [G4, 2 * G4, 7 * G4]
        .map(|size| range(real.alloc(&IovaRequest::new(size)).expect("room").raw(), size))
        .into();
    let bad = range(G4, 100);
    ranges.insert(1, bad);
    let mut freed = Vec::new();
    let result = real.free_many(ranges.iter().copied(), |(_, count), range| {
        *count += 1;
        freed.push(range);
    });
    assert_eq!(result, Err(IovaError::Misaligned { range: bad, granule: real.granule() }));
    assert_eq!((freed.len(), sum(&real), real.usage().live), (3, 3, 0));
}
