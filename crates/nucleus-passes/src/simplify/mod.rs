//! Simplification: folding, common subexpressions, dead code, and algebra that never makes things worse.
//!
//! The graph is rebuilt in order. Before a node is added, every rule of [`RULES`] may offer something better for it; what a rule makes
//! goes through the rules in turn. Rules are *directional*: each removes a node, shrinks a tensor or moves an op towards
//! smaller tensors, so that they cannot undo one another. Equal nodes become one. Rebuilding repeats until nothing changes.
//!
//! Rules keep every bit of the result, −0 and NaN included, with one exception: a product split over the pieces of a concatenation
//! (`simplify/matmul.rs`) sums in another order. No rule assumes that the graph is an inference graph.

mod fold;
mod hoist;
mod matmul;
mod movement;
pub(crate) mod sizes;

use std::sync::Arc;

use nucleus_ir::graph::Value;
use nucleus_ir::{DType, Dim, Float, Graph, Op};

use crate::error::PassError;
use crate::rewrite::{Rebuild, eliminate_dead_code};
use crate::stage::assign_rates;

const PASS: &str = "simplify";
/// Rebuilding the graph this many times is enough for any graph seen; more would only cost time.
const MAX_ROUNDS: usize = 8;
/// How deep the results of rules are offered to the rules again within one round.
const MAX_DEPTH: usize = 16;

/// Simplifies a graph. Rates are set if they were set before.
pub fn simplify(graph: &Graph) -> Result<Graph, PassError> {
    rewrite(graph, Gradients::Taken)
}

/// The same for a graph that is still to be differentiated: what stops a gradient stays. No rule changes what the gradients are.
pub(crate) fn simplify_before_gradients(graph: &Graph) -> Result<Graph, PassError> {
    rewrite(graph, Gradients::Wanted)
}

/// Whether somebody will differentiate the graph.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradients {
    Wanted,
    Taken,
}

fn rewrite(graph: &Graph, gradients: Gradients) -> Result<Graph, PassError> {
    let mut current = eliminate_dead_code(PASS, graph)?;
    for _ in 0..MAX_ROUNDS {
        let next = eliminate_dead_code(PASS, &round(&current, gradients)?)?;
        if next == current {
            break;
        }
        current = next;
    }
    if graph.values().any(|(_, data)| data.rate.is_some()) {
        assign_rates(&mut current);
    }
    Ok(current)
}

fn round(graph: &Graph, gradients: Gradients) -> Result<Graph, PassError> {
    let mut rewriter = Rewriter { rebuild: Rebuild::new(PASS, graph), depth: 0, gradients };
    for (_, data) in graph.nodes() {
        let operands = rewriter.rebuild.operands(data)?;
        if let [result] = data.results[..] {
            let value = rewriter.emit(data.op.clone(), &operands, &data.scope)?;
            rewriter.rebuild.set(result, value);
        } else {
            let node = rewriter.rebuild.add_node(data.op.clone(), &operands, &data.scope)?;
            rewriter.rebuild.set_results(data, node);
        }
    }
    rewriter.rebuild.finish()
}

/// A rule: something better for a node that is about to be added.
pub struct Rule {
    /// Its name, for tests and for people.
    pub name: &'static str,
    /// What it rewrites.
    pub about: &'static str,
    apply: fn(&mut Rewriter<'_>, &Site<'_>) -> Result<Option<Value>, PassError>,
}

/// Every rule, in the order in which they are tried.
pub const RULES: &[Rule] = &[
    Rule {
        name: "fold",
        about: "a scalar op on constants is a constant; not where the result depends on a mathematical library",
        apply: fold::constants,
    },
    Rule {
        name: "neutral",
        about: "x·1, x/1, x − 0, x + (−0), select on a constant, and or or with a constant, −(−x), not not x",
        apply: fold::neutral,
    },
    Rule { name: "division", about: "x / 2ⁿ is x · 2⁻ⁿ", apply: fold::division_by_power_of_two },
    Rule {
        name: "cast",
        about: "a cast to the same type is nothing; a cast of a lossless cast is one cast",
        apply: fold::casts,
    },
    Rule {
        name: "identity",
        about: "a view that changes nothing is its operand, a concatenation of one piece is the piece",
        apply: movement::identity,
    },
    Rule {
        name: "open gradient",
        about: "what stops a gradient is its operand: gradients were taken before, or nobody wants them",
        apply: movement::open_gradient,
    },
    Rule {
        name: "compose",
        about: "reshape of reshape, transpose of transpose, broadcast of broadcast, slice of slice are one",
        apply: movement::compose,
    },
    Rule {
        name: "uniform",
        about: "a view of one repeated element is a broadcast of it",
        apply: movement::uniform,
    },
    Rule {
        name: "slice",
        about: "a slice of a concatenation inside one piece, or along an axis of repetition, is a slice of less",
        apply: movement::slice,
    },
    Rule {
        name: "join",
        about: "adjacent slices of one tensor, concatenated, are one slice; a concatenation in a concatenation is one",
        apply: movement::concat,
    },
    Rule {
        name: "hoist",
        about: "an element-wise op on repeated elements is done before they are repeated",
        apply: hoist::element_wise,
    },
    Rule {
        name: "transposed factor",
        about: "a product of a transposed factor is a product with the transposition as an attribute",
        apply: matmul::transposed_factor,
    },
    Rule {
        name: "open mask",
        about: "attention under a mask that is true for every key is attention without one",
        apply: matmul::open_mask,
    },
    Rule {
        name: "repeated rows",
        about: "a product of repeated rows is the repeated product of the rows",
        apply: matmul::repeated_rows,
    },
    Rule {
        name: "split product",
        about: "a product of joined columns of which a piece has repeated rows is a sum of products",
        apply: matmul::split_concat,
    },
];

/// The node that is about to be added.
struct Site<'a> {
    op: &'a Op,
    operands: &'a [Value],
    scope: &'a Option<Arc<str>>,
}

/// The new graph, and the way in which rules add to it.
struct Rewriter<'a> {
    rebuild: Rebuild<'a>,
    depth: usize,
    gradients: Gradients,
}

impl Rewriter<'_> {
    /// The simplest value known to equal `op` on `operands`.
    fn emit(&mut self, op: Op, operands: &[Value], scope: &Option<Arc<str>>) -> Result<Value, PassError> {
        if self.depth < MAX_DEPTH {
            self.depth += 1;
            let site = Site { op: &op, operands, scope };
            let better = RULES.iter().find_map(|rule| (rule.apply)(self, &site).transpose());
            self.depth -= 1;
            if let Some(better) = better {
                return better;
            }
        }
        self.rebuild.add(op, operands, scope)
    }

    fn graph(&self) -> &Graph {
        self.rebuild.graph()
    }

    fn shape(&self, value: Value) -> &[Dim] {
        &self.graph().ty(value).shape
    }

    /// The op that computes a value, and its operands; `None` for inputs, weights and results of ops with several.
    fn op(&self, value: Value) -> Option<(&Op, &[Value])> {
        let (node, _) = self.graph().defining_node(value)?;
        let data = self.graph().node(node);
        (data.results.len() == 1).then_some((&data.op, &data.operands[..]))
    }

    /// The value of a scalar constant.
    fn constant(&self, value: Value) -> Option<(Float, DType)> {
        match self.op(value)? {
            (Op::Constant { value, dtype }, _) => Some((*value, *dtype)),
            _ => None,
        }
    }

    /// The value of every element, if it is the same constant for all.
    fn uniform_constant(&self, value: Value) -> Option<(Float, DType)> {
        match self.op(value)? {
            (Op::Broadcast { .. }, [source]) => self.constant(*source),
            _ => self.constant(value),
        }
    }

    fn dim<T>(&self, result: Result<T, nucleus_ir::DimError>) -> Result<T, PassError> {
        result.map_err(|source| PassError::Dim { pass: PASS, source })
    }
}
