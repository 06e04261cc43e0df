//! The graph: one entry of a model, flat, typed and pure.
//!
//! A graph is what elaboration makes of an entry: functions inlined, loops unrolled, every weight under its checkpoint name.
//! All passes up to the plan work on it. Values live in one table; a value is an input, a weight, or a result of a node.
//! Nodes stand in an order in which operands come before their uses.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dim::Symbol;
use crate::float::Float;
use crate::infer::{Constraint, TypeError, constraints, infer};
use crate::ops::Op;
use crate::types::{Rate, TensorType};

/// A handle to a value of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Value(u32);

/// A handle to a node of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Node(u32);

impl Value {
    /// The position in the value table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Node {
    /// The position in the node list.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ValueDef {
    /// The input of that position.
    Input(usize),
    /// The weight of that position.
    Weight(usize),
    /// A result of a node.
    Result {
        /// The node.
        node: Node,
        /// Which of its results.
        index: usize,
    },
}

/// One row of the value table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueData {
    /// Where it comes from.
    pub def: ValueDef,
    /// Its type.
    pub ty: TensorType,
    /// How often it must be computed; set by the stage pass.
    pub rate: Option<Rate>,
}

/// A weight: a tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weight {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its type in the graph; the checkpoint may store another float type.
    pub ty: TensorType,
    /// How often it may change: `Model` for a constant, `Step` for a weight under training.
    pub rate: Rate,
}

impl Weight {
    /// A weight that never changes.
    pub fn new(name: String, ty: TensorType) -> Weight {
        Weight { name, ty, rate: Rate::Model }
    }
}

/// An input of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// How often it may change.
    pub rate: Rate,
    /// The value of every element when the input is not given; `None` for a required input.
    pub default: Option<Float>,
}

/// An output of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// The value.
    pub value: Value,
}

/// An op applied to values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeData {
    /// The op with its attributes.
    pub op: Op,
    /// Its operands.
    pub operands: Vec<Value>,
    /// Its results, in order.
    pub results: Vec<Value>,
    /// The scope in which the text wrote it, e.g. `transformer_blocks.3.attn`: for people; not part of the meaning.
    pub scope: Option<Arc<str>>,
}

/// One entry of a model. See the [module documentation](self).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// The entry's name.
    pub name: String,
    /// The run-time sizes, in the order of declaration.
    pub dims: Vec<Symbol>,
    /// The inputs, in order.
    pub inputs: Vec<Input>,
    /// Every weight of the entry in the order of first mention, used or not.
    pub weights: Vec<Weight>,
    /// The outputs, in order.
    pub outputs: Vec<Output>,
    /// Relations between sizes that must hold at run time.
    pub constraints: Vec<Constraint>,
    nodes: Vec<NodeData>,
    values: Vec<ValueData>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str, dims: Vec<Symbol>) -> Graph {
        Graph { name: name.to_owned(), dims, ..Graph::default() }
    }

    /// Adds an input and returns its value.
    pub fn add_input(&mut self, input: Input) -> Value {
        let ty = input.ty.clone();
        self.inputs.push(input);
        self.add_value(ValueDef::Input(self.inputs.len() - 1), ty)
    }

    /// Adds a weight and returns its value. The caller sees to it that names are unique.
    pub fn add_weight(&mut self, weight: Weight) -> Value {
        let ty = weight.ty.clone();
        self.weights.push(weight);
        self.add_value(ValueDef::Weight(self.weights.len() - 1), ty)
    }

    /// Applies an op; types follow from [`infer`], and run-time relations are recorded.
    pub fn add_node(
        &mut self,
        op: Op,
        operands: &[Value],
        scope: Option<Arc<str>>,
    ) -> Result<Node, TypeError> {
        let types: Vec<&TensorType> = operands.iter().map(|operand| self.ty(*operand)).collect();
        let result_types = infer(&op, &types)?;
        for constraint in constraints(&op, &types) {
            if !self.constraints.contains(&constraint) {
                self.constraints.push(constraint);
            }
        }
        let node = Node(self.nodes.len() as u32);
        let results = result_types
            .into_iter()
            .enumerate()
            .map(|(index, ty)| self.add_value(ValueDef::Result { node, index }, ty))
            .collect();
        self.nodes.push(NodeData { op, operands: operands.to_vec(), results, scope });
        Ok(node)
    }

    /// Applies an op that has one result and returns it.
    pub fn add(&mut self, op: Op, operands: &[Value], scope: Option<Arc<str>>) -> Result<Value, TypeError> {
        let node = self.add_node(op, operands, scope)?;
        Ok(self.nodes[node.index()].results[0])
    }

    fn add_value(&mut self, def: ValueDef, ty: TensorType) -> Value {
        self.values.push(ValueData { def, ty, rate: None });
        Value((self.values.len() - 1) as u32)
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &TensorType {
        &self.values[value.index()].ty
    }

    /// Everything known of a value.
    pub fn value(&self, value: Value) -> &ValueData {
        &self.values[value.index()]
    }

    /// Where a value comes from.
    pub fn def(&self, value: Value) -> ValueDef {
        self.values[value.index()].def
    }

    /// The node that computes a value and which of its results it is; `None` for inputs and weights.
    pub fn defining_node(&self, value: Value) -> Option<(Node, usize)> {
        match self.def(value) {
            ValueDef::Result { node, index } => Some((node, index)),
            ValueDef::Input(_) | ValueDef::Weight(_) => None,
        }
    }

    /// Sets how often a value must be computed.
    pub fn set_rate(&mut self, value: Value, rate: Rate) {
        self.values[value.index()].rate = Some(rate);
    }

    /// Forgets how often values must be computed.
    pub fn clear_rates(&mut self) {
        self.values.iter_mut().for_each(|value| value.rate = None);
    }

    /// A node.
    pub fn node(&self, node: Node) -> &NodeData {
        &self.nodes[node.index()]
    }

    /// Every node, operands before uses.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (Node, &NodeData)> + ExactSizeIterator {
        self.nodes.iter().enumerate().map(|(index, data)| (Node(index as u32), data))
    }

    /// Every value.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = (Value, &ValueData)> + ExactSizeIterator {
        self.values.iter().enumerate().map(|(index, data)| (Value(index as u32), data))
    }

    /// The number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The number of values.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// The users of every value, in node order, by value index. Outputs are not nodes and do not count.
    pub fn uses(&self) -> Vec<Vec<Node>> {
        let mut uses = vec![Vec::new(); self.values.len()];
        for (node, data) in self.nodes() {
            for operand in &data.operands {
                let list: &mut Vec<Node> = &mut uses[operand.index()];
                if list.last() != Some(&node) {
                    list.push(node);
                }
            }
        }
        uses
    }

    /// The number of parameters: elements of all weights, used or not; `None` on overflow or a symbolic weight shape.
    pub fn parameter_count(&self) -> Option<i64> {
        self.weights
            .iter()
            .try_fold(0i64, |total, weight| total.checked_add(weight.ty.elements().ok()?.as_constant()?))
    }
}
