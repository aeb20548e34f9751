//! What client and server say to each other. The first byte of a connection
//! is the service that is asked for.

/// The service of a stream: [`Pattern`] over and over, then [`END`] where it
/// would begin again, then a [`Tally`] back. The connection stays open on both
/// sides until then: some who forward take the end of one direction for the end
/// of both.
pub const STREAM: u8 = b's';
/// The service of requests: messages of [`MESSAGE`] bytes, each answered by its
/// complement.
pub const REQUESTS: u8 = b'r';
/// The service of connections: this byte is answered by [`ANSWER`], and the
/// server closes.
pub const CONNECTIONS: u8 = b'c';

/// What a connection is answered with.
pub const ANSWER: u8 = b'C';

/// Bytes of a request, and of its reply.
pub const MESSAGE: usize = 64;

/// Turns a request into its reply, so that an echo is not taken for one.
pub fn complement(message: &mut [u8; MESSAGE]) {
    for byte in message {
        *byte = !*byte;
    }
}

/// The request of a number: no two of a connection are the same.
pub fn request(number: u64) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    for (at, part) in message.chunks_exact_mut(8).enumerate() {
        part.copy_from_slice(&number.rotate_left(at as u32 * 8).to_le_bytes());
    }
    message
}

/// The bytes of a stream: the same ones over and over.
pub struct Pattern(Vec<u8>);

const PERIOD: usize = 128 << 10;

/// What the pattern begins with, so that it is not taken for [`END`].
const MORE: u8 = b'+';
/// The last byte of a stream.
pub const END: u8 = b'.';

/// Compared at each end of what was read.
const SAMPLE: usize = 64;

impl Pattern {
    /// The only one.
    pub fn new() -> Self {
        // xorshift32: all that matters is that neighbours differ.
        let mut state = 0x9e37_79b9_u32;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        };
        let mut bytes: Vec<u8> = (0..PERIOD).map(next).collect();
        bytes[0] = MORE;
        Self(bytes)
    }

    /// Whether what stands at this offset of the stream closes it.
    pub fn is_end(offset: u64, bytes: &[u8]) -> bool {
        let Some((last, rest)) = bytes.split_last() else {
            return false;
        };
        *last == END && (offset + rest.len() as u64).is_multiple_of(PERIOD as u64)
    }

    /// All bytes of one period.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether the first and the last bytes of what stands at this offset of
    /// the stream are right.
    pub fn holds(&self, offset: u64, bytes: &[u8]) -> bool {
        let length = bytes.len().min(SAMPLE);
        let tail = bytes.len() - length;
        self.is_at(offset, &bytes[..length]) && self.is_at(offset + tail as u64, &bytes[tail..])
    }

    fn is_at(&self, offset: u64, bytes: &[u8]) -> bool {
        let start = (offset % PERIOD as u64) as usize;
        let expected = self.0[start..].iter().chain(&self.0);
        bytes.iter().eq(expected.take(bytes.len()))
    }
}

/// What the server saw of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes of the pattern.
    pub bytes: u64,
    /// Reads that held a wrong byte.
    pub wrong: u64,
}

impl Tally {
    /// Two little-endian numbers.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.bytes) | u128::from(self.wrong) << 64).to_le_bytes()
    }

    /// Reads what [`Tally::to_bytes`] wrote.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self {
            bytes: both as u64,
            wrong: (both >> 64) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_holds_at_its_offset_and_at_no_other() {
        let pattern = Pattern::new();
        let twice = [pattern.bytes(), pattern.bytes()].concat();
        for offset in [0, 1, 1448, PERIOD - 3, PERIOD] {
            let bytes = &twice[offset..];
            let bytes = &bytes[..bytes.len().min(4096)];
            assert!(pattern.holds(offset as u64, bytes), "{offset}");
            assert!(pattern.holds((offset + PERIOD) as u64, bytes), "{offset}");
            assert!(!pattern.holds(offset as u64 + 1448, bytes), "{offset}");
        }
    }

    #[test]
    fn a_stream_ends_where_the_pattern_would_begin_again() {
        let period = PERIOD as u64;
        assert!(Pattern::is_end(period, b"."));
        assert!(Pattern::is_end(2 * period - 2, b"ab."));
        for (offset, bytes) in [
            (period, &b"+"[..]),
            (period, b""),
            (5, b"."),
            (period, b".a"),
        ] {
            assert!(!Pattern::is_end(offset, bytes), "{offset} {bytes:?}");
        }
    }

    #[test]
    fn a_wrong_byte_at_either_end_is_seen() {
        let pattern = Pattern::new();
        for at in [0, 63, 999 - 63, 999] {
            let mut bytes = pattern.bytes()[..1000].to_vec();
            bytes[at] ^= 1;
            assert!(!pattern.holds(0, &bytes), "{at}");
        }
        assert!(pattern.holds(5, &[]));
    }

    #[test]
    fn requests_differ_from_each_other_and_from_their_replies() {
        let (first, second) = (request(1), request(2));
        assert_ne!(first, second);
        let mut reply = first;
        complement(&mut reply);
        assert_ne!(reply, first);
        complement(&mut reply);
        assert_eq!(reply, first);
    }

    #[test]
    fn a_tally_reads_as_it_was_written() {
        let tally = Tally {
            bytes: 1 << 40,
            wrong: 3,
        };
        assert_eq!(Tally::from_bytes(tally.to_bytes()), tally);
    }
}
