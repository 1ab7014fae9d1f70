//! The address and the scheme of a client, also behind a proxy.

use std::net::IpAddr;

use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

/// The client of a connection, as determined from trusted data only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The client's address; an IPv4 address that came as IPv6 is IPv4 again.
    pub address: IpAddr,
    /// Whether the client uses TLS, with this server or with a trusted proxy.
    pub is_secure: bool,
}

impl Client {
    /// The scheme that the client used: `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }
}

/// The addresses that count as one client: an IPv4 address alone, or the /64 of an IPv6 address,
/// because one customer holds all of a /64.
pub fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// The facts about a connection that do not depend on anything the peer claims.
#[derive(Debug, Clone, Copy)]
pub struct PeerConnection {
    /// The address of the peer: the client or a proxy.
    pub peer: Option<IpAddr>,
    /// Whether the connection itself is TLS.
    pub is_tls: bool,
}

impl PeerConnection {
    /// Finds the client behind this connection.
    ///
    /// `X-Forwarded-For` and `X-Forwarded-Proto` count only if the peer is a trusted proxy. The
    /// former is read from the right, past trusted proxies, to the first address that is not one of
    /// them. That address was written by a trusted proxy and is the client's; the client itself may
    /// have written everything left of it. An entry that is not an address ends the search.
    pub fn client(self, headers: &HeaderMap, trusted: &[IpNet]) -> Client {
        let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        let Some(peer) = self.peer.map(|peer| peer.to_canonical()) else {
            // Without a peer address no header is trusted, and all such clients count as one.
            let address = IpAddr::from([0, 0, 0, 0]);
            return Client { address, is_secure: self.is_tls };
        };
        if !is_trusted(&peer) {
            return Client { address: peer, is_secure: self.is_tls };
        }
        let mut address = peer;
        for forwarded in list(headers, "x-forwarded-for").into_iter().rev() {
            let Some(earlier) = parse_address(forwarded) else { break };
            address = earlier;
            if !is_trusted(&earlier) {
                break;
            }
        }
        // The rightmost value was written by the proxy that is connected to this server.
        let is_secure = match list(headers, "x-forwarded-proto").last() {
            Some(scheme) => is_secure(scheme),
            None => self.is_tls,
        };
        Client { address, is_secure }
    }
}

/// All values of a header that holds a list, over all its lines, in order.
///
/// The values are bytes, because a client can write the left part of a header that a proxy extends: bytes
/// there that are not text must not hide the value of the proxy.
fn list<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    let lines = headers.get_all(name).map(|line| line.as_bytes());
    lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).collect()
}

/// Returns whether a scheme means TLS. Some proxies send the WebSocket's scheme for upgrades.
fn is_secure(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"wss")
}

/// Parses `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn parse_address(raw: &[u8]) -> Option<IpAddr> {
    let raw = std::str::from_utf8(raw).ok()?;
    let bare = raw.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(raw);
    let address = match bare.parse() {
        Ok(address) => address,
        Err(_) => raw.parse::<std::net::SocketAddr>().ok()?.ip(),
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::{http::header::HeaderValue, test::TestRequest};

    fn client_of(peer: Option<&str>, headers: &[(&str, &str)]) -> (String, bool) {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "2001:db8:ffff::/48"]
            .iter()
            .map(|net| net.parse().expect("a network"))
            .collect();
        let mut request = TestRequest::default();
        for header in headers {
            request = request.append_header(*header);
        }
        let connection = PeerConnection {
            peer: peer.map(|peer| peer.parse().expect("an address")),
            is_tls: false,
        };
        let client = connection.client(request.to_http_request().headers(), &trusted);
        (client.address.to_string(), client.is_secure)
    }

    #[test]
    fn forwarded_headers_count_only_from_trusted_proxies() {
        let for_ = "X-Forwarded-For";
        let proto = "X-Forwarded-Proto";
        for (case, peer, headers, address, is_secure) in [
            ("direct", "192.0.2.9", vec![], "192.0.2.9", false),
            ("mapped", "::ffff:192.0.2.9", vec![], "192.0.2.9", false),
            (
                "a stranger's claims",
                "192.0.2.9",
                vec![(for_, "1.1.1.1"), (proto, "https")],
                "192.0.2.9",
                false,
            ),
            ("one proxy", "10.0.0.1", vec![(for_, "192.0.2.9")], "192.0.2.9", false),
            ("mapped proxy", "::ffff:10.0.0.1", vec![(for_, "192.0.2.9")], "192.0.2.9", false),
            (
                "invented entries to the left",
                "10.0.0.1",
                vec![(for_, "1.1.1.1, 192.0.2.9")],
                "192.0.2.9",
                false,
            ),
            (
                "two proxies",
                "10.0.0.1",
                vec![(for_, "1.1.1.1, 192.0.2.9, 10.0.0.2")],
                "192.0.2.9",
                false,
            ),
            (
                "two lines",
                "10.0.0.1",
                vec![(for_, "1.1.1.1"), (for_, "192.0.2.9,10.0.0.2")],
                "192.0.2.9",
                false,
            ),
            ("with a port", "10.0.0.1", vec![(for_, "192.0.2.9:4711")], "192.0.2.9", false),
            ("IPv6", "10.0.0.1", vec![(for_, "2001:db8::1")], "2001:db8::1", false),
            (
                "IPv6 with a port",
                "10.0.0.1",
                vec![(for_, "[2001:db8::1]:80")],
                "2001:db8::1",
                false,
            ),
            ("IPv6 in brackets", "10.0.0.1", vec![(for_, "[2001:db8::1]")], "2001:db8::1", false),
            ("IPv6 proxy", "2001:db8:ffff::1", vec![(for_, "192.0.2.9")], "192.0.2.9", false),
            ("only proxies", "10.0.0.1", vec![(for_, "10.0.0.3, 10.0.0.2")], "10.0.0.3", false),
            ("unknown", "10.0.0.1", vec![(for_, "1.1.1.1, unknown")], "10.0.0.1", false),
            ("empty", "10.0.0.1", vec![(for_, "")], "10.0.0.1", false),
            ("TLS", "10.0.0.1", vec![(proto, "https")], "10.0.0.1", true),
            ("TLS in capitals", "10.0.0.1", vec![(proto, "HTTPS")], "10.0.0.1", true),
            ("plain", "10.0.0.1", vec![(proto, "http")], "10.0.0.1", false),
            (
                "the nearest proxy's word",
                "10.0.0.1",
                vec![(proto, "https, http")],
                "10.0.0.1",
                false,
            ),
            ("nonsense", "10.0.0.1", vec![(proto, "httpsx")], "10.0.0.1", false),
            ("a WebSocket over TLS", "10.0.0.1", vec![(proto, "wss")], "10.0.0.1", true),
            ("the same in capitals", "10.0.0.1", vec![(proto, "WSS")], "10.0.0.1", true),
            ("a plain WebSocket", "10.0.0.1", vec![(proto, "ws")], "10.0.0.1", false),
            ("a stranger's WebSocket", "192.0.2.9", vec![(proto, "wss")], "192.0.2.9", false),
        ] {
            let expected = (address.to_owned(), is_secure);
            assert_eq!(client_of(Some(peer), &headers), expected, "{case}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_hide_nothing_that_a_proxy_wrote() {
        let trusted = ["10.0.0.0/8".parse().expect("a network")];
        let peer = Some("10.0.0.1".parse().expect("an address"));
        let line = |bytes: &[u8]| HeaderValue::from_bytes(bytes).expect("bytes of a header");
        for (forwarded_for, forwarded_proto, address, is_secure) in [
            (&b"\xff, 192.0.2.9"[..], &b"\xff, https"[..], "192.0.2.9", true),
            (b"caf\xc3\xa9,192.0.2.9, 10.0.0.2", b"\xe9,wss", "192.0.2.9", true),
            (b"1.1.1.1, 192.0.2.9\xff", b"https\xff", "10.0.0.1", false),
            (b"192.0.2.9, \xff, 10.0.0.2", b"https, \xff", "10.0.0.2", false),
        ] {
            let request = TestRequest::default()
                .append_header(("X-Forwarded-For", line(forwarded_for)))
                .append_header(("X-Forwarded-Proto", line(forwarded_proto)))
                .to_http_request();
            let client = PeerConnection { peer, is_tls: false }.client(request.headers(), &trusted);
            let expected = Client { address: address.parse().expect("one"), is_secure };
            assert_eq!(client, expected, "{}", forwarded_for.escape_ascii());
        }
    }

    #[test]
    fn without_a_peer_nothing_is_believed() {
        let headers = [("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-Proto", "https")];
        assert_eq!(client_of(None, &headers), ("0.0.0.0".to_owned(), false));
    }
}
