//! What can go wrong in a pass.

use nucleus_ir::verify_graph::GraphError;
use nucleus_ir::{DType, DimError, TypeError};

/// Why a pass could not do its work. A verified graph meets none of these short of sizes beyond the limits of the dim algebra;
/// [`PassError::Invalid`] is a defect of the pass it names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// An op that a pass made does not type.
    #[error("pass {pass}: {source}")]
    Type {
        /// The pass.
        pass: &'static str,
        /// Why.
        source: TypeError,
    },
    /// A formula of sizes left the limits of the dim algebra.
    #[error("pass {pass}: {source}")]
    Dim {
        /// The pass.
        pass: &'static str,
        /// Why.
        source: DimError,
    },
    /// A value that the pass has not reached yet: the graph's nodes are not in order.
    #[error("pass {pass}: value {value} is used before it is computed")]
    Order {
        /// The pass.
        pass: &'static str,
        /// The position of the value in the value table.
        value: usize,
    },
    /// A compute dtype that is not a float.
    #[error("the compute dtype must be f32, bf16 or f16, not {0}")]
    ComputeType(DType),
    /// Something that the pass cannot express.
    #[error("pass {pass}: {what}")]
    Unsupported {
        /// The pass.
        pass: &'static str,
        /// What, and where.
        what: String,
    },
    /// What a pass returned breaks an invariant.
    #[error("after pass {pass} the program is not valid: {}", .problems.join("; "))]
    Invalid {
        /// The pass.
        pass: &'static str,
        /// What the verifier reports.
        problems: Vec<String>,
    },
}

impl PassError {
    /// The verifier's report on the graph that `pass` returned.
    pub fn invalid_graph(pass: &'static str, errors: &[GraphError]) -> PassError {
        PassError::Invalid { pass, problems: errors.iter().map(ToString::to_string).collect() }
    }
}
