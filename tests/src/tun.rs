//! Devices that carry bare IP packets.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::Arc,
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::Netns;

/// The largest packet of a device.
const LARGEST: usize = 1 << 16;

/// Two tun devices, one in each namespace: what leaves by one comes in by the
/// other, until this is dropped.
#[derive(Debug)]
pub struct TunCable {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl TunCable {
    /// Makes a device of this name in both namespaces, and sets it up.
    #[track_caller]
    pub fn join(one: &Netns, other: &Netns, device: &str) -> Self {
        let [one, other] = [one, other].map(|ns| {
            let file = ns.enter(|| open(device)).expect("root makes a tun device");
            ns.ip(&format!("link set {device} addrgenmode none up"));
            file
        });
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("a descriptor"));
        let stopped = Arc::clone(&stop);
        Self {
            stop,
            thread: Some(thread::spawn(move || pump(&one, &other, &stopped))),
        }
    }
}

impl Drop for TunCable {
    fn drop(&mut self) {
        self.stop.write(1).expect("the pump listens");
        if let Some(thread) = self.thread.take() {
            // A panic of the pump was printed by its own thread.
            let _ = thread.join();
        }
    }
}

/// The far end of a tun device of this name in the thread's namespace.
pub fn open(device: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // struct ifreq: the name, then the flags.
    let mut request = [0u8; 40];
    request[..device.len()].copy_from_slice(device.as_bytes());
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes the 40 bytes of the request.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(file)
}

fn pump(one: &File, other: &File, stop: &EventFd) {
    let mut buffer = vec![0; LARGEST];
    loop {
        let mut ready = [
            PollFd::new(one.as_fd(), PollFlags::POLLIN),
            PollFd::new(other.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted poll only means another round.
        let _ = poll(&mut ready, PollTimeout::NONE);
        if ready[2].any() == Some(true) {
            return;
        }
        for (mut from, mut to) in [(one, other), (other, one)] {
            while let Ok(length) = from.read(&mut buffer) {
                // A device that is down or full loses the packet, as a cable.
                let _ = to.write(&buffer[..length]);
            }
        }
    }
}
