//! What does not compile, and why: the part of "a guard owns its buffer" that the compiler checks.
//!
//! Each example that fails stands beside its twin that differs in one thing and compiles.
//!
//! # A buffer cannot be used while the device has it
//!
//! ```no_run
//! # use granule::{addr::Direction, dma::Device};
//! fn receive(device: &Device, mut buffer: Vec<u8>) -> Result<u8, Box<dyn std::error::Error>> {
//!     buffer[0] = 1;
//!     let mapping = device.map(buffer, Direction::FromDevice).map_err(|refused| refused.error)?;
//!     let buffer = mapping.unmap()?;
//!     Ok(buffer[0])
//! }
//! ```
//!
//! ```compile_fail,E0382
//! # use granule::{addr::Direction, dma::Device};
//! fn receive(device: &Device, mut buffer: Vec<u8>) -> Result<u8, Box<dyn std::error::Error>> {
//!     buffer[0] = 1;
//!     let mapping = device.map(buffer, Direction::FromDevice).map_err(|refused| refused.error)?;
//!     Ok(buffer[0]) // the mapping has it
//! }
//! ```
//!
//! # The CPU gets copies between two syncs, and no slice
//!
//! ```no_run
//! # use granule::dma::{Device, DmaError, Mapping};
//! fn peek(mapping: &mut Mapping<&Device, Vec<u8>>) -> Result<u8, DmaError> {
//!     let mut first = [0];
//!     mapping.sync_for_cpu(0..1)?.read(0, &mut first)?;
//!     Ok(first[0])
//! }
//! ```
//!
//! ```compile_fail,E0608
//! # use granule::dma::{Device, DmaError, Mapping};
//! fn peek(mapping: &mut Mapping<&Device, Vec<u8>>) -> Result<u8, DmaError> {
//!     Ok(mapping[0]) // no slice while the device may write
//! }
//! ```
//!
//! The turn must end before the mapping does:
//!
//! ```no_run
//! # use granule::dma::{Device, Mapping};
//! fn end(mut mapping: Mapping<&Device, Vec<u8>>) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
//!     let turn = mapping.sync_for_cpu(0..1)?;
//!     let empty = turn.is_empty();
//!     drop(turn);
//!     assert!(!empty);
//!     Ok(mapping.unmap()?)
//! }
//! ```
//!
//! ```compile_fail,E0505
//! # use granule::dma::{Device, Mapping};
//! fn end(mut mapping: Mapping<&Device, Vec<u8>>) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
//!     let turn = mapping.sync_for_cpu(0..1)?;
//!     let buffer = mapping.unmap()?; // the CPU still looks at it
//!     drop(turn);
//!     Ok(buffer)
//! }
//! ```
//!
//! # A mapping ends once
//!
//! ```no_run
//! # use granule::dma::{Device, Mapping};
//! fn program(mapping: Mapping<&Device, Vec<u8>>) -> Result<u64, Box<dyn std::error::Error>> {
//!     let address = mapping.address().raw();
//!     mapping.unmap()?;
//!     Ok(address)
//! }
//! ```
//!
//! ```compile_fail,E0382
//! # use granule::dma::{Device, Mapping};
//! fn program(mapping: Mapping<&Device, Vec<u8>>) -> Result<u64, Box<dyn std::error::Error>> {
//!     mapping.unmap()?;
//!     Ok(mapping.address().raw()) // gone
//! }
//! ```
//!
//! # Borrowed memory cannot be mapped
//!
//! A mapping that is forgotten would outlive the borrow. What is borrowed for ever can be mapped.
//!
//! ```no_run
//! # use granule::{addr::Direction, dma::Device};
//! fn send(device: &Device, buffer: &'static mut [u8]) {
//!     drop(device.map(buffer, Direction::ToDevice));
//! }
//! ```
//!
//! ```compile_fail,E0521
//! # use granule::{addr::Direction, dma::Device};
//! fn send(device: &Device, buffer: &mut [u8]) {
//!     drop(device.map(buffer, Direction::ToDevice));
//! }
//! ```
//!
//! # What others may read cannot be given to a device that writes
//!
//! ```no_run
//! # use granule::{addr::Direction, dma::Device};
//! use std::sync::Arc;
//! fn send(device: &Device, shared: Arc<[u8]>, table: &'static [u16]) {
//!     drop(device.map_to_device(shared));
//!     drop(device.map_to_device(table));
//! }
//! ```
//!
//! ```compile_fail,E0277
//! # use granule::{addr::Direction, dma::Device};
//! use std::sync::Arc;
//! fn receive(device: &Device, shared: Arc<[u8]>) {
//!     drop(device.map(shared, Direction::FromDevice)); // others read it meanwhile
//! }
//! ```
//!
//! ```compile_fail,E0277
//! # use granule::{addr::Direction, dma::Device};
//! fn receive(device: &Device, table: &'static [u16]) {
//!     drop(device.map(table, Direction::FromDevice)); // it is constant
//! }
//! ```
//!
//! # Only plain bytes can be written by a device
//!
//! ```no_run
//! # use granule::{addr::Direction, dma::Device};
//! fn receive(device: &Device, numbers: Vec<[u32; 4]>) {
//!     drop(device.map(numbers, Direction::FromDevice));
//! }
//! ```
//!
//! ```compile_fail,E0277
//! # use granule::{addr::Direction, dma::Device};
//! fn receive(device: &Device, flags: Vec<bool>) {
//!     drop(device.map(flags, Direction::FromDevice)); // 2 is no bool
//! }
//! ```
//!
//! # Only coherent memory knows its scatter list
//!
//! Its blocks are whole granules and stay where they are, so they can be mapped a second time; of a
//! streaming buffer nobody can say that (`dma_get_sgtable`).
//!
//! ```no_run
//! # use granule::dma::{Coherent, Device, DmaError};
//! fn hand_on<'d>(memory: &Coherent<&Device>, other: &'d Device) -> Result<Coherent<&'d Device>, DmaError> {
//!     assert!(!memory.scatter_list().is_empty());
//!     memory.map_for(other)
//! }
//! ```
//!
//! ```compile_fail,E0599
//! # use granule::dma::{Device, Mapping};
//! fn hand_on(mapping: &Mapping<&Device, Vec<u8>>) {
//!     mapping.scatter_list();
//! }
//! ```
//!
//! # A device outlives the guards that borrow it
//!
//! ```no_run
//! # use granule::dma::{Device, DmaError};
//! fn swap(device: Device) -> Result<(), DmaError> {
//!     let memory = device.alloc_coherent(64)?;
//!     drop(memory);
//!     drop(device);
//!     Ok(())
//! }
//! ```
//!
//! ```compile_fail,E0505
//! # use granule::dma::{Device, DmaError};
//! fn swap(device: Device) -> Result<(), DmaError> {
//!     let memory = device.alloc_coherent(64)?;
//!     drop(device); // still borrowed
//!     drop(memory);
//!     Ok(())
//! }
//! ```
//!
//! # An address in another device's space is no range of one's own
//!
//! A device may carry an address that means something to another one only; what programs a device
//! takes the range that was mapped for it.
//!
//! ```no_run
//! # use granule::{dma::Device, share::{Contiguous, Shared}};
//! fn program(range: Contiguous<'_>) -> u64 {
//!     range.address().raw()
//! }
//! fn start(shared: &Shared, device: &Device) -> Option<u64> {
//!     Some(program(shared.range_of(device)?))
//! }
//! ```
//!
//! ```compile_fail,E0308
//! # use granule::{dma::Device, share::{Contiguous, Key, Shared}};
//! fn program(range: Contiguous<'_>) -> u64 {
//!     range.address().raw()
//! }
//! fn start(shared: &Shared, of: Key, device: &Device) -> Option<u64> {
//!     Some(program(shared.grant_address(of, device).ok()?)) // nothing is mapped for the device
//! }
//! ```
