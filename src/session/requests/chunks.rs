//! The end of a body in chunks (RFC 9112, section 7.1).

/// The part of a chunked body to which the next byte belongs. The steps are those of actix-http, so
/// that both find the same end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkStep {
    SizeFirst,
    Size,
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// The beginning of the line after the last chunk.
    Line,
    Trailer,
    TrailerLf,
    EndLf,
    End,
}

/// Follows a chunked body to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    step: ChunkStep,
    /// Bytes of the chunk that are still to come.
    left: u64,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self { step: ChunkStep::SizeFirst, left: 0 }
    }

    /// Returns whether the body is over.
    pub(super) fn is_over(&self) -> bool {
        self.step == ChunkStep::End
    }

    /// Takes received bytes. Returns the number of them that belong to the body, or `None` if they are
    /// malformed.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut used = 0;
        while used < bytes.len() && !self.is_over() {
            if self.step == ChunkStep::Data {
                let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                let taken = left.min(bytes.len() - used);
                used += taken;
                self.left -= taken as u64;
                if self.left == 0 {
                    self.step = ChunkStep::DataCr;
                }
            } else {
                self.step = self.next(bytes[used])?;
                used += 1;
            }
        }
        Some(used)
    }

    /// The step after a byte that is not data.
    fn next(&mut self, byte: u8) -> Option<ChunkStep> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Some(match (self.step, byte) {
            (ChunkStep::SizeFirst, _) => {
                self.left = digit?;
                ChunkStep::Size
            }
            (ChunkStep::Size | ChunkStep::SizeSpace, b'\t' | b' ') => ChunkStep::SizeSpace,
            (ChunkStep::Size | ChunkStep::SizeSpace, b';') => ChunkStep::Extension,
            (ChunkStep::Size | ChunkStep::SizeSpace | ChunkStep::Extension, b'\r') => {
                ChunkStep::SizeLf
            }
            (ChunkStep::Size, _) => {
                self.left = self.left.checked_mul(16)? + digit?;
                ChunkStep::Size
            }
            (ChunkStep::Extension, 0x00..=0x08 | 0x0a..=0x1f | 0x7f) => return None,
            (ChunkStep::Extension, _) => ChunkStep::Extension,
            (ChunkStep::SizeLf, b'\n') if self.left > 0 => ChunkStep::Data,
            (ChunkStep::SizeLf | ChunkStep::TrailerLf, b'\n') => ChunkStep::Line,
            (ChunkStep::DataCr, b'\r') => ChunkStep::DataLf,
            (ChunkStep::DataLf, b'\n') => ChunkStep::SizeFirst,
            (ChunkStep::Line, b'\r') => ChunkStep::EndLf,
            (ChunkStep::Trailer, b'\r') => ChunkStep::TrailerLf,
            (ChunkStep::Line | ChunkStep::Trailer, _) => ChunkStep::Trailer,
            (ChunkStep::EndLf, b'\n') => ChunkStep::End,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use actix_codec::Decoder as _;
    use actix_http::h1::{Codec, Message};
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    /// The number of bytes that actix-http takes up to the end of a body; `None` if the body is
    /// malformed or has no end.
    fn by_actix(body: &[u8]) -> Option<usize> {
        let head = b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut bytes = BytesMut::from(&[&head[..], body].concat()[..]);
        let mut codec = Codec::default();
        codec.decode(&mut bytes).expect("a head").expect("a whole head");
        loop {
            match codec.decode(&mut bytes) {
                Ok(Some(Message::Chunk(None))) => return Some(body.len() - bytes.len()),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The same number by [`Chunks`], which is given the bytes in pieces.
    fn by_us(body: &[u8], piece: usize) -> Option<usize> {
        let mut chunks = Chunks::new();
        let mut taken = 0;
        for piece in body.chunks(piece) {
            taken += chunks.take(piece)?;
        }
        chunks.is_over().then_some(taken)
    }

    #[actix_web::test]
    async fn the_end_is_found() {
        for (body, expected) in [
            ("0\r\n\r\n", Some(5)),
            ("0\r\n\r\nGET / HTTP/1.1", Some(5)),
            ("5\r\nhello\r\n0\r\n\r\n5", Some(15)),
            ("000A ;a=b\r\n0\r\n\r\n0\r\n\r\n\r\n0;x\r\nq: r\r\ns: t\r\n\r\n5", Some(42)),
            ("5\r\nhello\r\n", None),
            ("\r\n0\r\n\r\n", None),
            ("+5\r\nhello\r\n0\r\n\r\n", None),
            ("5x\r\nhello\r\n0\r\n\r\n", None),
            ("5 5\r\nhello\r\n0\r\n\r\n", None),
            ("5;\n\r\nhello\r\n0\r\n\r\n", None),
            ("5\nhello\n0\n\n", None),
            ("4\r\nhello\r\n0\r\n\r\n", None),
            ("6\r\nhello\r\n0\r\n\r\n", None),
            ("fffffffffffffffff\r\n", None),
            ("0\r\n\rx", None),
        ] {
            for piece in 1..=body.len() {
                assert_eq!(by_us(body.as_bytes(), piece), expected, "{body:?}");
            }
            assert_eq!(by_actix(body.as_bytes()), expected, "{body:?}");
        }
    }

    #[actix_web::test]
    async fn actix_http_finds_the_same_end() {
        const PARTS: &[&str] = &[
            "0",
            "1",
            "5",
            "a",
            "F",
            "\r",
            "\n",
            "\r\n",
            "\r\n\r\n",
            " ",
            ";",
            "x",
            "1\r\na\r\n",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
            "\u{7f}",
        ];
        let bodies = prop::collection::vec(prop::sample::select(PARTS), 0..12);
        proptest!(|(parts in bodies, piece in 1_usize..9)| {
            let body = parts.concat();
            prop_assert_eq!(by_us(body.as_bytes(), piece), by_actix(body.as_bytes()));
        });
    }
}
