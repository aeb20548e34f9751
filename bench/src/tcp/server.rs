//! The server: one connection after another, which is all that a closed loop
//! asks for, so a connection costs four system calls and no thread.

use std::{
    convert::Infallible,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike as _},
};

use super::wire::{ANSWER, CONNECTIONS, MESSAGE, Pattern, REQUESTS, STREAM, Tally, complement};

/// A connection that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(2);

/// Bytes of one read of a stream.
const BUFFER: usize = 256 << 10;

/// Serves a port of every address until the process ends; says so on stdout
/// first.
///
/// # Errors
///
/// When the port is taken.
pub fn serve(port: u16) -> Result<Infallible> {
    let listener = listen(port).with_context(|| format!("listening on port {port}"))?;
    let mut server = Server {
        pattern: Pattern::new(),
        buffer: vec![0; BUFFER],
    };
    println!("serving");
    loop {
        match listener.accept() {
            // What a client breaks off is the client's to tell.
            Ok((connection, _)) => drop(server.answer(connection)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("accepting"),
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("::", port))?;
    // Both are inherited by the connections, so none of them pays for it.
    let silence = TimeVal::seconds(SILENCE.as_secs() as i64);
    setsockopt(&listener, sockopt::ReceiveTimeout, &silence)?;
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    Ok(listener)
}

struct Server {
    pattern: Pattern,
    buffer: Vec<u8>,
}

impl Server {
    fn answer(&mut self, mut connection: TcpStream) -> io::Result<()> {
        let mut service = [0];
        connection.read_exact(&mut service)?;
        match service[0] {
            CONNECTIONS => connection.write_all(&[ANSWER]),
            REQUESTS => replies(connection),
            STREAM => {
                let tally = self.tally(&mut connection)?;
                connection.write_all(&tally.to_bytes())
            }
            _ => Ok(()),
        }
    }

    fn tally(&mut self, connection: &mut TcpStream) -> io::Result<Tally> {
        let mut tally = Tally::default();
        loop {
            let length = connection.read(&mut self.buffer)?;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let mut bytes = &self.buffer[..length];
            let is_end = Pattern::is_end(tally.bytes, bytes);
            if is_end {
                bytes = &bytes[..length - 1];
            }
            let right = self.pattern.holds(tally.bytes, bytes);
            tally.wrong += u64::from(!right);
            tally.bytes += bytes.len() as u64;
            if is_end {
                return Ok(tally);
            }
        }
    }
}

fn replies(mut connection: TcpStream) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    loop {
        connection.read_exact(&mut message)?;
        complement(&mut message);
        connection.write_all(&message)?;
    }
}
