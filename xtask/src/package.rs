//! Packages: every crate meant for others is one, says what it is, and builds from its own archive.
//! Every dependency has its reason beside it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use crate::{Chores, files};

/// What a manifest has to say before others can judge the crate.
const FIELDS: [&str; 6] =
    ["description", "license", "rust-version", "keywords", "categories", "version"];

/// Checks manifests, then packs and builds.
pub(crate) fn check(chores: &Chores) -> Result<()> {
    let mut problems = Vec::new();
    for manifest in manifests(chores)? {
        let text = fs::read_to_string(&manifest)?;
        let file = chores.relative(&manifest).display();
        problems.extend(
            unexplained(&text)
                .into_iter()
                .map(|name| format!("{file}: say in a comment above `{name}` why it is needed")),
        );
    }
    let mut names = Vec::new();
    for folder in files::crates(&chores.root)? {
        let text = fs::read_to_string(folder.join("Cargo.toml"))?;
        if text.lines().any(|line| line.trim() == "publish = false") {
            continue;
        }
        let name = folder.file_name().context("a crate without a name")?;
        let name = name.to_string_lossy().into_owned();
        problems.extend(missing(&folder, &name, &text));
        names.push(name);
    }
    if !problems.is_empty() {
        problems.iter().for_each(|problem| println!("{problem}"));
        bail!("{} thing(s) to write before the crates are packages", problems.len());
    }
    pack(chores, &names)?;
    println!("packages: {}", names.join(", "));
    Ok(())
}

/// Packs all crates together, since they need each other, and builds each from its archive.
fn pack(chores: &Chores, names: &[String]) -> Result<()> {
    let target_dir = chores.target.join("package");
    forget_earlier(&cargo_home()?, &target_dir, names)?;
    let chosen: Vec<&str> = names.iter().flat_map(|name| ["-p", name]).collect();
    let package = |offline: &[&str]| {
        cmd!(chores.sh, "cargo package --quiet --allow-dirty --target-dir {target_dir}")
            .args(&chosen)
            .args(offline)
            .run()
    };
    // What was downloaded for the builds before is enough, as a rule.
    package(&["--offline"]).or_else(|_| package(&[])).context("cargo package")
}

/// Removes what earlier archives left: the sources that cargo unpacked, and what it built from them.
///
/// Cargo takes a package for something that never changes under one version. It finds the archives
/// of these crates in a registry of its own at the same path each time, so without this a crate is
/// built against what its neighbour was when somebody first packed it here.
fn forget_earlier(cargo_home: &Path, target_dir: &Path, names: &[String]) -> Result<()> {
    let unpacked = cargo_home.join("registry").join("src");
    for registry in files::folders(&unpacked)? {
        // Such a folder is named by host and hash, and a registry on disk has no host.
        if !registry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"-")) {
            continue;
        }
        let of_ours = |folder: &PathBuf| {
            let folder = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            names.iter().any(|name| is_version_of(&folder, name))
        };
        for folder in files::folders(&registry)?.iter().filter(|folder| of_ours(folder)) {
            fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
        }
    }
    if target_dir.exists() {
        fs::remove_dir_all(target_dir)
            .with_context(|| format!("removing {}", target_dir.display()))?;
    }
    Ok(())
}

/// Whether a folder called `<crate>-<version>` is of the crate `name`.
fn is_version_of(folder: &str, name: &str) -> bool {
    let version = folder.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
}

/// Where cargo keeps what it has downloaded.
fn cargo_home() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CARGO_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cargo")))
        .context("neither CARGO_HOME nor HOME says where cargo keeps its downloads")
}

fn manifests(chores: &Chores) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for folder in ["crates", "xtask", "checks", "lab", "fuzz"] {
        let found = files::under(&chores.root.join(folder), "toml")?;
        all.extend(found.into_iter().filter(|path| path.ends_with("Cargo.toml")));
    }
    Ok(all)
}

/// The dependencies without a comment right above. The project's own crates need none.
fn unexplained(manifest: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut inside, mut before, mut open) = (false, "", false);
    for line in manifest.lines() {
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if line.starts_with('[') {
            inside = line.contains("dependencies");
        } else if inside && !open && !name.is_empty() && !line.starts_with('#') {
            let own = name == "granule" || name.starts_with("granule-");
            if !own && !before.starts_with('#') {
                found.push(name);
            }
        }
        // An entry may span lines.
        let depth = |c: char| line.matches(c).count();
        open = inside && (open || depth('[') > depth(']')) && depth(']') <= depth('[');
        before = line;
    }
    found
}

/// What a crate that others may use lacks.
fn missing(folder: &Path, name: &str, manifest: &str) -> Vec<String> {
    let mut lacks = Vec::new();
    for field in FIELDS {
        let says = |line: &str| {
            line.strip_prefix(field).is_some_and(|rest| rest.starts_with([' ', '.', '=']))
        };
        if !manifest.lines().any(says) {
            lacks.push(format!("{name}: `{field}` in Cargo.toml"));
        }
    }
    let readme = fs::read_to_string(folder.join("README.md")).unwrap_or_default();
    if !readme.starts_with(&format!("# {name}\n")) {
        lacks.push(format!("{name}: a README.md that begins with `# {name}`"));
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        if !folder.join(licence).is_file() {
            lacks.push(format!("{name}: {licence}, a link to ../../{licence}"));
        }
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_needs_a_reason_of_its_own() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\ngranule.workspace = true\n\
                        granule-sim = { path = \"y\" }\n# Why.\na = \"1\"\nb = \"1\"\n# Long.\n\
                        c = { version = \"1\", features = [\n    \"d\",\n] }\ne = \"1\"\n\n\
                        [target.'cfg(unix)'.dev-dependencies]\nf.workspace = true\n\
                        [features]\ng = []\n";
        assert_eq!(unexplained(manifest), ["b", "e", "f"]);
    }

    #[test]
    fn archives_of_another_day_are_forgotten() {
        let folder = env::temp_dir().join(format!("granule-packages-{}", std::process::id()));
        let unpacked = folder.join("registry/src");
        let target_dir = folder.join("target");
        let gone = [
            unpacked.join("-05b4/granule-0.1.0"),
            unpacked.join("-05b4/granule-sim-0.1.0"),
            unpacked.join("-1d05/granule-0.2.0-rc.1"),
            target_dir.join("debug"),
        ];
        let kept = [
            unpacked.join("-05b4/granule-other-0.1.0"),
            unpacked.join("-05b4/bitflags-2.0.0"),
            unpacked.join("registry.example-05b4/granule-0.1.0"),
        ];
        gone.iter().chain(&kept).for_each(|path| fs::create_dir_all(path).unwrap());

        let names = ["granule".to_owned(), "granule-sim".to_owned()];
        let result = forget_earlier(&folder, &target_dir, &names);
        let left = |paths: &[PathBuf]| paths.iter().filter(|path| path.exists()).count();
        let counts = (left(&gone), left(&kept));
        fs::remove_dir_all(&folder).unwrap();

        result.unwrap();
        assert_eq!(counts, (0, kept.len()));
        forget_earlier(&folder, &target_dir, &names).expect("nothing to forget is no error");
    }

    #[test]
    fn a_package_says_what_it_is() {
        let nowhere = Path::new("/nowhere");
        let manifest = "version.workspace = true\ndescription = \"x\"\nlicense = \"MIT\"\n\
                        rust-version = \"1\"\nkeywords = []\n";
        let lacks = missing(nowhere, "x", manifest);
        assert_eq!(lacks.len(), 4, "{lacks:?}");
        assert!(lacks[0].contains("categories") && lacks[1].contains("README"));
    }
}
