//! The graph verifier.
//!
//! It checks that
//! - dims are declared once, and every symbol in a type, attribute or constraint is declared;
//! - inputs, weights and outputs have unique names; a default fits its input's element type;
//! - weights have constant shapes of positive sizes and an element count that fits an `i64`;
//! - every row of the value table and what defines it (input, weight, result of a node) name each other, with equal types;
//! - operands come before their uses, and outputs exist;
//! - the types of a node's results are those that [`infer`] gives;
//! - the constraints that a node needs are among those of the graph;
//! - rates are set for all values or for none; where they are set, an input's value has the input's rate, the results of a node
//!   share one rate, and no value has a slower rate than its operands.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use crate::dim::{Dim, Symbol};
use crate::dtype::DType;
use crate::graph::{Graph, Node, NodeData, Value, ValueData, ValueDef};
use crate::infer::{Constraint, TypeError, constraints, infer};
use crate::ops::Attribute;
use crate::types::{ShapeDisplay, TensorType};

/// A place in a graph and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

/// A place in a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The list of dims.
    Dims,
    /// An input, by name.
    Input(String),
    /// A weight, by name.
    Weight(String),
    /// An output, by name.
    Output(String),
    /// A constraint, by position.
    Constraint(usize),
    /// A row of the value table, by position.
    Value(usize),
    /// A node: its position, op and scope.
    Node(usize, &'static str, Option<String>),
}

/// What can be wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A name is used twice.
    #[error("`{0}` is declared twice")]
    Duplicate(String),
    /// A symbol is not among the graph's dims.
    #[error("dim `{0}` is not declared")]
    UndeclaredDim(Symbol),
    /// A default that the input's element type does not hold.
    #[error("the default {default} is not a value of {dtype}")]
    Default {
        /// The default.
        default: String,
        /// The element type.
        dtype: DType,
    },
    /// An input or output of 8-bit integers, which only weights may be.
    #[error("only weights may be i8")]
    Quantised,
    /// A weight whose shape is symbolic, empty along an axis, or too large.
    #[error("shape {0} is not one of constant, positive sizes with fewer than 2^63 elements")]
    WeightShape(String),
    /// The value table and what defines a value disagree.
    #[error("the value table does not agree with it: {0}")]
    Table(String),
    /// An operand is used before it is computed.
    #[error("operand {0} is computed only later")]
    UseBeforeDefinition(usize),
    /// A handle of another graph.
    #[error("there is no value {0}")]
    NoValue(usize),
    /// The op does not take these operands.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A result has another type than the op gives.
    #[error("result {index} has type {stated}, the op gives {inferred}")]
    ResultType {
        /// Which result.
        index: usize,
        /// The type in the value table.
        stated: TensorType,
        /// The type by the type rule.
        inferred: TensorType,
    },
    /// A constraint that the node needs is missing.
    #[error("the graph lacks the constraint {} <= {}: {}", .0.smaller, .0.larger, .0.what)]
    MissingConstraint(Constraint),
    /// A rate is missing although others are set, or it contradicts another.
    #[error("{0}")]
    Rate(String),
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Dims => f.write_str("dims")?,
            Place::Input(name) => write!(f, "input `{name}`")?,
            Place::Weight(name) => write!(f, "weight `{name}`")?,
            Place::Output(name) => write!(f, "output `{name}`")?,
            Place::Constraint(index) => write!(f, "constraint {index}")?,
            Place::Value(index) => write!(f, "value {index}")?,
            Place::Node(index, op, None) => write!(f, "node {index} ({op})")?,
            Place::Node(index, op, Some(scope)) => write!(f, "node {index} ({op} in {scope})")?,
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for GraphError {}

/// Checks the invariants listed in the [module documentation](self).
///
/// # Errors
/// Everything that is wrong, each with its place.
pub fn verify_graph(graph: &Graph) -> Result<(), Vec<GraphError>> {
    let mut verifier = Verifier {
        graph,
        values: graph.values().map(|(_, data)| data).collect(),
        nodes: graph.nodes().map(|(_, data)| data).collect(),
        declared: graph.dims.iter().collect(),
        errors: Vec::new(),
    };
    verifier.dims();
    verifier.inputs();
    verifier.weights();
    verifier.nodes();
    verifier.values();
    verifier.outputs();
    verifier.rates();
    if verifier.errors.is_empty() { Ok(()) } else { Err(verifier.errors) }
}

struct Verifier<'a> {
    graph: &'a Graph,
    values: Vec<&'a ValueData>,
    nodes: Vec<&'a NodeData>,
    declared: BTreeSet<&'a Symbol>,
    errors: Vec<GraphError>,
}

impl<'a> Verifier<'a> {
    fn report(&mut self, place: Place, problem: Problem) {
        self.errors.push(GraphError { place, problem });
    }

    fn symbols<'d>(&mut self, place: &Place, dims: impl IntoIterator<Item = &'d Dim>) {
        let mut symbols = BTreeSet::new();
        for dim in dims {
            dim.collect_symbols(&mut symbols);
        }
        for symbol in symbols {
            if !self.declared.contains(&symbol) {
                self.report(place.clone(), Problem::UndeclaredDim(symbol));
            }
        }
    }

    fn dims(&mut self) {
        let mut seen = BTreeSet::new();
        for dim in &self.graph.dims {
            if !seen.insert(dim) {
                self.report(Place::Dims, Problem::Duplicate(dim.to_string()));
            }
        }
        for (index, constraint) in self.graph.constraints.iter().enumerate() {
            self.symbols(&Place::Constraint(index), [&constraint.smaller, &constraint.larger]);
        }
    }

    fn inputs(&mut self) {
        let mut names = HashSet::new();
        for input in &self.graph.inputs {
            let place = Place::Input(input.name.clone());
            if !names.insert(&input.name) {
                self.report(place.clone(), Problem::Duplicate(input.name.clone()));
            }
            if let Some(default) = input.default {
                let value = default.0;
                let fits = match input.ty.dtype {
                    DType::I32 => value.fract() == 0.0 && value.abs() <= f64::from(i32::MAX),
                    DType::Bool => value == 0.0 || value == 1.0,
                    DType::F32 | DType::Bf16 | DType::F16 => true,
                    DType::I8 => false,
                };
                if !fits {
                    let problem = Problem::Default { default: default.to_string(), dtype: input.ty.dtype };
                    self.report(place.clone(), problem);
                }
            }
            if input.ty.dtype == DType::I8 {
                self.report(place.clone(), Problem::Quantised);
            }
            self.symbols(&place, &input.ty.shape);
        }
    }

    fn weights(&mut self) {
        let mut names = HashSet::new();
        for weight in &self.graph.weights {
            let place = Place::Weight(weight.name.clone());
            if !names.insert(&weight.name) {
                self.report(place.clone(), Problem::Duplicate(weight.name.clone()));
            }
            let positive = weight.ty.shape.iter().all(|dim| dim.as_constant().is_some_and(|size| size >= 1));
            let counted = weight.ty.elements().is_ok_and(|count| count.as_constant().is_some());
            if !positive || !counted {
                let shape = ShapeDisplay(&weight.ty.shape).to_string();
                self.report(place, Problem::WeightShape(shape));
            }
        }
    }

    fn nodes(&mut self) {
        let known: HashSet<&Constraint> = self.graph.constraints.iter().collect();
        for (index, node) in self.nodes.clone().into_iter().enumerate() {
            let place =
                Place::Node(index, node.op.name(), node.scope.as_ref().map(|scope| scope.to_string()));
            for (_, attribute) in node.op.attributes() {
                match attribute {
                    Attribute::Dim(dim) => self.symbols(&place, [&dim]),
                    Attribute::Shape(shape) => self.symbols(&place, &shape),
                    _ => {}
                }
            }
            let mut types = Vec::with_capacity(node.operands.len());
            for operand in &node.operands {
                match self.values.get(operand.index()).copied() {
                    None => self.report(place.clone(), Problem::NoValue(operand.index())),
                    Some(data) => {
                        if matches!(data.def, ValueDef::Result { node, .. } if node.index() >= index) {
                            self.report(place.clone(), Problem::UseBeforeDefinition(operand.index()));
                        }
                        types.push(&data.ty);
                    }
                }
            }
            if types.len() == node.operands.len() {
                self.results(&place, index, node, &types, &known);
            }
        }
    }

    fn results(
        &mut self,
        place: &Place,
        index: usize,
        node: &NodeData,
        types: &[&TensorType],
        known: &HashSet<&Constraint>,
    ) {
        let inferred = match infer(&node.op, types) {
            Ok(inferred) => inferred,
            Err(error) => return self.report(place.clone(), error.into()),
        };
        if inferred.len() != node.results.len() {
            let what = format!("{} results, the op gives {}", node.results.len(), inferred.len());
            self.report(place.clone(), Problem::Table(what));
        }
        for (position, (result, inferred)) in node.results.iter().zip(inferred).enumerate() {
            let Some(data) = self.values.get(result.index()) else {
                self.report(place.clone(), Problem::NoValue(result.index()));
                continue;
            };
            let named = matches!(data.def, ValueDef::Result { node, index: at } if node.index() == index && at == position);
            if !named {
                let what = format!("result {position} is value {}, which says otherwise", result.index());
                self.report(place.clone(), Problem::Table(what));
            } else if data.ty != inferred {
                let stated = data.ty.clone();
                self.report(place.clone(), Problem::ResultType { index: position, stated, inferred });
            }
        }
        for constraint in constraints(&node.op, types) {
            if !known.contains(&constraint) {
                self.report(place.clone(), Problem::MissingConstraint(constraint));
            }
        }
    }

    fn values(&mut self) {
        let mut inputs = vec![0usize; self.graph.inputs.len()];
        let mut weights = vec![0usize; self.graph.weights.len()];
        for (index, data) in self.values.clone().into_iter().enumerate() {
            let place = Place::Value(index);
            let stated = match data.def {
                ValueDef::Input(position) => {
                    if let Some(count) = inputs.get_mut(position) {
                        *count += 1;
                    }
                    self.graph.inputs.get(position).map(|input| &input.ty)
                }
                ValueDef::Weight(position) => {
                    if let Some(count) = weights.get_mut(position) {
                        *count += 1;
                    }
                    self.graph.weights.get(position).map(|weight| &weight.ty)
                }
                ValueDef::Result { node, index: result } => {
                    let listed = self.nodes.get(node.index()).and_then(|node| node.results.get(result));
                    if listed.is_none_or(|value| value.index() != index) {
                        let what = format!("node {} does not list it as result {result}", node.index());
                        self.report(place, Problem::Table(what));
                    }
                    continue;
                }
            };
            if stated != Some(&data.ty) {
                let what = "its type is not the declared one, or there is no declaration".to_owned();
                self.report(place, Problem::Table(what));
            }
        }
        for (input, count) in self.graph.inputs.iter().zip(inputs) {
            if count != 1 {
                let what = format!("{count} values are defined by it");
                self.report(Place::Input(input.name.clone()), Problem::Table(what));
            }
        }
        for (weight, count) in self.graph.weights.iter().zip(weights) {
            if count != 1 {
                let what = format!("{count} values are defined by it");
                self.report(Place::Weight(weight.name.clone()), Problem::Table(what));
            }
        }
    }

    fn outputs(&mut self) {
        let mut names = HashSet::new();
        for output in &self.graph.outputs {
            let place = Place::Output(output.name.clone());
            if !names.insert(&output.name) {
                self.report(place.clone(), Problem::Duplicate(output.name.clone()));
            }
            match self.values.get(output.value.index()) {
                None => self.report(place, Problem::NoValue(output.value.index())),
                Some(data) if data.ty.dtype == DType::I8 => self.report(place, Problem::Quantised),
                Some(_) => {}
            }
        }
    }

    fn rates(&mut self) {
        if self.values.iter().all(|data| data.rate.is_none()) {
            return;
        }
        for (index, data) in self.values.clone().into_iter().enumerate() {
            let Some(rate) = data.rate else {
                let what = "it has no rate although other values have one".to_owned();
                self.report(Place::Value(index), Problem::Rate(what));
                continue;
            };
            match data.def {
                ValueDef::Input(position) => {
                    if let Some(input) = self.graph.inputs.get(position)
                        && input.rate != rate
                    {
                        let what = format!("its value is {rate}, the input is {}", input.rate);
                        self.report(Place::Input(input.name.clone()), Problem::Rate(what));
                    }
                }
                ValueDef::Weight(position) => {
                    if let Some(weight) = self.graph.weights.get(position)
                        && weight.rate > rate
                    {
                        let what = format!("its value is {rate}, the weight is {}", weight.rate);
                        self.report(Place::Weight(weight.name.clone()), Problem::Rate(what));
                    }
                }
                ValueDef::Result { node, .. } => self.result_rate(index, rate, node),
            }
        }
    }

    fn result_rate(&mut self, index: usize, rate: crate::types::Rate, node: Node) {
        let Some(node) = self.nodes.get(node.index()).copied() else { return };
        let rate_of = |value: &Value| self.values.get(value.index()).and_then(|data| data.rate);
        let slower = node.operands.iter().find(|operand| rate_of(operand).is_some_and(|other| other > rate));
        let differs = node.results.iter().find(|result| rate_of(result).is_some_and(|other| other != rate));
        let (slower, differs) = (slower.copied(), differs.copied());
        if let Some(operand) = slower {
            let what = format!("it is {rate} but its operand {} changes more often", operand.index());
            self.report(Place::Value(index), Problem::Rate(what));
        }
        if let Some(other) = differs {
            let what = format!("it is {rate} but value {} of the same node is not", other.index());
            self.report(Place::Value(index), Problem::Rate(what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float::Float;
    use crate::graph::{Input, Output, Weight};
    use crate::ops::Op;
    use crate::types::Rate;

    /// `y = slice(x · wᵀ, 1, 0, T)` over x: [B, 4], w: [3, 4].
    fn sample() -> Graph {
        let mut graph = Graph::new("sample", ["B", "T"].map(Symbol::new).to_vec());
        let ty = TensorType::new(DType::F32, vec![Dim::symbol("B"), Dim::constant(4)]);
        let x = graph.add_input(Input { name: "x".to_owned(), ty, rate: Rate::Step, default: None });
        let ty = TensorType::new(DType::F32, vec![Dim::constant(3), Dim::constant(4)]);
        let w = graph.add_weight(Weight::new("w".to_owned(), ty));
        let op = Op::Matmul { transpose_a: false, transpose_b: true };
        let product = graph.add(op, &[x, w], Some("a.b".into())).unwrap();
        let op = Op::Slice { axis: 1, start: Dim::constant(0), end: Dim::symbol("T") };
        let value = graph.add(op, &[product], None).unwrap();
        graph.outputs.push(Output { name: "y".to_owned(), value });
        graph
    }

    fn errors(graph: &Graph) -> Vec<String> {
        verify_graph(graph).unwrap_err().iter().map(ToString::to_string).collect()
    }

    /// The sample with a change to its serialised form, as a broken file would have it.
    fn changed(change: impl Fn(&mut serde_json::Value)) -> Vec<String> {
        let mut json = serde_json::to_value(sample()).unwrap();
        change(&mut json);
        errors(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_built_graph_is_valid() {
        assert_eq!(verify_graph(&sample()), Ok(()));
    }

    #[test]
    fn names_are_unique_and_dims_declared() {
        let mut graph = sample();
        graph.dims = vec![Symbol::new("T"), Symbol::new("T")];
        graph.inputs[0].default = Some(Float(0.5));
        graph.outputs.push(graph.outputs[0].clone());
        assert_eq!(
            errors(&graph),
            [
                "dims: `T` is declared twice",
                "input `x`: dim `B` is not declared",
                "output `y`: `y` is declared twice",
            ]
        );
        let mut graph = sample();
        let ty = TensorType::scalar(DType::Bool);
        let default = Some(Float(0.5));
        graph.add_input(Input { name: "flag".to_owned(), ty, rate: Rate::Step, default });
        assert_eq!(errors(&graph), ["input `flag`: the default 0.5 is not a value of bool"]);
    }

    #[test]
    fn weights_are_constant_and_unique() {
        let mut graph = sample();
        graph.add_weight(graph.weights[0].clone());
        let ty = TensorType::new(DType::F32, vec![Dim::symbol("B"), Dim::constant(0)]);
        graph.add_weight(Weight::new("v".to_owned(), ty));
        assert_eq!(
            errors(&graph),
            [
                "weight `w`: `w` is declared twice",
                "weight `v`: shape [B, 0] is not one of constant, positive sizes with fewer than 2^63 elements",
            ]
        );
    }

    #[test]
    fn only_weights_are_8_bit_integers() {
        let mut graph = sample();
        let ty = TensorType::new(DType::I8, vec![Dim::constant(4)]);
        graph.add_input(Input { name: "q".to_owned(), ty: ty.clone(), rate: Rate::Step, default: None });
        let weight = graph.add_weight(Weight::new("r".to_owned(), ty));
        graph.outputs.push(Output { name: "r".to_owned(), value: weight });
        assert_eq!(
            errors(&graph),
            ["input `q`: only weights may be i8", "output `r`: only weights may be i8"]
        );
        let cast = |to| graph.clone().add(Op::Cast { to }, &[weight], None);
        assert!(DType::ALL.into_iter().all(|to| cast(to).is_ok() == to.is_float()));
        assert!(graph.clone().add(Op::Reshape { shape: vec![Dim::constant(4)] }, &[weight], None).is_err());
    }

    #[test]
    fn constraints_are_kept() {
        let mut graph = sample();
        graph.constraints.retain(|constraint| !constraint.what.contains("inside"));
        assert_eq!(
            errors(&graph),
            ["node 1 (slice): the graph lacks the constraint T <= 3: the end of a slice is inside its axis"]
        );
    }

    #[test]
    fn rates_are_for_all_values_and_agree() {
        let mut graph = sample();
        let values: Vec<Value> = graph.values().map(|(value, _)| value).collect();
        graph.set_rate(values[0], Rate::Prompt);
        graph.set_rate(values[1], Rate::Model);
        graph.set_rate(values[2], Rate::Model);
        assert_eq!(
            errors(&graph),
            [
                "input `x`: its value is per prompt, the input is per step",
                "value 2: it is per model but its operand 0 changes more often",
                "value 3: it has no rate although other values have one",
            ]
        );
        graph.set_rate(values[0], Rate::Step);
        graph.set_rate(values[2], Rate::Step);
        graph.set_rate(values[3], Rate::Step);
        assert_eq!(verify_graph(&graph), Ok(()));
    }

    #[test]
    fn broken_tables_are_found() {
        assert_eq!(
            changed(|json| json["nodes"][0]["operands"][0] = 3.into()),
            [
                "node 0 (matmul in a.b): operand 3 is computed only later",
                "node 0 (matmul in a.b): op `matmul`: contracted sizes T and 4 differ",
            ]
        );
        assert_eq!(
            changed(|json| json["nodes"][1]["operands"][0] = 9.into()),
            ["node 1 (slice): there is no value 9"]
        );
        assert_eq!(
            changed(|json| json["outputs"][0]["value"] = 7.into()),
            ["output `y`: there is no value 7"]
        );
        assert_eq!(
            changed(|json| json["values"][2]["ty"]["dtype"] = "Bf16".into()),
            [
                "node 0 (matmul in a.b): result 0 has type bf16[B, 3], the op gives f32[B, 3]",
                "node 1 (slice): result 0 has type f32[B, T], the op gives bf16[B, T]",
            ]
        );
        assert_eq!(
            changed(|json| json["nodes"][0]["results"][0] = 1.into()),
            [
                "node 0 (matmul in a.b): the value table does not agree with it: result 0 is value 1, which says otherwise",
                "value 2: the value table does not agree with it: node 0 does not list it as result 0",
            ]
        );
        assert_eq!(
            changed(|json| json["weights"][0]["ty"]["dtype"] = "F16".into()),
            [
                "value 1: the value table does not agree with it: its type is not the declared one, or there is no declaration"
            ]
        );
        assert_eq!(
            changed(|json| json["inputs"] = serde_json::Value::Array(Vec::new())),
            [
                "value 0: the value table does not agree with it: its type is not the declared one, or there is no declaration"
            ]
        );
    }
}
