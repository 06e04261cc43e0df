//! `nucleusc grad`: the loss of one batch and its gradient with respect to every weight.

use std::time::Instant;

use anyhow::Context;
use nucleus_ir::DType;
use nucleus_runtime::{Checkpoint, HostTensor, Signature, TensorMap};
use nucleus_train::data::Batch;
use nucleus_train::engine::Engine;
use nucleus_train::graph_engine::{GraphEngine, LossOptions};
use nucleus_train::groups::{AdamW, Group, Optimizer};
use nucleus_train::start::from_checkpoint;
use serde_json::json;

use crate::arguments::GradArguments;
use crate::{gpu, report, source};

/// The tensor of a batch file that gives the sizes H and W.
const GRID: &str = "grid";

/// Runs the command.
pub fn grad(arguments: &GradArguments) -> anyhow::Result<()> {
    anyhow::ensure!(arguments.threads != Some(0), "--threads must be at least 1");
    let checkpoint = Checkpoint::open(&arguments.weights)?;
    let model = source::model(&arguments.model, &arguments.config, Some(&checkpoint))?;
    let batch = batch(arguments)?;
    let dtype = arguments.dtype.map_or(DType::F32, DType::from);
    // No step is taken: which optimiser has which weight does not matter.
    let all =
        Group { params: vec!["*".to_owned()], optimizer: Optimizer::AdamW(AdamW::default()), default: true };
    let options =
        LossOptions { dtype, remat: None, coefficients: Vec::new(), orthogonality: 0.0, routers: Vec::new() };
    let start = Instant::now();
    let gpu = gpu::open(arguments.backend, None, arguments.tuning.as_deref())?;
    let mut engine = GraphEngine::with_gpu(model, &[all], options, arguments.threads, gpu.as_ref())?;
    if let Some(routine) = engine.routine() {
        known(arguments, &batch, routine.signature())?;
    }
    from_checkpoint(engine.parameters_mut(), &checkpoint)?;
    let load_time = start.elapsed();
    let start = Instant::now();
    engine.begin_step()?;
    let losses = engine.accumulate(&batch, 1.0)?;
    let run_time = start.elapsed();
    let norm = engine.gradient_norm()?;
    engine.fetch()?;
    let mut outputs = TensorMap::new();
    let parameters = engine.parameters();
    for parameter in parameters.list() {
        let gradient = &parameters.gradients[parameter.range.clone()];
        outputs.insert(parameter.info.name.clone(), HostTensor::from_f32(&parameter.info.shape, gradient)?);
    }
    outputs.insert("loss", HostTensor::from_f32(&[1], &[losses.total as f32])?);
    outputs.write(&arguments.output)?;
    if arguments.json {
        let value = json!({
            "output": arguments.output,
            "loss": losses.total,
            "gradient_norm": norm,
            "weights": parameters.list().len(),
            "load_s": load_time.as_secs_f64(),
            "run_s": run_time.as_secs_f64(),
        });
        return report::print(&value.to_string());
    }
    report::print(&format!(
        "loss {}\nnorm of the gradient {norm}\nwrote {}: the gradients of {} weights (loaded in {}, ran in {})",
        losses.total,
        arguments.output.display(),
        parameters.list().len(),
        report::duration(load_time),
        report::duration(run_time)
    ))
}

/// Refuses tensors and sizes that the loss has not: a training run passes over them, a person means something by them.
fn known(arguments: &GradArguments, batch: &Batch, signature: &Signature) -> anyhow::Result<()> {
    let inputs: Vec<&str> = signature.inputs.iter().map(|input| input.name.as_str()).collect();
    let dims: Vec<&str> = signature.dims.iter().map(|dim| dim.as_str()).collect();
    for (name, _) in batch.tensors.iter() {
        anyhow::ensure!(
            inputs.contains(&name.as_str()),
            "`{}`: the loss has no input `{name}`; its inputs are {}",
            arguments.inputs.display(),
            inputs.join(", ")
        );
    }
    for (name, _) in &arguments.dims {
        anyhow::ensure!(
            dims.contains(&name.as_str()),
            "--dim {name}: the loss has no dim `{name}`; its dims are {}",
            dims.join(", ")
        );
    }
    Ok(())
}

/// The inputs, and the sizes that they and the command line give.
fn batch(arguments: &GradArguments) -> anyhow::Result<Batch> {
    let mut tensors = TensorMap::read(&arguments.inputs)?;
    let mut dims = arguments.dims.clone();
    if let Some(grid) = tensors.remove(GRID) {
        let sizes = grid.as_i32().ok().filter(|sizes| sizes.len() == 2);
        let sizes = sizes.with_context(|| {
            format!("`{}`: tensor `{GRID}` must hold two integers, H and W", arguments.inputs.display())
        })?;
        for (name, size) in ["H", "W"].into_iter().zip(sizes) {
            if dims.iter().all(|(known, _)| known != name) {
                dims.push((name.to_owned(), i64::from(*size)));
            }
        }
    }
    Ok(Batch { tensors, dims, items: 0, image_tokens: 0 })
}
