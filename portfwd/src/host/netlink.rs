//! A connection on which the kernel is asked, and how its answers end.

use std::io;
use std::num::NonZeroI32;

use futures::{Stream, StreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::sys::{Socket, SocketAddr};

use crate::Error;

/// Opens a connection to ask for devices, addresses and routes, of the network
/// namespace that the thread is in. Needs a running tokio runtime.
pub fn connect() -> Result<Handle, Error> {
    let (mut connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| no_netlink(&error))?;
    // Without it nobody could tell a list that is cut off from a whole one:
    // its last message says whether it is.
    connection.set_forward_done(true);
    tokio::spawn(connection);
    Ok(handle)
}

pub(super) fn no_netlink(error: &io::Error) -> Error {
    Error::machine(format!(
        "cannot ask the kernel for its interfaces over netlink: {error}; \
         run portfwd where NETLINK_ROUTE sockets are allowed"
    ))
}

/// Asks the kernel one thing by a socket of its own, and waits, which takes no
/// longer than a system call: where nothing may be awaited, and by protocols
/// other than the one of [`connect`]. `flags` are those of the request
/// (`NLM_F_ACK`, `NLM_F_DUMP`), one of which there must be.
///
/// # Errors
///
/// What the kernel answers, by its number.
pub(super) fn ask<M>(protocol: isize, question: M, flags: u16) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    let payload = NetlinkPayload::InnerMessage(question);
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
            // Each message begins at a multiple of four.
            let length = message.header.length.next_multiple_of(4) as usize;
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}

/// Hands on each message of a list.
///
/// # Errors
///
/// What the kernel says at the end of a list that is cut off, or that there is
/// no end.
pub(super) async fn list<M>(
    answers: impl Stream<Item = Result<M, rtnetlink::Error>>,
    mut each: impl FnMut(M),
) -> Result<(), rtnetlink::Error> {
    let mut answers = Box::pin(answers);
    loop {
        match answers.next().await {
            Some(Ok(message)) => each(message),
            Some(Err(error)) => return end(error),
            None => return Err(rtnetlink::Error::RequestFailed),
        }
    }
}

/// Whether the kernel answered with one of these errors.
pub(super) fn is_one_of(error: Option<NonZeroI32>, errors: &[libc::c_int]) -> bool {
    error.is_some_and(|code| errors.contains(&code.get().wrapping_neg()))
}

/// A last message is none of the list.
fn end(last: rtnetlink::Error) -> Result<(), rtnetlink::Error> {
    let rtnetlink::Error::UnexpectedMessage(NetlinkMessage {
        payload: NetlinkPayload::Done(done),
        ..
    }) = last
    else {
        return Err(last);
    };
    let mut error = ErrorMessage::default();
    error.code = NonZeroI32::new(done.code);
    match error.code {
        None => Ok(()),
        Some(_) => Err(rtnetlink::Error::NetlinkError(error)),
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, stream};
    use rtnetlink::packet_core::{DoneMessage, NetlinkHeader};

    use super::*;

    fn done(code: i32) -> Result<u32, rtnetlink::Error> {
        let mut done = DoneMessage::default();
        done.code = code;
        Err(rtnetlink::Error::UnexpectedMessage(NetlinkMessage::new(
            NetlinkHeader::default(),
            NetlinkPayload::Done(done),
        )))
    }

    /// What is handed on of a list, and how that ends.
    fn listed(
        messages: impl IntoIterator<Item = Result<u32, rtnetlink::Error>>,
    ) -> (Vec<u32>, Result<(), rtnetlink::Error>) {
        let mut seen = Vec::new();
        let end = list(stream::iter(messages), |message| seen.push(message))
            .now_or_never()
            .expect("a list that is there");
        (seen, end)
    }

    #[test]
    fn a_list_is_whole_where_its_end_says_so() {
        assert_eq!(listed([Ok(1), Ok(2), done(0)]), (vec![1, 2], Ok(())));
        let (_, end) = listed([Ok(1), done(-libc::ENOMEM)]);
        let Err(rtnetlink::Error::NetlinkError(error)) = end else {
            panic!("{end:?}");
        };
        assert!(is_one_of(error.code, &[libc::ENOMEM]), "{error}");
        let cut_off = rtnetlink::Error::RequestFailed;
        assert_eq!(listed([Ok(1)]).1, Err(cut_off.clone()));
        assert_eq!(listed([Ok(1), Err(cut_off.clone())]).1, Err(cut_off));
    }

    #[test]
    fn an_error_is_told_from_others() {
        let code = NonZeroI32::new(-libc::ENETUNREACH);
        assert!(is_one_of(code, &[libc::EINVAL, libc::ENETUNREACH]));
        assert!(!is_one_of(code, &[libc::EINVAL]));
        assert!(!is_one_of(None, &[0]));
    }
}
