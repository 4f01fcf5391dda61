//! What a landing zone asks of whoever pushes into it.

use std::fmt;

use subtle::ConstantTimeEq;

/// 128 random bits that the decode worker gives to the prefill worker that it asks, and to nobody else. Handoffs are
/// numbered, so that anybody can name one; only who has its token can write to its blocks.
///
/// It travels in the clear as long as workers speak without TLS: it keeps out who can reach a worker, not who can read
/// its network.
#[derive(Clone)]
pub struct LandingToken([u8; Self::BYTES]);

impl LandingToken {
    /// Length on the wire.
    pub const BYTES: usize = disagg_proto::limits::LANDING_TOKEN_BYTES;

    /// A new one, from the operating system.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// One that came from another worker; `None` if it is not as long as it has to be.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// To be sent to who is asked, or repeated to who asked.
    pub fn to_wire(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.0)
    }
}

/// Takes as long for every other token, so that nobody can find one out byte by byte.
impl PartialEq for LandingToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for LandingToken {}

/// Never in a log.
impl fmt::Debug for LandingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LandingToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_random_and_equal_only_in_every_bit() {
        let tokens: Vec<_> = (0..64).map(|_| LandingToken::random().unwrap()).collect();
        for (index, token) in tokens.iter().enumerate() {
            assert!(!tokens[..index].contains(token));
            assert_eq!(LandingToken::from_wire(&token.to_wire()).as_ref(), Some(token));
            for bit in 0..128 {
                let mut bytes = token.to_wire().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(LandingToken::from_wire(&bytes).as_ref(), Some(token));
            }
        }
        assert!(LandingToken::from_wire(&[0; 15]).is_none());
        assert!(LandingToken::from_wire(&[0; 17]).is_none());
        assert_eq!(format!("{:?}", tokens[0]), "LandingToken");
    }
}
