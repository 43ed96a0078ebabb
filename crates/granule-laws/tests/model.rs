//! One domain against a brute-force model, on every format, granule and CPU page: random programs of
//! its public calls and of the DMA API's, shrunk if they fail; and programs of 200 calls in which each
//! allocation, of tables and of memory, and each invalidation fails in turn.

use granule_laws::bench::{Case, Span};
use granule_laws::effort::{effort, full, percent};
use granule_laws::model::{Step, Tried, case, run, run_unmanaged};
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

/// Runs programs on a bench and counts what they tried.
type Run = fn(&Case, &[Step], u64, Option<(Point, u64)>) -> Tried;

/// Random programs on every case, shrunk if they fail.
fn random_programs(programs: u32, usual: usize, run: Run) -> Tried {
    let mut sum = Tried::default();
    for (index, one) in Case::all().iter().map(case).enumerate().step_by(sparse(1, usual)) {
        let one =
            Case { span: [Span::One, Span::Paged, Span::Mirror][(index + index / 6) % 3], ..one };
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
    sum
}

/// A share of a million steps over the cases, at the effort of `cargo xtask trust`.
#[test]
fn random_programs_agree_with_the_model() {
    let sum = random_programs(effort(1), 5, run);
    println!("model: {sum:?}");
    let all = [sum.maps, sum.unmaps, sum.guards, sum.waited, sum.joined, sum.recoveries];
    assert!(percent() <= 100 || sum.steps >= 10_000 && sum.refused > 50, "{sum:?}");
    assert!(!full() || all.iter().all(|count| *count > 20), "{sum:?}");
}

/// The same for domains whose owner places everything: a fifth as many.
#[test]
fn random_programs_of_unmanaged_domains_agree_with_the_model() {
    let sum = random_programs(effort(1).div_ceil(5), 7, run_unmanaged);
    println!("unmanaged: {sum:?}");
    let all = [sum.maps, sum.unmaps, sum.refused, sum.joined, sum.recoveries];
    assert!(!full() || all.iter().all(|count| *count > 20), "{sum:?}");
}

/// For every k: the k-th allocation of frames, for tables or for memory, and the k-th invalidation, of
/// 200 calls (at usual effort of 40, and of fewer cases). What failed has mapped nothing; what quarantine holds is never handed out; the
/// device reaches nothing else.
#[test]
fn every_fault_of_a_program_is_survived() {
    let sum = every_fault(run);
    println!("faults: {sum:?}");
    assert!(!full() || sum.faults > 80, "{sum:?}");
}

#[test]
fn every_fault_of_an_unmanaged_domain_is_survived() {
    let sum = every_fault(run_unmanaged);
    println!("unmanaged faults: {sum:?}");
    assert!(!full() || sum.faults > 30, "{sum:?}");
}

fn every_fault(run: Run) -> Tried {
    let mut sum = Tried::default();
    for (index, one) in Case::all().iter().map(case).enumerate().step_by(sparse(6, 30)) {
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
    sum
}

/// A hostile device fills its caches and shows its whole reach after every single call.
#[test]
fn between_any_two_calls_the_device_reaches_what_the_model_says() {
    let mut sum = Tried::default();
    for (index, one) in Case::all().iter().map(case).enumerate().step_by(sparse(1, 8)) {
        for round in 0..effort(1) {
            let steps = random(u64::from(round) << 32 | index as u64, 60);
            sum.add(&run(&one, &steps, 1, None));
            sum.add(&run_unmanaged(&one, &steps, 1, None));
        }
    }
    println!("hostile: {sum:?}");
    assert!(!full() || sum.probes > 500, "{sum:?}");
}
