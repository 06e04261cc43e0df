//! The state of one elaboration: the graph so far, open calls and scopes, diagnostics, and what has been used of the limits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use nucleus_ir::ast::Entry;
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::source::Span;
use nucleus_ir::{DType, Dim, Float, Graph, Input, Op, Output, Symbol, TensorType, Value};

use super::config::Config;
use super::limits;
use super::locals::Locals;
use super::program::Program;
use super::term::Term;

/// Elaboration cannot go on: too many errors, or a limit passed. The reason is among the diagnostics.
#[derive(Debug)]
pub(super) struct Stop;

/// The result of every step.
pub(super) type Eval<T> = Result<T, Stop>;

/// A call that is being inlined.
pub(super) struct Frame<'p> {
    /// The module whose names the body sees.
    pub(super) module: usize,
    pub(super) locals: Locals<'p>,
}

/// See the [module documentation](self).
pub(super) struct Evaluator<'p> {
    pub(super) program: &'p Program,
    pub(super) graph: Graph,
    pub(super) frame: Frame<'p>,
    /// Config values, constants and dims, by module.
    pub(super) globals: Vec<HashMap<&'p str, Term>>,
    /// Weights by name.
    pub(super) weights: HashMap<String, Value>,
    /// Some `let` stated a rate, so the text is that of a stage after which all values have one.
    pub(super) rates_stated: bool,
    /// The scopes around the current expression, joined by dots.
    pub(super) prefix: String,
    /// What new nodes are labelled with.
    pub(super) label: Option<Arc<str>>,
    /// The open calls, outermost first: name and place.
    pub(super) calls: Vec<(&'p str, Span)>,
    diagnostics: Vec<Diagnostic>,
    /// Where errors were reported, each with the places of the open calls: a loop repeats its errors.
    reported: HashSet<(Span, Vec<Span>)>,
    depth: usize,
    steps: u64,
    pub(super) iterations: u64,
}

impl<'p> Evaluator<'p> {
    pub(super) fn new(program: &'p Program) -> Evaluator<'p> {
        let root = program.modules.len() - 1;
        Evaluator {
            program,
            graph: Graph::default(),
            frame: Frame { module: root, locals: Locals::default() },
            globals: Vec::new(),
            weights: HashMap::new(),
            rates_stated: false,
            prefix: String::new(),
            label: None,
            calls: Vec::new(),
            diagnostics: Vec::new(),
            reported: HashSet::new(),
            depth: 0,
            steps: 0,
            iterations: 0,
        }
    }

    pub(super) fn run(mut self, config: &Config, entry: &str) -> Result<Graph, Vec<Diagnostic>> {
        let Some(entry) = self.program.entry(entry) else {
            let names: Vec<String> = self.program.entries().iter().map(|name| format!("`{name}`")).collect();
            let help = match names.as_slice() {
                [] => "the module has no entry".to_owned(),
                names => format!("the module has {}", names.join(", ")),
            };
            return Err(vec![Diagnostic::error(format!("there is no entry `{entry}`")).help(help)]);
        };
        // What a wrong config leads to inside the entry would only hide what is wrong with the config.
        if self.globals(config).is_err() || !self.diagnostics.is_empty() {
            return Err(self.diagnostics);
        }
        if self.entry(entry).is_err() || !self.diagnostics.is_empty() {
            return Err(self.diagnostics);
        }
        debug_assert_eq!(nucleus_ir::verify_graph::verify_graph(&self.graph), Ok(()));
        Ok(self.graph)
    }

    /// The dims of the program in order of declaration, those of the loaded module first.
    pub(super) fn dims(&self) -> Vec<Symbol> {
        let mut dims: Vec<Symbol> = Vec::new();
        for module in self.program.modules.iter().rev() {
            for name in module.dims() {
                let symbol = Symbol::new(&name.node);
                if !dims.contains(&symbol) {
                    dims.push(symbol);
                }
            }
        }
        dims
    }

    fn entry(&mut self, entry: &'p Entry) -> Eval<()> {
        self.graph.name = entry.name.node.clone();
        for input in &entry.inputs {
            let shape = self.shape_of(&input.ty.dims)?;
            let ty = TensorType::new(input.ty.dtype.unwrap_or(DType::F32), shape.unwrap_or_default());
            self.check_shape(&ty, input.name.span)?;
            let default = match &input.default {
                Some(default) => {
                    let value = self.expr(default)?;
                    self.input_default(&value, ty.dtype, default.span)?
                }
                None => None,
            };
            let input_value = Input { name: input.name.node.clone(), ty, rate: input.rate, default };
            let value = self.graph.add_input(input_value);
            self.frame.locals.declare(&input.name.node, Term::Tensor(value));
        }
        let result = self.block(&entry.body)?;
        let span = entry.body.value.as_ref().map_or(entry.name.span, |value| value.span);
        let terms: Vec<Term> = match (&result, entry.outputs.len()) {
            (Term::Poison, _) => return Ok(()),
            (Term::Tuple(items), count) if items.len() == count => items.to_vec(),
            (Term::Unit, 0) => Vec::new(),
            (Term::Unit | Term::Tuple(_), count) => {
                let given = if let Term::Tuple(items) = &result { items.len() } else { 0 };
                let message =
                    format!("entry `{}` has {count} outputs, its body gives {given}", entry.name.node);
                return self.report(Diagnostic::error(message).label(span, "the value of the body"));
            }
            (_, 1) => vec![result],
            (_, count) => {
                let message = format!("entry `{}` has {count} outputs, its body gives 1", entry.name.node);
                return self.report(Diagnostic::error(message).label(span, "the value of the body"));
            }
        };
        for (output, term) in entry.outputs.iter().zip(terms) {
            let what = format!("output `{}`", output.name.node);
            if let Term::Tensor(value) = self.check_tensor(&output.ty, term, span, &what, None)? {
                self.graph.outputs.push(Output { name: output.name.node.clone(), value });
            }
        }
        if self.rates_stated {
            let inputs: Vec<Value> =
                self.graph.values().take(self.graph.inputs.len()).map(|(value, _)| value).collect();
            for (value, rate) in inputs.into_iter().zip(entry.inputs.iter().map(|input| input.rate)) {
                self.graph.set_rate(value, rate);
            }
        } else {
            self.graph.clear_rates();
        }
        Ok(())
    }

    fn input_default(&mut self, value: &Term, dtype: DType, span: Span) -> Eval<Option<Float>> {
        let number = match value {
            Term::Bool(value) => f64::from(u8::from(*value)),
            Term::Int(value) => *value as f64,
            Term::Float(value) => *value,
            Term::Poison => return Ok(None),
            other => {
                let message =
                    format!("the default of an input must be a number or a bool, given {}", other.kind());
                self.report(Diagnostic::error(message).label(span, "the value of every element"))?;
                return Ok(None);
            }
        };
        let fits = match dtype {
            DType::Bool => matches!(value, Term::Bool(_)),
            DType::I32 => number.fract() == 0.0 && number.abs() <= f64::from(i32::MAX),
            DType::F32 | DType::Bf16 | DType::F16 => !matches!(value, Term::Bool(_)),
            // There is no such input.
            DType::I8 => false,
        };
        if !fits {
            let message = format!("the default {value} is not a value of {dtype}");
            self.report(Diagnostic::error(message).label(span, "the value of every element"))?;
        }
        Ok(Some(Float(number)))
    }

    // Diagnostics and limits.

    /// Reports an error in the current call.
    pub(super) fn report(&mut self, diagnostic: Diagnostic) -> Eval<()> {
        self.report_below(diagnostic, self.calls.len())
    }

    /// Reports an error that belongs to the outermost `calls` of the open calls.
    pub(super) fn report_below(&mut self, mut diagnostic: Diagnostic, calls: usize) -> Eval<()> {
        let chain = &self.calls[..calls];
        if let Some(span) = diagnostic.span()
            && !self.reported.insert((span, chain.iter().map(|(_, span)| *span).collect()))
        {
            return Ok(());
        }
        for (name, span) in chain.iter().rev().take(limits::CALL_LABELS) {
            diagnostic = diagnostic.label(*span, format!("in this call of `{name}`"));
        }
        self.diagnostics.push(diagnostic);
        if self.diagnostics.len() >= limits::ERRORS { Err(Stop) } else { Ok(()) }
    }

    /// Reports an error; the expression it is about has no usable value.
    pub(super) fn poison(&mut self, diagnostic: Diagnostic) -> Eval<Term> {
        self.report(diagnostic)?;
        Ok(Term::Poison)
    }

    /// Reports that a limit is passed.
    pub(super) fn stop<T>(&mut self, message: String, span: Span) -> Eval<T> {
        self.report(Diagnostic::error(message).label(span, "the limit is passed here"))?;
        Err(Stop)
    }

    pub(super) fn step(&mut self, cost: u64, span: Span) -> Eval<()> {
        self.steps = self.steps.saturating_add(cost);
        if self.steps > limits::STEPS {
            return self.stop(format!("elaboration takes more than {} steps", limits::STEPS), span);
        }
        Ok(())
    }

    /// Enters an expression or block; every `enter` is followed by one `leave`, except when elaboration stops.
    pub(super) fn enter(&mut self, span: Span) -> Eval<()> {
        self.depth += 1;
        if self.depth > limits::EVALUATION_DEPTH {
            let message = format!("calls and blocks are nested more than {} deep", limits::EVALUATION_DEPTH);
            return self.stop(message, span);
        }
        self.step(1, span)
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    // Building the graph.

    /// Applies an op; its results, or nothing after an error at `span`.
    pub(super) fn node(&mut self, op: Op, operands: &[Value], span: Span) -> Eval<Option<Vec<Value>>> {
        if self.graph.node_count() >= limits::NODES {
            return self.stop(format!("the graph has more than {} nodes", limits::NODES), span);
        }
        if self.graph.constraints.len() > limits::CONSTRAINTS {
            let message = format!("the graph has more than {} relations between sizes", limits::CONSTRAINTS);
            return self.stop(message, span);
        }
        let shapes = operands.iter().flat_map(|operand| &self.graph.ty(*operand).shape);
        let mut cost = 16 + shapes.map(complexity).sum::<u64>();
        if matches!(op, Op::Slice { .. } | Op::ExpertChoice { .. }) {
            cost += self.graph.constraints.len() as u64 / 4;
        }
        self.step(cost, span)?;
        match self.graph.add_node(op, operands, self.label.clone()) {
            Ok(node) => Ok(Some(self.graph.node(node).results.clone())),
            Err(error) => {
                self.report(Diagnostic::error(error.to_string()).label(span, "in this operation"))?;
                Ok(None)
            }
        }
    }

    /// Applies an op that has one result.
    pub(super) fn value(&mut self, op: Op, operands: &[Value], span: Span) -> Eval<Option<Value>> {
        Ok(self.node(op, operands, span)?.and_then(|results| results.first().copied()))
    }

    /// A shape that no tensor may have, before anything is built from it.
    pub(super) fn check_shape(&mut self, ty: &TensorType, span: Span) -> Eval<()> {
        let size = |dim: &Dim| dim.as_constant().is_none_or(|size| (0..=1 << 40).contains(&size));
        if ty.rank() > nucleus_ir::infer::MAX_RANK || !ty.shape.iter().all(size) {
            let message = format!(
                "{ty} is no type of a tensor: at most {} axes, sizes from 0 to 2^40",
                nucleus_ir::infer::MAX_RANK
            );
            self.report(Diagnostic::error(message).label(span, "of this"))?;
        }
        Ok(())
    }
}

/// About how much work one operation on a size is.
pub(super) fn complexity(dim: &Dim) -> u64 {
    let terms = dim.terms();
    if terms.len() <= 1 && terms.first().is_none_or(|(monomial, _)| monomial.len() <= 2) {
        return 1;
    }
    dim.complexity() as u64
}
