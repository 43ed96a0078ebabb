//! One domain against a brute-force model, on every format, granule and CPU page: random programs of
//! its public calls, shrunk if they fail; and programs of 200 calls in which each allocation of a
//! table and each invalidation fails in turn.

use granule_laws::bench::{Case, Span};
use granule_laws::effort::{effort, full, percent};
use granule_laws::model::{Step, Tried, case, run};
use granule_sim::faults::Point;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Steps of a program.
const STEPS: usize = 200;

fn step() -> impl Strategy<Value = Step> {
    (any::<u8>(), any::<u16>(), any::<u16>(), any::<u16>())
        .prop_map(|(kind, place, shape, memory)| Step { kind, place, shape, memory })
}

fn random(seed: u64, steps: usize) -> Vec<Step> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut step =
        || Step { kind: rng.u8(..), place: rng.u16(..), shape: rng.u16(..), memory: rng.u16(..) };
    (0..steps).map(|_| step()).collect()
}

/// One of how many cases is tried: `all` in a run that may take minutes, `usual` in `cargo test`.
fn sparse(all: usize, usual: usize) -> usize {
    if percent() > 100 { all } else { usual }
}

/// A share of a million steps over the cases, at the effort of `cargo xtask trust`.
#[test]
fn random_programs_agree_with_the_model() {
    let mut sum = Tried::default();
    for one in Case::all().iter().map(case) {
        let programs = effort(1);
        let config = Config { cases: programs, failure_persistence: None, ..Config::default() };
        let tried = std::cell::Cell::new(Tried::default());
        TestRunner::new(config)
            .run(&proptest::collection::vec(step(), STEPS..STEPS + 1), |steps| {
                let mut all = tried.get();
                all.add(&run(&one, &steps, 100, None));
                tried.set(all);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{one:?}: {error}"));
        sum.add(&tried.get());
    }
    println!("model: {sum:?}");
    assert!(!full() || (sum.steps >= 10_000 && sum.refused > 50 && sum.unmaps > 3000));
}

/// For every k: the k-th table page, and the k-th invalidation, of 200 calls (at usual effort of 40, and
/// of fewer cases). What failed has mapped nothing; what quarantine holds is never handed out; the
/// device reaches nothing else.
#[test]
fn every_fault_of_a_program_is_survived() {
    let mut sum = Tried::default();
    for (index, one) in Case::all().iter().map(case).enumerate().step_by(sparse(6, 18)) {
        let mut one = one;
        one.caching_mode = true; // Maps invalidate too.
        one.span = if index % 4 == 0 { Span::One } else { Span::Mirror };
        let steps = random(index as u64, if percent() <= 100 { 40 } else { STEPS });
        for point in [Point::Frames, Point::Invalidation] {
            for k in 0.. {
                let tried = run(&one, &steps, 500, Some((point, k)));
                sum.add(&tried);
                if tried.faults == 0 {
                    break;
                }
            }
        }
    }
    println!("faults: {sum:?}");
    assert!(!full() || sum.faults > 100, "{sum:?}");
}

/// A hostile device fills its caches and shows its whole reach after every single call.
#[test]
fn between_any_two_calls_the_device_reaches_what_the_model_says() {
    let mut sum = Tried::default();
    for (index, one) in Case::all().iter().map(case).enumerate().step_by(sparse(1, 4)) {
        for round in 0..effort(1) {
            let steps = random(u64::from(round) << 32 | index as u64, 60);
            sum.add(&run(&one, &steps, 1, None));
        }
    }
    println!("hostile: {sum:?}");
    assert!(!full() || sum.probes > 250, "{sum:?}");
}
