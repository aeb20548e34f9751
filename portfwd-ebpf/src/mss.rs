//! The MSS option of TCP (RFC 9293, section 3.7.1). A packet that is sent on
//! skips the host's own clamping, so SYNs are clamped here: where path MTU
//! discovery is broken, nothing else tells the ends what fits.

use portfwd_common::Family;

use crate::{hook::Hook, packet::Packet};

const TCP_HEADER: u16 = 20;
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
/// Every option but the two above has a length, and that of the MSS is 4.
const SHORTEST: u8 = 2;
const MSS_LEN: u8 = 4;
/// Most bytes of options in a header.
const MOST: u32 = 40;

/// The options of a TCP header. In memory that the verifier does not track.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// As they lie in the header, behind the byte before them; more than there
    /// can be, so that a masked offset is always inside.
    pub bytes: [u8; 64],
    /// Where the walk is.
    pub at: u32,
}

/// Lowers the MSS of a SYN to what an MTU allows; 0 allows everything.
#[inline(always)]
pub fn clamp<H: Hook>(hook: &mut H, packet: &Packet, options: &mut Options, mtu: u32) {
    let headers = match packet.family {
        Family::V4 => 40,
        Family::V6 => 60,
    };
    if mtu <= headers {
        return;
    }
    let limit = mtu - headers;
    if let Some((offset, mss)) = find(hook, packet, options)
        && u32::from(mss) > limit
    {
        hook.set_mss(packet, offset, mss, limit as u16);
    }
}

/// The offset of the MSS from the IP header, and the MSS.
#[inline(always)]
fn find<H: Hook>(hook: &H, packet: &Packet, options: &mut Options) -> Option<(u16, u16)> {
    // From the last byte before them, so that there is always one to copy: from
    // a check against 0 verifiers before 6.3 learn nothing.
    let start = packet.transport + TCP_HEADER - 1;
    let len = (u32::from(packet.headers.wrapping_sub(start + 1)) & 63) + 1;
    if !hook.copy(start, &mut options.bytes, len) {
        return None;
    }
    options.at = 1;
    for _ in 0..MOST {
        match options.step(len) {
            Step::On => {}
            Step::Found => {
                let at = options.at;
                let mss = u16::from_be_bytes([options.byte(at), options.byte(at + 1)]);
                return Some((start + at as u16, mss));
            }
            Step::End => return None,
        }
    }
    None
}

/// What a step over the options came to.
enum Step {
    /// There is another option.
    On,
    /// The walk is at the MSS.
    Found,
    /// There is no MSS.
    End,
}

impl Options {
    /// Steps over one of the options, which end after `len` bytes. A function of its
    /// own: where the walk is comes from memory each time, so that one step
    /// looks to the verifier like every other.
    #[inline(never)]
    fn step(&mut self, len: u32) -> Step {
        let at = self.at;
        if at + u32::from(MSS_LEN) > len {
            return Step::End;
        }
        let length = match self.byte(at) {
            END => return Step::End,
            NOTHING => 1,
            kind => match (kind, self.byte(at + 1)) {
                (MSS, MSS_LEN) => {
                    self.at = at + 2;
                    return Step::Found;
                }
                (_, ..SHORTEST) => return Step::End,
                (_, length) => length,
            },
        };
        self.at = at + u32::from(length);
        Step::On
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        self.bytes[(at & 63) as usize]
    }
}
