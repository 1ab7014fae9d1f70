//! The head of a WebSocket frame.

use crate::session::CloseCode;

/// The mask in the head of every frame from a client.
const MASK_BYTES: usize = 4;

/// The position at which a frame may stand among other frames.
#[derive(Clone, Copy)]
pub(super) enum FrameClass {
    /// Between any others.
    Control,
    /// At the beginning of a message.
    First,
    /// Behind the beginning of a message.
    Continuation,
}

/// The content of a frame's head.
///
/// The head is read here before the codec reads it. The codec checks a length only once the whole
/// frame is there, and reserves memory for it until then: a megabyte for a client that merely
/// claims one.
pub(super) struct FrameHead {
    pub(super) kind: FrameClass,
    /// The length of the head itself.
    pub(super) bytes: usize,
    pub(super) payload_bytes: u64,
}

impl FrameHead {
    /// Reads the head of the frame at the front; `None` if too few bytes have arrived to tell its length.
    ///
    /// # Errors
    /// The close code, if the head breaks a rule, whatever may follow the head.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, CloseCode> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let kind = match first & 0x0f {
            0x00 => FrameClass::Continuation,
            opcode if opcode & 0x08 != 0 => FrameClass::Control,
            _ => FrameClass::First,
        };
        let (is_last, is_control) = (first & 0x80 != 0, matches!(kind, FrameClass::Control));
        let (is_masked, length) = (second & 0x80 != 0, second & 0x7f);
        if !is_masked || first & 0x70 != 0 || is_control && (length > 125 || !is_last) {
            return Err(CloseCode::PROTOCOL);
        }
        let length = match length {
            126 => rest.first_chunk().map(|length| (2, u64::from(u16::from_be_bytes(*length)))),
            127 => rest.first_chunk().map(|length| (8, u64::from_be_bytes(*length))),
            length => Some((0, u64::from(length))),
        };
        Ok(length.map(|(length_bytes, payload_bytes)| Self {
            kind,
            bytes: 2 + length_bytes + MASK_BYTES,
            payload_bytes,
        }))
    }
}
