//! ACPI tables: DMAR, IVRS and VIOT of any firmware.

use granule_hw::acpi::dmar::Dmar;
use granule_hw::acpi::ivrs::Ivrs;
use granule_hw::acpi::viot::{Endpoints, Viot};

const HEADER: usize = 36;

/// Reads the bytes as they are, and as the body of a table whose header is right.
pub fn run(data: &[u8]) {
    dmar(data);
    ivrs(data);
    viot(data);
    let Some((choice, body)) = data.split_first() else { return };
    match choice % 3 {
        0 => dmar(&table(*b"DMAR", body)),
        1 => ivrs(&table(*b"IVRS", body)),
        _ => viot(&table(*b"VIOT", body)),
    }
}

fn table(signature: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; HEADER];
    table[..4].copy_from_slice(&signature);
    table[4..8].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    table.extend_from_slice(body);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}

/// Functions worth asking for: some of each bus.
fn functions() -> impl Iterator<Item = u16> {
    (0..=u16::MAX).step_by(0x111).chain([1, 8, 0x10, 0x18, 0xff, 0x100, u16::MAX])
}

fn dmar(bytes: &[u8]) {
    let Ok(dmar) = Dmar::parse(bytes) else { return };
    assert!((1..=256).contains(&dmar.host_address_bits));
    assert!(dmar.units.len() + dmar.reserved.len() <= bytes.len() / 4);
    assert!(dmar.units.iter().all(|unit| unit.size.is_power_of_two() && unit.size >= 4096));
    let scopes = dmar.units.iter().flat_map(|unit| &unit.devices);
    for scope in scopes.chain(dmar.reserved.iter().flat_map(|region| &region.devices)) {
        // Bridges that lead back to their own bus, to the next, and nowhere.
        let _ = scope.requester_id(|bridge| Some((bridge >> 8) as u8));
        let _ = scope.requester_id(|bridge| Some(((bridge >> 8) as u8).wrapping_add(1)));
        assert!(scope.path.len() < 2 || scope.requester_id(|_| None).is_none());
    }
    for function in functions() {
        for memory in dmar.reserved_for(0, function, |_| Some(1)) {
            assert!(dmar.reserved.iter().any(|region| region.range == memory.range));
        }
    }
}

fn ivrs(bytes: &[u8]) {
    let Ok(ivrs) = Ivrs::parse(bytes) else { return };
    assert!(ivrs.units.len() + ivrs.reserved.len() <= bytes.len() / 4);
    for (index, unit) in ivrs.units.iter().enumerate() {
        let twice = |other: &granule_hw::acpi::ivrs::Ivhd| other.registers == unit.registers;
        assert!(!ivrs.units[..index].iter().any(twice), "one unit, described twice");
        for function in functions() {
            let _ = unit.stream_of(function);
        }
    }
    for function in functions() {
        for memory in ivrs.reserved_for(function) {
            assert!(ivrs.reserved.iter().any(|region| region.memory == memory));
        }
    }
}

fn viot(bytes: &[u8]) {
    let Ok(viot) = Viot::parse(bytes) else { return };
    assert!(viot.viommus.len() + viot.endpoints.len() <= bytes.len() / 4);
    for endpoints in &viot.endpoints {
        let (Endpoints::Pci { viommu, .. } | Endpoints::Mmio { viommu, .. }) = endpoints;
        assert!(*viommu < viot.viommus.len());
    }
    for function in functions() {
        if let Some((viommu, _)) = viot.of_function(0, function) {
            assert!(viommu < viot.viommus.len());
        }
    }
}
