//! How long launches take.

/// Times of launches, added up over runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Seconds by the launch's number in the plan.
    pub seconds: Vec<f64>,
}
