//! Real threads on one device: laws 1 to 5, 7 and 9 at once, judged by what every byte says of itself.

use granule_laws::bench::Case;
use granule_laws::effort::{effort, full, percent};
use granule_laws::threads::{Load, Tried, run};

/// Every format and page, strict and deferred, with devices that snoop and that do not.
#[test]
fn threads_and_a_hostile_device_keep_to_the_laws() {
    let mut sum = Tried::default();
    let every = if percent() > 100 { 1 } else { 5 };
    for (index, case) in Case::all().into_iter().enumerate().step_by(every) {
        let workers = 2 + index % 3;
        sum.add(&run(&case, &Load { workers, operations: effort(12) }));
    }
    println!("threads: {sum:?}");
    assert!(!full() || (sum.hits > 100 && sum.probes > 2 * sum.hits / 3), "{sum:?}");
}
