//! Graphs in few words: shapes as text, leaves as inputs or weights, every result of the op under test an output.

use nucleus_ir::{DType, Dim, Float, Graph, Input, Op, Output, Rate, Symbol, TensorType, Value, Weight};

/// What the tensors of a case are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// Inputs, by turns per step and per prompt.
    Inputs,
    /// Weights where their type and shape allow it: floats of constant, positive sizes. The op runs when the model is loaded, or packs them.
    Weights,
}

pub(crate) struct Builder {
    pub(crate) graph: Graph,
    leaves: Leaves,
}

/// A shape such as `B, H*W, 8`; `T/2` is rounded up.
pub(crate) fn shape(text: &str) -> Vec<Dim> {
    text.split(',').map(str::trim).filter(|size| !size.is_empty()).map(size).collect()
}

/// A size such as `3`, `B` or `2*H*W`; `T/2` is rounded up.
pub(crate) fn size(text: &str) -> Dim {
    if let Some((size_text, divisor)) = text.split_once('/') {
        return size(size_text).ceil_div(&size(divisor)).unwrap();
    }
    let factors = text.split('*').map(|factor| factor.parse().map_or(Dim::symbol(factor), Dim::constant));
    factors.fold(Dim::constant(1), |product, factor| product.mul(&factor).unwrap())
}

impl Builder {
    pub(crate) fn new(name: &str, leaves: Leaves) -> Builder {
        let dims = ["B", "H", "W", "T"].map(Symbol::new).to_vec();
        Builder { graph: Graph::new(name, dims), leaves }
    }

    /// A tensor of random values.
    pub(crate) fn tensor(&mut self, dtype: DType, dims: &str) -> Value {
        let ty = TensorType::new(dtype, shape(dims));
        let constant = ty.shape.iter().all(|dim| dim.as_constant().is_some_and(|size| size > 0));
        let position = self.graph.inputs.len() + self.graph.weights.len();
        if self.leaves == Leaves::Weights && dtype.is_float() && constant {
            return self.graph.add_weight(Weight::new(format!("layer.{position}.weight"), ty));
        }
        let rate = if position.is_multiple_of(2) { Rate::Step } else { Rate::Prompt };
        self.graph.add_input(Input { name: format!("x{position}"), ty, rate, default: None })
    }

    pub(crate) fn f32(&mut self, dims: &str) -> Value {
        self.tensor(DType::F32, dims)
    }

    pub(crate) fn constant(&mut self, value: f64, dtype: DType) -> Value {
        self.value(Op::Constant { value: Float(value), dtype }, &[])
    }

    /// An op that is not under test.
    pub(crate) fn value(&mut self, op: Op, operands: &[Value]) -> Value {
        self.graph.add(op, operands, None).unwrap_or_else(|error| panic!("{}: {error}", self.graph.name))
    }

    /// An op whose results are outputs.
    pub(crate) fn output(&mut self, op: Op, operands: &[Value]) -> Vec<Value> {
        let name = self.graph.name.clone();
        let node = self.graph.add_node(op, operands, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        let results = self.graph.node(node).results.clone();
        for value in &results {
            let name = format!("y{}", self.graph.outputs.len());
            self.graph.outputs.push(Output { name, value: *value });
        }
        results
    }

    pub(crate) fn broadcast(&mut self, x: Value, dims: &str) -> Value {
        self.value(Op::Broadcast { shape: shape(dims) }, &[x])
    }

    pub(crate) fn transpose(&mut self, x: Value, permutation: &[usize]) -> Value {
        self.value(Op::Transpose { permutation: permutation.to_vec() }, &[x])
    }

    pub(crate) fn slice(&mut self, x: Value, axis: usize, start: &str, end: &str) -> Value {
        self.value(Op::Slice { axis, start: size(start), end: size(end) }, &[x])
    }

    /// Indices below `rows`, many of them equal: an input of −3 … 4, moved up and cut off.
    pub(crate) fn index(&mut self, dims: &str, rows: &str) -> Value {
        let x = self.tensor(DType::I32, dims);
        let [three, one] = [3.0, 1.0].map(|value| self.constant(value, DType::I32));
        let rows = self.value(Op::Size { dim: size(rows) }, &[]);
        let last = self.value(Op::Sub, &[rows, one]);
        let [three, last] = [three, last].map(|value| self.broadcast(value, dims));
        let up = self.value(Op::Add, &[x, three]);
        self.value(Op::Min, &[up, last])
    }
}
