//! Sizes and addresses as people type them, checked.

use std::path::PathBuf;

use granule::addr::{Granule, PhysAddr, PhysRange};

/// `--mask DEV=BITS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask {
    pub(crate) device: String,
    pub(crate) bits: u32,
}

/// A number of bytes: decimal or `0x` hexadecimal, `_` between digits, and with a decimal one of the
/// suffixes K, M, G, T (1024 each), `KiB` and the like included.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: write 8M, 64K, 4096 or 0x4000");
    let trimmed = text.trim();
    if trimmed.starts_with("0x") || trimmed.starts_with("0X") {
        return address(trimmed).map_err(|_| wrong());
    }
    let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '_')).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number = number(digits, 10).ok_or_else(wrong)?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is more than 2^64 bytes"))
}

/// An address: `0x` hexadecimal or decimal, `_` between digits.
pub(crate) fn address(text: &str) -> Result<u64, String> {
    let plain = text.trim();
    let parsed = match plain.strip_prefix("0x").or(plain.strip_prefix("0X")) {
        Some(digits) => number(digits, 16),
        None => number(plain, 10),
    };
    parsed.ok_or_else(|| format!("`{text}` is no address: write 0x800000000"))
}

/// Digits without a sign, with `_` between them.
fn number(digits: &str, radix: u32) -> Option<u64> {
    let ends = [digits.chars().next()?, digits.chars().next_back()?];
    if !ends.iter().all(|end| end.is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(&digits.replace('_', ""), radix).ok()
}

/// `BASE+SIZE`.
pub(crate) fn memory(text: &str) -> Result<PhysRange, String> {
    let wrong = || format!("`{text}` is no memory: write BASE+SIZE, as in 0x80000000+4G");
    let (base, size) = text.split_once('+').ok_or_else(wrong)?;
    let (base, size) = (address(base)?, bytes(size)?);
    PhysRange::new(PhysAddr::new(base), size).map_err(|error| error.to_string())
}

/// The CPU's page: 4K, 16K or 64K.
pub(crate) fn cpu_page(text: &str) -> Result<Granule, String> {
    usual(text).ok_or_else(|| format!("`{text}` is no CPU page: 4K, 16K or 64K"))
}

/// The smallest page of an IOMMU: 4K, 16K or 64K.
pub(crate) fn granule(text: &str) -> Result<Granule, String> {
    usual(text).ok_or_else(|| format!("`{text}` is no granule: 4K, 16K or 64K"))
}

fn usual(text: &str) -> Option<Granule> {
    let granule = bytes(text).ok().and_then(|size| Granule::new(size).ok());
    granule.filter(|page| [Granule::K4, Granule::K16, Granule::K64].contains(page))
}

/// `DEV=BITS`.
pub(crate) fn mask(text: &str) -> Result<Mask, String> {
    let wrong = || format!("`{text}` is no mask: write DEV=BITS with 1 to 64 bits, as in dcp=32");
    let (device, bits) = text.rsplit_once('=').ok_or_else(wrong)?;
    let bits = bits.parse().ok().filter(|bits| (1..=64).contains(bits)).ok_or_else(wrong)?;
    if device.is_empty() {
        return Err(wrong());
    }
    Ok(Mask { device: device.into(), bits })
}

/// `FILE[@BASE]`: what follows the last `@` is a base if it is an address, else part of the name.
pub(crate) fn image(text: &str) -> Result<(PathBuf, PhysAddr), String> {
    if text.is_empty() {
        return Err("no file is named".into());
    }
    match text.rsplit_once('@') {
        Some((file, base)) if !file.is_empty() && !PathBuf::from(text).exists() => {
            Ok((file.into(), PhysAddr::new(address(base)?)))
        }
        _ => Ok((text.into(), PhysAddr::new(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("8M", 8 << 20),
            ("64k", 65536),
            ("1GiB", 1 << 30),
            ("2 KB", 2048),
            ("0x4000", 0x4000),
            ("0xf_0000", 0xf_0000),
            ("0", 0),
            ("1_000", 1000),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "M", "8X", "-1", "0x", "1.5M", "0x-1", "16777217T", "99999999999999999999"]
        {
            assert!(bytes(text).is_err(), "{text}");
        }
        // What the fuzzing target `sizes` reads differently: no unit begins with an i, and `_` stands
        // between digits only.
        for text in ["5ib", "5i", "_", "_1", "1_", "1_K", "0x_1", "0x1_", "0_x5", "_0x5", "+5"] {
            assert!(bytes(text).is_err(), "{text}");
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_masks_and_pages() {
        let range = PhysRange::new(PhysAddr::new(0x8000_0000), 4 << 30);
        assert_eq!(memory("0x8000_0000+4G"), Ok(range.expect("legal")));
        for text in ["", "1", "+", "0+0", "0xffffffffffffffff+2", "x+1"] {
            assert!(memory(text).is_err(), "{text}");
        }
        assert_eq!(mask("a=b=32"), Ok(Mask { device: "a=b".into(), bits: 32 }));
        for text in ["dcp", "=3", "dcp=0", "dcp=65", "dcp=x"] {
            assert!(mask(text).is_err(), "{text}");
        }
        assert_eq!(cpu_page("64K"), Ok(Granule::K64));
        assert!(cpu_page("8K").is_err());
        assert_eq!(granule("16K"), Ok(Granule::K16));
        assert!(granule("2M").is_err());
        assert_eq!(image("ram@0x10"), Ok(("ram".into(), PhysAddr::new(16))));
        assert_eq!(image("ram"), Ok(("ram".into(), PhysAddr::new(0))));
        assert!(image("ram@here").is_err());
    }
}
