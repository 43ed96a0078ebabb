//! Unsafe code: which files hold it, and whether the table in `ARCHITECTURE.md` admits them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::{Chores, files};

const DOCUMENT: &str = "ARCHITECTURE.md";
const BEGIN: &str = "<!-- unsafe-table -->";
const END: &str = "<!-- /unsafe-table -->";

/// How often each use of the keyword occurs in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    blocks: usize,
    functions: usize,
    impls: usize,
    traits: usize,
    /// `unsafe extern` blocks.
    externs: usize,
    /// `#[unsafe(no_mangle)]` and its like.
    attributes: usize,
}

/// Where code lies: everything that is built, tests, examples and tools included.
const FOLDERS: [&str; 5] = ["crates", "checks", "fuzz", "lab", "xtask"];

/// Lists the files with unsafe code. Fails if the table exists and lacks one.
pub(crate) fn audit(chores: &Chores) -> Result<()> {
    let found = scan(chores)?;
    for (file, uses) in &found {
        println!("{file:60} {uses}");
    }
    println!("{} files hold unsafe code", found.len());

    let Ok(document) = fs::read_to_string(chores.root.join(DOCUMENT)) else {
        println!("note: there is no {DOCUMENT} to compare with");
        return Ok(());
    };
    let Some(table) = table(&document)? else {
        println!("note: {DOCUMENT} has no table between {BEGIN} and {END} to compare with");
        return Ok(());
    };
    for row in admitted(table).filter(|row| !found.keys().any(|file| admits(row, file))) {
        println!("note: the table names {row}, which holds no unsafe code");
    }
    let missing: Vec<_> =
        found.keys().filter(|file| !admitted(table).any(|row| admits(row, file))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for file in &missing {
        println!("MISSING: | `{file}` | why it needs unsafe code, and what makes it sound |");
    }
    bail!(
        "{} file(s) with unsafe code are not in the table of {DOCUMENT}: \
         add them there, with the reason, or do without",
        missing.len()
    );
}

fn scan(chores: &Chores) -> Result<BTreeMap<String, Uses>> {
    let mut found = BTreeMap::new();
    for folder in FOLDERS {
        for path in files::under(&chores.root.join(folder), "rs")? {
            let file = chores.relative(&path).display().to_string();
            let text = fs::read_to_string(&path).with_context(|| file.clone())?;
            let uses = uses(&text).with_context(|| file.clone())?;
            if uses != Uses::default() {
                found.insert(file, uses);
            }
        }
    }
    Ok(found)
}

/// The text between the markers; `None` without the first.
fn table(document: &str) -> Result<Option<&str>> {
    let Some((_, rest)) = document.split_once(BEGIN) else { return Ok(None) };
    match rest.split_once(END) {
        Some((table, _)) => Ok(Some(table)),
        None => bail!("{DOCUMENT}: {BEGIN} is not closed by {END}"),
    }
}

/// The files that the table names: the first thing in backticks of each row.
fn admitted(table: &str) -> impl Iterator<Item = &str> {
    table
        .lines()
        .filter(|line| line.trim_start().starts_with('|'))
        .filter_map(|line| line.split('`').nth(1))
}

/// Whether a row speaks of a file: it is its name, or, for code that is no library's, the name of a
/// folder around it, which ends with a slash and may have `*` for one name.
fn admits(row: &str, file: &str) -> bool {
    let library = file.starts_with("crates/") && file.split('/').nth(2) == Some("src");
    let Some(folder) = row.strip_suffix('/').filter(|_| !library) else { return row == file };
    let mut names = file.split('/');
    folder.split('/').all(|name| names.next().is_some_and(|found| name == "*" || name == found))
        && names.next().is_some()
}

/// Counts the uses of `unsafe` in Rust source. Comments and strings do not count.
fn uses(source: &str) -> Result<Uses> {
    let tokens = TokenStream::from_str(source)
        .map_err(|error| anyhow!("line {}: not Rust: {error}", error.span().start().line))?;
    let mut uses = Uses::default();
    count(tokens, &mut uses);
    Ok(uses)
}

fn count(tokens: TokenStream, uses: &mut Uses) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    for (index, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) => count(group.stream(), uses),
            TokenTree::Ident(ident) if ident == "unsafe" => classify(&tokens[index + 1..], uses),
            _ => {}
        }
    }
}

/// Counts one `unsafe` by what follows it.
fn classify(after: &[TokenTree], uses: &mut Uses) {
    match after {
        [TokenTree::Group(group), ..] if group.delimiter() == Delimiter::Brace => uses.blocks += 1,
        [TokenTree::Group(_), ..] => uses.attributes += 1,
        [TokenTree::Ident(word), rest @ ..] => match word.to_string().as_str() {
            "impl" => uses.impls += 1,
            "trait" | "auto" => uses.traits += 1,
            "extern" => classify_extern(rest, uses),
            // `unsafe fn(…)` without a name is a type, and declares nothing.
            "fn" if matches!(rest, [TokenTree::Ident(_), ..]) => uses.functions += 1,
            _ => {}
        },
        _ => {}
    }
}

/// `unsafe extern "C"` before a function, a block, or a function's type.
fn classify_extern(after: &[TokenTree], uses: &mut Uses) {
    let after = match after {
        [TokenTree::Literal(_), rest @ ..] => rest,
        _ => after,
    };
    match after {
        [TokenTree::Group(_), ..] => uses.externs += 1,
        [TokenTree::Ident(word), TokenTree::Ident(_), ..] if word == "fn" => uses.functions += 1,
        _ => {}
    }
}

impl fmt::Display for Uses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("block", self.blocks),
            ("fn", self.functions),
            ("impl", self.impls),
            ("trait", self.traits),
            ("extern", self.externs),
            ("attribute", self.attributes),
        ];
        let mut comma = "";
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, "{comma}{count} {name}")?;
            comma = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted() {
        let source = r#"
            unsafe trait A { unsafe fn a(); }
            unsafe impl A for () { unsafe fn a() { let _ = unsafe { *p }; } }
            unsafe extern "C" { fn c(); }
            unsafe extern "C" fn d() {}
            #[unsafe(no_mangle)] fn e() { f(|| { unsafe {} }) }
        "#;
        let expected =
            Uses { blocks: 2, functions: 3, impls: 1, traits: 1, externs: 1, attributes: 1 };
        assert_eq!(uses(source).unwrap(), expected);
    }

    #[test]
    fn what_only_looks_unsafe_is_not_counted() {
        let source = r##"
            #![forbid(unsafe_code)]
            //! unsafe { in a comment }
            /* unsafe fn /* nested */ x() */
            const A: &str = "unsafe {}"; const B: &str = r#"unsafe impl "X""#;
            const C: char = '"'; fn d<'a>(f: unsafe fn(&'a u8), g: unsafe extern "C" fn()) {}
        "##;
        assert_eq!(uses(source).unwrap(), Uses::default());
    }

    #[test]
    fn the_table_is_what_stands_between_the_markers() {
        let text =
            format!("`x.rs`\n{BEGIN}\n| file | why |\n|-|-|\n| `a.rs` | `b` |\n{END}\n| `y.rs` |");
        let table = table(&text).unwrap().unwrap();
        assert_eq!(admitted(table).collect::<Vec<_>>(), ["a.rs"]);
    }

    #[test]
    fn a_folder_speaks_for_what_is_in_it_unless_that_is_a_library() {
        assert!(admits("crates/a/src/b.rs", "crates/a/src/b.rs"));
        assert!(admits("crates/*/tests/", "crates/a/tests/b/c.rs"));
        assert!(!admits("crates/*/tests/", "crates/a/examples/b.rs"));
        assert!(admits("lab/src/", "lab/src/b.rs"));
        assert!(!admits("lab/src/", "lab/src"));
        assert!(!admits("crates/a/src/", "crates/a/src/b.rs"));
        assert!(!admits("crates/a/tests", "crates/a/tests/b.rs"));
    }

    #[test]
    fn a_document_without_markers_has_no_table() {
        assert_eq!(table("| `a.rs` |").unwrap(), None);
        assert!(table(BEGIN).is_err());
    }
}
