//! The messages that a client sends in one long-poll request.
//!
//! It follows section 9.5 of the protocol document. Pure, and public so that fuzzers can call it.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use bytestring::ByteString;

use crate::session::Received;

/// The most lines of one batch that are read; the rest is ignored, as in Phoenix.
const BATCH_LINES_MAX: usize = 100;

/// The reason why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFault {
    /// The body is not valid UTF-8.
    Unreadable,
    /// The body has a message that is too large.
    TooLarge,
    /// A line of a batch is neither a message nor base64.
    NoMessage,
}

/// The format of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// Each line is a message.
    Batch,
    /// The whole body is one text message.
    OneText,
}

/// Reads the messages of a body, none larger than `bytes_max`.
///
/// # Errors
/// [`BodyFault`].
pub fn read(kind: BodyKind, body: Bytes, bytes_max: usize) -> Result<Vec<Received>, BodyFault> {
    let body = ByteString::try_from(body).map_err(|_| BodyFault::Unreadable)?;
    let messages = match kind {
        BodyKind::Batch => lines(&body)?,
        BodyKind::OneText => vec![Received::Text(body)],
    };
    match messages.iter().any(|message| message.size_bytes() > bytes_max) {
        true => Err(BodyFault::TooLarge),
        false => Ok(messages),
    }
}

/// The lines of a batch. A line that begins with `[` is text, any other is a binary message in
/// base64; empty lines are skipped.
fn lines(body: &str) -> Result<Vec<Received>, BodyFault> {
    let message = |line: &str| {
        if line.starts_with('[') {
            // The line is copied, because a slice would keep the whole body in memory while one
            // line waits.
            return Ok(Received::Text(ByteString::from(line)));
        }
        let bytes = STANDARD.decode(line).map_err(|_| BodyFault::NoMessage)?;
        Ok(Received::Binary(bytes.into()))
    };
    let lines = body.lines().filter(|line| !line.is_empty());
    lines.take(BATCH_LINES_MAX).map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: usize = 20;

    fn text(message: &str) -> Received {
        Received::Text(message.into())
    }

    fn binary(message: &'static [u8]) -> Received {
        Received::Binary(Bytes::from_static(message))
    }

    #[test]
    fn e144_e147_the_messages_of_a_batch_are_its_lines() {
        let (fits, too_large) = (format!("[{:19}", ""), format!("[{:20}", ""));
        for (case, body, expected) in [
            ("nothing", "", Ok(vec![])),
            ("one", "[1]", Ok(vec![text("[1]")])),
            ("several", "[1]\n[2]\r\n[3]", Ok(vec![text("[1]"), text("[2]"), text("[3]")])),
            ("empty lines", "\n[1]\n\r\n\n", Ok(vec![text("[1]")])),
            ("binary", "[1]\nAAH/\n[2]", Ok(vec![text("[1]"), binary(b"\0\x01\xff"), text("[2]")])),
            ("padded", "AA==", Ok(vec![binary(b"\0")])),
            ("not padded", "AA", Err(BodyFault::NoMessage)),
            ("base64 for URLs", "AAH_", Err(BodyFault::NoMessage)),
            ("an object", r#"{"topic":"t"}"#, Err(BodyFault::NoMessage)),
            ("a space before", " [1]", Err(BodyFault::NoMessage)),
            ("one of several", "[1]\n!\n[2]", Err(BodyFault::NoMessage)),
            ("what just fits", &fits, Ok(vec![text(&fits)])),
            ("one that is too large", &too_large, Err(BodyFault::TooLarge)),
        ] {
            let body = Bytes::copy_from_slice(body.as_bytes());
            assert_eq!(read(BodyKind::Batch, body, BYTES_MAX), expected, "{case}");
        }
    }

    #[test]
    fn e146_lines_beyond_the_hundredth_are_not_even_looked_at() {
        let body = format!("{}!!!", "[1]\n".repeat(BATCH_LINES_MAX));
        let taken = read(BodyKind::Batch, body.into(), BYTES_MAX).expect("messages");
        assert_eq!(taken, vec![text("[1]"); BATCH_LINES_MAX]);
    }

    #[test]
    fn e148_any_other_body_is_one_message_whatever_it_says() {
        for body in ["", "[1]\n[2]", r#"{"topic":"t"}"#, "nonsense"] {
            let found = read(BodyKind::OneText, Bytes::copy_from_slice(body.as_bytes()), BYTES_MAX);
            assert_eq!(found, Ok(vec![text(body)]), "{body:?}");
        }
    }

    #[test]
    fn a_body_that_is_not_text_is_refused() {
        for kind in [BodyKind::Batch, BodyKind::OneText] {
            let broken = Bytes::from_static(b"[\xff]");
            assert_eq!(read(kind, broken, BYTES_MAX), Err(BodyFault::Unreadable));
        }
        let large = Bytes::from_static(&[b'x'; BYTES_MAX + 1]);
        assert_eq!(read(BodyKind::OneText, large, BYTES_MAX), Err(BodyFault::TooLarge));
    }
}
