//! The table of IOMMUs: what a compatible string tells about page sizes and widths.
//!
//! Sources: the bindings under `Documentation/devicetree/bindings/iommu`, the architecture
//! specifications (Arm IHI 0062 and IHI 0070, RISC-V IOMMU 1.0, virtio 1.2), the MMU-500 manual
//! (Arm DDI 0517), and the widths and sizes that Linux's drivers program.

use core::fmt;

use granule::addr::PageSizes;

const K4: u64 = 1 << 12;
const K16: u64 = 1 << 14;
const K64: u64 = 1 << 16;
const M1: u64 = 1 << 20;
const M2: u64 = 1 << 21;
const M16: u64 = 1 << 24;
const M32: u64 = 1 << 25;
const M512: u64 = 1 << 29;
const G1: u64 = 1 << 30;
const G512: u64 = 1 << 39;

/// A table format that granule writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TableFormat {
    /// Apple DART with 36-bit output.
    Dart1,
    /// Apple DART with 42-bit output and a shifted address field.
    Dart2,
    /// Arm long descriptors, 4 KiB granule.
    Lpae4k,
    /// Arm long descriptors, 16 KiB granule.
    Lpae16k,
    /// Arm long descriptors, 64 KiB granule.
    Lpae64k,
}

impl TableFormat {
    /// The name used everywhere: `dart1`, `dart2`, `lpae4k`, `lpae16k`, `lpae64k`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dart1 => "dart1",
            Self::Dart2 => "dart2",
            Self::Lpae4k => "lpae4k",
            Self::Lpae16k => "lpae16k",
            Self::Lpae64k => "lpae64k",
        }
    }

    /// The page sizes of the format, contiguous hints apart.
    pub const fn page_sizes(self) -> PageSizes {
        PageSizes::from_bits(match self {
            Self::Dart1 | Self::Dart2 => K16,
            Self::Lpae4k => K4 | M2 | G1,
            Self::Lpae16k => K16 | M32,
            Self::Lpae64k => K64 | M512,
        })
    }
}

impl fmt::Display for TableFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IommuKind {
    /// Apple DART.
    Dart,
    /// Arm SMMU, architecture version 1.
    SmmuV1,
    /// Arm SMMU, architecture version 2 (MMU-500 and its derivatives too).
    SmmuV2,
    /// Arm SMMU, architecture version 3.
    SmmuV3,
    /// Rockchip.
    Rockchip,
    /// MediaTek M4U.
    MediaTek,
    /// NVIDIA Tegra up to 210 (memory controller).
    Tegra,
    /// Renesas IPMMU.
    Ipmmu,
    /// Samsung SysMMU.
    Exynos,
    /// Allwinner.
    Sun50i,
    /// TI OMAP.
    Omap,
    /// RISC-V IOMMU.
    Riscv,
    /// virtio-iommu.
    Virtio,
    /// Qualcomm's IOMMUs before it took the SMMU-500.
    Qcom,
    /// Spreadtrum.
    Sprd,
    /// Not in the table.
    Unknown,
}

impl IommuKind {
    /// A short name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dart => "dart",
            Self::SmmuV1 => "smmuv1",
            Self::SmmuV2 => "smmuv2",
            Self::SmmuV3 => "smmuv3",
            Self::Rockchip => "rockchip",
            Self::MediaTek => "mediatek",
            Self::Tegra => "tegra",
            Self::Ipmmu => "ipmmu",
            Self::Exynos => "exynos",
            Self::Sun50i => "sun50i",
            Self::Omap => "omap",
            Self::Riscv => "riscv",
            Self::Virtio => "virtio",
            Self::Qcom => "qcom",
            Self::Sprd => "sprd",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a second specifier cell is a mask, and `stream-match-mask` counts
    /// (binding `arm,smmu.yaml`).
    pub(crate) const fn has_stream_masks(self) -> bool {
        matches!(self, Self::SmmuV1 | Self::SmmuV2)
    }
}

impl fmt::Display for IommuKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known about an IOMMU from its compatible string. The fields are those of
/// [`BoardIommu`](crate::BoardIommu).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IommuFacts {
    /// Its kind.
    pub kind: IommuKind,
    /// The page sizes that it has, or may have.
    pub page_sizes: PageSizes,
    /// The formats of granule that it walks, or may walk.
    pub formats: &'static [TableFormat],
    /// Width of the addresses that its tables index, in bits.
    pub input_bits: Option<u32>,
    /// Width of the physical addresses that it emits, in bits.
    pub output_bits: Option<u32>,
    /// Whether a stream can pass untranslated.
    pub bypass: Option<bool>,
    /// Whether registers decide, so that the rest is what it may have.
    pub probed: bool,
}

/// Facts with fixed page sizes and widths; 0 bits: only the registers say.
const fn fixed(kind: IommuKind, sizes: u64, input: u32, output: u32) -> IommuFacts {
    IommuFacts {
        kind,
        page_sizes: PageSizes::from_bits(sizes),
        formats: &[],
        input_bits: if input == 0 { None } else { Some(input) },
        output_bits: if output == 0 { None } else { Some(output) },
        bypass: None,
        probed: false,
    }
}

impl IommuFacts {
    const fn walks(mut self, formats: &'static [TableFormat]) -> Self {
        self.formats = formats;
        self
    }

    const fn bypass(mut self, can: bool) -> Self {
        self.bypass = Some(can);
        self
    }

    const fn probed(mut self) -> Self {
        self.probed = true;
        self
    }

    /// What an IOMMU with this `compatible` list has; the most specific string that is known wins.
    /// `None` for an unknown one: there is no guess.
    pub fn of<'a>(compatible: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        compatible.into_iter().find_map(lookup)
    }
}

use IommuKind::{
    Dart, Exynos, Ipmmu, MediaTek, Omap, Qcom, Riscv, Rockchip, SmmuV1, SmmuV2, SmmuV3, Sprd,
    Sun50i, Tegra, Virtio,
};
use TableFormat::{Dart1, Dart2, Lpae4k, Lpae16k, Lpae64k};

/// Short descriptors of Arm's 32-bit architecture, which several vendors took over.
const SHORT: u64 = K4 | K64 | M1 | M16;
const LPAE4K: u64 = K4 | M2 | G1;
/// SMMU_IDR2.PTFSv8 of the MMU-500: 4 and 64 KiB, no 16 KiB.
const MMU500: IommuFacts =
    fixed(SmmuV2, LPAE4K | K64 | M512, 48, 48).walks(&[Lpae4k, Lpae64k]).bypass(true);
/// Qualcomm narrows the output of its own, by as much as the chip likes.
const QCOM_SMMU: IommuFacts =
    fixed(SmmuV2, LPAE4K | K64 | M512, 48, 0).walks(&[Lpae4k, Lpae64k]).bypass(true).probed();
/// Any SMMUv2: the three granules are optional (SMMU_IDR2).
const SMMU_V2: IommuFacts = fixed(SmmuV2, LPAE4K | K16 | M32 | K64 | M512, 0, 0)
    .walks(&[Lpae4k, Lpae16k, Lpae64k])
    .bypass(true)
    .probed();
/// SMMU_IDR5.GRAN4K, GRAN16K, GRAN64K, OAS and VAX say what is there.
const SMMU_V3: IommuFacts = fixed(SmmuV3, LPAE4K | K16 | M32 | K64 | M512, 48, 0)
    .walks(&[Lpae4k, Lpae16k, Lpae64k])
    .bypass(true)
    .probed();
const SMMU_V1: IommuFacts = fixed(SmmuV1, LPAE4K, 0, 40).walks(&[Lpae4k]).bypass(true).probed();
/// `capabilities` lists Sv39, Sv48, Sv57 and the output width.
const RISCV: IommuFacts = fixed(Riscv, LPAE4K | G512, 0, 0).bypass(true).probed();
/// Everything is in its configuration space (virtio 1.2, 5.13.4).
const VIRTIO: IommuFacts = fixed(Virtio, 0, 0, 0).probed();
const MTK_V7S: IommuFacts = fixed(MediaTek, SHORT, 32, 35);
const MTK_34: IommuFacts = fixed(MediaTek, SHORT, 34, 35);

/// Compatible strings that are matched whole.
const EXACT: &[(&str, IommuFacts)] = &[
    // PARAMS2 says whether a DART can bypass.
    ("apple,t8103-dart", fixed(Dart, K16, 32, 36).walks(&[Dart1])),
    ("apple,t8103-usb4-dart", fixed(Dart, K16, 32, 36).walks(&[Dart1]).bypass(false)),
    ("apple,t6000-dart", fixed(Dart, K16, 32, 42).walks(&[Dart2])),
    // PARAMS4 holds both widths; the format has 42 bits of output.
    ("apple,t8110-dart", fixed(Dart, K16, 0, 42).walks(&[Dart2]).probed()),
    ("arm,smmu-v1", SMMU_V1),
    ("arm,mmu-400", SMMU_V1),
    ("arm,mmu-401", SMMU_V1),
    ("arm,smmu-v2", SMMU_V2),
    ("cavium,smmu-v2", SMMU_V2),
    ("arm,mmu-500", MMU500),
    ("nvidia,smmu-500", MMU500),
    ("nvidia,tegra186-smmu", MMU500),
    ("nvidia,tegra194-smmu", MMU500),
    ("nvidia,tegra234-smmu", MMU500),
    ("marvell,ap806-smmu-500", MMU500),
    ("qcom,smmu-500", QCOM_SMMU),
    ("qcom,smmu-v2", QCOM_SMMU),
    ("qcom,adreno-smmu", QCOM_SMMU),
    ("arm,smmu-v3", SMMU_V3),
    ("hisilicon,hip06-smmu-v3", SMMU_V3),
    ("cavium,cn9900-smmu-v3", SMMU_V3),
    // Two levels, 4 KiB leaves only; the later one packs 40-bit addresses into the entries.
    ("rockchip,iommu", fixed(Rockchip, K4, 32, 32).bypass(true)),
    ("rockchip,rk3568-iommu", fixed(Rockchip, K4, 32, 40).bypass(true)),
    // The first generation has one level of 4 KiB pages.
    ("mediatek,mt2701-m4u", fixed(MediaTek, K4, 32, 32)),
    ("mediatek,mt2712-m4u", fixed(MediaTek, SHORT, 32, 33)),
    ("mediatek,mt8173-m4u", fixed(MediaTek, SHORT, 32, 33)),
    ("mediatek,mt6779-m4u", MTK_V7S),
    ("mediatek,mt6795-m4u", fixed(MediaTek, SHORT, 32, 33)),
    ("mediatek,mt8167-m4u", MTK_V7S),
    ("mediatek,mt8183-m4u", MTK_V7S),
    ("mediatek,mt8365-m4u", MTK_V7S),
    ("mediatek,mt8186-iommu-mm", MTK_34),
    ("mediatek,mt8188-iommu-vdo", MTK_34),
    ("mediatek,mt8188-iommu-vpp", MTK_34),
    ("mediatek,mt8188-iommu-infra", MTK_34),
    ("mediatek,mt8192-m4u", MTK_34),
    ("mediatek,mt8195-iommu-vdo", MTK_34),
    ("mediatek,mt8195-iommu-vpp", MTK_34),
    ("mediatek,mt8195-iommu-infra", MTK_34),
    ("nvidia,tegra30-mc", fixed(Tegra, K4, 32, 32)),
    ("nvidia,tegra114-mc", fixed(Tegra, K4, 32, 32)),
    ("nvidia,tegra124-mc", fixed(Tegra, K4, 32, 34)),
    ("nvidia,tegra132-mc", fixed(Tegra, K4, 32, 34)),
    ("nvidia,tegra210-mc", fixed(Tegra, K4, 32, 34)),
    ("ti,omap2-iommu", fixed(Omap, SHORT, 32, 32)),
    ("ti,omap4-iommu", fixed(Omap, SHORT, 32, 32)),
    ("ti,dra7-iommu", fixed(Omap, SHORT, 32, 32)),
    ("ti,dra7-dsp-iommu", fixed(Omap, SHORT, 32, 32)),
    ("samsung,exynos-sysmmu", fixed(Exynos, K4 | K64 | M1, 32, 0).probed()),
    ("riscv,iommu", RISCV),
    ("riscv,pci-iommu", RISCV),
    ("qemu,riscv-iommu", RISCV),
    ("virtio,pci-iommu", VIRTIO),
    ("virtio,mmio", VIRTIO),
    ("qcom,msm-iommu-v1", fixed(Qcom, LPAE4K, 32, 40).walks(&[Lpae4k])),
    ("qcom,msm-iommu-v2", fixed(Qcom, LPAE4K, 32, 40).walks(&[Lpae4k])),
    ("qcom,apq8064-iommu", fixed(Qcom, SHORT, 32, 32)),
    ("sprd,iommu-v1", fixed(Sprd, K4, 0, 0)),
];

/// Families whose members are many: a prefix and a suffix.
const FAMILIES: &[(&str, &str, IommuFacts)] = &[
    ("qcom,", "-smmu-500", QCOM_SMMU),
    ("qcom,", "-smmu-v2", QCOM_SMMU),
    // Long descriptors of the 32-bit architecture.
    ("renesas,ipmmu-", "", fixed(Ipmmu, LPAE4K, 32, 40).walks(&[Lpae4k])),
    ("allwinner,sun50i-", "-iommu", fixed(Sun50i, K4, 32, 32).bypass(true)),
];

fn lookup(compatible: &str) -> Option<IommuFacts> {
    if let Some((_, facts)) = EXACT.iter().find(|(name, _)| *name == compatible) {
        return Some(*facts);
    }
    let family = FAMILIES.iter().find(|(prefix, suffix, _)| {
        compatible.strip_prefix(prefix).is_some_and(|rest| rest.ends_with(suffix))
    });
    family.map(|(_, _, facts)| *facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_known_string_wins() {
        let dart = IommuFacts::of(["apple,t8112-dart", "apple,t8110-dart"]).expect("known");
        assert_eq!((dart.kind, dart.output_bits), (Dart, Some(42)));
        let smmu = IommuFacts::of(["qcom,sm8250-smmu-500", "arm,mmu-500"]).expect("known");
        assert_eq!((smmu.kind, smmu.output_bits, smmu.probed), (SmmuV2, None, true));
        assert_eq!(IommuFacts::of(["acme,iommu"]), None);
        assert_eq!(IommuFacts::of(["allwinner,sun50i-h6"]), None);
    }

    #[test]
    fn formats_lie_within_the_page_sizes() {
        let all = EXACT.iter().map(|(name, facts)| (*name, facts));
        for (name, facts) in all.chain(FAMILIES.iter().map(|(name, _, facts)| (*name, facts))) {
            let formats = facts.formats.iter().map(|format| format.page_sizes().bits());
            let bits = formats.fold(0, |a, b| a | b);
            assert_eq!(bits & !facts.page_sizes.bits(), 0, "{name}");
            let same = EXACT.iter().filter(|(other, _)| *other == name).count();
            assert!(same <= 1, "{name} stands there twice");
        }
    }
}
