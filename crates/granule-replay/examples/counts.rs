//! Prints a trace's counts as `samples/counts.awk` does, without the bytes of single unmaps, which
//! the reader adds to those of lists. To check a trace of your own:
//!
//! ```text
//! cargo run --release --example counts -- trace.txt.zst | sort >ours
//! zstd -dc trace.txt.zst | awk -f samples/counts.awk | cut -d'|' -f1-8,10- | sort | diff - ours
//! ```

use granule_replay::{Input, Options, ReplayError, replay};

fn main() -> Result<(), ReplayError> {
    let path = std::env::args().nth(1);
    let input = path.map_or_else(Input::sample, |path| Input::open(path.as_ref()))?;
    let trace = replay(input, Options::default())?.trace;
    for device in &trace.devices {
        for (phase, c) in trace.phases.iter().zip(&device.phases) {
            let numbers =
                [c.map, c.unmap, c.map_sg, c.unmap_sg, c.alloc, c.mapped_bytes, c.allocated_bytes];
            if numbers.iter().all(|number| *number == 0) {
                continue;
            }
            let numbers: Vec<String> =
                numbers.iter().chain([&c.sg_entries]).map(u64::to_string).collect();
            println!("{}|{}|{}", device.name, phase.name, numbers.join("|"));
        }
    }
    Ok(())
}
