//! The pipeline: one table of passes, which is also the list of stages that can be printed and timed.
//!
//! *Architecture invariant:* a pass is listed here or it does not run. What a pass returns is verified before the next one starts: always in
//! debug builds, in release builds if [`CompileOptions::verify`] asks for it.

use std::time::{Duration, Instant};

use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::graph_printer::print_graph;
use nucleus_ir::verify_graph::verify_graph;
use nucleus_ir::{DType, Graph};
use nucleus_plan::Plan;
use nucleus_plan::verify::verify_plan;

use crate::allocate::allocate;
use crate::differentiate::{Gradients, differentiate};
use crate::elaborate::{Config, Program, elaborate};
use crate::epilogue::epilogue;
use crate::error::PassError;
use crate::fuse::fuse;
use crate::group::group;
use crate::merge::merge;
use crate::precision::precision;
use crate::quantize::{Quantize, quantize};
use crate::remat::{Remat, remat};
use crate::route::route;
use crate::schedule::schedule;
use crate::simplify::simplify;
use crate::stage::stage;

/// One pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Its name, which is also the name of the stage that it makes.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// What it works on.
    pub kind: PassKind,
}

/// What a pass works on.
#[derive(Clone, Copy, Debug)]
pub enum PassKind {
    /// From the program's text to a graph; the first pass.
    Elaborate,
    /// From graph to graph.
    Graph(fn(&Graph, &CompileOptions) -> Result<Graph, PassError>),
    /// From graph to plan.
    Lower(fn(&Graph) -> Result<Plan, PassError>),
    /// From plan to plan.
    Plan(fn(Plan) -> Result<Plan, PassError>),
}

/// Every pass, in order.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "elaborate",
        about: "evaluates the config, inlines functions, unrolls loops, names weights",
        kind: PassKind::Elaborate,
    },
    Pass {
        name: "differentiate",
        about: "if asked to, adds the gradients of a scalar output with respect to weights and inputs",
        kind: PassKind::Graph(|graph, options| match &options.gradients {
            Some(request) => differentiate(graph, request),
            None => Ok(graph.clone()),
        }),
    },
    Pass {
        name: "simplify",
        about: "folds constants, merges equal nodes, drops dead ones, shrinks products of repeated rows",
        kind: PassKind::Graph(|graph, _| simplify(graph)),
    },
    Pass {
        name: "precision",
        about: "stores weights and multiplies in the compute dtype; norms, softmax, angles and routing stay f32",
        kind: PassKind::Graph(|graph, options| precision(graph, options.dtype)),
    },
    Pass {
        name: "quantize",
        about: "if asked to, stores large weights of products as int8 with a scale per output channel",
        kind: PassKind::Graph(|graph, options| quantize(graph, options.quantize.as_ref())),
    },
    Pass {
        name: "remat",
        about: "if asked to, lets the backward pass compute forward values again instead of keeping them",
        kind: PassKind::Graph(|graph, options| remat(graph, options.remat.as_ref())),
    },
    Pass {
        name: "stage",
        about: "splits the graph by how often its inputs change: per model, per prompt, per step",
        kind: PassKind::Graph(|graph, _| stage(graph)),
    },
    Pass {
        name: "route",
        about: "turns scatters into sums over inverted index maps, in a fixed order",
        kind: PassKind::Graph(|graph, _| route(graph)),
    },
    Pass {
        name: "fuse",
        about: "forms kernels: an anchor with a prologue and an epilogue of scalar expressions",
        kind: PassKind::Lower(fuse),
    },
    Pass {
        name: "epilogue",
        about: "moves reductions over groups of a product's columns, and what follows them, into its epilogue",
        kind: PassKind::Plan(epilogue),
    },
    Pass {
        name: "merge",
        about: "makes products of the same left factor parts of one launch",
        kind: PassKind::Plan(merge),
    },
    Pass {
        name: "group",
        about: "chooses the tile of every product by an analytic cost model",
        kind: PassKind::Plan(group),
    },
    Pass {
        name: "schedule",
        about: "orders launches: by stage, producers close to consumers",
        kind: PassKind::Plan(schedule),
    },
    Pass {
        name: "allocate",
        about: "gives every intermediate buffer its place in an arena, symbolic in the run-time sizes",
        kind: PassKind::Plan(allocate),
    },
];

/// The pass of that name.
pub fn pass(name: &str) -> Option<&'static Pass> {
    PASSES.iter().find(|pass| pass.name == name)
}

/// How to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileOptions {
    /// The dtype in which weights are stored and products taken.
    pub dtype: DType,
    /// Which gradients are added; `None` for inference.
    pub gradients: Option<Gradients>,
    /// Which weights become 8-bit integers; `None` for none.
    pub quantize: Option<Quantize>,
    /// What the backward pass recomputes; `None` for nothing.
    pub remat: Option<Remat>,
    /// Verify between passes in release builds too.
    pub verify: bool,
}

impl Default for CompileOptions {
    /// `f32`, no gradients, nothing quantised or recomputed, verified in debug builds only.
    fn default() -> CompileOptions {
        CompileOptions { dtype: DType::F32, gradients: None, quantize: None, remat: None, verify: false }
    }
}

/// What a pass returned.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// A graph.
    Graph(Graph),
    /// A plan.
    Plan(Plan),
}

impl Form {
    /// Its text, which reads back as the same form.
    pub fn text(&self) -> String {
        match self {
            Form::Graph(graph) => print_graph(graph),
            Form::Plan(plan) => plan.to_string(),
        }
    }

    fn verify(&self, pass: &'static str) -> Result<(), PassError> {
        match self {
            Form::Graph(graph) => {
                verify_graph(graph).map_err(|errors| PassError::invalid_graph(pass, &errors))
            }
            Form::Plan(plan) => verify_plan(plan).map_err(|errors| {
                let problems = errors.iter().map(ToString::to_string).collect();
                PassError::Invalid { pass, problems }
            }),
        }
    }
}

/// Is told of every pass as it finishes: for timings, and for printing stages.
pub trait Observer {
    /// `pass` took `time`, verification not included, and returned `form`.
    fn finished(&mut self, pass: &'static Pass, form: &Form, time: Duration);
}

impl Observer for () {
    fn finished(&mut self, _pass: &'static Pass, _form: &Form, _time: Duration) {}
}

impl<F: FnMut(&'static Pass, &Form, Duration)> Observer for F {
    fn finished(&mut self, pass: &'static Pass, form: &Form, time: Duration) {
        self(pass, form, time);
    }
}

/// How long a pass took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassTiming {
    /// The name of the pass.
    pub pass: &'static str,
    /// Its time, verification not included.
    pub time: Duration,
}

impl Observer for Vec<PassTiming> {
    fn finished(&mut self, pass: &'static Pass, _form: &Form, time: Duration) {
        self.push(PassTiming { pass: pass.name, time });
    }
}

/// Why a program does not compile.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompileError {
    /// What is wrong with the program or its config, with places in the text.
    #[error("{}", summary(.0))]
    Program(Vec<Diagnostic>),
    /// A pass gave up.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// There is no stage of that name.
    #[error("there is no stage `{name}`: expected {}", stage_names())]
    NoStage {
        /// The name.
        name: String,
    },
}

fn summary(diagnostics: &[Diagnostic]) -> String {
    let errors: Vec<&str> = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.is_error())
        .map(|error| error.message.as_str())
        .collect();
    errors.join("; ")
}

fn stage_names() -> String {
    PASSES.iter().map(|pass| pass.name).collect::<Vec<_>>().join(", ")
}

/// Compiles one entry of a program under a config.
///
/// # Errors
///
/// See [`CompileError`]; a program that elaborates meets [`CompileError::Pass`] only at sizes beyond the limits of the dim algebra, and where
/// the gradients asked for do not exist.
pub fn compile_entry(
    program: &Program,
    config: &Config,
    entry: &str,
    options: &CompileOptions,
    observer: &mut dyn Observer,
) -> Result<Plan, CompileError> {
    let last = PASSES.last().map_or("", |pass| pass.name);
    Ok(plan_of(compile_to(program, config, entry, options, observer, last)?)?)
}

/// The same from a graph that is elaborated already.
///
/// # Errors
///
/// See [`PassError`].
pub fn compile_graph(
    graph: &Graph,
    options: &CompileOptions,
    observer: &mut dyn Observer,
) -> Result<Plan, PassError> {
    plan_of(run_passes(&PASSES[1..], Form::Graph(graph.clone()), options, observer)?)
}

fn plan_of(form: Form) -> Result<Plan, PassError> {
    match form {
        Form::Plan(plan) => Ok(plan),
        Form::Graph(graph) => {
            let what = format!("the table of passes makes no plan of entry `{}`", graph.name);
            Err(PassError::Unsupported { pass: "elaborate", what })
        }
    }
}

/// Compiles one entry of a program under a config as far as the stage `last`.
///
/// # Errors
///
/// See [`CompileError`]; a program that elaborates meets [`CompileError::Pass`] only at sizes beyond the limits of the dim algebra, and where
/// the gradients asked for do not exist.
pub fn compile_to(
    program: &Program,
    config: &Config,
    entry: &str,
    options: &CompileOptions,
    observer: &mut dyn Observer,
    last: &str,
) -> Result<Form, CompileError> {
    let start = Instant::now();
    let graph = elaborate(program, config, entry).map_err(CompileError::Program)?;
    let first = &PASSES[0];
    let form = finish(first, Form::Graph(graph), start.elapsed(), options, observer)?;
    if last == first.name {
        return Ok(form);
    }
    let end = PASSES.iter().position(|pass| pass.name == last);
    let end = end.ok_or_else(|| CompileError::NoStage { name: last.to_owned() })?;
    Ok(run_passes(&PASSES[1..=end], form, options, observer)?)
}

fn run_passes(
    passes: &'static [Pass],
    mut form: Form,
    options: &CompileOptions,
    observer: &mut dyn Observer,
) -> Result<Form, PassError> {
    for pass in passes {
        let start = Instant::now();
        let next = match (pass.kind, form) {
            (PassKind::Graph(run), Form::Graph(graph)) => Form::Graph(run(&graph, options)?),
            (PassKind::Lower(run), Form::Graph(graph)) => Form::Plan(run(&graph)?),
            (PassKind::Plan(run), Form::Plan(plan)) => Form::Plan(run(plan)?),
            (PassKind::Elaborate | PassKind::Graph(_) | PassKind::Lower(_) | PassKind::Plan(_), _) => {
                let what = "the table of passes is out of order".to_owned();
                return Err(PassError::Unsupported { pass: pass.name, what });
            }
        };
        form = finish(pass, next, start.elapsed(), options, observer)?;
    }
    Ok(form)
}

fn finish(
    pass: &'static Pass,
    form: Form,
    time: Duration,
    options: &CompileOptions,
    observer: &mut dyn Observer,
) -> Result<Form, PassError> {
    if options.verify || cfg!(debug_assertions) {
        form.verify(pass.name)?;
    }
    observer.finished(pass, &form, time);
    Ok(form)
}
