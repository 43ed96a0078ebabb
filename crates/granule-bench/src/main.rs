//! `cargo run --release -p granule-bench`: granule, its peers and the floor, in one run.

use std::path::PathBuf;
use std::process::ExitCode;

use granule_bench::measure::{Bench, pin};
use granule_bench::platform::{CountingHeap, boot};
use granule_bench::{
    crates_iova, dma, floor, growth, iova, iova_past, iova_threads, linux, memory, table, targets,
};

#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

const HELP: &str = "\
granule, its peers and the floor, measured in one run

Usage: cargo run --release -p granule-bench -- [options]

  --json         print {\"rows\": [{\"name\", \"ns\", …}], …} on the standard output
  --peers DIR    add Linux's rows: DIR is a peers folder that was built by its setup.sh
  --only PREFIX  only rows whose names begin so, as `iova/` or `table/lpae4k/map`
  --quick        fewer samples; each of Linux's programs gets 20 seconds

Times are minima of many samples, in nanoseconds an operation (a page, an entry).
Only ratios within one run mean something. Progress goes to the standard error.
";

#[derive(Default)]
struct Options {
    json: bool,
    quick: bool,
    only: Option<String>,
    peers: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = match parse() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error.to_string()),
    };
    if cfg!(debug_assertions) {
        eprintln!("note: not a release build, so the figures mean nothing");
    }
    boot();
    pin(granule_bench::HOME);
    let mut bench = Bench::new(options.only, options.quick);
    ours(&mut bench);
    crates_iova::run(&mut bench);
    #[cfg(target_arch = "x86_64")]
    granule_bench::crates_table::run(&mut bench);
    if let Some(folder) = &options.peers
        && let Err(error) = linux::run(&mut bench, folder)
    {
        return fail(&error);
    }
    if bench.report.rows.is_empty() && bench.report.amounts.is_empty() {
        return fail("no row's name begins so; `--quick` shows all names soon");
    }
    match options.json {
        true => println!("{}", bench.report.json()),
        false => print!("{}\n{}", bench.report.table(), targets::table(&bench.report)),
    }
    ExitCode::SUCCESS
}

fn ours(bench: &mut Bench) {
    floor::run(bench);
    if bench.wants("iova/") {
        iova::run(bench, "granule", u64::MAX, iova::Ours::create);
        iova_past::run(bench);
        iova_threads::run(bench);
    }
    table::run(bench);
    dma::lists(bench);
    dma::single(bench);
    growth::run(bench);
    memory::run(bench);
}

fn parse() -> Result<Option<Options>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(None),
            Long("json") => options.json = true,
            Long("quick") => options.quick = true,
            Long("only") => options.only = Some(parser.value()?.string()?),
            Long("peers") => options.peers = Some(parser.value()?.into()),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}

fn fail(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::FAILURE
}
