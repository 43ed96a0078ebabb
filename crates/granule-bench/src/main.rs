//! `cargo run --release -p granule-bench`: granule, its peers and the floor, in one run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use granule_bench::measure::{Bench, pin};
use granule_bench::platform::{CountingHeap, boot};
use granule_bench::report::Report;
use granule_bench::{
    crates_iova, dma, floor, growth, iova, iova_past, iova_threads, linux, memory, plot, summary,
    table, targets,
};

#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

const HELP: &str = "\
granule, its peers and the floor, measured in one run

Usage: cargo run --release -p granule-bench -- [options]

  --json         print {\"rows\": [{\"name\", \"ns\", …}], …} on the standard output
  --markdown     print the README's table
  --svg FILE     write the README's picture
  --readme       write both into this repository: README.md and docs/bench.svg
  --from FILE    do not measure, but take the rows of a run that was printed with --json
  --peers DIR    add Linux's rows: DIR is a peers folder that was built by its setup.sh
  --only PREFIX  only rows whose names begin so, as `iova/` or `table/lpae4k/map`
  --quick        fewer samples; each of Linux's programs gets 20 seconds

Times are minima of many samples, in nanoseconds an operation (a page, an entry).
Only ratios within one run mean something. Progress goes to the standard error.
";

#[derive(Default)]
struct Options {
    json: bool,
    markdown: bool,
    readme: bool,
    quick: bool,
    svg: Option<PathBuf>,
    from: Option<PathBuf>,
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
    match options.from.as_deref().map_or_else(|| measure(&options), read) {
        Ok(report) => {
            show(&options, &report).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
        }
        Err(error) => fail(&error),
    }
}

fn read(file: &Path) -> Result<Report, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string());
    text.and_then(|text| Report::from_json(&text))
        .map_err(|error| format!("{}: {error}", file.display()))
}

fn measure(options: &Options) -> Result<Report, String> {
    if cfg!(debug_assertions) {
        eprintln!("note: not a release build, so the figures mean nothing");
    }
    boot();
    pin(granule_bench::HOME);
    let mut bench = Bench::new(options.only.clone(), options.quick);
    ours(&mut bench);
    crates_iova::run(&mut bench);
    #[cfg(target_arch = "x86_64")]
    granule_bench::crates_table::run(&mut bench);
    if let Some(folder) = &options.peers {
        linux::run(&mut bench, folder)?;
    }
    if bench.report.rows.is_empty() && bench.report.amounts.is_empty() {
        return Err("no row's name begins so; `--quick` shows all names soon".into());
    }
    Ok(bench.report)
}

fn show(options: &Options, report: &Report) -> Result<(), String> {
    if options.readme {
        summary::write(report).map_err(|error| error.to_string())?;
    }
    if let Some(file) = &options.svg {
        std::fs::write(file, plot::draw(report))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    match (options.json, options.markdown) {
        (true, _) => println!("{}", report.json()),
        (_, true) => print!("{}", summary::markdown(report)),
        _ => print!("{}\n{}", report.table(), targets::table(report)),
    }
    Ok(())
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
            Long("markdown") => options.markdown = true,
            Long("readme") => options.readme = true,
            Long("svg") => options.svg = Some(parser.value()?.into()),
            Long("from") => options.from = Some(parser.value()?.into()),
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
