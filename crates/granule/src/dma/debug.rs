//! What guards look like in a log, and in the message of an `expect`: the device, the address, the
//! length. Never the bytes, which the device may be writing.

use core::fmt;

use super::{
    Coherent, CoherentPool, CpuAccess, DeviceRef, DmaBuffer, ForeignMemory, ListAccess,
    ListMapping, Mapping, Memory, Pending, PoolObject, Reservation, ResourceMapping, ScatterList,
};

impl<D: DeviceRef, B: DmaBuffer> fmt::Debug for Mapping<D, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("device", &self.device().name())
            .field("address", &self.address())
            .field("len", &self.len())
            .field("direction", &self.direction())
            .field("bounced", &self.is_bounced())
            .finish_non_exhaustive()
    }
}

impl<D: DeviceRef, B: DmaBuffer> fmt::Debug for Pending<D, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("ready", &self.is_ready()).finish_non_exhaustive()
    }
}

impl<B: DmaBuffer> fmt::Debug for ScatterList<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScatterList").field("entries", &self.entries()).finish_non_exhaustive()
    }
}

impl<D: DeviceRef, B: DmaBuffer> fmt::Debug for ListMapping<D, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListMapping")
            .field("device", &self.device().name())
            .field("segments", &self.segments())
            .field("bounced", &self.bounced())
            .finish_non_exhaustive()
    }
}

impl<D: DeviceRef> fmt::Debug for Coherent<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coherent")
            .field("device", &self.device().name())
            .field("address", &self.address())
            .field("len", &self.len())
            .field("blocks", &self.scatter_list())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CoherentPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoherentPool")
            .field("object_size", &self.object_size())
            .field("memory_size", &self.memory_size())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PoolObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolObject")
            .field("address", &self.address())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<D: DeviceRef, B: DmaBuffer> fmt::Debug for Reservation<D, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("address", &self.address())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<D: DeviceRef> fmt::Debug for ResourceMapping<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceMapping")
            .field("address", &self.address())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CpuAccess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuAccess").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for ListAccess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListAccess").finish_non_exhaustive()
    }
}

impl fmt::Debug for ForeignMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = Memory::Many(self.pieces());
        f.debug_struct("ForeignMemory").field("memory", &memory).finish_non_exhaustive()
    }
}
