//! A whole graph: inputs, weights and sizes checked, nodes in order, values freed after their last use.

use std::borrow::Cow;
use std::collections::BTreeMap;

use nucleus_ir::{Bindings, Graph, Input, Node, NodeData, TensorType, Value, ValueDef, Weight};

use crate::creation;
use crate::error::{EvalError, NodeError};
use crate::node::{bytes_of, evaluate_node};
use crate::real::Real;
use crate::tensor::{Tensor, element_count};
use crate::verify::{bind_shape, check_dims, check_structure};

/// How to evaluate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// In `f64`, round `bf16` and `f16` inputs, weights and results to those types. In `f32` they are always rounded.
    pub round_storage: bool,
    /// The most bytes that weights and computed values may take at one time. The caller's inputs and what one op needs on the way (at most
    /// about as much as its operands and results) do not count.
    pub memory_limit: u64,
}

impl Default for Options {
    /// No rounding in `f64`; 16 GiB.
    fn default() -> Options {
        Options { round_storage: false, memory_limit: 16 << 30 }
    }
}

impl Options {
    pub(crate) fn rounds<F: Real>(&self) -> bool {
        F::ALWAYS_ROUNDS || self.round_storage
    }
}

/// Where weights come from: the tensor of that name, in the type that the graph declares, or `None` without one. Asked once per
/// evaluation for every weight that a node or output uses, just before the first use.
pub type Weights<'a, F> = dyn Fn(&str) -> Option<Tensor<F>> + 'a;

/// What a trace is given: a node, its data and its results in order.
pub type Trace<'a, F> = dyn FnMut(Node, &NodeData, &[Tensor<F>]) + 'a;

/// Evaluates a graph and returns its outputs by name, in order. See the [crate documentation](crate) for an example.
///
/// `dims` gives every run-time size of the graph; other names in it are ignored. An input that is not in `inputs` takes its default.
///
/// # Errors
///
/// Everything that [`EvalError`] lists; no graph and no tensors make it panic.
pub fn evaluate<F: Real>(
    graph: &Graph,
    dims: &Bindings,
    inputs: &BTreeMap<String, Tensor<F>>,
    weights: &Weights<'_, F>,
    options: &Options,
) -> Result<Vec<(String, Tensor<F>)>, EvalError> {
    evaluate_traced(graph, dims, inputs, weights, options, &mut |_, _, _| {})
}

/// [`evaluate`], calling `trace` with the results of every node as they are computed.
pub fn evaluate_traced<F: Real>(
    graph: &Graph,
    dims: &Bindings,
    inputs: &BTreeMap<String, Tensor<F>>,
    weights: &Weights<'_, F>,
    options: &Options,
    trace: &mut Trace<'_, F>,
) -> Result<Vec<(String, Tensor<F>)>, EvalError> {
    check_structure(graph)?;
    check_dims(graph, dims)?;
    if let Some(name) = inputs.keys().find(|name| graph.inputs.iter().all(|input| input.name != **name)) {
        let known: Vec<String> = graph.inputs.iter().map(|input| format!("`{}`", input.name)).collect();
        return Err(EvalError::UnknownInput {
            graph: graph.name.clone(),
            name: name.clone(),
            known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
        });
    }
    let mut run = Run { graph, dims, weights, options, values: vec![None; graph.value_count()], held: 0 };
    for (value, data) in graph.values() {
        if let ValueDef::Input(position) = data.def {
            let input = &graph.inputs[position];
            let tensor = run.input(input, inputs.get(&input.name))?;
            run.hold(value, tensor);
        }
    }
    let last_use = last_uses(graph);
    for (node, data) in graph.nodes() {
        let results = run.node(node, data)?;
        trace(node, data, &results);
        for (value, tensor) in data.results.iter().zip(results) {
            run.hold(*value, Cow::Owned(tensor));
        }
        for value in data.operands.iter().chain(&data.results) {
            if last_use[value.index()] <= node.index() {
                run.release(*value);
            }
        }
    }
    let mut outputs = Vec::with_capacity(graph.outputs.len());
    for (position, output) in graph.outputs.iter().enumerate() {
        let again = graph.outputs[position + 1..].iter().any(|other| other.value == output.value);
        let tensor = if again { run.value(output.value)?.clone() } else { run.take(output.value)? };
        outputs.push((output.name.clone(), tensor));
    }
    Ok(outputs)
}

/// The position of the last node that uses each value; 0 for a value that none uses, the largest for outputs.
fn last_uses(graph: &Graph) -> Vec<usize> {
    let mut last = vec![0; graph.value_count()];
    for (node, data) in graph.nodes() {
        for operand in &data.operands {
            last[operand.index()] = node.index();
        }
    }
    for output in &graph.outputs {
        last[output.value.index()] = usize::MAX;
    }
    last
}

struct Run<'a, F: Real> {
    graph: &'a Graph,
    dims: &'a Bindings,
    weights: &'a Weights<'a, F>,
    options: &'a Options,
    /// The values that exist now, by value index.
    values: Vec<Option<Cow<'a, Tensor<F>>>>,
    /// The bytes of those that are not the caller's.
    held: u64,
}

impl<'a, F: Real> Run<'a, F> {
    fn hold(&mut self, value: Value, tensor: Cow<'a, Tensor<F>>) {
        if let Cow::Owned(tensor) = &tensor {
            self.held += tensor.bytes();
        }
        self.values[value.index()] = Some(tensor);
    }

    fn release(&mut self, value: Value) {
        if let Some(Cow::Owned(tensor)) = self.values[value.index()].take() {
            self.held -= tensor.bytes();
        }
    }

    fn available(&self) -> u64 {
        self.options.memory_limit.saturating_sub(self.held)
    }

    /// A value that was computed before, or a weight, which is fetched at its first use.
    fn value(&mut self, value: Value) -> Result<&Tensor<F>, EvalError> {
        if self.values[value.index()].is_none() {
            let ValueDef::Weight(position) = self.graph.def(value) else {
                return Err(EvalError::Malformed {
                    graph: self.graph.name.clone(),
                    what: format!("value {} is used before it is computed", value.index()),
                });
            };
            let weight = self.weight(&self.graph.weights[position])?;
            self.hold(value, Cow::Owned(weight));
        }
        self.values[value.index()].as_deref().ok_or_else(|| EvalError::Malformed {
            graph: self.graph.name.clone(),
            what: format!("value {} does not exist", value.index()),
        })
    }

    /// The same, given up by the run.
    fn take(&mut self, value: Value) -> Result<Tensor<F>, EvalError> {
        match self.values[value.index()].take() {
            Some(tensor) => Ok(tensor.into_owned()),
            None => self.value(value).cloned(),
        }
    }

    fn node(&mut self, node: Node, data: &NodeData) -> Result<Vec<Tensor<F>>, EvalError> {
        for operand in &data.operands {
            self.value(*operand)?;
        }
        let operands: Vec<&Tensor<F>> =
            data.operands.iter().filter_map(|operand| self.values[operand.index()].as_deref()).collect();
        let options = Options { memory_limit: self.available(), ..self.options.clone() };
        let error = |source: NodeError| EvalError::Node {
            node: node.index(),
            op: data.op.name(),
            scope: data.scope.clone(),
            source,
        };
        let results = evaluate_node(&data.op, self.dims, &operands, &options).map_err(error)?;
        let fits = |(value, result): (&Value, &Tensor<F>)| {
            let declared = self.graph.ty(*value);
            let shape = bind_shape(|| format!("value {}", value.index()), &declared.shape, self.dims)?;
            Ok(result.dtype() == declared.dtype && result.shape() == shape)
        };
        let mut agrees = results.len() == data.results.len();
        for pair in data.results.iter().zip(&results) {
            agrees = agrees && fits(pair)?;
        }
        if !agrees {
            return Err(EvalError::Malformed {
                graph: self.graph.name.clone(),
                what: format!(
                    "node {}, `{}`, has results of other types than its values",
                    node.index(),
                    data.op.name()
                ),
            });
        }
        Ok(results)
    }

    fn input(&self, input: &Input, given: Option<&'a Tensor<F>>) -> Result<Cow<'a, Tensor<F>>, EvalError> {
        let what = || format!("input `{}` of `{}`", input.name, self.graph.name);
        let Some(tensor) = given else {
            let Some(default) = input.default else {
                return Err(EvalError::MissingInput {
                    graph: self.graph.name.clone(),
                    name: input.name.clone(),
                    expected: input.ty.to_string(),
                });
            };
            let shape = self.fitting_shape(what, &input.ty)?;
            let count = element_count(&shape).unwrap_or(0);
            let tensor = Tensor::new(input.ty.dtype, shape, creation::full(default.0, input.ty.dtype, count));
            let tensor = tensor.map_err(|error| EvalError::Malformed {
                graph: self.graph.name.clone(),
                what: format!("{}: {error}", what()),
            })?;
            return Ok(Cow::Owned(self.rounded(tensor)));
        };
        self.check_type(what, &input.ty, tensor)?;
        if self.must_round(tensor) {
            self.fitting_shape(what, &input.ty)?;
            return Ok(Cow::Owned(self.rounded(tensor.clone())));
        }
        Ok(Cow::Borrowed(tensor))
    }

    fn weight(&self, weight: &Weight) -> Result<Tensor<F>, EvalError> {
        let what = || format!("weight `{}` of `{}`", weight.name, self.graph.name);
        // Before it is asked for: the caller would allocate it.
        self.fitting_shape(what, &weight.ty)?;
        let tensor = (self.weights)(&weight.name).ok_or_else(|| EvalError::MissingWeight {
            graph: self.graph.name.clone(),
            name: weight.name.clone(),
            expected: weight.ty.to_string(),
        })?;
        self.check_type(what, &weight.ty, &tensor)?;
        Ok(self.rounded(tensor))
    }

    /// The shape of a type under the bound sizes, if a tensor of it fits the memory limit.
    fn fitting_shape(&self, what: impl Fn() -> String, ty: &TensorType) -> Result<Vec<usize>, EvalError> {
        let shape = bind_shape(&what, &ty.shape, self.dims)?;
        let (bytes, available) = (bytes_of::<F>(ty.dtype, &shape), self.available());
        if bytes > u128::from(available) {
            return Err(EvalError::Memory { what: what(), ty: ty.to_string(), bytes, available });
        }
        Ok(shape)
    }

    fn check_type(
        &self,
        what: impl Fn() -> String,
        declared: &TensorType,
        given: &Tensor<F>,
    ) -> Result<(), EvalError> {
        let shape = bind_shape(&what, &declared.shape, self.dims)?;
        if given.dtype() == declared.dtype && given.shape() == shape {
            return Ok(());
        }
        Err(EvalError::Type {
            what: what(),
            given: given.ty().to_string(),
            declared: declared.to_string(),
            expected: format!("{}{shape:?}", declared.dtype),
        })
    }

    fn must_round(&self, tensor: &Tensor<F>) -> bool {
        let narrow = tensor.dtype();
        let exact =
            || tensor.floats().is_none_or(|x| x.iter().all(|x| x.is_nan() || x.round_to(narrow) == *x));
        self.options.rounds::<F>() && !exact()
    }

    fn rounded(&self, tensor: Tensor<F>) -> Tensor<F> {
        if self.must_round(&tensor) { tensor.cast(tensor.dtype(), true) } else { tensor }
    }
}
