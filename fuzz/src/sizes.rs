//! Sizes, addresses and ranges as people type them, and whole command lines.

use std::ffi::OsString;

use granule_cli::offline::{command_line, sizes};

/// Each line is a word.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let words: Vec<&str> = text.split('\n').collect();
    for word in &words {
        number(word);
        pair(word);
    }
    let line = std::iter::once("granule").chain(words).map(OsString::from);
    if let Err(message) = command_line(line) {
        assert!(!message.trim().is_empty(), "a refusal without words");
    }
    bytes(data);
}

/// A size is what a second reading of it gives.
fn number(word: &str) {
    let size = sizes::bytes(word);
    assert_eq!(size.as_ref().ok().copied(), size_of(word), "{word:?}");
    let address = sizes::address(word);
    assert_eq!(address.as_ref().ok().copied(), digits_of(word.trim()), "{word:?}");
    for value in [&size, &address] {
        match value {
            Ok(value) => {
                assert_eq!(sizes::bytes(&format!("{value}")), Ok(*value));
                assert_eq!(sizes::address(&format!("{value:#x}")), Ok(*value));
            }
            Err(message) => assert!(message.contains(word), "{message} does not name {word:?}"),
        }
    }
    if let Ok(granule) = sizes::granule(word) {
        assert_eq!(size, Ok(granule.size()));
        assert!([4096, 16384, 65536].contains(&granule.size()));
    }
}

/// `_` may stand between digits, and nowhere else.
fn digits_of(word: &str) -> Option<u64> {
    let (radix, digits) = match word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None => (10, word),
    };
    let mut value: u128 = 0;
    for character in digits.chars().filter(|character| *character != '_') {
        value = value * radix + u128::from(character.to_digit(radix as u32)?);
        u64::try_from(value).ok()?;
    }
    let inside = |end: Option<char>| end.is_some_and(|end| end != '_');
    let spread = inside(digits.chars().next()) && inside(digits.chars().last());
    u64::try_from(value).ok().filter(|_| spread)
}

fn size_of(word: &str) -> Option<u64> {
    let word = word.trim();
    if word.starts_with("0x") || word.starts_with("0X") {
        return digits_of(word);
    }
    let end = word.find(|c: char| c != '_' && !c.is_ascii_digit()).unwrap_or(word.len());
    let unit = word[end..].trim().to_ascii_uppercase();
    let factor = match unit.as_str() {
        "" | "B" => 1u128,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        _ => return None,
    };
    u64::try_from(u128::from(digits_of(&word[..end])?) * factor).ok()
}

fn pair(word: &str) {
    if let Ok(range) = sizes::memory(word) {
        let (base, size) = word.split_once('+').expect("two parts");
        assert_eq!(Some(range.start().raw()), digits_of(base.trim()));
        assert_eq!(Some(range.len()), size_of(size));
        assert!(range.last() >= range.start());
    }
    if let Ok((device, bits)) = sizes::mask(word) {
        assert!(!device.is_empty() && (1..=64).contains(&bits));
        assert!(word.starts_with(&device));
    }
}

/// Words need not be UTF-8.
#[cfg(unix)]
fn bytes(data: &[u8]) {
    use std::os::unix::ffi::OsStringExt;
    let words = data.split(|byte| *byte == b'\n').map(|word| OsString::from_vec(word.to_vec()));
    let _ = command_line(std::iter::once("granule".into()).chain(words));
}

#[cfg(not(unix))]
fn bytes(_: &[u8]) {}
