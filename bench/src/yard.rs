//! The benchmark's own programs in the kernel.

use std::{net::SocketAddrV4, slice};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, MapData, PerCpuArray},
    programs::{
        ProgramError, SchedClassifier, SocketFilter, TcAttachType, Xdp, XdpMode,
        tc::qdisc_add_clsact,
    },
};
use portfwd_tests::Netns;
use portfwd_yardstick::{Rewrite, SinkMode, names};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portfwd-yardstick"));

/// One instance of the programs, with maps of its own. Dropping it detaches
/// and unloads.
pub struct Yard {
    ebpf: Ebpf,
}

impl Yard {
    /// Loads the maps; programs are loaded when they are asked for.
    ///
    /// # Errors
    ///
    /// The kernel refuses them.
    pub fn load() -> Result<Self> {
        Self::with(&Rewrite::default())
    }

    /// The same, with the constants of the fixed rewrite.
    ///
    /// # Errors
    ///
    /// The kernel refuses them.
    pub fn with(rewrite: &Rewrite) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let ebpf = loader
            .btf(None)
            .override_global(names::REWRITE, bytes(rewrite), true)
            .load(OBJECT)
            .context("cannot load the yardstick's maps")?;
        Ok(Self { ebpf })
    }

    /// An XDP program, loaded.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let program: &mut Xdp = self.program(name)?.try_into()?;
        loaded(program.fd().is_ok(), || program.load(), name)?;
        Ok(program)
    }

    /// A TC program, loaded.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn tc(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let program: &mut SchedClassifier = self.program(name)?.try_into()?;
        loaded(program.fd().is_ok(), || program.load(), name)?;
        Ok(program)
    }

    /// The filter that counts what a socket is given, loaded.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn socket_sink(&mut self) -> Result<&mut SocketFilter> {
        let program: &mut SocketFilter = self.program(names::SOCKET_SINK)?.try_into()?;
        loaded(program.fd().is_ok(), || program.load(), names::SOCKET_SINK)?;
        Ok(program)
    }

    /// Attaches an XDP program to a device, native.
    ///
    /// # Errors
    ///
    /// The driver has no XDP, or the hook is taken.
    pub fn attach_xdp(&mut self, name: &str, ns: &Netns, device: &str) -> Result<()> {
        let program = self.xdp(name)?;
        ns.enter(|| program.attach(device, XdpMode::Driver))
            .with_context(|| format!("cannot attach {name} to {device}"))?;
        Ok(())
    }

    /// Attaches a TC program to a device's ingress.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn attach_tc(&mut self, name: &str, ns: &Netns, device: &str) -> Result<()> {
        self.attach_tc_to(name, ns, device, TcAttachType::Ingress)
    }

    /// Attaches a TC program to a device's egress.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn attach_tc_out(&mut self, name: &str, ns: &Netns, device: &str) -> Result<()> {
        self.attach_tc_to(name, ns, device, TcAttachType::Egress)
    }

    fn attach_tc_to(
        &mut self,
        name: &str,
        ns: &Netns,
        device: &str,
        side: TcAttachType,
    ) -> Result<()> {
        let program = self.tc(name)?;
        ns.enter(|| {
            // Below 6.6 filters stand on a qdisc; where it is there already, or
            // not needed, this does no harm.
            let _ = qdisc_add_clsact(device);
            program.attach(device, side)
        })
        .with_context(|| format!("cannot attach {name} to {device}"))?;
        Ok(())
    }

    /// Makes a device a sink, of what XDP sees there and of what comes past it.
    ///
    /// # Errors
    ///
    /// The kernel refuses a program.
    pub fn attach_sink(&mut self, ns: &Netns, device: &str) -> Result<()> {
        self.attach_xdp(names::SINK, ns, device)?;
        self.attach_tc(names::SINK_TC, ns, device)
    }

    /// Sets what sinks do with a frame.
    ///
    /// # Errors
    ///
    /// The map refuses it.
    pub fn set_mode(&mut self, mode: SinkMode) -> Result<()> {
        self.array::<u32>(names::MODE)?.set(0, mode as u32, 0)?;
        Ok(())
    }

    /// Frames that the sink has counted so far.
    ///
    /// # Errors
    ///
    /// The map is not there.
    pub fn count(&self) -> Result<u64> {
        let map = self.ebpf.map(names::COUNT).context(names::COUNT)?;
        let values = PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?;
        Ok(values.iter().sum())
    }

    /// An array map.
    ///
    /// # Errors
    ///
    /// There is none of that name and type.
    pub fn array<T: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.ebpf.map_mut(name).with_context(|| name.to_owned())?;
        Ok(Array::try_from(map)?)
    }

    fn program(&mut self, name: &str) -> Result<&mut aya::programs::Program> {
        self.ebpf
            .program_mut(name)
            .with_context(|| format!("the object lacks {name}"))
    }
}

fn loaded(
    already: bool,
    load: impl FnOnce() -> Result<(), ProgramError>,
    name: &str,
) -> Result<()> {
    if already {
        return Ok(());
    }
    load().with_context(|| format!("cannot load {name}"))
}

/// One end of a packet, before and after a fixed rewrite.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// As it comes.
    pub from: SocketAddrV4,
    /// As it goes.
    pub to: SocketAddrV4,
    /// Whether it is the source.
    pub source: bool,
    /// The device that it leaves by.
    pub ifindex: u32,
    /// Destination and source MAC of what leaves.
    pub macs: [[u8; 6]; 2],
}

impl From<End> for Rewrite {
    fn from(end: End) -> Self {
        let words = |at: SocketAddrV4| {
            let addr = at.ip().to_bits();
            (addr >> 16) + (addr & 0xffff)
        };
        // In one's complement the complement of a word is its negative. The TTL
        // is the upper byte of its word: one less is 0x100 less.
        let negative = |sum: u32| !u32::from(fold(sum)) & 0xffff;
        let addr_delta = u32::from(fold(words(end.to) + negative(words(end.from))));
        let ttl_delta = negative(0x100);
        let port_delta = u32::from(end.to.port()) + negative(u32::from(end.from.port()));
        Self {
            ifindex: end.ifindex,
            source: end.source.into(),
            addr: end.to.ip().octets(),
            port: end.to.port().to_be_bytes(),
            padding: [0; 2],
            ip_delta: swapped(fold(addr_delta + ttl_delta)),
            udp_delta: swapped(fold(addr_delta + port_delta)),
            macs: end.macs.concat().try_into().expect("twelve bytes"),
        }
    }
}

/// The program adds words as the machine reads them.
fn swapped(sum: u16) -> u32 {
    sum.to_be().into()
}

/// A one's complement sum in 16 bits.
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

fn bytes(rewrite: &Rewrite) -> &[u8] {
    // SAFETY: plain numbers without padding, read for as long as they are
    // borrowed.
    unsafe { slice::from_raw_parts((&raw const *rewrite).cast(), size_of::<Rewrite>()) }
}
