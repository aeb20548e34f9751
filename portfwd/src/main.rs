//! The `portfwd` command.
fn main() {}
