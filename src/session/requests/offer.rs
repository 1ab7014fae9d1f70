//! The upgrades that a request offers.
//!
//! actix-http treats `Connection: upgrade` as a command: it answers the request and closes the
//! connection without a `Connection: close`. `Upgrade: websocket` makes it read no body and serve
//! no request, and it finds neither of the two in a list. A server may ignore any offer (RFC 9110,
//! section 7.8), so this file removes what is not accepted before actix-http reads the head, and
//! spells what is accepted as actix-http expects it. It overwrites bytes and moves none, so that no
//! request can end elsewhere than before.

use std::ops::Range;

use actix_http::header::{CONNECTION, UPGRADE};
use smallvec::SmallVec;

/// Parts of a head. One is the common case.
type HeadParts = SmallVec<[Range<usize>; 1]>;

/// The places in a head that offer upgrades.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    /// The values of `Upgrade`.
    upgrade: HeadParts,
    /// The values of `Connection`, if one of them lists `upgrade`.
    connection: HeadParts,
    /// The entries `upgrade` of `Connection`.
    options: HeadParts,
    /// The first entry `websocket` of `Upgrade`.
    websocket: Option<Range<usize>>,
}

impl Offer {
    /// Finds the offers in a head that begins where `bytes` does.
    pub(super) fn of(bytes: &[u8], headers: &[httparse::Header<'_>]) -> Self {
        let place = |part: &[u8]| {
            let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
            start..start + part.len()
        };
        let mut offer = Self::default();
        for header in headers {
            let entries = header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            if header.name.eq_ignore_ascii_case(UPGRADE.as_str()) {
                offer.upgrade.push(place(header.value));
                let mut entries = entries.filter(|entry| entry.eq_ignore_ascii_case(b"websocket"));
                offer.websocket = offer.websocket.or_else(|| entries.next().map(place));
            } else if header.name.eq_ignore_ascii_case(CONNECTION.as_str()) {
                let known = offer.options.len();
                let entries = entries.filter(|entry| entry.eq_ignore_ascii_case(b"upgrade"));
                offer.options.extend(entries.map(place));
                if offer.options.len() > known {
                    offer.connection.push(place(header.value));
                }
            }
        }
        offer
    }

    /// Returns whether the request asks for a WebSocket, as far as these headers say.
    pub(super) fn is_websocket(&self) -> bool {
        self.websocket.is_some() && !self.options.is_empty()
    }

    /// Removes all offers from the head.
    pub(super) fn decline(&self, head: &mut [u8]) {
        for part in self.upgrade.iter().chain(&self.options) {
            head[part.clone()].fill(b' ');
        }
    }

    /// Removes all offers from the head but that of a WebSocket.
    pub(super) fn accept(&self, head: &mut [u8]) {
        for part in self.upgrade.iter().chain(&self.connection) {
            head[part.clone()].fill(b' ');
        }
        if let Some(entry) = self.websocket.clone() {
            head[entry].copy_from_slice(b"websocket");
        }
        if let Some(entry) = self.options.first().cloned() {
            head[entry].copy_from_slice(b"upgrade");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head with these fields as it is declined and as it is accepted; the latter only if it asks
    /// for a WebSocket.
    fn settled(fields: &str) -> (String, Option<String>) {
        let head = format!("GET / HTTP/1.1\r\n{fields}\r\n").into_bytes();
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut headers);
        request.parse(&head).expect("a head");
        let offer = Offer::of(&head, request.headers);
        let fields = |settle: &dyn Fn(&mut [u8])| {
            let mut settled = head.clone();
            settle(&mut settled);
            let text = String::from_utf8(settled).expect("text");
            text["GET / HTTP/1.1\r\n".len()..text.len() - 2].to_owned()
        };
        let accepted = offer.is_websocket().then(|| fields(&|head| offer.accept(head)));
        (fields(&|head| offer.decline(head)), accepted)
    }

    #[test]
    fn offers_are_lists_and_what_is_not_accepted_is_removed() {
        for (sent, declined, accepted) in [
            ("a: upgrade\r\n", "a: upgrade\r\n", None),
            ("connection: close\r\n", "connection: close\r\n", None),
            ("connection: upgrade\r\n", "connection:        \r\n", None),
            ("connection: upgrades, x\r\n", "connection: upgrades, x\r\n", None),
            (
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
                "Connection:        , HTTP2-Settings\r\nUpgrade:    \r\n",
                None,
            ),
            ("upgrade: websocket\r\n", "upgrade:          \r\n", None),
            (
                "upgrade: websocket\r\nconnection: upgrade\r\n",
                "upgrade:          \r\nconnection:        \r\n",
                Some("upgrade: websocket\r\nconnection: upgrade\r\n"),
            ),
            (
                "Connection:close,UPGRADE\r\nUpgrade: h2c, WebSocket ,x\r\n",
                "Connection:close,       \r\nUpgrade:                  \r\n",
                Some("Connection:      upgrade\r\nUpgrade:      websocket   \r\n"),
            ),
            (
                "upgrade: h2c\r\nconnection: keep-alive\r\nupgrade: x,websocket\r\n\
                 connection: ,upgrade, upgrade\r\n",
                "upgrade:    \r\nconnection: keep-alive\r\nupgrade:            \r\n\
                 connection: ,       ,        \r\n",
                Some(
                    "upgrade:    \r\nconnection: keep-alive\r\nupgrade:   websocket\r\n\
                     connection:  upgrade         \r\n",
                ),
            ),
            ("upgrade: \r\nconnection:\r\n", "upgrade: \r\nconnection:\r\n", None),
        ] {
            let (declined, accepted) = (declined.to_owned(), accepted.map(str::to_owned));
            assert_eq!(settled(sent), (declined, accepted), "{sent}");
        }
    }
}
