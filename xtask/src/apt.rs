//! Packages of a Debian release, downloaded and unpacked beside the build: nothing is installed.
//!
//! apt gets a configuration of its own: the machine's package sources with another release's name
//! in them, and folders under the build folder for everything that apt writes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

/// The machine's package sources.
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";

/// A release whose lists of packages have been read.
pub(crate) struct Apt {
    sh: Shell,
}

impl Apt {
    /// Reads what the release has. apt keeps its files in `folder`; `machine` is one whose packages
    /// are wanted beside this machine's.
    pub(crate) fn read(
        sh: &Shell,
        release: &str,
        folder: &Path,
        machine: Option<&str>,
    ) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg"] {
            if cmd!(sh, "{tool} --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
                bail!("{tool} is not installed");
            }
        }
        let sh = sh.clone();
        sh.set_var("APT_CONFIG", configure(release, folder, machine)?);
        sh.set_var("LC_ALL", "C.UTF-8");
        // Errors of single sources are only warnings by default.
        cmd!(sh, "apt-get update -qq --error-on=any").quiet().run().with_context(|| {
            format!("Debian {release} cannot be reached through the machine's package sources")
        })?;
        Ok(Self { sh })
    }

    /// The package and all that it depends on, down to the C library.
    pub(crate) fn needed_by(&self, package: &str) -> Result<Vec<String>> {
        let sh = &self.sh;
        let listing =
            cmd!(sh, "apt-cache depends --recurse --important {package}").quiet().read()?;
        let packages = package_names(&listing);
        if packages.is_empty() {
            bail!("the package sources do not list {package}");
        }
        Ok(packages)
    }

    /// The first package that a package depends on: what a metapackage stands for.
    pub(crate) fn behind(&self, metapackage: &str) -> Result<String> {
        let sh = &self.sh;
        let listing = cmd!(sh, "apt-cache depends --important {metapackage}").quiet().read()?;
        first_dependency(&listing)
            .with_context(|| format!("the package sources do not say what {metapackage} is"))
    }

    /// Downloads packages and unpacks them into `root`.
    pub(crate) fn unpack(&self, packages: &[String], root: &Path) -> Result<()> {
        let debs = root.with_extension("debs");
        if debs.exists() {
            // Left by a run that was ended.
            fs::remove_dir_all(&debs)?;
        }
        fs::create_dir_all(&debs)?;
        fs::create_dir_all(root)?;
        let sh = self.sh.clone();
        sh.change_dir(&debs);
        println!("packages: {}", packages.join(" "));
        let download = cmd!(sh, "apt-get download -qq {packages...}");
        download.quiet().run().context("downloading packages")?;
        for deb in sh.read_dir(&debs)? {
            cmd!(sh, "dpkg -x {deb} {root}").quiet().run()?;
        }
        Ok(fs::remove_dir_all(&debs)?)
    }
}

/// The lines of `apt-cache depends` that name a package; the others are dependencies (indented) or
/// virtual packages (`<…>`).
fn package_names(listing: &str) -> Vec<String> {
    listing.lines().filter(|line| !line.starts_with([' ', '<', '|'])).map(str::to_string).collect()
}

/// The first line of `apt-cache depends` that is a dependency.
fn first_dependency(listing: &str) -> Option<String> {
    listing.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_string)
}

/// Writes the configuration and returns its path.
fn configure(release: &str, folder: &Path, machine: Option<&str>) -> Result<PathBuf> {
    let sources = fs::read_to_string(SOURCES)
        .with_context(|| format!("{SOURCES}: the machine has no Debian package sources"))?;
    for empty in ["lists/partial", "cache/archives/partial", "sources"] {
        fs::create_dir_all(folder.join(empty))?;
    }
    fs::write(folder.join("status"), "")?;
    fs::write(folder.join("sources/debian.sources"), sources_of(&sources, release)?)?;
    let path = folder.join("apt.conf");
    let folder = folder.to_str().context("the build folder's path is not UTF-8")?;
    let machine =
        machine.map(|machine| format!("APT::Architectures:: \"{machine}\";\n")).unwrap_or_default();
    let text = format!(
        "{machine}Dir::State \"{folder}\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         Dir::Etc::sourcelist \"/dev/null\";\n\
         Dir::Etc::sourceparts \"{folder}/sources\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::http::Timeout \"20\";\n\
         APT::Sandbox::User \"root\";\n"
    );
    fs::write(&path, text)?;
    Ok(path)
}

/// The machine's package sources for another release. Those of security updates are left out: the
/// release itself has all that is needed, and names its updates differently.
fn sources_of(machine: &str, release: &str) -> Result<String> {
    let stanzas: Vec<_> = machine
        .split("\n\n")
        .filter(|stanza| suites(stanza).is_some_and(|suites| !suites.contains("-security")))
        .map(|stanza| in_release(stanza, release))
        .collect();
    if stanzas.is_empty() {
        bail!("{SOURCES} has no line `Suites:` of a Debian release");
    }
    Ok(stanzas.join("\n"))
}

fn suites(stanza: &str) -> Option<&str> {
    stanza.lines().find_map(|line| line.strip_prefix("Suites:"))
}

fn in_release(stanza: &str, release: &str) -> String {
    let mut text = String::new();
    for line in stanza.lines() {
        match line.strip_prefix("Suites:") {
            Some(_) => text.push_str(&format!("Suites: {release}")),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_change_their_release_and_nothing_else() {
        let machine = "Types: deb\n# Text\nURIs: uri:a\nSuites: bookworm bookworm-updates\n\
                       Components: main\n\nTypes: deb\nURIs: uri:b\nSuites: bookworm-security\n";
        let expected = "Types: deb\n# Text\nURIs: uri:a\nSuites: trixie\nComponents: main\n";
        assert_eq!(sources_of(machine, "trixie").unwrap(), expected);
        assert!(sources_of("deb uri:a bookworm main\n", "trixie").is_err());
    }

    #[test]
    fn dependencies_are_told_from_packages() {
        let listing = "libstd\n  Depends: libc6\n |Depends: a\n    b\n<virtual>\nlibc6\n";
        assert_eq!(package_names(listing), ["libstd", "libc6"]);
    }

    #[test]
    fn a_metapackage_names_what_it_stands_for() {
        let listing = "linux-image-amd64\n  Depends: linux-image-6.12-a\n  Depends: b\n";
        assert_eq!(first_dependency(listing).as_deref(), Some("linux-image-6.12-a"));
        assert_eq!(first_dependency("a\n"), None);
    }
}
