//! The promises that hold for any input: one check per fuzz target, each an ordinary function of bytes.
//!
//! The fuzzer hands a check what it makes up (`fuzz_targets/`); an ordinary test hands it every file
//! of the corpus (`tests/it/fuzzing.rs`, which takes these files in as modules). A check panics
//! where Herald breaks its word. Most compare Herald with a reading of the same rule that is as
//! plain as can be, however slow.

pub mod archive;
pub mod conversation;
pub mod long_poll_body;
pub mod permission;
pub mod pusher_auth;
pub mod pusher_frames;
pub mod pusher_signature;
mod rules;
mod text;
pub mod token_pair;
pub mod topic_name;
pub mod v1;
pub mod v2_binary;
pub mod v2_text;

/// A check.
pub type Check = fn(&[u8]);

/// Every check by the name of its target, which is that of its corpus, too.
pub const CHECKS: [(&str, Check); 12] = [
    ("v1", v1::check),
    ("v2_text", v2_text::check),
    ("v2_binary", v2_binary::check),
    ("long_poll_body", long_poll_body::check),
    ("topic_name", topic_name::check),
    ("permission", permission::check),
    ("token_pair", token_pair::check),
    ("conversation", conversation::check),
    ("archive", archive::check),
    ("pusher_signature", pusher_signature::check),
    ("pusher_auth", pusher_auth::check),
    ("pusher_frames", pusher_frames::check),
];
