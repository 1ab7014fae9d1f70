//! Reserved names: the words that have a meaning in one of the protocols.
//!
//! The broker itself attaches no meaning to them. They are listed here because all protocols share
//! one namespace: publications over one protocol are received over the other.

/// Whether an event is one of Phoenix's own: its clients act on it by themselves, so they are
/// never sent such an event that was published. Pusher's clients may receive it, because it means nothing
/// to them.
///
/// Sections 5 and 10 of the protocol document of Phoenix.
pub fn is_phoenix_event(event: &str) -> bool {
    event.starts_with("phx_")
        || event.starts_with("chan_reply_")
        || matches!(event, "presence_state" | "presence_diff")
}

/// Whether an event is one of Pusher's own: its clients act on it by themselves. Phoenix's clients may
/// publish and hear such an event, because it means nothing to them, but a client of Pusher's must not
/// be sent it.
///
/// Section 3 of the protocol document of Pusher.
pub fn is_pusher_event(event: &str) -> bool {
    event.starts_with("pusher:") || event.starts_with("pusher_internal:")
}

/// Whether a channel keeps its last event for new subscribers, which are clients of Pusher's.
///
/// Section 5.1 of the protocol document of Pusher.
pub fn is_cache(scope: &str, channel: &str) -> bool {
    let channel = match scope {
        // Pusher's name for it begins with `private-encrypted-`.
        "private" => channel.strip_prefix("encrypted-").unwrap_or(channel),
        "public" | "presence" => channel,
        _ => return false,
    };
    channel.starts_with("cache-")
}

/// Whether a name begins like the words that stand for something other than a channel or an event:
/// `#general` is every channel of a scope, and Pusher's `#server-to-user-…` is a user.
pub(super) fn is_special(name: &str) -> bool {
    name.starts_with('#')
}

/// Whether a field of a presence member's meta is set by the server: Phoenix's clients keep their
/// lists by the references, and the time is when the join began.
pub fn is_presence_field(name: &str) -> bool {
    matches!(name, "online_at" | "phx_ref" | "phx_ref_prev")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_each_protocol_are_its_own() {
        for (name, of_phoenix, of_pusher, special) in [
            ("msg", false, false, false),
            ("phx_", true, false, false),
            ("phx_join", true, false, false),
            ("chan_reply_1", true, false, false),
            ("presence_state", true, false, false),
            ("presence_diff", true, false, false),
            ("presence_states", false, false, false),
            ("presence_metadata", false, false, false),
            ("pusher:ping", false, true, false),
            ("pusher_internal:member_added", false, true, false),
            ("pusher", false, false, false),
            ("client-typing", false, false, false),
            ("#general", false, false, true),
            ("#server-to-user-1", false, false, true),
        ] {
            let found = (is_phoenix_event(name), is_pusher_event(name), is_special(name));
            assert_eq!(found, (of_phoenix, of_pusher, special), "{name}");
        }
        for (scope, channel, expected) in [
            ("public", "cache-x", true),
            ("public", "cache", false),
            ("public", "my-cache-x", false),
            ("public", "encrypted-cache-x", false),
            ("private", "cache-x", true),
            ("private", "encrypted-cache-x", true),
            ("private", "encrypted-encrypted-cache-x", false),
            ("presence", "cache-x", true),
            ("presence", "encrypted-cache-x", false),
            ("deploys", "cache-x", false),
        ] {
            assert_eq!(is_cache(scope, channel), expected, "{scope} {channel}");
        }
        for (name, expected) in
            [("online_at", true), ("phx_ref", true), ("phx_ref_prev", true), ("custom", false)]
        {
            assert_eq!(is_presence_field(name), expected, "{name}");
        }
    }
}
