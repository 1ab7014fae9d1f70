//! Admission: which clients are let in, whatever protocol they speak.
//!
//! A client passes two checks. The [`Entrance`] judges its handshake: TLS, the page's origin, the
//! number of sessions from its address. The [`Judge`] decides whether a join may stand on its
//! [`Footing`], now and after each change of its app. Both are pure: the inputs are the handshake and
//! the apps as of now. [`Rules`] are the limits that all conversations share.
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
