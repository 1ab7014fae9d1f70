//! Usage: the publications, deliveries and connections of each app by the hour, counted exactly.
//!
//! ```text
//! broker, phoenix ─► metrics::usage ─► Ledger ─► app::store::usage        every answer:
//!    (count)         (since taken)     (by hour,   (the database)         the database + the ledger
//!                                       not yet
//!                                       written)
//! ```
//!
//! The [`ledger`] takes the counts, assigns them to their hour, and adds them to the database within
//! `usage.write_interval`, which is at most a minute, and when the server stops. Counts that the
//! database does not accept stay in the ledger and are written later, exactly once. The [`keeper`] is
//! the actor that writes the ledger at these times. A [`span`] is the requested time in periods; a
//! [`report`] is the answer, the same for the HTTP API and the command line. A [`seat`] is the number
//! under which a node of a cluster counts.

pub mod keeper;
pub mod ledger;
pub mod report;
pub mod seat;
pub mod span;
