//! A small driver in a process of its own, as a user may run it: it shares a buffer between devices.

use granule::addr::Access;
use granule::dma::DeviceSpec;
use granule::share::Plan;
use granule_linux::{Backend, Host};

use crate::Failure;

/// `DEVICE,DEVICE BACKEND BYTES`: each device gets an address space, and all of them one buffer.
pub(crate) fn share(arguments: &[String]) -> Result<(), Failure> {
    let [devices, backend, len] = arguments else {
        return Err("say which devices, which interface and how many bytes".into());
    };
    let backend: Backend = backend.parse()?;
    let host = Host::new();
    let mut open = Vec::new();
    for address in devices.split(',') {
        let space = host.space(backend);
        open.push(space.device(address.parse()?, DeviceSpec::new(address)).open()?);
    }
    let plan = open
        .iter()
        .fold(Plan::new(len.parse()?), |plan, device| plan.device(device.dma(), Access::all()));
    let shared = plan.solve()?.allocate()?;
    for range in shared.ranges() {
        println!("{}: {} bytes at {}", range.device().name(), range.len(), range.address());
    }
    Ok(shared.free()?)
}
