//! The optimisers: programs of `ir-specs/`, compiled like any model and run on the parameters in place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use nucleus_ir::DType;
use nucleus_passes::pipeline::CompileOptions;
use nucleus_runtime::routine::{Arguments, Backend, Routine, RoutineError, TensorMut, TensorRef};
use nucleus_runtime::{Model, ModelError, ModelText, Profile};
use thiserror::Error;

use crate::groups::{AdamW, AdjustLr, Group, MatrixLayout, Muon, NsForm, Optimizer};
use crate::parameters::{Bucket, Parameters, ROW};

const ADAMW: (&str, &str) = ("adamw.ir", include_str!("../../../ir-specs/adamw.ir"));
const MUON: (&str, &str) = ("muon.ir", include_str!("../../../ir-specs/muon.ir"));
const GRADIENTS: (&str, &str) = ("gradients.ir", include_str!("../../../ir-specs/gradients.ir"));
const ORTHOGONALITY: (&str, &str) = ("orthogonality.ir", include_str!("../../../ir-specs/orthogonality.ir"));

/// Elements of weights that one run of Muon takes: its arena is a few times as large.
const MUON_ELEMENTS: usize = 16 << 20;

/// Why an optimiser could not be made or run.
#[derive(Debug, Error)]
pub enum OptimizerError {
    /// Its text does not compile.
    #[error("optimiser {name}: {source}")]
    Model {
        /// The text.
        name: &'static str,
        /// Why.
        source: ModelError,
    },
    /// It could not be made or run.
    #[error("optimiser {name}: {source}")]
    Routine {
        /// The text.
        name: &'static str,
        /// Why.
        source: Box<RoutineError>,
    },
}

/// Matrices that one routine of Muon moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MuonKey {
    /// Weights times experts.
    count: usize,
    /// Of a weight, halves not apart.
    rows: usize,
    columns: usize,
    halves: &'static str,
    nesterov: bool,
    ns_steps: usize,
    ns_form: NsForm,
    ns_dtype: DType,
    original: bool,
}

/// A compiled program, and the times of its launches.
pub struct Program {
    /// Its text.
    text: &'static str,
    name: String,
    routine: Routine,
    profile: Profile,
    /// Runs that the profile is of.
    runs: usize,
}

impl Program {
    /// What it does, and to what.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program as it runs, which knows the sizes of its last run.
    pub fn routine(&self) -> &Routine {
        &self.routine
    }

    /// Times of its launches, added up over all runs since profiling began, and how many those are.
    pub fn profile(&self) -> (&Profile, usize) {
        (&self.profile, self.runs)
    }

    fn run(
        &mut self,
        dims: &[(String, i64)],
        arguments: &mut Arguments<'_>,
        profiled: bool,
    ) -> Result<(), OptimizerError> {
        self.runs += usize::from(profiled);
        let profile = profiled.then_some(&mut self.profile);
        let ran = self.routine.run(dims, arguments, profile);
        ran.map_err(|source| OptimizerError::Routine { name: self.text, source: Box::new(source) })
    }
}

/// Compiled optimisers for the buckets of some parameters.
pub struct Optimizers {
    backend: Backend,
    profiled: bool,
    sum_of_squares: Program,
    accumulate: Program,
    adamw: Program,
    muon: BTreeMap<MuonKey, Program>,
    /// By rows and columns.
    orthogonality: BTreeMap<(usize, usize), Program>,
}

impl Optimizers {
    /// Compiles what the buckets need.
    ///
    /// # Errors
    /// A program does not compile for this machine.
    pub fn new(
        parameters: &Parameters,
        groups: &[Group],
        backend: impl Into<Backend>,
    ) -> Result<Optimizers, OptimizerError> {
        let backend = backend.into();
        let mut optimizers = Optimizers {
            sum_of_squares: program(GRADIENTS, "sum_of_squares", "gradient norm".to_owned(), &[], &backend)?,
            accumulate: program(GRADIENTS, "accumulate", "accumulate".to_owned(), &[], &backend)?,
            adamw: program(ADAMW, "update", "adamw".to_owned(), &[], &backend)?,
            profiled: false,
            backend,
            muon: BTreeMap::new(),
            orthogonality: BTreeMap::new(),
        };
        for bucket in parameters.buckets() {
            let (Some(layout), Optimizer::Muon(muon)) = (bucket.layout, &groups[bucket.group].optimizer)
            else {
                continue;
            };
            for (count, _) in chunks(bucket, &layout) {
                let key = MuonKey::new(count, &layout, muon);
                if let Entry::Vacant(place) = optimizers.muon.entry(key) {
                    let made = program(MUON, "update", key.name(), &key.settings(), &optimizers.backend)?;
                    place.insert(made);
                }
            }
        }
        Ok(optimizers)
    }

    /// From now on the times of all launches are added up.
    pub fn begin_profile(&mut self) {
        self.profiled = true;
        let of_matrices = self.muon.values_mut().chain(self.orthogonality.values_mut());
        for program in of_matrices.chain([&mut self.sum_of_squares, &mut self.accumulate, &mut self.adamw]) {
            program.profile = Profile::default();
            program.runs = 0;
        }
    }

    /// The programs that ran since [`Optimizers::begin_profile`].
    pub fn profiled(&self) -> impl Iterator<Item = &Program> {
        let of_matrices = self.muon.values().chain(self.orthogonality.values());
        let all = [&self.sum_of_squares, &self.accumulate, &self.adamw].into_iter().chain(of_matrices);
        all.filter(|program| program.runs > 0)
    }

    /// The sum of the squares of all gradients.
    ///
    /// # Errors
    /// A launch failed.
    pub fn sum_of_squares(&mut self, parameters: &Parameters) -> Result<f64, OptimizerError> {
        let mut sum = 0.0f32;
        let rows = (parameters.total() / ROW) as i64;
        if rows == 0 {
            return Ok(0.0);
        }
        let mut arguments = Arguments::new();
        arguments.input("gradient", parameters.all_gradients()).output("sum", &mut sum);
        self.sum_of_squares.run(&[("N".to_owned(), rows)], &mut arguments, self.profiled)?;
        Ok(f64::from(sum))
    }

    /// sum ← sum + scale · gradient, both of that many elements.
    ///
    /// # Errors
    /// A launch failed.
    pub fn accumulate(
        &mut self,
        sum: TensorMut<'_>,
        gradient: TensorRef<'_>,
        elements: usize,
        scale: f32,
    ) -> Result<(), OptimizerError> {
        let elements = elements as i64;
        let mut arguments = Arguments::new();
        arguments.output("sum", sum).input("gradient", gradient).input("scale", &scale);
        self.accumulate.run(&[("N".to_owned(), elements)], &mut arguments, self.profiled)
    }

    /// Moves all weights along their gradients times `gradient_scale`. `step` counts from 1; the learning rates of the groups are multiplied
    /// by `lr_factor`.
    ///
    /// # Errors
    /// A launch failed.
    pub fn update(
        &mut self,
        parameters: &mut Parameters,
        groups: &[Group],
        step: u64,
        lr_factor: f64,
        gradient_scale: f64,
    ) -> Result<(), OptimizerError> {
        let buckets = parameters.buckets().to_vec();
        for bucket in &buckets {
            match &groups[bucket.group].optimizer {
                Optimizer::AdamW(adamw) => {
                    self.adamw(parameters, bucket, adamw, step, lr_factor, gradient_scale)?;
                }
                Optimizer::Muon(muon) => self.muon(parameters, bucket, muon, lr_factor, gradient_scale)?,
            }
        }
        Ok(())
    }

    fn adamw(
        &mut self,
        parameters: &mut Parameters,
        bucket: &Bucket,
        adamw: &AdamW,
        step: u64,
        lr_factor: f64,
        gradient_scale: f64,
    ) -> Result<(), OptimizerError> {
        let range = bucket.range.clone();
        if range.is_empty() {
            return Ok(());
        }
        // The powers are taken in f64: 1 − β² is small.
        let correction = |beta: f64| (1.0 - beta.powf(step as f64)) as f32;
        let scalars = [
            ("gradient_scale", gradient_scale as f32),
            ("learning_rate", (adamw.lr * lr_factor) as f32),
            ("beta1", adamw.betas[0] as f32),
            ("beta2", adamw.betas[1] as f32),
            ("correction1", correction(adamw.betas[0])),
            ("correction2", correction(adamw.betas[1])),
            ("eps", adamw.eps as f32),
            ("weight_decay", adamw.weight_decay as f32),
        ];
        let mut arguments = Arguments::new();
        let memory = parameters.bucket(range.clone());
        arguments.output("weight", memory.weight).output("first_moment", memory.first);
        arguments.input("gradient", memory.gradient);
        if let Some(second) = memory.second {
            arguments.output("second_moment", second);
        }
        for (name, value) in &scalars {
            arguments.input(name, value);
        }
        self.adamw.run(&[("N".to_owned(), range.len() as i64)], &mut arguments, self.profiled)
    }

    fn muon(
        &mut self,
        parameters: &mut Parameters,
        bucket: &Bucket,
        muon: &Muon,
        lr_factor: f64,
        gradient_scale: f64,
    ) -> Result<(), OptimizerError> {
        let Some(layout) = bucket.layout else { return Ok(()) };
        let scalars = [
            ("gradient_scale", gradient_scale as f32),
            ("learning_rate", (muon.lr * lr_factor) as f32),
            ("momentum", muon.momentum as f32),
            ("weight_decay", muon.weight_decay as f32),
        ];
        for (count, range) in chunks(bucket, &layout) {
            let Some(program) = self.muon.get_mut(&MuonKey::new(count, &layout, muon)) else { continue };
            let mut arguments = Arguments::new();
            let memory = parameters.bucket(range);
            arguments.output("weight", memory.weight).output("momentum_buffer", memory.first);
            arguments.input("gradient", memory.gradient);
            for (name, value) in &scalars {
                arguments.input(name, value);
            }
            program.run(&[], &mut arguments, self.profiled)?;
        }
        Ok(())
    }

    /// Pushes the rows of a router [rows, columns] apart.
    ///
    /// # Errors
    /// The program does not compile, or a launch failed.
    pub fn orthogonalize(
        &mut self,
        router: TensorMut<'_>,
        rows: usize,
        columns: usize,
        coefficient: f64,
    ) -> Result<(), OptimizerError> {
        let shape = (rows, columns);
        if !self.orthogonality.contains_key(&shape) {
            let settings = [("rows", rows.to_string()), ("columns", columns.to_string())];
            let name = format!("orthogonality [{rows}, {columns}]");
            let made = program(ORTHOGONALITY, "update", name, &settings, &self.backend)?;
            self.orthogonality.insert(shape, made);
        }
        let Some(program) = self.orthogonality.get_mut(&shape) else { return Ok(()) };
        let coefficient = coefficient as f32;
        let mut arguments = Arguments::new();
        arguments.output("weight", router).input("coefficient", &coefficient);
        program.run(&[], &mut arguments, self.profiled)
    }
}

impl MuonKey {
    fn new(count: usize, layout: &MatrixLayout, muon: &Muon) -> MuonKey {
        let apart = layout.halves == 2;
        let columns_apart =
            apart && layout.half_offset == layout.columns && layout.row_stride == 2 * layout.columns;
        let (rows, columns, halves) = match (apart, columns_apart) {
            (false, _) => (layout.rows, layout.columns, "none"),
            (true, true) => (layout.rows, 2 * layout.columns, "columns"),
            (true, false) => (2 * layout.rows, layout.columns, "rows"),
        };
        let original = muon.adjust_lr == AdjustLr::Original;
        let Muon { nesterov, ns_steps, ns_form, ns_dtype, .. } = *muon;
        MuonKey { count, rows, columns, halves, nesterov, ns_steps, ns_form, ns_dtype, original }
    }

    fn name(&self) -> String {
        let MuonKey { count, rows, columns, halves, .. } = self;
        match *halves {
            "none" => format!("muon {count} × [{rows}, {columns}]"),
            "rows" => format!("muon {} × [{}, {columns}]", 2 * count, rows / 2),
            _ => format!("muon {} × [{rows}, {}]", 2 * count, columns / 2),
        }
    }

    fn settings(&self) -> [(&'static str, String); 9] {
        let form = match self.ns_form {
            NsForm::Gram => "gram",
            NsForm::Direct => "direct",
        };
        let adjust = if self.original { "original" } else { "match_rms_adamw" };
        [
            ("count", self.count.to_string()),
            ("rows", self.rows.to_string()),
            ("columns", self.columns.to_string()),
            ("halves", self.halves.to_owned()),
            ("nesterov", self.nesterov.to_string()),
            ("ns_steps", self.ns_steps.to_string()),
            ("ns_form", form.to_owned()),
            ("ns_dtype", self.ns_dtype.name().to_owned()),
            ("adjust_lr", adjust.to_owned()),
        ]
    }
}

/// The runs that move a bucket: how many weights (times experts) and their elements. As few as keep within [`MUON_ELEMENTS`], as equal as
/// can be.
fn chunks(bucket: &Bucket, layout: &MatrixLayout) -> Vec<(usize, std::ops::Range<usize>)> {
    let count = bucket.weights * layout.outer;
    let each = layout.halves * layout.rows * layout.columns;
    if count == 0 || each == 0 {
        return Vec::new();
    }
    let runs = (count * each).div_ceil(MUON_ELEMENTS).min(count);
    let (size, larger) = (count / runs, count % runs);
    let mut start = bucket.range.start;
    let mut list = Vec::with_capacity(runs);
    for run in 0..runs {
        let count = size + usize::from(run < larger);
        list.push((count, start..start + count * each));
        start += count * each;
    }
    list
}

fn program(
    (text, source): (&'static str, &'static str),
    entry: &str,
    name: String,
    settings: &[(&str, String)],
    backend: &Backend,
) -> Result<Program, OptimizerError> {
    let model = || -> Result<nucleus_plan::Plan, ModelError> {
        let text = ModelText { main: (text.to_owned(), source.to_owned()), modules: Vec::new() };
        let mut model = Model::from_text(&text)?;
        for (key, value) in settings {
            model.set(&format!("{key}={value}"))?;
        }
        // Small numbers count here: what a program does not itself round is f32, whatever the model computes in.
        model.compile_with(entry, &CompileOptions { dtype: DType::F32, ..CompileOptions::default() }, &mut ())
    };
    let plan = model().map_err(|source| OptimizerError::Model { name: text, source })?;
    let routine = Routine::new(plan, backend, None)
        .map_err(|source| OptimizerError::Routine { name: text, source: Box::new(source) })?;
    Ok(Program { text, name, routine, profile: Profile::default(), runs: 0 })
}

#[cfg(test)]
mod tests;
