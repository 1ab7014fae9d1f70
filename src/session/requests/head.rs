//! The head of a request: its end, the kind of bytes that follow it, and the upgrades that it offers.
//!
//! actix-http reads the same bytes again, and its rules decide what a request is. This file repeats
//! those that reject a request or frame its body, and errs on the strict side: a request that only
//! this file rejects gets 400, while one that only actix-http rejects is answered and closed by it.

use std::mem::MaybeUninit;

use actix_http::{
    Method, Uri,
    header::{CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING},
};

use super::offer::Offer;
use crate::session::path;

/// The most bytes of a head. actix-http has the same limit.
pub(super) const HEAD_BYTES_MAX: usize = 128 * 1024;

/// The most headers of a request. actix-http has the same limit.
const HEADERS_MAX: usize = 96;

/// The most bytes of a target; a longer one is no [`Uri`].
const TARGET_BYTES_MAX: usize = 65_534;

/// The most bytes of a header's name; actix-http panics on a longer one.
const NAME_BYTES_MAX: usize = 65_535;

/// The reason why a request cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadFault {
    /// The request is not HTTP/1, or is malformed.
    #[error("{0}")]
    Syntax(#[from] httparse::Error),
    /// The head is longer than [`HEAD_BYTES_MAX`].
    #[error("the head is too large")]
    TooLarge,
    /// The target is not a URI.
    #[error("the target is not a URI")]
    Target,
    /// The target has more than [`TARGET_BYTES_MAX`].
    #[error("the target is too long")]
    LongTarget,
    /// The request is HTTP/1.1 and has no `Host`, or several.
    #[error("not exactly one host")]
    Host,
    /// The length of the body is missing, or can be read in more than one way.
    #[error("the length of the body is unclear")]
    Framing,
}

/// The part of a request that follows its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// The next request.
    Nothing,
    /// A body of this many bytes, at least one.
    Length(u64),
    /// A body in chunks.
    Chunks,
    /// Another protocol, to the end of the connection.
    Tunnel,
}

/// A whole head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReadHead {
    /// The number of its bytes, including the empty line at its end.
    pub(super) length: usize,
    pub(super) follows: Follows,
}

/// The size up to which the beginning of a head is parsed again after each read, so that bytes which are not
/// HTTP are answered at once.
const SMALL_HEAD_BYTES: usize = 4 * 1024;

/// The state of an incomplete head. It prevents that a large head which arrives byte by byte is parsed again
/// for each byte.
#[derive(Debug, Default)]
pub(super) struct HeadProgress {
    /// The number of bytes at the last parse.
    read: usize,
    /// The number of bytes that were searched for the end of the head.
    searched: usize,
}

impl HeadProgress {
    /// Returns whether the caller should parse the head again, because that may yield more than before.
    pub(super) fn is_worth_reading(&mut self, bytes: &[u8]) -> bool {
        // A part of the empty line may have arrived with the earlier bytes.
        let new = &bytes[self.searched.saturating_sub(2).min(bytes.len())..];
        self.searched = bytes.len();
        let has_doubled = bytes.len() / 2 >= self.read;
        let is_full = bytes.len() >= HEAD_BYTES_MAX;
        let is_worth_it =
            bytes.len() <= SMALL_HEAD_BYTES || has_doubled || is_full || has_empty_line(new);
        if is_worth_it {
            self.read = bytes.len();
        }
        is_worth_it
    }
}

/// Returns whether these bytes contain the end of an empty line, which ends every head.
fn has_empty_line(bytes: &[u8]) -> bool {
    let ends_empty =
        |at: usize| matches!(bytes[at..], [b'\n', b'\n', ..] | [b'\n', b'\r', b'\n', ..]);
    (0..bytes.len()).any(ends_empty)
}

/// Parses the head at the beginning of `bytes`, if it is complete, and edits it in place so that it offers
/// only accepted upgrades: a WebSocket, on a path that `is_socket` accepts.
///
/// # Errors
/// [`HeadFault`].
pub(super) fn read(
    bytes: &mut [u8],
    is_socket: &dyn Fn(&str) -> bool,
) -> Result<Option<ReadHead>, HeadFault> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut headers)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        httparse::Status::Partial => return Err(HeadFault::TooLarge),
    };
    let fields = HeaderFields::of(&request)?;
    let mut follows = fields.follows()?;
    let offer = Offer::of(bytes, request.headers);
    let is_get = follows == Follows::Nothing && fields.method == Method::GET;
    if is_get && offer.is_websocket() && fields.names_socket(is_socket) {
        offer.accept(bytes);
        follows = Follows::Tunnel;
    } else {
        offer.decline(bytes);
    }
    Ok(Some(ReadHead { length, follows }))
}

/// The values that were read from the headers.
struct HeaderFields {
    method: Method,
    target: Uri,
    is_http_1_1: bool,
    hosts: usize,
    content_length: Option<u64>,
    is_chunked: bool,
}

impl HeaderFields {
    fn of(request: &httparse::Request<'_, '_>) -> Result<Self, HeadFault> {
        let method = request.method.unwrap_or_default();
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadFault::Target)?;
        let target = request.path.unwrap_or_default();
        if target.len() > TARGET_BYTES_MAX {
            return Err(HeadFault::LongTarget);
        }
        let target = Uri::try_from(target).map_err(|_| HeadFault::Target)?;
        let mut fields = Self {
            method,
            target,
            is_http_1_1: request.version == Some(1),
            hosts: 0,
            content_length: None,
            is_chunked: false,
        };
        for header in request.headers.iter() {
            fields.note(header)?;
        }
        Ok(fields)
    }

    fn note(&mut self, header: &httparse::Header<'_>) -> Result<(), HeadFault> {
        if header.name.len() > NAME_BYTES_MAX {
            return Err(HeadFault::TooLarge);
        }
        if is(header, &HOST) {
            self.hosts += 1;
        } else if is(header, &CONTENT_LENGTH) {
            let length = read_length(header.value).ok_or(HeadFault::Framing)?;
            if self.content_length.replace(length).is_some() {
                return Err(HeadFault::Framing);
            }
        } else if is(header, &TRANSFER_ENCODING) {
            let is_chunked = header.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            if !is_chunked || self.is_chunked {
                return Err(HeadFault::Framing);
            }
            self.is_chunked = true;
        }
        Ok(())
    }

    /// Returns whether `is_socket` accepts the path, spelled as the services see it.
    fn names_socket(mut self, is_socket: &dyn Fn(&str) -> bool) -> bool {
        path::drop_empty_segments(&mut self.target);
        is_socket(self.target.path())
    }

    fn follows(&self) -> Result<Follows, HeadFault> {
        if self.hosts > 1 || self.is_http_1_1 && self.hosts == 0 {
            return Err(HeadFault::Host);
        }
        match (self.content_length, self.is_chunked) {
            (Some(_), true) => Err(HeadFault::Framing),
            (None, true) if self.is_http_1_1 => Ok(Follows::Chunks),
            (None, true) => Err(HeadFault::Framing),
            (Some(length @ 1..), false) => Ok(Follows::Length(length)),
            (None, false) if !self.is_http_1_1 && self.method == Method::POST => {
                Err(HeadFault::Framing)
            }
            _ if self.method == Method::CONNECT => Ok(Follows::Tunnel),
            _ => Ok(Follows::Nothing),
        }
    }
}

fn is(header: &httparse::Header<'_>, name: &HeaderName) -> bool {
    header.name.eq_ignore_ascii_case(name.as_str())
}

fn read_length(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    let is_number = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use actix_codec::Decoder as _;
    use actix_http::h1::{Codec, Message, MessageType};
    use bytes::BytesMut;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<ReadHead>, HeadFault> {
        super::read(&mut bytes.to_vec(), &|path: &str| path == "/socket/websocket")
    }

    /// The result of actix-http for a head; `None` if it rejects the head.
    fn by_actix(bytes: &[u8]) -> Option<MessageType> {
        let mut codec = Codec::default();
        match codec.decode(&mut BytesMut::from(bytes)) {
            Ok(Some(Message::Item(_))) => Some(codec.message_type()),
            Ok(_) => panic!("it is whole: {}", String::from_utf8_lossy(bytes)),
            Err(_) => None,
        }
    }

    #[actix_web::test]
    async fn a_body_is_framed_as_actix_http_frames_it_or_not_at_all() {
        use Follows::{Chunks, Length, Nothing, Tunnel};
        use HeadFault::{Framing, Host};
        let (one, host) = ("1.1", "host: h\r\n");
        for (method, version, fields, expected) in [
            ("GET", one, host, Ok(Nothing)),
            ("GET", one, "", Err(Host)),
            ("GET", "1.0", "", Ok(Nothing)),
            ("GET", one, "host: a\r\nHOST: a\r\n", Err(Host)),
            ("POST", one, host, Ok(Nothing)),
            ("POST", "1.0", host, Err(Framing)),
            ("POST", "1.0", "content-length: 0\r\n", Ok(Nothing)),
            ("CONNECT", one, host, Ok(Tunnel)),
            ("CONNECT", one, "host: h\r\ncontent-length: 5\r\n", Ok(Length(5))),
            ("POST", one, "host: h\r\ncontent-length: 0\r\n", Ok(Nothing)),
            ("POST", one, "host: h\r\nContent-Length:5\r\n", Ok(Length(5))),
            ("GET", one, "host: h\r\ncontent-length: \t5 \r\n", Ok(Length(5))),
            (
                "POST",
                one,
                "host: h\r\ncontent-length: 18446744073709551615\r\n",
                Ok(Length(u64::MAX)),
            ),
            ("POST", one, "host: h\r\ncontent-length: 18446744073709551616\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ncontent-length: 5\r\ncontent-length: 5\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ncontent-length: 0\r\ncontent-length: 5\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ncontent-length: 5, 5\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ncontent-length: +5\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ncontent-length: -5\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ncontent-length: 0x5\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ncontent-length: \r\n", Err(Framing)),
            ("POST", one, "host: h\r\ncontent-length: \u{665}\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ntransfer-encoding: chunked\r\n", Ok(Chunks)),
            ("POST", one, "host: h\r\nTransfer-Encoding: \tCHUNKED \r\n", Ok(Chunks)),
            ("POST", one, "host: h\r\ntransfer-encoding: identity\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ntransfer-encoding: gzip, chunked\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ntransfer-encoding: chunked, chunked\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ntransfer-encoding: xchunked\r\n", Err(Framing)),
            ("POST", one, "host: h\r\ntransfer-encoding: \r\n", Err(Framing)),
            (
                "POST",
                one,
                "host: h\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
                Err(Framing),
            ),
            (
                "POST",
                one,
                "host: h\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n",
                Err(Framing),
            ),
            (
                "POST",
                one,
                "host: h\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n",
                Err(Framing),
            ),
            ("POST", "1.0", "content-length: 5\r\ntransfer-encoding: chunked\r\n", Err(Framing)),
            ("POST", "1.0", "transfer-encoding: chunked\r\n", Err(Framing)),
        ] {
            let head = format!("{method} / HTTP/{version}\r\n{fields}\r\n");
            let length = head.len();
            let bytes = [head.as_bytes(), b"POST / HTTP/1.1\r\n"].concat();
            let found = read(&bytes).map(|head| head.expect("a whole head"));
            assert_eq!(found, expected.map(|follows| ReadHead { length, follows }), "{head}");
            let by_actix = by_actix(head.as_bytes());
            let expected = expected.ok().map(|follows| match follows {
                Nothing => MessageType::None,
                Length(_) | Chunks => MessageType::Payload,
                Tunnel => MessageType::Stream,
            });
            assert_eq!(by_actix, expected, "{head}");
        }
    }

    #[test]
    fn an_invalid_head_is_a_fault() {
        use httparse::Error::{HeaderName, HeaderValue, Token, TooManyHeaders, Version};
        let host = "host: h\r\n";
        for (case, head, expected) in [
            ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), HeadFault::Syntax(Version)),
            ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".to_owned(), HeadFault::Syntax(Token)),
            ("SSH", "SSH-2.0-OpenSSH_9.6\r\n".to_owned(), HeadFault::Syntax(Token)),
            ("no URI", format!("GET /\u{e9} HTTP/1.1\r\n{host}\r\n"), HeadFault::Target),
            (
                "a long target",
                format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(TARGET_BYTES_MAX)),
                HeadFault::LongTarget,
            ),
            (
                "a folded line",
                format!("GET / HTTP/1.1\r\n{host} transfer-encoding: chunked\r\n\r\n"),
                HeadFault::Syntax(HeaderName),
            ),
            (
                "a space behind a name",
                format!("GET / HTTP/1.1\r\n{host}content-length : 5\r\n\r\n"),
                HeadFault::Syntax(HeaderName),
            ),
            (
                "a bare carriage return",
                format!("GET / HTTP/1.1\r\n{host}a: b\rcontent-length: 5\r\n\r\n"),
                HeadFault::Syntax(HeaderValue),
            ),
            (
                "many headers",
                format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1)),
                HeadFault::Syntax(TooManyHeaders),
            ),
            (
                "a long name",
                format!("GET / HTTP/1.1\r\n{host}{}: b\r\n\r\n", "a".repeat(NAME_BYTES_MAX + 1)),
                HeadFault::TooLarge,
            ),
            (
                "a long value",
                format!("GET / HTTP/1.1\r\n{host}a: {}", "b".repeat(HEAD_BYTES_MAX)),
                HeadFault::TooLarge,
            ),
        ] {
            assert_eq!(read(head.as_bytes()), Err(expected), "{case}");
        }
    }

    #[actix_web::test]
    async fn only_a_websocket_that_is_asked_for_where_sockets_are_takes_the_connection() {
        use Follows::{Length, Nothing, Tunnel};
        let (socket, both) = ("/socket/websocket", "connection: upgrade\r\nupgrade: websocket\r\n");
        for (method, path, fields, expected) in [
            ("GET", socket, both, Tunnel),
            ("GET", "//socket//websocket/?a=b", both, Tunnel),
            ("GET", socket, "connection: close, Upgrade\r\nupgrade: h2c, WebSocket\r\n", Tunnel),
            (
                "GET",
                socket,
                "connection: close\r\nconnection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\n",
                Tunnel,
            ),
            ("GET", socket, "connection: upgrade\r\n", Nothing),
            ("GET", socket, "upgrade: websocket\r\n", Nothing),
            ("GET", socket, "connection: upgrade\r\nupgrade: h2c\r\n", Nothing),
            ("GET", "/health", both, Nothing),
            ("POST", socket, both, Nothing),
            (
                "POST",
                "/api/publish",
                "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\n",
                Length(5),
            ),
            (
                "GET",
                socket,
                "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\n",
                Length(5),
            ),
            ("POST", "/api/publish", "connection: upgrade\r\n", Nothing),
            (
                "POST",
                "/api/publish",
                "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n",
                Nothing,
            ),
        ] {
            let mut head =
                format!("{method} {path} HTTP/1.1\r\nhost: h\r\n{fields}\r\n").into_bytes();
            let length = head.len();
            let found = super::read(&mut head, &|path: &str| path == "/socket/websocket");
            assert_eq!(
                found,
                Ok(Some(ReadHead { length, follows: expected })),
                "{method} {path} {fields}"
            );
            let mut codec = Codec::default();
            codec.decode(&mut BytesMut::from(&head[..])).expect("a head").expect("a whole head");
            assert_eq!(codec.message_type() == MessageType::Stream, expected == Tunnel, "{fields}");
            assert!(expected == Tunnel || codec.keep_alive(), "{method} {path} {fields}");
        }
    }

    #[test]
    fn a_large_head_is_read_again_when_its_end_may_have_come_and_seldom_before() {
        for end in ["\r\n\r\n", "\n\n", "\n\r\n", "\r\n\n"] {
            let head = format!("GET / HTTP/1.1\r\nhost: h\r\na: {}{end}", "b".repeat(50_000));
            for piece in [1, 2, 3, 1_000] {
                let (mut progress, mut looks, mut length) = (HeadProgress::default(), 0, 0);
                let found = loop {
                    length = (length + piece).min(head.len());
                    if progress.is_worth_reading(&head.as_bytes()[..length]) {
                        looks += usize::from(length > SMALL_HEAD_BYTES);
                        if let Some(head) = read(&head.as_bytes()[..length]).expect("no fault") {
                            break head.length;
                        }
                    }
                    assert!(length < head.len(), "not found: {end:?} by {piece}");
                };
                assert_eq!(found, head.len());
                assert!(looks <= 6, "{looks} looks: {end:?} by {piece}");
            }
        }
    }

    #[test]
    fn half_a_head_is_waited_for() {
        let head = b"POST /a?b HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\n";
        for length in 0..head.len() {
            assert_eq!(read(&head[..length]), Ok(None), "{length}");
        }
    }

    #[actix_web::test]
    async fn a_name_that_httparse_accepts_is_one_to_actix_http() {
        for byte in 0..=u8::MAX {
            let head = [b"GET / HTTP/1.1\r\nhost: h\r\na", &[byte][..], b"b: c\r\n\r\n"].concat();
            if read(&head).is_ok() {
                // actix-http panics on a name that it cannot hold.
                by_actix(&head);
            }
        }
        by_actix(
            format!("GET / HTTP/1.1\r\nhost: h\r\n{}: c\r\n\r\n", "a".repeat(NAME_BYTES_MAX))
                .as_bytes(),
        );
    }
}
