//! The bodies of large answers to plain HTTP requests.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use actix_http::body::{BodySize, MessageBody};
use bytes::Bytes;

/// The size of the pieces in which the HTTP server is given an answer. The HTTP server copies each
/// piece and takes the next one when it has room, so a client that does not read its answer makes
/// the server hold one copy of it and little more.
const PIECE_BYTES: usize = 16 * 1024;

/// The body of an answer, which the HTTP server receives one piece at a time.
#[derive(Debug)]
pub struct Pieces(Bytes);

impl Pieces {
    /// Divides a body.
    pub(super) fn new(body: Bytes) -> Self {
        Self(body)
    }
}

impl MessageBody for Pieces {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.0.len() as u64)
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let piece = self.0.len().min(PIECE_BYTES);
        Poll::Ready((piece > 0).then(|| Ok(self.0.split_to(piece))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_body_comes_in_pieces_and_is_whole() {
        for len in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES] {
            let whole: Vec<u8> = (0..len).map(|nth| (nth % 251) as u8).collect();
            let mut body = Pieces::new(whole.clone().into());
            assert_eq!(body.size(), BodySize::Sized(len as u64));
            let mut read = Vec::new();
            while let Some(Ok(piece)) = poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await {
                assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
                read.extend_from_slice(&piece);
            }
            assert!(read == whole, "{len}");
        }
    }
}
