//! The admin API's login.

/// Counts failed admin logins per client address.
#[derive(Debug)]
pub struct Throttle {
    failures_per_minute_max: u32,
}

impl Throttle {
    /// Allows this many failures per minute and address.
    pub fn new(failures_per_minute_max: u32) -> Self {
        Self { failures_per_minute_max }
    }
}
