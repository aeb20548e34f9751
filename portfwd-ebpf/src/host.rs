//! A packet in a byte buffer.
