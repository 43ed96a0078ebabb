//! Page tables in arbitrary memory: cycles, tables beyond RAM, reserved bits, absurd sizes.

use arbitrary::{Arbitrary, Unstructured};
use granule::addr::{Iova, PhysAddr};
use granule::table::{Format, FormatId, FormatVisitor, TableConfig, Walk, walk};
use granule_sim::walk::{Listing, Mapping, PhysRead, SimFormat, mappings_up_to, translate};

/// Where memory begins.
const BASE: u64 = 0x10_0000;
/// Memory in bytes: room for sixteen tables of the smallest granule.
const SIZE: u64 = 64 << 10;
/// So many entries are enough to see how a listing is cut short.
const MAX_ENTRIES: u64 = 1 << 15;

#[derive(Arbitrary, Debug)]
struct Tables {
    format: u8,
    input_bits: u8,
    roots: Vec<u8>,
    iovas: [u64; 4],
    entries: Vec<Entry>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    at: u16,
    value: Value,
}

#[derive(Arbitrary, Debug)]
enum Value {
    Raw(u64),
    /// A pointer into memory, with any bits around it.
    Into {
        page: u8,
        low: u16,
        high: u16,
    },
    /// The same entry, several times.
    Run {
        first: u64,
        step: u32,
        count: u8,
    },
}

/// Words from `BASE` on.
struct Memory(Vec<u64>);

impl PhysRead for Memory {
    fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        let offset = addr.raw().checked_sub(BASE).filter(|offset| offset % 8 == 0)?;
        self.0.get(usize::try_from(offset / 8).ok()?).copied()
    }
}

/// Builds tables, lists them, and translates.
pub fn run(data: &[u8]) {
    let Ok(tables) = Tables::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let format = SimFormat::ALL[usize::from(tables.format) % SimFormat::ALL.len()];
    let memory = memory(&tables.entries, format);
    let roots: Vec<_> = tables.roots.iter().take(5).map(|page| table_at(*page)).collect();
    let input_bits = u32::from(tables.input_bits % 72);
    let walked = Walked { memory: &memory, format, roots: &roots, input_bits };
    tables.iovas.iter().for_each(|iova| walked.compare(*iova));
    let Ok(listing) = mappings_up_to(&memory, format, &roots, input_bits, MAX_ENTRIES) else {
        return;
    };
    check(&listing);
    let walk = |iova: u64| translate(&memory, format, &roots, input_bits, Iova::new(iova));
    for mapping in listing.mappings.iter().take(64).chain(listing.mappings.last()) {
        for offset in [0, mapping.len / 2, mapping.len - 1] {
            let found = walk(mapping.iova.raw().wrapping_add(offset));
            let found = found.unwrap_or_else(|error| panic!("{mapping}, at {offset:#x}: {error}"));
            assert_eq!(found.phys.raw(), mapping.phys.raw().wrapping_add(offset), "{mapping}");
            assert_eq!((found.access, found.execute), (mapping.access, mapping.execute));
            assert!(found.page_iova.raw() <= mapping.iova.raw().wrapping_add(offset));
        }
    }
    for iova in tables.iovas {
        // Also close to what is mapped, and with bits above the input.
        for iova in [iova, iova & 0xf_ffff, iova >> 16, iova & !0xfff] {
            if let Ok(found) = walk(iova) {
                // A listing leaves out what leads back to a table above it; hardware does not.
                let whole = listing.truncated.is_none() && listing.findings_total == 0;
                let listed = listing.mappings.iter().any(|mapping| holds(mapping, iova));
                assert!(listed || !whole, "{iova:#x} is not listed: {found:?}");
            }
        }
    }
}

/// Tables that the core's own walk of dumps reads.
struct Walked<'m> {
    memory: &'m Memory,
    format: SimFormat,
    roots: &'m [PhysAddr],
    input_bits: u32,
}

impl Walked<'_> {
    /// Where both walks find a page they find the same one; what is not there for one that knows the
    /// rules of the format in full is not there for the other.
    fn compare(&self, iova: u64) {
        let same = |id: &&FormatId| id.name() == self.format.name();
        let Some(id) = FormatId::ALL.iter().find(same) else { return };
        let core = id.visit(CoreWalk { walked: self, iova });
        let sim = translate(self.memory, self.format, self.roots, self.input_bits, Iova::new(iova));
        let (Some(Walk::Mapped(core)), Ok(sim)) = (core, sim) else { return };
        if core.page_size > sim.page_size {
            // The contiguous bit on an entry that does not stand where its group has it: hardware may
            // go by the entry or by the group (DDI 0487, D8.7.1), so the two walks may differ.
            let place = |addr: u64| addr & (core.page_size - 1) & !(sim.page_size - 1);
            assert_ne!(place(sim.phys.raw()), place(iova), "{}: {iova:#x}", self.format);
            return;
        }
        let (core, sim) = ((core.phys, core.page_size), (sim.phys, sim.page_size));
        assert_eq!(core, sim, "{}: {iova:#x}", self.format);
    }
}

struct CoreWalk<'w> {
    walked: &'w Walked<'w>,
    iova: u64,
}

impl FormatVisitor for CoreWalk<'_> {
    type Output = Option<Walk>;

    fn visit<F: Format>(self) -> Self::Output {
        let Walked { memory, format, roots, input_bits } = *self.walked;
        let config = TableConfig::new(input_bits, format.max_output_bits());
        walk::<F>(&config, roots, Iova::new(self.iova), |at| memory.read_u64(at)).ok()
    }
}

fn table_at(page: u8) -> PhysAddr {
    PhysAddr::new(BASE + u64::from(page % 18) * 0x1000)
}

fn memory(entries: &[Entry], format: SimFormat) -> Memory {
    let mut words = vec![0; (SIZE / 8) as usize];
    for entry in entries {
        let at = usize::from(entry.at) % words.len();
        match entry.value {
            Value::Raw(raw) => words[at] = raw,
            Value::Into { page, low, high } => {
                words[at] = pointer(format, page) | u64::from(low) | u64::from(high) << 48;
            }
            Value::Run { first, step, count } => {
                let run = words[at..].iter_mut().take(usize::from(count)).enumerate();
                run.for_each(|(index, word)| {
                    *word = first.wrapping_add(u64::from(step) * index as u64);
                });
            }
        }
    }
    Memory(words)
}

/// A table's address where the format has it in an entry.
fn pointer(format: SimFormat, page: u8) -> u64 {
    let at = table_at(page).raw();
    match format {
        SimFormat::Dart2 => at >> 4,
        SimFormat::Sv39 | SimFormat::Sv48 | SimFormat::Sv57 => at >> 12 << 10,
        _ => at,
    }
}

fn check(listing: &Listing) {
    assert!(listing.findings.len() <= Listing::MAX_FINDINGS);
    assert!(listing.findings.len() as u64 <= listing.findings_total);
    assert!(listing.tables <= MAX_ENTRIES + 4);
    if let Some(limit) = listing.truncated {
        assert!(!limit.to_string().is_empty());
    }
    for mapping in &listing.mappings {
        assert!(mapping.len > 0 && mapping.page_size.is_power_of_two(), "{mapping}");
        assert!(mapping.iova.raw().checked_add(mapping.len - 1).is_some(), "{mapping}");
        let _ = mapping.reachable();
    }
    for finding in listing.findings.iter().take(16) {
        assert!(!finding.to_string().is_empty());
    }
}

fn holds(mapping: &Mapping, iova: u64) -> bool {
    iova.checked_sub(mapping.iova.raw()).is_some_and(|offset| offset < mapping.len)
}
