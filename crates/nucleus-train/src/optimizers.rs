//! The optimisers: programs of `ir-specs/`, compiled like any model and run on the parameters in place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use nucleus_ir::DType;
use nucleus_passes::pipeline::CompileOptions;
use nucleus_runtime::routine::{Arguments, Backend, Routine, RoutineError, TensorMut, TensorRef};
use nucleus_runtime::{Model, ModelError, ModelText};
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
    original: bool,
}

/// Compiled optimisers for the buckets of some parameters.
pub struct Optimizers {
    backend: Backend,
    sum_of_squares: Routine,
    accumulate: Routine,
    adamw: Routine,
    muon: BTreeMap<MuonKey, Routine>,
    /// By rows and columns.
    orthogonality: BTreeMap<(usize, usize), Routine>,
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
            sum_of_squares: routine(GRADIENTS, "sum_of_squares", &[], &backend)?,
            accumulate: routine(GRADIENTS, "accumulate", &[], &backend)?,
            adamw: routine(ADAMW, "update", &[], &backend)?,
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
                    place.insert(routine(MUON, "update", &key.settings(), &optimizers.backend)?);
                }
            }
        }
        Ok(optimizers)
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
        run(GRADIENTS.0, &mut self.sum_of_squares, &[("N".to_owned(), rows)], &mut arguments)?;
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
        run(GRADIENTS.0, &mut self.accumulate, &[("N".to_owned(), elements)], &mut arguments)
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
        run(ADAMW.0, &mut self.adamw, &[("N".to_owned(), range.len() as i64)], &mut arguments)
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
            let Some(routine) = self.muon.get_mut(&MuonKey::new(count, &layout, muon)) else { continue };
            let mut arguments = Arguments::new();
            let memory = parameters.bucket(range);
            arguments.output("weight", memory.weight).output("momentum_buffer", memory.first);
            arguments.input("gradient", memory.gradient);
            for (name, value) in &scalars {
                arguments.input(name, value);
            }
            run(MUON.0, routine, &[], &mut arguments)?;
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
            let made = routine(ORTHOGONALITY, "update", &settings, &self.backend)?;
            self.orthogonality.insert(shape, made);
        }
        let Some(routine) = self.orthogonality.get_mut(&shape) else { return Ok(()) };
        let coefficient = coefficient as f32;
        let mut arguments = Arguments::new();
        arguments.output("weight", router).input("coefficient", &coefficient);
        run(ORTHOGONALITY.0, routine, &[], &mut arguments)
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
        let Muon { nesterov, ns_steps, ns_form, .. } = *muon;
        MuonKey { count, rows, columns, halves, nesterov, ns_steps, ns_form, original }
    }

    fn settings(&self) -> [(&'static str, String); 9] {
        let (form, dtype) = match self.ns_form {
            NsForm::Gram => ("gram", "f32"),
            NsForm::Direct => ("direct", "f32"),
            NsForm::DirectBf16 => ("direct", "bf16"),
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
            ("ns_dtype", dtype.to_owned()),
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

fn routine(
    (name, text): (&'static str, &'static str),
    entry: &str,
    settings: &[(&str, String)],
    backend: &Backend,
) -> Result<Routine, OptimizerError> {
    let model = || -> Result<nucleus_plan::Plan, ModelError> {
        let text = ModelText { main: (name.to_owned(), text.to_owned()), modules: Vec::new() };
        let mut model = Model::from_text(&text)?;
        for (key, value) in settings {
            model.set(&format!("{key}={value}"))?;
        }
        // Small numbers count here: what a program does not itself round is f32, whatever the model computes in.
        model.compile_with(entry, &CompileOptions { dtype: DType::F32, ..CompileOptions::default() }, &mut ())
    };
    let plan = model().map_err(|source| OptimizerError::Model { name, source })?;
    Routine::new(plan, backend, None)
        .map_err(|source| OptimizerError::Routine { name, source: Box::new(source) })
}

fn run(
    name: &'static str,
    routine: &mut Routine,
    dims: &[(String, i64)],
    arguments: &mut Arguments<'_>,
) -> Result<(), OptimizerError> {
    routine
        .run(dims, arguments, None)
        .map_err(|source| OptimizerError::Routine { name, source: Box::new(source) })
}

#[cfg(test)]
mod tests;
