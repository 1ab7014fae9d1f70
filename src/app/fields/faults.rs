//! The faults of an input, by field.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::Serialize;

/// The faults of one field.
pub(in crate::app) type FieldFaults = Vec<Cow<'static, str>>;

/// All faults of an input, by field: `{"name":["can't be blank"]}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Faults(BTreeMap<&'static str, Vec<Cow<'static, str>>>);

impl Faults {
    /// Records one fault of `field`.
    pub fn add(&mut self, field: &'static str, fault: impl Into<Cow<'static, str>>) {
        self.0.entry(field).or_default().push(fault.into());
    }

    /// The value of `field`, unless it is faulty: then its faults are recorded.
    pub(in crate::app) fn keep<T>(
        &mut self,
        field: &'static str,
        read: Result<T, FieldFaults>,
    ) -> Option<T> {
        read.map_err(|found| self.0.entry(field).or_default().extend(found)).ok()
    }

    /// The value of `field`, unless it is faulty: then its one fault is recorded.
    pub fn note<T>(
        &mut self,
        field: &'static str,
        read: Result<T, Cow<'static, str>>,
    ) -> Option<T> {
        read.map_err(|fault| self.add(field, fault)).ok()
    }

    /// Records the faults that were found elsewhere, after those of the same field.
    pub fn extend(&mut self, other: Self) {
        for (field, faults) in other.0 {
            self.0.entry(field).or_default().extend(faults);
        }
    }

    /// Returns the faults as an error, if there are any.
    ///
    /// # Errors
    /// The faults.
    pub fn check(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Drops the faults of `field`.
    pub(super) fn forgive(&mut self, field: &str) {
        self.0.remove(field);
    }

    /// Returns whether there are no faults.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether `field` has a fault.
    pub fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    /// Each faulty field with its faults, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[Cow<'static, str>])> {
        self.0.iter().map(|(field, faults)| (*field, faults.as_slice()))
    }
}

impl fmt::Display for Faults {
    /// One line: `name can't be blank; key has already been taken`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> =
            self.iter().map(|(field, faults)| format!("{field} {}", faults.join(", "))).collect();
        f.write_str(&all.join("; "))
    }
}
