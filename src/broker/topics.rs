//! The directory of topics: the single door through which every publication passes.

use super::publication::Publication;

/// Why a publication was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Too much is under way; nothing was published. Trying again later helps.
    #[error("too many publications are under way")]
    Busy,
}

/// Finds topics and hands them publications. Cheap to clone; shared by all threads.
#[derive(Clone)]
pub struct Topics;

impl Topics {
    /// Gives a publication its place in its topic's order.
    ///
    /// # Errors
    /// [`PublishError::Busy`].
    pub async fn publish(&self, _publication: Publication) -> Result<(), PublishError> {
        todo!()
    }

    /// Publishes all, in order, or none.
    ///
    /// # Errors
    /// [`PublishError::Busy`]: none was published.
    pub async fn publish_all(&self, _publications: Vec<Publication>) -> Result<(), PublishError> {
        todo!()
    }
}
