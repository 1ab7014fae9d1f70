//! stub

/// Compiled topic patterns of one claim.
#[derive(Debug, Clone, Default)]
pub struct Patterns;

impl Patterns {
    /// Whether any pattern matches the whole topic.
    pub fn allow(&self, _topic: &str) -> bool {
        todo!()
    }
}
