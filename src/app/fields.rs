//! An app's fields as they come from outside, and what is wrong with them.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;

/// Everything that is wrong with an input, by field: `{"name":["can't be blank"]}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Faults(BTreeMap<&'static str, Vec<Cow<'static, str>>>);

impl Faults {
    /// Notes one fault of `field`.
    pub fn add(&mut self, field: &'static str, fault: impl Into<Cow<'static, str>>) {
        self.0.entry(field).or_default().push(fault.into());
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `field` has a fault.
    pub fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    /// Each faulty field with its faults, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[Cow<'static, str>])> {
        self.0.iter().map(|(field, faults)| (*field, faults.as_slice()))
    }
}
