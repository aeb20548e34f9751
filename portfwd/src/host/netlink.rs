//! A connection on which the kernel is asked, and how its answers end.

use std::io;
use std::num::NonZeroI32;

use futures::{Stream, StreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{ErrorMessage, NetlinkMessage, NetlinkPayload};

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
