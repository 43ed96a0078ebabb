//! Device trees as bytes.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| granule_fuzz::board::run(data));

#[cfg(not(fuzzing))]
fn main() {
    granule_fuzz::replay_files(granule_fuzz::board::run);
}
