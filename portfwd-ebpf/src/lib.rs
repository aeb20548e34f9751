//! The packet corridor.
#![no_std]
