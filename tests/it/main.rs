//! Herald from outside.

mod databases;
