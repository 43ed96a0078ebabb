//! Traces, read: plain, gzip and zstd.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| granule_fuzz::trace::run(data));

#[cfg(not(fuzzing))]
fn main() {
    granule_fuzz::replay_files(granule_fuzz::trace::run);
}
