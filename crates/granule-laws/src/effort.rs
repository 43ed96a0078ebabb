//! How much the tests try: `GRANULE_EFFORT` is a percentage, 100 if it is not set. `cargo xtask
//! quick` sets 10, for mutation testing; `cargo xtask trust --long` sets more.

/// The percentage.
///
/// # Panics
/// If the variable is no number.
pub fn percent() -> u32 {
    std::env::var("GRANULE_EFFORT")
        .map_or(100, |text| text.parse().expect("GRANULE_EFFORT is a whole number of percent"))
}

/// Whether everything is tried that is usually tried.
pub fn full() -> bool {
    percent() >= 100
}

/// `usual` at the effort of this run, at least 1.
pub fn effort(usual: u32) -> u32 {
    let scaled = u64::from(usual) * u64::from(percent()) / 100;
    u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
}

/// All of the cases, or below full effort some of them, spread evenly.
pub fn some<T>(cases: Vec<T>) -> Vec<T> {
    let stride = stride(percent());
    cases.into_iter().step_by(stride).collect()
}

/// Every how many cases one is taken: prime to 6, since cases come in twos and threes and a stride
/// in step with them would see one kind only.
fn stride(percent: u32) -> usize {
    let least = 100 / percent.clamp(1, 100);
    (least..).find(|stride| stride % 2 != 0 && stride % 3 != 0).map_or(1, |stride| stride as usize)
}

#[test]
fn some_cases_are_of_every_kind() {
    assert_eq!([100, 1000, 50, 20, 10, 0].map(stride), [1, 1, 5, 5, 11, 101]);
}
