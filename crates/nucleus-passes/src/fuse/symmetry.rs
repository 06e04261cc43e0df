//! Which matrices equal their transpose, so that of a product one half is enough.
//!
//! A product is symmetric for one of two reasons:
//!
//! - bit by bit: x·xᵀ, or the square of a symmetric matrix. Both sums that make the elements at [i, j] and [j, i] have the same terms in the same order;
//! - as a polynomial: products, sums and multiples of one symmetric matrix commute with one another, so that the product of two of them is
//!   symmetric again (Horn and Johnson, Matrix Analysis, theorem 2.5.5). Computed whole, both halves would differ by rounding; the half that is computed
//!   stands for both. Where factors are rounded to bf16 first, that is by as much as the product is off in either half. Sums must be f32.
//!
//! Axes before the last two are batches of matrices.

use nucleus_ir::graph::{Graph, NodeData, Value};
use nucleus_ir::{DType, Op, ScalarOp, TensorType};

/// What is known of the matrices of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Nothing.
    Any,
    /// All elements of a matrix are one number.
    Number,
    /// Equal to its transpose.
    Symmetric,
    /// Equal to its transpose, and a polynomial, without constant term, of that symmetric value.
    Polynomial(Value),
}

/// The symmetric values of a graph.
#[derive(Debug)]
pub(crate) struct Symmetry(Vec<Class>);

impl Symmetry {
    /// Looks at every node once.
    pub(crate) fn of(graph: &Graph) -> Symmetry {
        let mut symmetry = Symmetry(vec![Class::Any; graph.value_count()]);
        for (_, data) in graph.nodes() {
            if let [result] = data.results[..] {
                symmetry.0[result.index()] = symmetry.class(graph, data, result);
            }
        }
        symmetry
    }

    /// True for a matrix that is known to equal its transpose, at least up to rounding.
    pub(crate) fn is_symmetric(&self, value: Value) -> bool {
        matches!(self.get(value), Class::Symmetric | Class::Polynomial(_))
    }

    fn get(&self, value: Value) -> Class {
        self.0[value.index()]
    }

    fn class(&self, graph: &Graph, data: &NodeData, result: Value) -> Class {
        match (&data.op, &data.operands[..]) {
            (Op::Matmul { transpose_a, transpose_b }, &[a, b]) => {
                if graph.ty(a).rank() != graph.ty(b).rank() {
                    return Class::Any;
                }
                let fresh =
                    if is_f32(graph.ty(result)) { Class::Polynomial(result) } else { Class::Symmetric };
                match (self.get(a), self.get(b)) {
                    (Class::Polynomial(x), Class::Polynomial(y)) if x == y && is_f32(graph.ty(result)) => {
                        Class::Polynomial(x)
                    }
                    (Class::Symmetric | Class::Polynomial(_), _) if a == b => fresh,
                    _ if a == b && transpose_a != transpose_b => fresh,
                    _ => Class::Any,
                }
            }
            (Op::Broadcast { .. }, &[x]) if is_number(graph.ty(x)) => Class::Number,
            (op, operands) => op.scalar().map_or(Class::Any, |scalar| self.of_elements(scalar, operands)),
        }
    }

    /// The class of an element-wise operation's result.
    fn of_elements(&self, scalar: ScalarOp, operands: &[Value]) -> Class {
        use Class::{Any, Number, Polynomial, Symmetric};
        let classes: Vec<Class> = operands.iter().map(|operand| self.get(*operand)).collect();
        match (scalar, &classes[..]) {
            (ScalarOp::Neg | ScalarOp::Cast(_), [Polynomial(x)])
            | (ScalarOp::Mul, [Polynomial(x), Number] | [Number, Polynomial(x)])
            | (ScalarOp::Div, [Polynomial(x), Number]) => Polynomial(*x),
            (ScalarOp::Add | ScalarOp::Sub, [Polynomial(x), Polynomial(y)]) if x == y => Polynomial(*x),
            (_, classes) if classes.contains(&Any) => Any,
            (_, classes) if classes.iter().all(|class| *class == Number) => Number,
            _ => Symmetric,
        }
    }
}

fn is_f32(ty: &TensorType) -> bool {
    ty.dtype == DType::F32
}

/// True for types that have one number for every matrix.
fn is_number(ty: &TensorType) -> bool {
    ty.shape.iter().rev().take(2).all(|extent| extent.is_constant(1))
}
