//! One metric for each value of a closed set of labels.

use std::{fmt, marker::PhantomData, sync::Arc};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

/// A closed set of labels: every label that a metric can ever have.
pub trait Closed: Copy + Send + Sync + 'static {
    /// Every member, in the order of [`Closed::index`].
    const ALL: &'static [Self];

    /// Its index in [`Closed::ALL`].
    fn index(self) -> usize;

    /// The labels, as names and values.
    fn labels(self) -> impl EncodeLabelSet + PartialEq;
}

/// One metric for each member of a closed set. A metric is found without a lock or a look-up, and
/// every member is shown, even one that has never been counted.
pub struct Each<L, M>(Arc<[M]>, PhantomData<fn(L)>);

impl<L: Closed, M> Each<L, M> {
    /// The metric of one member.
    pub fn of(&self, member: L) -> &M {
        &self.0[member.index()]
    }
}

impl<L: Closed, M: Default> Default for Each<L, M> {
    fn default() -> Self {
        Self(L::ALL.iter().map(|_| M::default()).collect(), PhantomData)
    }
}

impl<L, M> Clone for Each<L, M> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<L, M: fmt::Debug> fmt::Debug for Each<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

impl<L: Closed, M: EncodeMetric + TypedMetric> EncodeMetric for Each<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (member, metric) in L::ALL.iter().zip(self.0.iter()) {
            metric.encode(encoder.encode_family(&member.labels())?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// Declares a closed set of values of one label.
macro_rules! closed_label {
    ($(#[$doc:meta])* $name:ident as $label:literal { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_doc])* $value,)+ }

        impl $name {
            /// The label's value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }

        impl $crate::metrics::closed::Closed for $name {
            const ALL: &'static [Self] = &[$(Self::$value,)+];

            fn index(self) -> usize {
                self as usize
            }

            fn labels(self) -> impl prometheus_client::encoding::EncodeLabelSet + PartialEq {
                [($label, self.as_str())]
            }
        }
    };
}
pub(super) use closed_label;
