//! The project's chores, `cargo xtask <chore>`: what continuous integration runs, one by one.
#![forbid(unsafe_code)]

mod apt;
mod boards;
mod cargo;
mod cross;
mod files;
mod fuzz;
mod lab;
mod msrv;
mod mutants;
mod no_std;
mod package;
mod sanitize;
mod size;
mod trust;
mod unsafe_audit;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lexopt::ValueExt;
use xshell::Shell;

/// What a chore works with.
struct Chores {
    /// Runs commands, in the project's root folder.
    sh: Shell,
    /// The project's root folder.
    root: PathBuf,
    /// Where builds go.
    target: PathBuf,
}

/// The options of the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    /// `--check`: change nothing, fail if something would change.
    check: bool,
    /// `--may-skip`: what cannot be had here is no failure, but exit code 77.
    may_skip: bool,
    /// `--broken`: break things on purpose, and see that it is noticed.
    broken: bool,
    /// `--long`: a size of hours instead of minutes.
    long: bool,
    /// What stands behind the chore's name: rows of the lab, fuzzing targets.
    words: Vec<String>,
    /// Options that have a value, by name.
    values: BTreeMap<&'static str, String>,
}

impl Options {
    /// The number that an option has, or `default`.
    fn number(&self, option: &str, default: u64) -> Result<u64> {
        let Some(text) = self.values.get(option) else { return Ok(default) };
        text.parse().with_context(|| format!("--{option} takes a number, not `{text}`"))
    }
}

/// Goes with an error that says what is missing here, rather than what is wrong with the project.
#[derive(Debug)]
struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tool is missing here")
    }
}

/// The exit code of a chore that was skipped, as `--may-skip` allows. `.ci/run` knows it.
const SKIPPED: u8 = 77;

/// One chore: its name, the options it takes, what it does.
struct Chore {
    name: &'static str,
    options: &'static [&'static str],
    about: &'static str,
    run: fn(&Chores, &Options) -> Result<()>,
}

impl Chore {
    /// The option of this name, if it takes a value: `--seconds N` is called `seconds`.
    fn valued(&self, name: &str) -> Option<&'static str> {
        let mut options = self.options.iter().filter_map(|known| known.strip_prefix("--"));
        options.find_map(|known| {
            let (option, _) = known.split_once(' ')?;
            (option == name).then_some(option)
        })
    }

    /// Whether words may stand behind its name.
    fn takes_words(&self) -> bool {
        self.options.iter().any(|option| !option.starts_with('-'))
    }
}

const CHORES: &[Chore] = &[
    Chore {
        name: "ci",
        options: &[],
        about: "everything that continuous integration runs (.ci/run)",
        run: |chores, _| cargo::ci(chores),
    },
    Chore {
        name: "fmt",
        options: &["--check"],
        about: "format every crate; --check: only say what is not formatted",
        run: |chores, options| cargo::fmt(chores, options.check),
    },
    Chore {
        name: "clippy",
        options: &[],
        about: "lint every crate, target and feature; a warning is an error",
        run: |chores, _| cargo::clippy(chores),
    },
    Chore {
        name: "quick",
        options: &["PACKAGE…"],
        about: "tests of the core that run in seconds: a tenth of what each usually tries",
        run: |chores, options| cargo::quick(chores, &options.words),
    },
    Chore {
        name: "doc",
        options: &[],
        about: "build the documentation; a warning is an error",
        run: |chores, _| cargo::doc(chores),
    },
    Chore {
        name: "deny",
        options: &["--may-skip"],
        about: "licences, duplicates and sources of dependencies, by cargo-deny",
        run: |chores, _| cargo::deny(chores),
    },
    Chore {
        name: "no-std",
        options: &[],
        about: "link the no_std crates without std, and run the result",
        run: |chores, _| no_std::check(chores),
    },
    Chore {
        name: "msrv",
        options: &["--may-skip"],
        about: "check with the oldest Rust that is supported, from rustup or from Debian",
        run: |chores, _| msrv::check(chores),
    },
    Chore {
        name: "boards",
        options: &["--check"],
        about: "compile the device trees with dtc; --check: only compare",
        run: |chores, options| boards::compile(chores, options.check),
    },
    Chore {
        name: "unsafe-audit",
        options: &[],
        about: "list the files with unsafe code, compare with the table in ARCHITECTURE.md",
        run: |chores, _| unsafe_audit::audit(chores),
    },
    Chore {
        name: "lab",
        options: &["ROW…", "--broken", "--may-skip"],
        about: "boot the bare-metal images under QEMU, or `linux` or `iommufd`: Linux; \
                --broken: with things broken on purpose",
        run: |chores, options| lab::run(chores, &options.words, options.broken),
    },
    Chore {
        name: "package",
        options: &[],
        about: "pack the crates meant for others, and build each from its archive",
        run: |chores, _| package::check(chores),
    },
    Chore {
        name: "fuzz",
        options: &["TARGET…", "--seconds N", "--jobs N", "--may-skip"],
        about: "feed what is read from outside with rubbish, --seconds (60) a target",
        run: fuzz::run,
    },
    Chore {
        name: "mutants",
        options: &["LAYER…", "--shard K/N", "--may-skip"],
        about: "see whether the tests notice each small change of the core: hours, and it goes on where it was",
        run: mutants::run,
    },
    Chore {
        name: "trust",
        options: &["ROW…", "--long", "--hours N"],
        about: "models, faults, hostile devices, schedules, arithmetic; --hours N: until then",
        run: trust::run,
    },
    Chore {
        name: "sanitize",
        options: &["address|thread…", "--may-skip"],
        about: "tests of the core under AddressSanitizer and ThreadSanitizer",
        run: sanitize::run,
    },
    Chore {
        name: "size",
        options: &["--check"],
        about: "list the source files over 500 lines; --check: fail if there is one",
        run: |chores, options| size::list(chores, options.check),
    },
];

fn main() -> ExitCode {
    let (chore, options) = match parse(lexopt::Parser::from_env()) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => {
            print!("{}", help());
            return ExitCode::SUCCESS;
        }
        Err(error) => return failed(&error),
    };
    match Chores::new().and_then(|chores| (chore.run)(&chores, &options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if options.may_skip && error.is::<Unavailable>() => {
            println!("skipped: {error:#}");
            ExitCode::from(SKIPPED)
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

impl Chores {
    fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask has no parent folder")?
            .to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => std::path::absolute(folder)?,
            None => root.join("target"),
        };
        let sh = Shell::new()?;
        sh.change_dir(&root);
        Ok(Self { sh, root, target })
    }

    /// `path` as people write it: from the project's root, if it lies there.
    fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

/// The chore and its options; `None` asks for help.
fn parse(mut parser: lexopt::Parser) -> Result<Option<(&'static Chore, Options)>> {
    let mut chore: Option<&'static Chore> = None;
    let mut options = Options::default();
    while let Some(arg) = parser.next()? {
        let mut valued = None;
        match arg {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return Ok(None),
            lexopt::Arg::Value(name) if chore.is_none() => match name.to_str() {
                Some("help") => return Ok(None),
                _ => chore = Some(find(&name.to_string_lossy())?),
            },
            lexopt::Arg::Long(option) if takes(chore, option) => match option {
                "check" => options.check = true,
                "broken" => options.broken = true,
                "long" => options.long = true,
                "may-skip" => options.may_skip = true,
                _ => valued = chore.and_then(|chore| chore.valued(option)),
            },
            lexopt::Arg::Value(word) if chore.is_some_and(Chore::takes_words) => {
                options.words.push(word.to_string_lossy().into_owned());
            }
            other => match chore {
                Some(chore) => {
                    return Err(other.unexpected())
                        .with_context(|| format!("chore `{}`", chore.name));
                }
                None => return Err(other.unexpected()).context("name the chore first"),
            },
        }
        if let Some(option) = valued {
            options.values.insert(option, parser.value()?.string()?);
        }
    }
    Ok(chore.map(|chore| (chore, options)))
}

fn find(name: &str) -> Result<&'static Chore> {
    match CHORES.iter().find(|chore| chore.name == name) {
        Some(chore) => Ok(chore),
        None => bail!("there is no chore `{name}`; `cargo xtask help` lists them"),
    }
}

fn takes(chore: Option<&Chore>, option: &str) -> bool {
    chore.is_some_and(|chore| {
        let known = |known: &&str| known.strip_prefix("--") == Some(option);
        chore.options.iter().any(known) || chore.valued(option).is_some()
    })
}

fn help() -> String {
    let mut text =
        String::from("The project's chores.\n\nUsage: cargo xtask <chore> [options]\n\n");
    for chore in CHORES {
        let options: String = chore.options.iter().map(|option| format!(" [{option}]")).collect();
        let usage = format!("{}{options}", chore.name);
        text.push_str(&format!("  {usage:18}  {}\n", chore.about));
    }
    text.push_str("\n--may-skip: exit with 77 instead of 1 if a tool cannot be had here\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Option<(&'static str, Options)>> {
        Ok(parse(lexopt::Parser::from_args(words))?.map(|(chore, options)| (chore.name, options)))
    }

    #[test]
    fn a_chore_takes_its_own_options_only() {
        let check = Options { check: true, ..Options::default() };
        let may_skip = Options { may_skip: true, ..Options::default() };
        let words = vec!["vtd".to_string(), "virtio-4k".to_string()];
        let values = BTreeMap::from([("hours", "3".to_string())]);
        let hours = Options { values, ..Options::default() };
        assert_eq!(parse_words(&["trust", "--hours", "3"]).unwrap(), Some(("trust", hours)));
        let lab = Options { broken: true, words, ..Options::default() };
        assert_eq!(parse_words(&["boards", "--check"]).unwrap(), Some(("boards", check)));
        assert_eq!(parse_words(&["msrv", "--may-skip"]).unwrap(), Some(("msrv", may_skip)));
        let typed = ["lab", "vtd", "--broken", "virtio-4k"];
        assert_eq!(parse_words(&typed).unwrap(), Some(("lab", lab)));
        let (_, fuzz) = parse_words(&["fuzz", "--seconds", "5", "walk"]).unwrap().unwrap();
        assert_eq!((fuzz.number("seconds", 60).unwrap(), fuzz.words), (5, vec!["walk".into()]));
        assert!(parse_words(&["fuzz", "--seconds"]).is_err());
        assert!(parse_words(&["msrv", "--check"]).is_err());
        assert!(parse_words(&["--check", "boards"]).is_err());
        assert!(parse_words(&["boards", "size"]).is_err());
        assert!(parse_words(&["bords"]).is_err());
    }

    #[test]
    fn what_is_unavailable_stays_so_under_more_context() {
        let error = anyhow::anyhow!("no network").context(Unavailable).context("more");
        assert!(error.is::<Unavailable>());
        assert_eq!(format!("{error:#}"), "more: a tool is missing here: no network");
    }

    #[test]
    fn no_chore_or_help_asks_for_help() {
        assert_eq!(parse_words(&[]).unwrap(), None);
        assert_eq!(parse_words(&["help"]).unwrap(), None);
        assert_eq!(parse_words(&["size", "--help"]).unwrap(), None);
        for chore in CHORES {
            assert!(help().contains(chore.about), "{}", chore.name);
        }
    }
}
