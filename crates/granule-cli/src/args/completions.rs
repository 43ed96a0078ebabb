//! `granule completions`: its options.

use clap::Args;
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  granule completions bash > ~/.local/share/bash-completion/completions/granule
  granule completions fish > ~/.config/fish/completions/granule.fish";

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}
