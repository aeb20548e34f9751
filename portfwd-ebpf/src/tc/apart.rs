//! Parts of the programs that the verifier checks once, and not at each call:
//! it does so for global functions (5.6), which it knows by the linkage. They
//! find the packet in the draft. `skb` is the context of a TC program.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};

use super::Tc;
use crate::{
    maps::{self, Maps},
    relay,
    remember::{self, Reserved},
    tables::Draft,
};

/// Lends the packet of the draft to a part, which asks for no port or claim.
#[inline(always)]
fn with<const L2: usize>(
    skb: *mut __sk_buff,
    part: impl Fn(&mut Tc<'_, L2>, &Maps, &mut Draft) -> u32,
) -> u32 {
    let context = TcContext::new(skb);
    match maps::draft() {
        Some(draft) => part(&mut Tc::ingress(&context), &Maps::without_bank(), draft),
        None => Reserved::Full as u32,
    }
}

macro_rules! parts {
    ($($name:ident $l2:literal $part:expr;)*) => {
        $(#[unsafe(no_mangle)]
        #[inline(never)]
        pub(super) extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
            with::<$l2>(skb, $part)
        })*
    };
}

parts! {
    portfwd_port 14 |hook, maps, draft| remember::reserve_next(hook, maps, draft) as u32;
    portfwd_port_l3 0 |hook, maps, draft| remember::reserve_next(hook, maps, draft) as u32;
    portfwd_relay 14 |hook, _, draft| relay_now(hook, draft);
    portfwd_relay_l3 0 |hook, _, draft| relay_now(hook, draft);
}

#[inline(always)]
fn relay_now<const L2: usize>(hook: &mut Tc<'_, L2>, draft: &mut Draft) -> u32 {
    relay::send(hook, draft);
    0
}
