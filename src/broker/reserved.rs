//! Reserved names: the words that have a meaning in one of the protocols.
//!
//! The broker itself attaches no meaning to them. They are listed here because all protocols share
//! one namespace: publications over one protocol are received over the other.

/// Returns whether an event is reserved in Phoenix's protocol (sections 5 and 10 of its document). Phoenix's
/// clients act on such an event themselves, so a published one is never sent to them. It is sent to Pusher's
/// clients, for which it has no special meaning.
pub fn is_phoenix_event(event: &str) -> bool {
    event.starts_with("phx_")
        || event.starts_with("chan_reply_")
        || matches!(event, "presence_state" | "presence_diff")
}

/// Returns whether an event is reserved for the server in conversations of Pusher's protocol: in the protocol
/// itself (section 3 of its document), or for Herald's positions and recovery. Pusher's clients, and pages
/// that keep positions, take such an event for the server's own, so a published one is never sent to them.
/// Phoenix's clients may publish and receive it, because it has no special meaning for them.
pub fn is_pusher_event(event: &str) -> bool {
    ["pusher:", "pusher_internal:", "herald:"].iter().any(|own| event.starts_with(own))
}

/// Returns whether a channel keeps its last event for new subscribers with Pusher's protocol (section 5.1
/// of its document).
pub fn is_cache(scope: &str, channel: &str) -> bool {
    let channel = match scope {
        // Pusher's name for it begins with `private-encrypted-`.
        "private" => channel.strip_prefix("encrypted-").unwrap_or(channel),
        "public" | "presence" => channel,
        _ => return false,
    };
    channel.starts_with("cache-")
}

/// Returns whether a name begins with `#`, like the words that are not names of channels or events:
/// `#general` means every channel of a scope, and Pusher's `#server-to-user-…` means a user.
pub(super) fn is_special(name: &str) -> bool {
    name.starts_with('#')
}

/// Returns whether the server sets this field of a presence member's meta: the references, by which
/// Phoenix's clients keep their lists, or the time of the join.
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
            ("herald:recovery", false, true, false),
            ("herald:position", false, true, false),
            ("herald_position", false, false, false),
            ("herald", false, false, false),
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
