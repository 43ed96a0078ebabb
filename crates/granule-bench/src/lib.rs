//! Workloads for granule, its peers and the floor under both, measured in one run.
//!
//! Only ratios within one run mean something: machines are noisy. Each row is the minimum of many
//! samples (and their median beside it), so that what somebody else does on the machine counts least.
//!
//! ```text
//! platform, unit   a machine in memory, an IOMMU that does nothing
//! measure, report  samples, rows, JSON, the table for people
//! targets, names   what each row is to reach, and the rows that there must be
//! summary, plot    the table and the picture of the README
//! floor            stores, zeroes, and two register loops that tell whether a second core is ours
//! iova…, table, dma, growth, memory    the workloads
//! crates…, linux   the same workloads on peers
//! keys             six paths whose instructions are counted
//! ```

pub mod crates_iova;
#[cfg(target_arch = "x86_64")]
pub mod crates_table;
pub mod dma;
pub mod floor;
pub mod growth;
pub mod iova;
pub mod iova_past;
pub mod iova_threads;
pub mod keys;
pub mod linux;
pub mod measure;
pub mod memory;
pub mod names;
pub mod platform;
pub mod plot;
pub mod report;
pub mod summary;
pub mod table;
pub mod targets;
pub mod unit;

/// The CPU that everything with one thread runs on; the peers' programs are put there too.
pub const HOME: usize = 1;
