//! The versions of the protocol.
//!
//! They follow section 2.2 of the document of Pusher's protocol. Versions differ only in how a client is
//! told that its connection is closed.

use bytestring::ByteString;

use crate::session::Close;

use super::{closing, frame};

/// The version of the protocol that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PusherVersion(u64);

impl PusherVersion {
    /// The version of clients that do not name one.
    pub const LATEST: Self = Self(7);

    /// Reads the parameter `protocol` of a query. All other parameters are ignored, whatever their bytes are. A
    /// client without the parameter counts as one of the latest version, unless the endpoint is strict.
    pub(super) fn read(query: &str, is_strict: bool) -> Result<Self, Close> {
        let params = form_urlencoded::parse(query.as_bytes());
        match params.filter(|(name, _)| name == "protocol").last() {
            None if is_strict => Err(closing::NO_VERSION),
            None => Ok(Self::LATEST),
            Some((_, text)) => text.parse().map(Self).map_err(|_| closing::UNSUPPORTED),
        }
    }

    /// Checks that Herald speaks this version.
    pub(super) fn check(self) -> Result<(), Close> {
        match self.0 {
            4..=7 => Ok(()),
            _ => Err(closing::UNSUPPORTED),
        }
    }

    /// The text of the error that a client of this version is sent before it is closed; `None` if the close frame is
    /// all.
    pub(super) fn error_before(self, close: Close) -> Option<ByteString> {
        (self.0 < 6).then(|| frame::error_text(Some(close.code.0), close.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p008_p009_p010_p011_p018_the_version_is_read_from_the_query() {
        for (query, is_strict, expected) in [
            ("protocol=7&client=js&version=8.6.0&flash=false", true, Ok(7)),
            ("protocol=6", false, Ok(6)),
            ("protocol=5", false, Ok(5)),
            ("protocol=4", false, Ok(4)),
            ("protocol=8", false, Err(closing::UNSUPPORTED)),
            ("protocol=3", false, Err(closing::UNSUPPORTED)),
            ("protocol=0", false, Err(closing::UNSUPPORTED)),
            ("protocol=-7", false, Err(closing::UNSUPPORTED)),
            ("protocol=abc", false, Err(closing::UNSUPPORTED)),
            ("protocol=", false, Err(closing::UNSUPPORTED)),
            ("protocol=%ff", false, Err(closing::UNSUPPORTED)),
            ("protocol=7.0", false, Err(closing::UNSUPPORTED)),
            ("protocol=99999999999999999999", false, Err(closing::UNSUPPORTED)),
            ("protocol=7&x=%ff&%ff=x&protocol[]=8", true, Ok(7)),
            ("protocol=8&protocol=7", false, Ok(7)),
            ("", false, Ok(7)),
            ("client=js", true, Err(closing::NO_VERSION)),
        ] {
            let version = PusherVersion::read(query, is_strict);
            let version = version.and_then(|version| version.check().map(|()| version.0));
            assert_eq!(version, expected, "{query}");
        }
    }
}
