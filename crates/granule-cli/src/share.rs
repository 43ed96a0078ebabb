//! stub
use crate::{args::ShareArgs, error::CliError};
pub(crate) fn run(_: &ShareArgs) -> Result<String, CliError> { Ok(String::new()) }
