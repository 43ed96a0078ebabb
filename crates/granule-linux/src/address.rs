//! Where a PCI function is: `0000:01:00.0`.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A PCI function's address: domain, bus, device, function.
///
/// ```
/// use granule_linux::Bdf;
/// let full: Bdf = "0000:01:00.0".parse()?;
/// assert_eq!("01:00.0".parse::<Bdf>()?, full);
/// assert!("1:00".parse::<Bdf>().is_err());
/// # Ok::<(), granule_linux::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// The PCI domain (segment); 0 on most machines.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, 0 to 31.
    pub device: u8,
    /// The function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl FromStr for Bdf {
    type Err = Error;

    /// `0000:01:00.0` as `lspci -D` prints it, or `01:00.0` for domain 0.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::BadAddress { text: text.into() })
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let hex = |digits: &str, most: usize| {
        let plain = digits.len() <= most && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|_| plain)
    };
    let (domain, bus) = (hex(domain, 8)?, hex(bus, 2)? as u8);
    let (device, function) = (hex(device, 2)? as u8, hex(function, 1)? as u8);
    (device < 32 && function < 8).then_some(Bdf { domain, bus, device, function })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_lspci_writes_them() {
        for (text, full) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("3b:1f.7", "0000:3b:1f.7"),
            ("10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(text.parse::<Bdf>().expect(text).to_string(), full);
        }
        for text in [
            "", "1", "00.0", "01:00", "01:20.0", "01:00.8", "g1:00.0", "+1:00.0", "001:00.0",
            "01:00.00",
        ] {
            assert!(text.parse::<Bdf>().is_err(), "{text}");
        }
    }
}
