//! The entry `loss` of a model: its plan, and what it takes and gives.

use std::collections::BTreeMap;

use nucleus_ir::DType;
use nucleus_passes::differentiate::{Gradients, gradient_name};
use nucleus_passes::pipeline::CompileOptions;
use nucleus_plan::Plan;
use nucleus_runtime::routine::Routine;
use nucleus_runtime::{HostTensor, Model, TensorMap};

use super::{GraphEngineError, LossOptions};
use crate::data::Batch;
use crate::groups::WeightInfo;

/// The entry that is differentiated.
const ENTRY: &str = "loss";

/// The plan of the loss with the gradients of all weights.
pub(super) fn loss_plan(model: &Model, options: &LossOptions) -> Result<Plan, GraphEngineError> {
    let options = CompileOptions {
        dtype: options.dtype,
        gradients: Some(Gradients::default()),
        remat: options.remat.clone(),
        ..CompileOptions::default()
    };
    Ok(model.compile_with(ENTRY, &options, &mut ())?)
}

pub(super) fn weight_infos(plan: &Plan) -> Result<Vec<WeightInfo>, GraphEngineError> {
    let info = |(name, ty): &(String, nucleus_ir::TensorType)| {
        let sizes = ty.shape.iter().map(|dim| usize::try_from(dim.as_constant()?).ok());
        match sizes.collect::<Option<Vec<usize>>>().filter(|_| ty.dtype == DType::F32) {
            Some(shape) => Ok(WeightInfo { name: name.clone(), shape }),
            None => Err(GraphEngineError::Weight { name: name.clone(), ty: ty.to_string() }),
        }
    };
    plan.weights.iter().map(info).collect()
}

/// The outputs that are not gradients: the loss and its parts.
pub(super) fn scalar_outputs(plan: &Plan) -> Result<Vec<String>, GraphEngineError> {
    let gradient = |name: &str| plan.weights.iter().any(|(weight, _)| gradient_name(weight) == name);
    let mut names = Vec::new();
    for output in &plan.outputs {
        if output.ty.rank() == 0 && output.ty.dtype == DType::F32 {
            names.push(output.name.clone());
        } else if !gradient(&output.name) {
            let (name, ty) = (output.name.clone(), output.ty.to_string());
            return Err(GraphEngineError::Output { name, ty });
        }
    }
    Ok(names)
}

/// The inputs of the entry that a batch gives, in its element types, and the scalars that the recipe gives.
pub(super) fn inputs(
    routine: &Routine,
    batch: &Batch,
    coefficients: &[(String, f64)],
) -> Result<(TensorMap, BTreeMap<String, f32>), GraphEngineError> {
    let mut tensors = TensorMap::new();
    let mut scalars = BTreeMap::new();
    for spec in &routine.signature().inputs {
        if let Some(tensor) = batch.tensors.get(&spec.name) {
            let convert = |source| GraphEngineError::Input { name: spec.name.clone(), source };
            let both_floats = tensor.dtype().is_float() && spec.ty.dtype.is_float();
            let tensor: HostTensor = if tensor.dtype() != spec.ty.dtype && both_floats {
                tensor.to_dtype(spec.ty.dtype).map_err(convert)?
            } else {
                tensor.clone()
            };
            tensors.insert(spec.name.clone(), tensor);
        } else if let Some((name, value)) = coefficients.iter().find(|(name, _)| *name == spec.name) {
            scalars.insert(name.clone(), *value as f32);
        }
    }
    Ok((tensors, scalars))
}

pub(super) fn is_finite(tensor: &HostTensor) -> bool {
    !tensor.dtype().is_float() || tensor.to_f32_vec().iter().all(|value| value.is_finite())
}
