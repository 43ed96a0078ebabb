//! Links that another CPU made and has not cleaned yet, for a walker that does not snoop: whoever maps
//! below one cleans it, or the device would not find what it was promised.

use super::reader::translate;
use super::*;
use crate::table::format::{decode, encode};

/// Makes a link look as another CPU leaves it between linking and cleaning, at each level in turn.
fn a_link_that_is_not_cleaned_yet<F: Format>() {
    let granule = F::GRANULE.size();
    for below in 1..F::MAX_LEVELS {
        for len in [1, 3] {
            let memory = TestMemory::non_coherent();
            let table = table::<F>(&memory, F::MAX_INPUT_BITS);
            let layout = table.layout();
            map(&table, 0, 0x40 * granule, granule).expect("free");
            let mut link = layout.roots[0].raw();
            let Some(down) = (layout.levels - 1).checked_sub(below) else { continue };
            for _ in 0..down {
                link = decode::<F>(memory.read(link));
            }
            memory.write(link, memory.read(link) & !F::SYNCED);
            memory.forget(link);
            assert_eq!(translate(&layout, &memory, 0), None, "the walker does not see the link");
            map(&table, 4 * granule, 0x80 * granule, len * granule).expect("free");
            for page in 0..len {
                let found = translate(&layout, &memory, (4 + page) * granule);
                assert_eq!(found, Some((0x80 + page) * granule), "{}, level {below}", F::ID);
            }
        }
    }
}

#[test]
fn links_of_other_cpus_are_cleaned_before_they_are_relied_on() {
    struct Each;
    impl FormatVisitor for Each {
        type Output = ();
        fn visit<F: Format>(self) {
            a_link_that_is_not_cleaned_yet::<F>();
        }
    }
    FormatId::ALL.iter().for_each(|id| id.visit(Each));
}

/// Tables lie where an entry can name them, and an address that it cannot is told.
#[test]
fn a_table_that_no_entry_can_name_is_refused() {
    let config = |bits| TableConfig::new(32, bits);
    let memory = TestMemory::new();
    // The arena begins at 16 MiB: 24 bits reach nothing of it, 27 bits all of its 64 MiB.
    let refused = PageTable::<Lpae4k, _>::new(memory.clone(), config(24)).err();
    assert!(matches!(refused, Some(TableError::TableAddress { bits: 24, .. })), "{refused:?}");
    assert_eq!(memory.live(), 0);
    assert!(PageTable::<Lpae4k, _>::new(memory, config(27)).is_ok());
    assert_eq!(decode::<Lpae4k>(encode::<Lpae4k>(0x1234_5000)), 0x1234_5000);
}
