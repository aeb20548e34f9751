//! The client: one order after another, each a closed loop on one connection
//! at a time. What comes back is looked at; anything wrong fails the order.

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Socket, Type};

use super::{
    load::{Load, Order, Outcome, median},
    wire::{
        ANSWER, CONNECTIONS, END, MESSAGE, Pattern, REQUESTS, STREAM, Tally, complement, request,
    },
};

/// Carries out the orders of stdin, a line each, and says of each on stdout
/// what it came to.
///
/// # Errors
///
/// When stdin or stdout breaks.
pub fn obey() -> Result<()> {
    let mut stdout = io::stdout();
    let mut dialled = 0;
    for line in io::stdin().lock().lines() {
        let done = line?
            .parse()
            .and_then(|order| carry_out(&order, &mut dialled));
        match done {
            Ok(outcome) => writeln!(stdout, "{outcome}")?,
            Err(error) => writeln!(stdout, "failed: {error:#}")?,
        }
        stdout.flush()?;
    }
    Ok(())
}

/// `dialled` counts connections over all orders, so that no source comes back
/// before the others had their turn.
fn carry_out(order: &Order, dialled: &mut u64) -> Result<Outcome> {
    match order.load {
        Load::Stream => stream(order),
        Load::Requests => requests(order),
        Load::Connections => connections(order, dialled),
    }
}

fn stream(order: &Order) -> Result<Outcome> {
    let pattern = Pattern::new();
    let mut connection = dial(order.to)?;
    connection.write_all(&[STREAM])?;
    let mut sent = 0;
    let start = Instant::now();
    while start.elapsed() < order.time && sent < Load::Stream.bound() {
        connection.write_all(pattern.bytes()).context("writing")?;
        sent += pattern.bytes().len() as u64;
    }
    connection.write_all(&[END])?;
    let mut tally = [0; 16];
    connection
        .read_exact(&mut tally)
        .context("waiting for what the server has seen")?;
    let time = start.elapsed();

    let expected = Tally {
        bytes: sent,
        wrong: 0,
    };
    let tally = Tally::from_bytes(tally);
    ensure!(
        tally == expected,
        "the server saw {tally:?}, not {expected:?}"
    );
    Ok(Outcome {
        count: sent,
        time,
        median: None,
    })
}

fn requests(order: &Order) -> Result<Outcome> {
    let mut connection = dial(order.to)?;
    connection.set_nodelay(true)?;
    connection.write_all(&[REQUESTS])?;
    repeat(order, |number| {
        let mut message = request(number);
        connection.write_all(&message)?;
        let mut reply = [0; MESSAGE];
        connection.read_exact(&mut reply)?;
        complement(&mut message);
        ensure!(reply == message, "request {number} got a wrong reply");
        Ok(())
    })
}

fn connections(order: &Order, dialled: &mut u64) -> Result<Outcome> {
    repeat(order, |number| {
        let mut connection = dial_from(order.sources.of(*dialled), order.to)?;
        *dialled += 1;
        connection.write_all(&[CONNECTIONS])?;
        // One call for the byte and for the end behind it, which is where it
        // counts: the server has closed, so no port of the client lingers.
        let mut answer = [0; 2];
        let length = recv(connection.as_raw_fd(), &mut answer, MsgFlags::MSG_WAITALL)?;
        ensure!(
            answer[..length] == [ANSWER],
            "connection {number} was answered by {:?}",
            &answer[..length]
        );
        Ok(())
    })
}

/// Repeats until the time of the order or its bound is over.
fn repeat(order: &Order, mut once: impl FnMut(u64) -> Result<()>) -> Result<Outcome> {
    let mut nanos = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    let (mut now, mut count) = (Duration::ZERO, 0);
    while now < order.time && count < order.load.bound() {
        once(count).with_context(|| format!("after {count} {}", order.load.name()))?;
        count += 1;
        let before = now;
        now = start.elapsed();
        nanos.push(u32::try_from((now - before).as_nanos()).unwrap_or(u32::MAX));
    }
    Ok(Outcome {
        count,
        time: now,
        median: median(&mut nanos),
    })
}

fn dial_from(source: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket
        .bind(&source.into())
        .with_context(|| format!("taking {source}"))?;
    socket
        .connect(&to.into())
        .with_context(|| format!("dialling {to} from {source}"))?;
    Ok(socket.into())
}

fn dial(to: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(to).with_context(|| format!("dialling {to}"))
}
