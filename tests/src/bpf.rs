//! Three tcx programs of the harness itself, in a dozen instructions each: one
//! counts what reaches it, one copies it to a device where it can be captured,
//! one spoils it to prove that this is found. And a look at pinned maps.
//!
//! They speak bpf(2) directly, so that what judges the loader is not the
//! loader's own library.

use std::{
    ffi::{CString, c_void},
    fs, io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use crate::{Netns, state::cookie};

/// Commands and constants of linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// XDP_FLAGS_DRV_MODE of linux/if_link.h.
const XDP_DRV_MODE: u32 = 1 << 2;
/// BPF_CGROUP_INET4_CONNECT and INET6, UDP4_SENDMSG and UDP6, UDP4_RECVMSG and
/// UDP6, INET4_GETPEERNAME and INET6.
const BPF_CGROUP_CALLS: [u32; 8] = [10, 11, 14, 15, 19, 20, 29, 30];
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;

/// Helpers.
const MAP_LOOKUP_ELEM: i32 = 1;
const CLONE_REDIRECT: i32 = 13;
const SKB_STORE_BYTES: i32 = 9;
const SKB_LOAD_BYTES: i32 = 26;

/// Offsets in struct __sk_buff.
const SKB_PKT_TYPE: i16 = 4;
const SKB_PROTOCOL: i16 = 16;

/// TC_ACT_UNSPEC: on to the next program.
const NEXT: i32 = -1;
/// On to the stack.
const XDP_PASS: i32 = 2;

/// The side of a device that a program stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What comes in.
    Ingress,
    /// What leaves.
    Egress,
}

impl Side {
    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => BPF_TCX_INGRESS,
            Self::Egress => BPF_TCX_EGRESS,
        }
    }
}

/// A tcx program that stands behind those already there, counts every packet
/// that reaches it by destination port, and passes it on.
#[derive(Debug)]
pub struct Bystander {
    counts: OwnedFd,
    _link: OwnedFd,
}

impl Bystander {
    /// Attaches to a device; detached on drop. Needs Linux 6.6.
    #[track_caller]
    pub fn attach(ns: &Netns, device: &str, side: Side) -> Self {
        let counts = counters().expect("root makes BPF maps");
        let program = load(&count_by_port(counts.as_raw_fd())).expect("the verifier accepts it");
        let link = link(ns, device, side, &program, 0)
            .unwrap_or_else(|error| panic!("tcx on {device} (Linux 6.6 or later): {error}"));
        Self {
            counts,
            _link: link,
        }
    }

    /// TCP and UDP packets with this destination port that reached it.
    #[track_caller]
    pub fn seen(&self, port: u16) -> u64 {
        self.count(port)
    }

    /// Packets that are neither TCP nor UDP over plain IP.
    #[track_caller]
    pub fn others(&self) -> u64 {
        self.count(0)
    }

    fn count(&self, index: u16) -> u64 {
        let (key, mut value) = (u32::from(index), 0u64);
        let attributes = MapElement {
            map: self.counts.as_raw_fd() as u32,
            padding: 0,
            key: (&raw const key) as u64,
            value: (&raw mut value) as u64,
            flags: 0,
        };
        // SAFETY: key and value are locals of the sizes the map was made with.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &attributes) }.expect("an array holds every index");
        value
    }
}

/// The ids of the tcx programs on one side of a device, in their order; none
/// before Linux 6.6.
#[track_caller]
pub fn programs(ns: &Netns, device: &str, side: Side) -> Vec<u32> {
    let ifindex = ns.ifindex(device);
    match ns.enter(|| attached(ifindex, side.attach_type())) {
        Ok(ids) => ids,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Vec::new(),
        Err(error) => panic!("programs of {device}: {error}"),
    }
}

/// How many programs of a cgroup itself are attached to connect, sendmsg,
/// recvmsg and getpeername of both families.
#[track_caller]
pub fn cgroup_programs(cgroup: &fs::File) -> usize {
    let descriptor = cgroup.as_raw_fd() as u32;
    let count = |attach_type| {
        let ids = attached(descriptor, attach_type).expect("a cgroup lists its programs");
        ids.len()
    };
    BPF_CGROUP_CALLS.into_iter().map(count).sum()
}

/// The ids of the programs at one place of a device or a cgroup, in their
/// order.
fn attached(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let attributes = ProgramQuery {
        target,
        attach_type,
        flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
        rest: [0; 4],
    };
    // SAFETY: the kernel writes at most `count` ids, and the count itself back
    // into the attributes, which both outlive the call.
    unsafe { bpf(BPF_PROG_QUERY, &attributes)? };
    Ok(ids.into_iter().take_while(|id| *id != 0).collect())
}

/// A tcx program that copies every unicast IP packet that reaches it to
/// another device. Behind a program that rewrites, it shows what the stack
/// gets, which no packet socket sees.
#[derive(Debug)]
pub struct Mirror {
    _link: OwnedFd,
}

impl Mirror {
    /// Copies what comes in by `device` out by the device `to`.
    pub fn attach(ns: &Netns, device: &str, to: &str) -> io::Result<Self> {
        let program = load(&copy_to(ns.ifindex(to)))?;
        Ok(Self {
            _link: link(ns, device, Side::Ingress, &program, 0)?,
        })
    }
}

/// A tcx program that stands before all others, as a forwarder does, and
/// writes nonsense over the checksum of IPv4 UDP datagrams.
#[derive(Debug)]
pub struct Spoiler {
    _link: OwnedFd,
}

impl Spoiler {
    /// Spoils what comes in by the device, until it is dropped.
    pub fn attach(ns: &Netns, device: &str) -> io::Result<Self> {
        let program = load(&spoil_udp())?;
        Ok(Self {
            _link: link(ns, device, Side::Ingress, &program, BPF_F_BEFORE)?,
        })
    }
}

/// An XDP program of another that passes everything on.
#[derive(Debug)]
pub struct XdpPass(OwnedFd);

impl XdpPass {
    /// Attaches it as `ip link set xdp` does: it stays until somebody takes it
    /// off.
    #[track_caller]
    pub fn leave_on(ns: &Netns, device: &str) {
        let Self(program) = Self::load();
        let name = format!("{}-xdp", ns.name());
        ns.sh("mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf");
        let path = CString::new(format!("/sys/fs/bpf/{name}")).expect("a path");
        let attributes = ObjectGet {
            path: path.as_ptr() as u64,
            descriptor: program.as_raw_fd() as u32,
            flags: 0,
        };
        // SAFETY: the path outlives the call and ends in a zero.
        unsafe { bpf(BPF_OBJ_PIN, &attributes) }.expect("a bpffs is mounted");
        let command = format!("ip link set dev {device} xdpdrv pinned /sys/fs/bpf/{name}");
        let attached = ns.command("sh").args(["-ec", &command]).status();
        fs::remove_file(format!("/sys/fs/bpf/{name}")).expect("it was pinned");
        assert!(attached.is_ok_and(|status| status.success()), "{command}");
    }

    /// Attaches it by a link, which ends when it is dropped.
    #[track_caller]
    pub fn link(ns: &Netns, device: &str) -> OwnedFd {
        let Self(program) = Self::load();
        link_as(ns, device, BPF_XDP, &program, XDP_DRV_MODE).expect("the hook is free")
    }

    fn load() -> Self {
        let code = [set(0, XDP_PASS), EXIT];
        load_as(BPF_PROG_TYPE_XDP, &code)
            .map(Self)
            .expect("the verifier accepts it")
    }
}

/// The id of the XDP program on a device.
#[track_caller]
pub fn xdp_program(ns: &Netns, device: &str) -> Option<u32> {
    let line = ns.sh(&format!("ip -o link show dev {device}"));
    let (_, id) = line.split_once("prog/xdp id ")?;
    id.split_whitespace().next()?.parse().ok()
}

/// A pinned map, for what tests ask of its size.
#[derive(Debug)]
pub struct Pinned {
    map: OwnedFd,
    key_size: usize,
    value_size: usize,
    capacity: usize,
    memory: usize,
}

impl Pinned {
    /// Opens the map of a forwarder in this namespace by its name.
    #[track_caller]
    pub fn of_forwarder(ns: &Netns, name: &str) -> Self {
        let path = format!("/sys/fs/bpf/portfwd/{}/maps/{name}", cookie(ns));
        Self::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn open(path: &str) -> io::Result<Self> {
        let path = CString::new(path)?;
        let attributes = ObjectGet {
            path: path.as_ptr() as u64,
            descriptor: 0,
            flags: 0,
        };
        // SAFETY: the path outlives the call and ends in a zero.
        let descriptor = unsafe { bpf(BPF_OBJ_GET, &attributes)? };
        // SAFETY: the kernel just made this descriptor for us.
        let map = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|value| value.trim().parse().ok());
            value.ok_or_else(|| io::Error::other(format!("no {name} in {text}")))
        };
        Ok(Self {
            map,
            key_size: field("key_size:")?,
            value_size: field("value_size:")?,
            memory: field("memlock:")?,
            capacity: field("max_entries:")?,
        })
    }

    /// How many entries the map has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that the kernel says it takes.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// The value of a key.
    pub fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        assert_eq!(key.len(), self.key_size);
        let mut value = vec![0; self.value_size];
        let attributes = MapElement {
            map: self.map.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: both buffers are of the map's sizes.
        let found = unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &attributes) };
        found.ok().map(|_| value)
    }

    /// How many keys a walk through the map meets.
    pub fn entries(&self) -> usize {
        let (mut key, mut next) = (vec![0u8; self.key_size], vec![0u8; self.key_size]);
        let mut count = 0;
        // An entry that goes while it is the last one met starts the walk
        // anew: it ends all the same.
        while count <= self.capacity {
            let attributes = MapElement {
                map: self.map.as_raw_fd() as u32,
                padding: 0,
                key: if count == 0 { 0 } else { key.as_ptr() as u64 },
                value: next.as_mut_ptr() as u64,
                flags: 0,
            };
            // SAFETY: both buffers are of the map's key size.
            if unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &attributes) }.is_err() {
                break;
            }
            mem::swap(&mut key, &mut next);
            count += 1;
        }
        count
    }
}

/// struct bpf_insn
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

const fn set(to: u8, immediate: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, immediate)
}

const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

const fn add(to: u8, immediate: i32) -> Instruction {
    instruction(0x07, to, 0, 0, immediate)
}

const fn load_u32(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}

const fn load_u16(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x69, to, from, offset, 0)
}

const fn store_u32(to: u8, offset: i16, from: u8) -> Instruction {
    instruction(0x63, to, from, offset, 0)
}

const fn from_be16(to: u8) -> Instruction {
    instruction(0xdc, to, 0, 0, 16)
}

const fn jump_equal(register: u8, immediate: i32, distance: i16) -> Instruction {
    instruction(0x15, register, 0, distance, immediate)
}

const fn jump_unequal(register: u8, immediate: i32, distance: i16) -> Instruction {
    instruction(0x55, register, 0, distance, immediate)
}

const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

/// What `skb->protocol` holds for an EtherType.
const fn network_order(ether_type: i32) -> i32 {
    (ether_type as u16).to_be() as i32
}

fn count_by_port(map: i32) -> Vec<Instruction> {
    vec![
        copy(6, 1),
        // The key on the stack; 0 for all that has no port.
        set(7, 0),
        load_u32(3, 6, SKB_PROTOCOL),
        // Ethernet and IP header, then the second port.
        set(2, 14 + 20 + 2),
        jump_equal(3, network_order(libc::ETH_P_IP), 2),
        set(2, 14 + 40 + 2),
        jump_unequal(3, network_order(libc::ETH_P_IPV6), 8),
        copy(1, 6),
        copy(3, 10),
        add(3, -8),
        set(4, 2),
        call(SKB_LOAD_BYTES),
        jump_unequal(0, 0, 2),
        load_u16(7, 10, -8),
        from_be16(7),
        store_u32(10, -4, 7),
        // The map's address takes two instructions.
        instruction(0x18, 1, 1, 0, map),
        instruction(0, 0, 0, 0, 0),
        copy(2, 10),
        add(2, -4),
        call(MAP_LOOKUP_ELEM),
        jump_equal(0, 0, 2),
        set(1, 1),
        // lock *(u64 *)r0 += r1
        instruction(0xdb, 0, 1, 0, 0),
        set(0, NEXT),
        EXIT,
    ]
}

fn copy_to(ifindex: u32) -> Vec<Instruction> {
    vec![
        copy(6, 1),
        // PACKET_HOST only: a copied question for an address gets no answer.
        load_u32(2, 6, SKB_PKT_TYPE),
        jump_unequal(2, 0, 7),
        load_u32(2, 6, SKB_PROTOCOL),
        jump_equal(2, network_order(libc::ETH_P_IP), 1),
        jump_unequal(2, network_order(libc::ETH_P_IPV6), 4),
        copy(1, 6),
        set(2, ifindex as i32),
        set(3, 0),
        call(CLONE_REDIRECT),
        set(0, NEXT),
        EXIT,
    ]
}

fn spoil_udp() -> Vec<Instruction> {
    vec![
        load_u32(3, 1, SKB_PROTOCOL),
        jump_unequal(3, network_order(libc::ETH_P_IP), 8),
        set(2, 0xdead),
        store_u32(10, -4, 2),
        // Ethernet and IP header, then the checksum.
        set(2, 14 + 20 + 6),
        copy(3, 10),
        add(3, -4),
        set(4, 2),
        set(5, 0),
        call(SKB_STORE_BYTES),
        set(0, NEXT),
        EXIT,
    ]
}

/// The parts of union bpf_attr.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ObjectGet {
    path: u64,
    descriptor: u32,
    flags: u32,
}

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct ProgramQuery {
    /// The index of a device, or the descriptor of a cgroup.
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    rest: [u64; 4],
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

fn counters() -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1 << 16,
    };
    // SAFETY: this command takes no pointers.
    let descriptor = unsafe { bpf(BPF_MAP_CREATE, &attributes)? };
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    load_as(BPF_PROG_TYPE_SCHED_CLS, code)
}

fn load_as(program_type: u32, code: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        program_type,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"portfwd_test\0\0\0\0",
    };
    // SAFETY: code and licence outlive the call, and their lengths are right.
    let descriptor = unsafe { bpf(BPF_PROG_LOAD, &attributes)? };
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn link(
    ns: &Netns,
    device: &str,
    side: Side,
    program: &OwnedFd,
    flags: u32,
) -> io::Result<OwnedFd> {
    link_as(ns, device, side.attach_type(), program, flags)
}

fn link_as(
    ns: &Netns,
    device: &str,
    attach_type: u32,
    program: &OwnedFd,
    flags: u32,
) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        ifindex: ns.ifindex(device),
        attach_type,
        flags,
        relative: 0,
        padding: 0,
        revision: 0,
    };
    // SAFETY: this command takes no pointers. The index is one of the
    // namespace, so the thread has to be inside.
    let descriptor = ns.enter(|| unsafe { bpf(BPF_LINK_CREATE, &attributes) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// # Safety
///
/// `T` is the part of union bpf_attr that the command reads, and every pointer
/// in it is valid for what the command does with it.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    let pointer: *const c_void = std::ptr::from_ref(attributes).cast();
    // SAFETY: the caller's promise; the kernel copies the attributes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
