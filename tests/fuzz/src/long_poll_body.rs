//! The bodies that long-poll clients post.

use bytes::Bytes;
use herald::{
    phoenix::batch::{BodyFault, BodyKind, read},
    session::Received,
};

/// The most lines of a batch that are looked at.
const LINES_MAX: usize = 100;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The bytes are a body, read in both ways and with a limit that is often met and one that is not.
pub fn check(data: &[u8]) {
    for bytes_max in [32, 1_024 * 1_024] {
        for kind in [BodyKind::Batch, BodyKind::OneText] {
            let found = read(kind, Bytes::copy_from_slice(data), bytes_max);
            assert_eq!(found, read_plainly(kind, data, bytes_max), "{kind:?} up to {bytes_max}");
            let Ok(messages) = found else { continue };
            assert!(messages.len() <= LINES_MAX, "a body is never more than so many messages");
            assert!(messages.iter().all(|message| message.size_bytes() <= bytes_max));
        }
    }
}

fn read_plainly(kind: BodyKind, data: &[u8], bytes_max: usize) -> Result<Vec<Received>, BodyFault> {
    let text = str::from_utf8(data).map_err(|_| BodyFault::Unreadable)?;
    let messages = match kind {
        BodyKind::OneText => vec![Received::Text(text.into())],
        BodyKind::Batch => {
            let mut messages = Vec::new();
            for line in lines(text).into_iter().take(LINES_MAX) {
                messages.push(message(line).ok_or(BodyFault::NoMessage)?);
            }
            messages
        }
    };
    for message in &messages {
        if message.size_bytes() > bytes_max {
            return Err(BodyFault::TooLarge);
        }
    }
    Ok(messages)
}

/// The lines of a text: each ends with `\n`, `\r\n` or the text. A text without characters has none.
fn lines(text: &str) -> Vec<&str> {
    let lines = text.split_inclusive('\n').map(|line| match line.strip_suffix('\n') {
        Some(ended) => ended.strip_suffix('\r').unwrap_or(ended),
        None => line,
    });
    lines.filter(|line| !line.is_empty()).collect()
}

fn message(line: &str) -> Option<Received> {
    if line.starts_with('[') {
        return Some(Received::Text(line.into()));
    }
    bytes_of(line).map(|bytes| Received::Binary(bytes.into()))
}

/// Base64 as RFC 4648 has it: padded, and with no bits left over.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let groups = text.as_bytes().chunks(4);
    let count = groups.len();
    for (nth, group) in groups.enumerate() {
        let [a, b, c, d] = *group else { return None };
        let value = |letter: u8| ALPHABET.iter().position(|&known| known == letter);
        let (a, b) = (value(a)?, value(b)?);
        let is_last = nth + 1 == count;
        match (c, d) {
            (b'=', b'=') if is_last && b & 0xf == 0 => bytes.push(byte(a << 2 | b >> 4)),
            (c, b'=') if is_last && value(c)? & 3 == 0 => {
                let c = value(c)?;
                bytes.extend([byte(a << 2 | b >> 4), byte(b << 4 | c >> 2)]);
            }
            (c, d) => {
                let (c, d) = (value(c)?, value(d)?);
                bytes.extend([byte(a << 2 | b >> 4), byte(b << 4 | c >> 2), byte(c << 6 | d)]);
            }
        }
    }
    Some(bytes)
}

/// The lowest eight bits.
fn byte(bits: usize) -> u8 {
    bits.to_le_bytes()[0]
}
