//! What a message may hold, checked on its bytes.
//!
//! A decoded entry of a repeated field takes many times its bytes on the wire: four million empty messages are 8 MB
//! there and over 200 MB in memory. A limit that is enforced on the decoded message comes too late, so entries are
//! counted first. The shapes of messages are generated from the `.proto` files, and the limits are [`crate::limits`].

/// A message type, as far as its size in memory depends on how often something comes.
#[derive(Debug)]
pub struct Shape {
    /// Its name.
    pub message: &'static str,
    /// Fields that hold messages or are repeated.
    pub fields: &'static [Field],
}

/// A field that holds a message or is repeated.
#[derive(Debug)]
pub struct Field {
    /// On the wire.
    pub number: u64,
    /// In the `.proto` file.
    pub name: &'static str,
    /// What an entry is.
    pub kind: Kind,
    /// Most entries; 1 for a field that is not repeated.
    pub max: u32,
}

/// What an entry of a field is.
#[derive(Debug)]
pub enum Kind {
    /// A message.
    Message(&'static Shape),
    /// A number of variable length, maybe packed.
    Varint,
    /// A number of this many bytes, maybe packed.
    Fixed(usize),
    /// A string or bytes.
    Bytes,
}

/// A message type of the contract.
pub trait Bounded {
    /// What it may hold.
    const SHAPE: &'static Shape;
}

/// A message that is not decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OutOfBounds {
    /// More entries than may be.
    #[error("{message}.{field}: more than {max} entries; {max} are allowed")]
    TooMany {
        /// The message type.
        message: &'static str,
        /// Its field.
        field: &'static str,
        /// What is allowed.
        max: u32,
    },
    /// A field that is not repeated comes again. Decoders merge what comes twice, and nobody sends it.
    #[error("{message}.{field}: set more than once")]
    Twice {
        /// The message type.
        message: &'static str,
        /// Its field.
        field: &'static str,
    },
    /// No protobuf.
    #[error("{message}: the bytes are no message")]
    Malformed {
        /// The message type.
        message: &'static str,
    },
}

/// Fields of one shape; more would need a larger array of counts.
const FIELDS_MAX: usize = 16;

impl Shape {
    /// Counts the entries in an encoded message. Takes no memory.
    pub fn check(&'static self, mut bytes: &[u8]) -> Result<(), OutOfBounds> {
        let malformed = OutOfBounds::Malformed { message: self.message };
        let mut counts = [0_usize; FIELDS_MAX];
        while !bytes.is_empty() {
            let key = varint(&mut bytes).ok_or(malformed)?;
            let (payload, delimited) = value(key & 7, &mut bytes).ok_or(malformed)?;
            let known = self.fields.iter().position(|field| field.number == key >> 3);
            let Some((index, field)) = known.map(|index| (index, &self.fields[index])) else { continue };
            counts[index] += match (&field.kind, delimited) {
                (Kind::Message(shape), true) => {
                    shape.check(payload)?;
                    1
                }
                // Each ends with a byte whose highest bit is not set.
                (Kind::Varint, true) => payload.iter().filter(|&&byte| byte < 0x80).count(),
                (Kind::Fixed(size), true) => payload.len() / size,
                _ => 1,
            };
            if counts[index] > field.max as usize {
                let (message, field, max) = (self.message, field.name, field.max);
                return Err(if max == 1 {
                    OutOfBounds::Twice { message, field }
                } else {
                    OutOfBounds::TooMany { message, field, max }
                });
            }
        }
        Ok(())
    }
}

/// Takes a value of this wire type off `bytes`; whether it is one with a length. `None` if it is cut short, or is a
/// group, which proto3 does not have.
fn value<'a>(wire_type: u64, bytes: &mut &'a [u8]) -> Option<(&'a [u8], bool)> {
    let (length, delimited) = match wire_type {
        0 => {
            varint(bytes)?;
            (0, false)
        }
        1 => (8, false),
        2 => (usize::try_from(varint(bytes)?).ok()?, true),
        5 => (4, false),
        _ => return None,
    };
    let (payload, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((payload, delimited))
}

/// Takes a number of variable length off `bytes`: at most ten bytes of seven bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Some(number);
        }
    }
    None
}

/// Of every message of the contract; made by `build.rs`.
mod shapes {
    #![allow(clippy::unreadable_literal, reason = "generated")]

    use super::{Bounded, Field, Kind, Shape};

    include!(concat!(env!("OUT_DIR"), "/shapes.rs"));
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
