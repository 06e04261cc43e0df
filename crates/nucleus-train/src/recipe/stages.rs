//! `[[stage]]`: the curriculum. Stages follow one another; what one does not say is inherited.

use super::error::RecipeError;
use super::reader::Table;
use super::sections::{COUNT, STEPS};
use super::{DataKind, DataRecipe};

/// A stage, with what it inherits in place.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// How many steps it lasts, at least one.
    pub steps: u64,
    /// Items of a microbatch; files of batches have sizes of their own.
    pub batch: usize,
    /// Microbatches of a step, at least one.
    pub accumulate: usize,
    /// Which pictures, by √(height · width) in pixels; `None` for all.
    pub resolution: Option<usize>,
    /// Replaces the configuration's `capacity_factors`.
    pub capacity_factor: Option<CapacityFactor>,
}

/// Experts per token.
#[derive(Clone, Debug, PartialEq)]
pub enum CapacityFactor {
    /// In every layer.
    All(f64),
    /// Layer by layer, as the configuration key `capacity_factors`.
    PerLayer(Vec<f64>),
}

impl CapacityFactor {
    /// The list for a model with so many layers.
    ///
    /// # Errors
    /// A list of another length: the message to show.
    pub fn per_layer(&self, layers: usize) -> Result<Vec<f64>, String> {
        match self {
            CapacityFactor::All(factor) => Ok(vec![*factor; layers]),
            CapacityFactor::PerLayer(factors) if factors.len() == layers => Ok(factors.clone()),
            CapacityFactor::PerLayer(factors) => Err(format!(
                "`capacity_factor` lists {} numbers, the model has {layers} layers",
                factors.len()
            )),
        }
    }
}

/// The stages of a run: at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Stages {
    stages: Vec<Stage>,
}

/// Where a step lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageAt<'a> {
    /// Number of the stage, from 0.
    pub number: usize,
    /// Steps of this stage before the step.
    pub step_in_stage: u64,
    /// The stage.
    pub stage: &'a Stage,
}

impl Stages {
    /// `None` without any stage.
    pub fn new(stages: Vec<Stage>) -> Option<Stages> {
        (!stages.is_empty()).then_some(Stages { stages })
    }

    /// The stages in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Stage> {
        self.stages.iter()
    }

    /// Steps of all of them.
    pub fn steps(&self) -> u64 {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// The stage of a step, counted from 1; steps behind the end belong to the last stage.
    pub fn at(&self, step: u64) -> StageAt<'_> {
        let last = self.stages.len() - 1;
        let mut before = 0;
        for (number, stage) in self.stages.iter().enumerate() {
            if step <= before + stage.steps || number == last {
                let step_in_stage = step.saturating_sub(before + 1);
                return StageAt { number, step_in_stage, stage };
            }
            before += stage.steps;
        }
        unreachable!("the last stage takes every step that is left")
    }
}

pub(super) fn stages<'a>(
    root: &'a Table<'a>,
    data: &DataRecipe,
    steps: Option<u64>,
    batch: usize,
    accumulate: usize,
) -> Result<Stages, RecipeError> {
    let tables = root.tables("stage", "[[stage]]")?;
    let mut stages = Vec::with_capacity(tables.len().max(1));
    let mut used = 0u64;
    for (number, table) in tables.iter().enumerate() {
        table.only(&["steps", "batch", "accumulate", "resolution", "capacity_factor"])?;
        let steps = match (table.get("steps"), steps) {
            (Some(value), _) => value.integer(STEPS)?,
            (None, Some(all)) if number + 1 == tables.len() && all > used => all - used,
            (None, Some(all)) if number + 1 == tables.len() => {
                return Err(table.error(format!(
                    "no steps are left for {}: [run] has {all}, the stages before it {used}",
                    table.name
                )));
            }
            (None, _) => {
                return Err(table.error(format!(
                    "{} needs `steps`; only the last stage can leave it out, where [run] has `steps`",
                    table.name
                )));
            }
        };
        used += steps;
        stages.push(stage(table, data, steps, batch, accumulate)?);
    }
    match (stages.is_empty(), steps) {
        (true, Some(steps)) => {
            stages.push(Stage { steps, batch, accumulate, resolution: None, capacity_factor: None });
        }
        (true, None) => return Err(root.error("[run] needs `steps`")),
        (false, Some(all)) if all != used => {
            return Err(root.error(format!("[run] has {all} steps, but the stages add up to {used}")));
        }
        (false, _) => {}
    }
    Ok(Stages { stages })
}

fn stage(
    table: &Table<'_>,
    data: &DataRecipe,
    steps: u64,
    batch: usize,
    accumulate: usize,
) -> Result<Stage, RecipeError> {
    let (batch_value, resolution) = (table.get("batch"), table.get("resolution"));
    if data.kind == DataKind::Batches {
        for (key, value) in [("batch", &batch_value), ("resolution", &resolution)] {
            if let Some(value) = value {
                return Err(value.error(format!(
                    "`{key}` in {} is for data of kind \"shards\"; batches are used as they are",
                    table.name
                )));
            }
        }
    }
    let capacity_factor = match table.get("capacity_factor") {
        None => None,
        Some(value) if value.is_list() => Some(CapacityFactor::PerLayer(value.numbers(0.0..=1e6)?)),
        Some(value) => Some(CapacityFactor::All(value.number(0.0..=1e6)?)),
    };
    let stage = Stage {
        steps,
        batch: batch_value.map_or(Ok(batch), |value| Ok(value.integer(COUNT)? as usize))?,
        accumulate: table
            .get("accumulate")
            .map_or(Ok(accumulate), |value| Ok(value.integer(COUNT)? as usize))?,
        resolution: resolution.map(|value| value.integer(1..=65_536)).transpose()?.map(|r| r as usize),
        capacity_factor,
    };
    Ok(stage)
}
