//! The settings of Pusher's protocol.

use std::time::Duration;

use serde::Deserialize;

use super::kinds;

/// The first segments of Herald's other paths, with which a prefix must not begin.
const TAKEN: [&str; 9] =
    ["api", "app", "apps", "console", "events", "health", "metrics", "ready", "socket"];

/// The section `pusher`: the settings for Pusher's clients and server SDKs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PusherSettings {
    /// The time for which a client may be silent before it is probed.
    pub activity_timeout: Duration,
    /// The time that a client may take to answer a probe.
    pub pong_timeout: Duration,
    /// The time within which a client of an app with `authorized_only` must show a signature.
    pub authorization_timeout: Duration,
    /// The time for which the last event of a cache channel is kept.
    pub cache_ttl: Duration,
    /// The memory for one app's cache channels, in bytes.
    pub cache_app_bytes_max: usize,
    /// The memory for the cache channels of all apps, in bytes.
    pub cache_bytes_max: usize,
    /// The most bytes of the data of one event that is triggered through Pusher's API.
    pub event_bytes_max: usize,
    /// The most bytes of the name of a channel.
    pub channel_bytes_max: usize,
    /// The path below which `/app` and `/apps` lie: empty, or segments that each follow a slash.
    #[serde(deserialize_with = "kinds::text")]
    pub path_prefix: String,
    /// Whether clients without the parameter `protocol` are refused.
    pub strict_protocol: bool,
}

/// Returns whether a text is a valid [`PusherSettings::path_prefix`].
pub(super) fn is_prefix(text: &str) -> bool {
    let Some(path) = text.strip_prefix('/') else { return text.is_empty() };
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-');
    let is_segment =
        |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_unreserved);
    let first = path.split('/').next().unwrap_or_default();
    path.split('/').all(is_segment) && !TAKEN.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_consists_of_segments_and_begins_like_no_other_path() {
        for (text, expected) in [
            ("", true),
            ("/pusher", true),
            ("/a/b-c_d.e~f", true),
            ("pusher", false),
            ("/", false),
            ("/pusher/", false),
            ("//pusher", false),
            ("/a//b", false),
            ("/a/../b", false),
            ("/a b", false),
            ("/a%20b", false),
            ("/{slug}", false),
            ("/api", false),
            ("/socket/x", false),
            ("/apps", false),
            ("/apis", true),
        ] {
            assert_eq!(is_prefix(text), expected, "{text:?}");
        }
    }
}
