//! How much the tests try: `GRANULE_EFFORT` is a percentage, 100 if it is not set. `cargo xtask
//! quick` sets 10, for mutation testing; a long run sets more.

/// `usual` at the effort of this run, at least 1.
pub(crate) fn effort(usual: u32) -> u32 {
    let percent = std::env::var("GRANULE_EFFORT")
        .map_or(100, |text| text.parse().expect("GRANULE_EFFORT is a whole number of percent"));
    scaled(usual, percent)
}

fn scaled(usual: u32, percent: u32) -> u32 {
    let scaled = u64::from(usual) * u64::from(percent) / 100;
    u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
}

#[test]
fn effort_is_a_percentage_and_never_nothing() {
    assert_eq!([scaled(200, 100), scaled(200, 10), scaled(6, 10)], [200, 20, 1]);
    assert_eq!([scaled(6, 0), scaled(200, 5000), scaled(u32::MAX, 200)], [1, 10_000, u32::MAX]);
}
