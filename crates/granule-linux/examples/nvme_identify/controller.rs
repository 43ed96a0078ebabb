//! An NVMe controller: started, asked what it is, and read from.
//!
//! Source: NVM Express Base Specification 2.0, sections 3.1.3 (registers), 3.5.1 (initialisation), 4.3.1
//! (PRP entries), 5.17 (Identify); NVM Command Set Specification 1.0, section 3.2.4 (Read).

use std::time::{Duration, Instant};

use granule::addr::DmaAddr;
use granule::dma::{Coherent, Device as DmaDevice};
use granule_linux::{Bar, Device};

use crate::Outcome;
use crate::queue::{Command, ENTRIES, QueuePair};

/// The controller's page: the smallest there is.
const PAGE: u64 = 4096;
/// How much one list of pages describes: one page of addresses.
const LIST_REACH: u64 = PAGE / 8 * PAGE;

mod register {
    pub(crate) const CAPABILITIES: u64 = 0x00;
    pub(crate) const CONFIGURATION: u64 = 0x14;
    pub(crate) const STATUS: u64 = 0x1c;
    pub(crate) const ADMIN_SIZES: u64 = 0x24;
    pub(crate) const ADMIN_SUBMISSIONS: u64 = 0x28;
    pub(crate) const ADMIN_COMPLETIONS: u64 = 0x30;
}

mod opcode {
    pub(crate) const CREATE_SUBMISSIONS: u8 = 0x01;
    pub(crate) const CREATE_COMPLETIONS: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const READ: u8 = 0x02;
}

/// What a controller says of itself.
pub(crate) struct Identity {
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) firmware: String,
    pub(crate) namespaces: u32,
}

/// What it says of a namespace.
pub(crate) struct Namespace {
    pub(crate) blocks: u64,
    pub(crate) block_size: u64,
}

pub(crate) struct Controller<'d> {
    device: &'d Device,
    registers: Bar,
    admin: QueuePair<'d>,
    io: Option<QueuePair<'d>>,
    /// A page for lists of pages, and one for answers.
    list: Coherent<&'d DmaDevice>,
    answer: Coherent<&'d DmaDevice>,
    stride: u64,
    timeout: Duration,
    /// The longest transfer in bytes.
    longest: u64,
}

impl<'d> Controller<'d> {
    /// Resets and enables the controller.
    pub(crate) fn start(device: &'d Device) -> Outcome<Self> {
        let registers = device.pci().bar(0)?;
        let capabilities: u64 = registers.read(register::CAPABILITIES)?;
        if (capabilities >> 48) & 0xf != 0 {
            return Err("the controller's smallest page is larger than 4 KiB".into());
        }
        let stride = 4 << ((capabilities >> 32) & 0xf);
        let timeout = Duration::from_millis(500 * ((capabilities >> 24) & 0xff).max(1));
        let dma = device.dma();
        let this = Self {
            device,
            registers,
            admin: QueuePair::new(dma, 0, stride)?,
            io: None,
            list: dma.alloc_coherent(PAGE)?,
            answer: dma.alloc_coherent(PAGE)?,
            stride,
            timeout,
            longest: LIST_REACH,
        };
        this.enable(false)?;
        device.pci().enable_bus_mastering()?;
        let entries = u32::from(ENTRIES - 1);
        let (submissions, completions) = this.admin.addresses();
        this.registers.write(register::ADMIN_SIZES, entries << 16 | entries)?;
        this.registers.write(register::ADMIN_SUBMISSIONS, submissions.raw())?;
        this.registers.write(register::ADMIN_COMPLETIONS, completions.raw())?;
        this.enable(true)?;
        Ok(this)
    }

    /// Switches the controller on or off, and waits for it.
    fn enable(&self, on: bool) -> Outcome<()> {
        // Entries of 64 and 16 bytes, pages of 4 KiB, the NVM command set.
        let configuration = if on { 4 << 20 | 6 << 16 | 1 } else { 0u32 };
        self.registers.write(register::CONFIGURATION, configuration)?;
        let start = Instant::now();
        loop {
            let status: u32 = self.registers.read(register::STATUS)?;
            if (status & 1 == 1) == on {
                return Ok(());
            }
            if status & 2 != 0 {
                return Err("the controller reports a fatal error".into());
            }
            if start.elapsed() > self.timeout.max(Duration::from_secs(10)) {
                return Err("the controller does not change its state".into());
            }
            std::thread::yield_now();
        }
    }

    fn ask(&mut self, what: u32, namespace: u32) -> Outcome<Vec<u8>> {
        let command = Command::new(opcode::IDENTIFY, namespace).word(10, what);
        let command = command.data(self.answer.address().raw(), 0);
        self.admin.perform(&self.registers, command)?;
        let mut bytes = vec![0; PAGE as usize];
        self.answer.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Who the controller is.
    pub(crate) fn identify(&mut self) -> Outcome<Identity> {
        let bytes = self.ask(1, 0)?;
        let text = |from: usize, to: usize| String::from_utf8_lossy(&bytes[from..to]).trim().into();
        if bytes[77] != 0 {
            self.longest = LIST_REACH.min(PAGE << bytes[77].min(32));
        }
        Ok(Identity {
            serial: text(4, 24),
            model: text(24, 64),
            firmware: text(64, 72),
            namespaces: u32::from_le_bytes(bytes[516..520].try_into()?),
        })
    }

    /// How large a namespace is.
    pub(crate) fn namespace(&mut self, number: u32) -> Outcome<Namespace> {
        let bytes = self.ask(0, number)?;
        let blocks = u64::from_le_bytes(bytes[..8].try_into()?);
        let format = usize::from(bytes[26] & 0xf);
        let shift = bytes[128 + 4 * format + 2];
        if blocks == 0 || !(9..=20).contains(&shift) {
            return Err(format!("there is no namespace {number}").into());
        }
        Ok(Namespace { blocks, block_size: 1 << shift })
    }

    /// Makes queue 1, for reading.
    pub(crate) fn create_io_queue(&mut self) -> Outcome<()> {
        let io = QueuePair::new(self.device.dma(), 1, self.stride)?;
        let (submissions, completions) = io.addresses();
        let shape = u32::from(ENTRIES - 1) << 16 | 1;
        let contiguous = 1;
        let create = Command::new(opcode::CREATE_COMPLETIONS, 0).data(completions.raw(), 0);
        self.admin.perform(&self.registers, create.word(10, shape).word(11, contiguous))?;
        let create = Command::new(opcode::CREATE_SUBMISSIONS, 0).data(submissions.raw(), 0);
        self.admin
            .perform(&self.registers, create.word(10, shape).word(11, 1 << 16 | contiguous))?;
        self.io = Some(io);
        Ok(())
    }

    /// The longest transfer in bytes, whatever its offset in a page.
    pub(crate) fn longest_transfer(&self) -> u64 {
        self.longest - PAGE
    }

    /// Reads blocks to memory at an address of the controller's.
    pub(crate) fn read(
        &mut self,
        namespace: u32,
        lba: u64,
        blocks: u64,
        to: DmaAddr,
        len: u64,
    ) -> Outcome<()> {
        let second = self.pages(to, len)?;
        let command = Command::new(opcode::READ, namespace)
            .data(to.raw(), second)
            .word(10, lba as u32)
            .word(11, (lba >> 32) as u32)
            .word(12, u32::try_from(blocks - 1)?);
        let io = self.io.as_mut().ok_or("there is no queue yet")?;
        io.perform(&self.registers, command)
    }

    /// The second PRP entry of a range: nothing, its second page, or the list of all pages but the first.
    fn pages(&self, to: DmaAddr, len: u64) -> Outcome<u64> {
        let first = PAGE - to.raw() % PAGE;
        let rest = len.saturating_sub(first);
        let page = |index: u64| to.raw() + first + index * PAGE;
        match rest.div_ceil(PAGE) {
            0 => Ok(0),
            1 => Ok(page(0)),
            count if count <= PAGE / 8 => {
                let list: Vec<u8> =
                    (0..count).flat_map(|index| page(index).to_le_bytes()).collect();
                self.list.write(0, &list)?;
                Ok(self.list.address().raw())
            }
            _ => Err("the transfer is longer than a list of pages".into()),
        }
    }

    /// Switches the controller off: it forgets its queues.
    pub(crate) fn stop(self) -> Outcome<()> {
        self.enable(false)?;
        self.device.pci().disable_bus_mastering()?;
        Ok(())
    }
}
