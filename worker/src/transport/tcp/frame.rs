//! Messages on a push connection: a length of 4 bytes, little-endian, and a protobuf message of that many bytes.

use std::io;

use disagg_proto::limits::PUSH_MESSAGE_BYTES_MAX;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a push connection begins with. Its first byte is none that HTTP or TLS begins with.
pub const MAGIC: [u8; 8] = *b"\xd1disagg\x01";

/// The message with its length in front.
pub(super) fn framed(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + message.encoded_len());
    append(message, &mut bytes);
    bytes
}

/// Appends the message with its length in front.
pub(super) fn append(message: &impl Message, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(message.encoded_len() as u32).to_le_bytes());
    // A vector has room for any message.
    let _ = message.encode(bytes);
}

/// Reads one message. Not to be cancelled unless the connection is given up.
pub(super) async fn read<M: Message + Default>(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<M> {
    let length = reader.read_u32_le().await?;
    if length > PUSH_MESSAGE_BYTES_MAX {
        let why = format!("a message of {length} bytes; {PUSH_MESSAGE_BYTES_MAX} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; length as usize];
    reader.read_exact(&mut bytes).await?;
    M::decode(bytes.as_slice()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use disagg_proto::v1::PushEnd;

    use super::*;

    #[tokio::test]
    async fn messages_follow_one_another() {
        let mut bytes = framed(&PushEnd { chunks: 300 });
        append(&PushEnd { chunks: 0 }, &mut bytes);
        let mut reader = bytes.as_slice();
        assert_eq!(read::<PushEnd>(&mut reader).await.unwrap().chunks, 300);
        assert_eq!(read::<PushEnd>(&mut reader).await.unwrap().chunks, 0);
        assert_eq!(read::<PushEnd>(&mut reader).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn lengths_and_bytes_that_are_no_message_are_refused() {
        let mut long = (PUSH_MESSAGE_BYTES_MAX + 1).to_le_bytes().to_vec();
        long.resize(2 * PUSH_MESSAGE_BYTES_MAX as usize, 0);
        for bytes in [long, vec![1, 0, 0, 0, 0xff]] {
            let error = read::<PushEnd>(&mut bytes.as_slice()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
