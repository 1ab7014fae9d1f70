//! Admission: the checks of clients that do not depend on their protocol.
//!
//! A client passes two checks. The [`Entrance`] judges its handshake: TLS, the page's origin, the number of
//! sessions from its address. The [`Judge`] decides whether the [`Footing`] of a join permits it, at first and
//! after each change of its app. Neither waits: their inputs are the handshake, the present apps and the counts
//! of sessions. [`Rules`] are the limits that all conversations share.
//!
//! The protocols add their own credentials: tokens in `phoenix`, signatures in `pusher`.

mod entrance;
mod judge;
mod place_in_app;
mod rules;

pub use entrance::{Entrance, NotAdmitted};
pub use judge::{Footing, Judge, OriginNotAllowed, Standing};
pub use place_in_app::PlaceInApp;
pub use rules::Rules;
