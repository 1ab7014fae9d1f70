//! Origins: which web pages may connect and join.

/// stub
#[derive(Debug, Clone, Default)]
pub struct AllowedOrigins(Vec<OriginPattern>);

impl AllowedOrigins {
    /// Whether a page of this `Origin` header may join; no header means not a browser: allowed.
    pub fn allow(&self, _origin: Option<&str>) -> bool {
        todo!()
    }
}

/// stub
#[derive(Debug, Clone)]
pub struct OriginPattern;

/// The global origin check at the handshake (section 3.4 of the protocol document).
#[derive(Debug, Clone, Default)]
pub enum OriginPolicy {
    /// Allow everything, as the first article does.
    #[default]
    Off,
    /// The origin's host must equal this public host.
    PublicHost(String),
    /// Scheme, host and port must equal those of the request itself.
    Connection,
    /// One of the patterns must match.
    List(Vec<OriginPattern>),
}

/// Where a request was addressed to, as its client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestTarget {
    /// `http` or `https`.
    pub scheme: String,
    /// Host without port.
    pub host: String,
    /// Port, defaulted from the scheme.
    pub port: u16,
}

impl OriginPolicy {
    /// Whether a handshake with this `Origin` header may go on; no header: allowed.
    pub fn allow(&self, _origin: Option<&str>, _target: &RequestTarget) -> bool {
        todo!()
    }
}
