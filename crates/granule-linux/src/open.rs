//! Opening a device through either interface, and what the kernel's refusals mean.
#![forbid(unsafe_code)]

use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use granule::mem::Platform;
use iommufd_ioctls::{IommuFd, IommufdError};
use rustix::io::Errno;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioIommufd, VfioOps};

use crate::checks::Candidate;
use crate::iommufd::{self, Context, Ioas, IoasSpace};
use crate::kernel::{Kernel, Limits};
use crate::pci::Pci;
use crate::sysfs::Sysfs;
use crate::vfio::Container;
use crate::{Backend, Bdf, Error, UserMemory};

/// An address space of the kernel's.
#[derive(Clone)]
pub(crate) enum Opened {
    Vfio(Arc<VfioContainer>),
    Iommufd(Arc<Ioas>),
}

/// Makes an address space.
pub(crate) fn space(
    backend: Backend,
    sysfs: &Sysfs,
    iommufd: &mut Option<Arc<Context>>,
    candidate: Candidate,
) -> Result<Opened, Error> {
    let device = candidate.device;
    if !sysfs.is_live() {
        let error = io::Error::other("these are another machine's files");
        return Err(Error::Kernel { device, what: "opening it".into(), error });
    }
    match backend {
        Backend::Vfio => {
            let opened = VfioContainer::new(None).map_err(|error| vfio_error(candidate, error))?;
            Ok(Opened::Vfio(Arc::new(opened)))
        }
        Backend::Iommufd => {
            let context = match iommufd {
                Some(context) => context.clone(),
                None => {
                    let opened = IommuFd::new().map_err(|error| iommufd_error(device, error))?;
                    iommufd.insert(Context::new(opened)).clone()
                }
            };
            let ioas = Ioas::new(&context).map_err(|error| Error::Kernel {
                device,
                what: "a new IOAS".into(),
                error,
            })?;
            Ok(Opened::Iommufd(ioas))
        }
    }
}

/// Puts a device into the space.
pub(crate) fn device(
    opened: &Opened,
    sysfs: &Sysfs,
    candidate: Candidate,
    claim: Arc<dyn Any + Send + Sync>,
) -> Result<Pci, Error> {
    let path = sysfs.device(candidate.device);
    let wrap = |error| match opened {
        Opened::Vfio(_) => vfio_error(candidate, error),
        Opened::Iommufd(_) => cdev_error(sysfs, candidate, error),
    };
    match opened {
        Opened::Vfio(container) => {
            let ops: Arc<dyn VfioOps> = container.clone();
            let device = VfioDevice::new(&path, ops).map_err(wrap)?;
            Ok(Pci::new(candidate, device, vec![claim]))
        }
        Opened::Iommufd(ioas) => {
            let fd = ioas.context.fd.clone();
            let ops = VfioIommufd::new(fd, Some(ioas.id), None).map_err(wrap)?;
            let device = VfioDevice::new(&path, Arc::new(ops)).map_err(wrap)?;
            Ok(Pci::new(candidate, device, vec![ioas.clone(), claim]))
        }
    }
}

impl Opened {
    /// The space as something to map into. It has a device.
    pub(crate) fn kernel(&self, sysfs: &Sysfs, device: Bdf) -> Box<dyn Kernel> {
        match self {
            Self::Vfio(container) => Box::new(Container::new(container.clone(), sysfs.clone())),
            Self::Iommufd(ioas) => {
                let iommu = sysfs.iommu_of(device);
                let sizes = iommu.and_then(|iommu| sysfs.page_sizes(&iommu));
                Box::new(IoasSpace::new(ioas.clone(), sizes.unwrap_or_default()))
            }
        }
    }
}

/// Refuses an IOMMU whose pages are larger than the CPU's.
pub(crate) fn check_granule(device: Bdf, limits: &Limits, memory: UserMemory) -> Result<(), Error> {
    let cpu_page = memory.cpu_page();
    match limits.page_sizes.granule() {
        Some(granule) if granule > cpu_page => {
            Err(Error::LargeGranule { device, granule, cpu_page })
        }
        _ => Ok(()),
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// A device file that could not be opened.
fn open_error(device: Bdf, path: PathBuf, error: io::Error) -> Error {
    match errno(&error) {
        Some(Errno::ACCESS | Errno::PERM) => Error::Permission { path },
        Some(Errno::BUSY) => Error::Busy { path },
        _ => Error::Kernel { device, what: format!("opening {}", path.display()), error },
    }
}

/// What a container, a group or its device answered.
fn vfio_error(candidate: Candidate, error: VfioError) -> Error {
    let Candidate { device, group } = candidate;
    let group_file = || PathBuf::from(format!("/dev/vfio/{group}"));
    let kernel = |what: &str, errno: i32| {
        let error = io::Error::from_raw_os_error(errno);
        Error::Kernel { device, what: what.into(), error }
    };
    match error {
        VfioError::OpenContainer(error) => open_error(device, "/dev/vfio/vfio".into(), error),
        VfioError::OpenGroup(error, _) => open_error(device, group_file(), error),
        VfioError::ContainerSetIOMMU(error) if error.errno() == Errno::PERM.raw_os_error() => {
            Error::UnsafeInterrupts { device, parameter: VFIO_PARAMETER }
        }
        VfioError::ContainerSetIOMMU(error) => kernel("its IOMMU (type1)", error.errno()),
        // vfio-ioctls keeps no errno of this one: what a group added to a container that has an IOMMU is
        // refused for is mostly its interrupts; for the first one it is another container.
        VfioError::GroupSetContainer => Error::Busy { path: group_file() },
        VfioError::GroupGetDeviceFD(error) if error.errno() == Errno::BUSY.raw_os_error() => {
            Error::Busy { path: group_file() }
        }
        VfioError::GroupGetDeviceFD(error) => kernel("opening it", error.errno()),
        VfioError::VfioExtension | VfioError::VfioApiVersion | VfioError::VfioType1V2 => {
            let error = io::Error::other(
                "the module vfio_iommu_type1 is not loaded: `modprobe vfio_iommu_type1`",
            );
            Error::Kernel { device, what: "VFIO without a type1 IOMMU".into(), error }
        }
        other => Error::Kernel {
            device,
            what: "opening it through VFIO".into(),
            error: io::Error::other(other.to_string()),
        },
    }
}

/// What `/dev/iommu` answered when it was opened.
fn iommufd_error(device: Bdf, error: IommufdError) -> Error {
    open_error(device, "/dev/iommu".into(), iommufd::os_error(error))
}

/// What a character device answered.
fn cdev_error(sysfs: &Sysfs, candidate: Candidate, error: VfioError) -> Error {
    let device = candidate.device;
    let file = || {
        let name = sysfs.cdev(device).unwrap_or_else(|| "vfio*".into());
        PathBuf::from(format!("/dev/vfio/devices/{name}"))
    };
    let answer = |what: &str, code: i32| {
        let error = io::Error::from_raw_os_error(code);
        match errno(&error) {
            Some(Errno::PERM) => Error::UnsafeInterrupts { device, parameter: IOMMUFD_PARAMETER },
            Some(Errno::BUSY) => Error::Busy { path: file() },
            _ => Error::Kernel { device, what: what.into(), error },
        }
    };
    match error {
        VfioError::OpenDeviceCdev(error) => open_error(device, file(), error),
        VfioError::VfioDeviceBindIommufd(error) => answer("binding it to iommufd", error.errno()),
        VfioError::VfioDeviceAttachIommufdPt(error) => {
            answer("attaching it to an IOAS", error.errno())
        }
        VfioError::InvalidVfioDev => Error::NoCdev { device },
        other => Error::Kernel {
            device,
            what: "opening it through iommufd".into(),
            error: io::Error::other(other.to_string()),
        },
    }
}

/// Where the kernel is told to hand out devices that could forge interrupts.
const VFIO_PARAMETER: &str = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
const IOMMUFD_PARAMETER: &str = "/sys/module/iommufd/parameters/allow_unsafe_interrupts";
