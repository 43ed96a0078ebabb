//! `granule man`: manual pages, made of the same description as the command line and its help.

use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::args::{Cli, ManArgs};
use crate::error::CliError;
use crate::output::Staged;

/// Runs the command; what to print comes back.
pub(crate) fn run(args: &ManArgs) -> Result<String, CliError> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    match &args.all {
        Some(folder) => write_all(&root, folder),
        None => Ok(page(find(&root, args.page.as_deref())?)),
    }
}

fn find<'r>(root: &'r Command, name: Option<&str>) -> Result<&'r Command, CliError> {
    let Some(name) = name else { return Ok(root) };
    root.find_subcommand(name).ok_or_else(|| {
        let names: Vec<_> = root.get_subcommands().map(Command::get_name).collect();
        CliError::Usage { message: format!("no command `{name}`; there are {}", names.join(", ")) }
    })
}

/// Writes every page, or none of them.
fn write_all(root: &Command, folder: &Path) -> Result<String, CliError> {
    let commands = [root].into_iter().chain(root.get_subcommands());
    let mut staged = Vec::new();
    let mut said = String::new();
    for command in commands {
        let path = folder.join(format!("{}.1", title(command)));
        let mut file = Staged::new(&path)?;
        file.write(&page(command))?;
        said.push_str(&format!("{}\n", path.display()));
        staged.push(file);
    }
    staged.into_iter().try_for_each(Staged::commit)?;
    Ok(said)
}

/// `granule-share`.
fn title(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &Command) -> String {
    let mut out = Vec::new();
    // Writing to memory cannot fail.
    let _ = render(command, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn render(command: &Command, out: &mut Vec<u8>) -> io::Result<()> {
    let source = format!("granule {}", env!("CARGO_PKG_VERSION"));
    // The subcommands have no version of their own.
    let man = Man::new(command.clone()).title(title(command)).source(source).manual("granule");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    examples(&after).to_writer(out)?;
    exit_status().to_writer(out)
}

/// What stands below the options in the help: a heading, indented lines of a shell, sentences.
fn examples(after: &str) -> Roff {
    let mut roff = Roff::new();
    let mut typed = false;
    // Every page ends with the exit status.
    for line in after.lines().filter(|line| !line.starts_with("Exit status")) {
        let indented = line.starts_with("  ");
        if indented != typed {
            roff.control(if indented { "nf" } else { "fi" }, []);
            typed = indented;
        }
        if let Some(heading) = line.strip_suffix(':').filter(|_| !indented) {
            roff.control("SH", [heading.to_uppercase().as_str()]);
        } else if line.is_empty() {
            roff.control("PP", []);
        } else {
            roff.text([roman(line.trim_start())]);
        }
    }
    if typed {
        roff.control("fi", []);
    }
    roff
}

fn exit_status() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    roff.text([roman("0 if it is done, 1 if it was refused or failed, 2 for bad usage.")]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_examples() {
        let folder = tempfile::tempdir().expect("a folder");
        let all = ManArgs { page: None, all: Some(folder.path().into()) };
        let said = run(&all).expect("written");
        let commands = Cli::command();
        assert_eq!(said.lines().count(), 1 + commands.get_subcommands().count());
        for path in said.lines() {
            let page = std::fs::read_to_string(path).expect("read");
            for part in [".TH granule", ".SH NAME", ".SH SYNOPSIS", ".SH EXAMPLES", ".SH \"EXIT"] {
                assert!(page.contains(part), "{path} without {part}: {page}");
            }
        }
    }

    #[test]
    fn lines_of_a_shell_stay_lines() {
        let text = examples("Examples:\n  granule a\n  granule b\n\nMore.").to_roff();
        assert!(
            text.contains(".SH EXAMPLES\n.nf\ngranule a\ngranule b\n.fi\n.PP\nMore."),
            "{text}"
        );
    }
}
