//! `nucleusc compile`: from a model's text to one artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nucleus_cuda::Tuning;
use nucleus_ir::{Bindings, DType, Dim, Rate};
use nucleus_passes::pipeline::{Form, PASSES, Pass, PassTiming};
use nucleus_passes::remat::{Policy, Remat};
use nucleus_passes::{CompileOptions, Gradients};
use nucleus_plan::Plan;
use nucleus_plan::cost::{Machine, stage_seconds};
use nucleus_plan::verify::largest_sample;
use nucleus_runtime::artifact::write_artifact;
use nucleus_runtime::{Checkpoint, Compiled, Extras, Model, WeightSource};
use serde_json::{Value, json};

use crate::arguments::{CompileArguments, Recompute, Target};
use crate::cubins::Emitted;
use crate::{check, cubins, progress, report, source};

/// Runs the command.
pub fn compile(arguments: &CompileArguments) -> anyhow::Result<()> {
    let start = Instant::now();
    let weights = arguments.weights.as_deref().map(Checkpoint::open).transpose()?;
    let model = source::model(&arguments.model, &arguments.config, weights.as_ref())?;
    let dtype = arguments.dtype.map_or_else(|| source::default_dtype(weights.as_ref()), DType::from);
    let (stages, emitted) = emitted(&arguments.emit, &arguments.target)?;
    if !arguments.emit.is_empty() && arguments.emit_dir.is_none() {
        bail!("--emit needs --emit-dir DIR, the folder for the files");
    }
    // Before NVRTC is looked for: what is wrong with the table is said on any machine.
    let tuning = match (&arguments.tuning, &arguments.target) {
        (None, _) => Tuning::default(),
        (Some(table), Target::Cuda(_)) => Tuning::read(table)?,
        (Some(_), Target::Cpu) => {
            bail!(
                "--tuning gives the tiles of kernels for GPUs: it needs a target such as --target cuda:sm_90"
            )
        }
    };
    let gpu = match &arguments.target {
        Target::Cpu => None,
        Target::Cuda(architectures) => Some((cubins::compiler()?, architectures)),
    };

    anyhow::ensure!(!model.entries().is_empty(), "`{}` declares no entry", arguments.model.display());
    let mut entries = Vec::new();
    for entry in &arguments.entry {
        if !entries.contains(&entry.as_str()) {
            entries.push(entry);
        }
    }
    if entries.is_empty() {
        entries.push(model.entry(None)?);
    }
    let graphs = entries.iter().map(|entry| model.graph(entry)).collect::<Result<Vec<_>, _>>()?;
    let parameters =
        check::parameters(&graphs).context("the weights have more elements than 64 bits can count")?;
    drop(graphs);

    let mut options = source::options(dtype, arguments.quantize);
    options.gradients = arguments.gradients.then(Gradients::default);
    options.remat = arguments.remat.map(|how| {
        Remat::new(match how {
            Recompute::Auto => Policy::Cheap,
            Recompute::Full => Policy::Full,
        })
    });
    let mut entries_compiled = Vec::new();
    for entry in entries {
        let (plan, timings) = compile_entry(&model, entry, &options, &stages, arguments.emit_dir.as_deref())?;
        entries_compiled.push((plan, timings));
    }
    let kernels = match gpu {
        None => None,
        Some((compiler, architectures)) => {
            let plans = entries_compiled.iter().map(|(plan, _)| plan);
            let kernels = cubins::compile_kernels(&compiler, plans, architectures, &tuning)?;
            if let Some(folder) = &arguments.emit_dir {
                kernels.write(folder, emitted)?;
            }
            Some(kernels)
        }
    };
    let compiled_in = start.elapsed();
    let target = arguments.target.to_string();
    let compiled = Compiled {
        text: model.text().clone(),
        config: model.config().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect(),
        dtype,
        target: target.clone(),
        plans: entries_compiled.iter().map(|(plan, _)| plan.clone()).collect(),
        cubins: kernels.as_ref().map(cubins::Kernels::stored).transpose()?.unwrap_or_default(),
        tuning: kernels.as_ref().map(cubins::Kernels::tuning).unwrap_or_default(),
    };
    if let Some(weights) = &weights {
        WeightSource::check(weights, &compiled.weight_specs(), Extras::Refuse)?;
    }
    let bar = progress::byte_bar("writing");
    write_artifact(&arguments.output, &compiled, weights.as_ref(), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();

    if arguments.json {
        let entries: Vec<Value> =
            entries_compiled.iter().map(|(plan, timings)| describe(plan, timings)).collect();
        let value = json!({
            "artifact": arguments.output,
            "parameters": parameters,
            "dtype": dtype.name(),
            "quantised": compiled.is_quantised(),
            "target": target,
            "seconds": compiled_in.as_secs_f64(),
            "entries": entries,
            "cubins": kernels.as_ref().map(cubins::Kernels::describe),
        });
        return report::print(&value.to_string());
    }
    let mut text = String::new();
    let quantised = if compiled.is_quantised() { ", large weights in int8" } else { "" };
    writeln!(text, "{} for {target} in {dtype}{quantised}", arguments.model.display())?;
    writeln!(text, "parameters: {parameters}")?;
    for (plan, timings) in &entries_compiled {
        summarise(&mut text, plan, timings)?;
    }
    if let Some(kernels) = &kernels {
        kernels.summarise(&mut text)?;
    }
    let bytes = std::fs::metadata(&arguments.output)?.len();
    writeln!(
        text,
        "compiled in {}; wrote {} ({})",
        report::duration(compiled_in),
        arguments.output.display(),
        report::bytes(bytes)
    )?;
    report::print(&text)
}

/// The stages to print: names of passes; `plan` is the last one, `cuda` and `cubin` are the kernels of a GPU and `tiles` is their table of
/// tiles, `all` is everything.
fn emitted(names: &[String], target: &Target) -> anyhow::Result<(BTreeSet<&'static str>, Emitted)> {
    let gpu = matches!(target, Target::Cuda(_));
    let mut stages = BTreeSet::new();
    let mut kernels = Emitted::default();
    for name in names {
        match (name.as_str(), PASSES.last()) {
            ("all", _) => {
                stages.extend(PASSES.iter().map(|pass| pass.name));
                kernels = Emitted { sources: gpu, cubins: gpu, tiles: gpu };
            }
            ("cuda" | "cubin" | "tiles", _) if !gpu => {
                bail!("--emit {name} needs a GPU to compile for, such as --target cuda:sm_90")
            }
            ("cuda", _) => kernels.sources = true,
            ("cubin", _) => kernels.cubins = true,
            ("tiles", _) => kernels.tiles = true,
            ("plan", Some(last)) => {
                stages.insert(last.name);
            }
            (name, _) => {
                let known = PASSES.iter().find(|pass| pass.name == name);
                let known = known.with_context(|| {
                    let all: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
                    format!(
                        "there is no stage `{name}`: expected {}, plan, cuda, cubin, tiles or all",
                        all.join(", ")
                    )
                })?;
                stages.insert(known.name);
            }
        }
    }
    Ok((stages, kernels))
}

fn compile_entry(
    model: &Model,
    entry: &str,
    options: &CompileOptions,
    stages: &BTreeSet<&str>,
    folder: Option<&Path>,
) -> anyhow::Result<(Plan, Vec<PassTiming>)> {
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make folder `{}`", folder.display()))?;
    }
    let mut timings = Vec::new();
    let mut failed = None;
    let mut observer = |pass: &'static Pass, form: &Form, time: Duration| {
        timings.push(PassTiming { pass: pass.name, time });
        if let (Some(folder), true) = (folder, stages.contains(pass.name)) {
            let number = PASSES.iter().position(|known| known.name == pass.name).unwrap_or(0);
            let extension = match form {
                Form::Graph(_) => "ir",
                Form::Plan(_) => "plan",
            };
            let path = folder.join(format!("{entry}.{number:02}-{}.{extension}", pass.name));
            let text = match form {
                Form::Graph(_) => form.text(),
                Form::Plan(plan) => report::plan(plan),
            };
            if let Err(error) = std::fs::write(&path, text) {
                failed.get_or_insert((path, error));
            }
        }
    };
    let plan = model.compile_with(entry, options, &mut observer)?;
    if let Some((path, error)) = failed {
        return Err(error).with_context(|| format!("cannot write `{}`", path.display()));
    }
    Ok((plan, timings))
}

/// FLOPs and bytes of the launches of a stage, as formulas; `None` where the sum has too many terms.
fn work(plan: &Plan, stage: Rate) -> Option<(Dim, Dim)> {
    let mut total = (Dim::constant(0), Dim::constant(0));
    for launch in plan.launches.iter().filter(|launch| launch.stage == stage) {
        total = (total.0.add(&launch.flops).ok()?, total.1.add(&launch.bytes).ok()?);
    }
    Some(total)
}

/// Sizes at which arenas and work are shown: square images of the released model's training stages, one prompt of 256 tokens.
const SIZES: [(i64, i64, i64, i64); 4] =
    [(1, 16, 16, 256), (1, 32, 32, 256), (1, 64, 64, 256), (2, 64, 64, 256)];

fn bindings(plan: &Plan, (b, h, w, t): (i64, i64, i64, i64)) -> Option<Bindings> {
    let values = [("B", b), ("H", h), ("W", w), ("T", t)];
    let known = |name: &str| values.iter().any(|(known, _)| *known == name);
    plan.dims.iter().all(|dim| known(dim.as_str())).then(|| Bindings::from_iter(values))
}

fn summarise(text: &mut String, plan: &Plan, timings: &[PassTiming]) -> std::fmt::Result {
    writeln!(text, "entry {}", plan.entry)?;
    writeln!(text, "  kernels: {} distinct, {} launches", plan.kernels.len(), plan.launches.len())?;
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for kernel in &plan.kernels {
        counts.entry(kernel.anchor.name()).or_default().0 += 1;
    }
    for launch in &plan.launches {
        counts.entry(plan.kernel(launch.kernel).anchor.name()).or_default().1 += 1;
    }
    for (anchor, (distinct, launches)) in counts {
        writeln!(text, "    {anchor:16} {distinct:4} distinct {launches:6} launches")?;
    }
    for rate in Rate::ALL {
        let launches = plan.launches.iter().filter(|launch| launch.stage == rate).count();
        match work(plan, rate) {
            _ if launches == 0 => writeln!(text, "  {rate}: nothing to do")?,
            Some((flops, bytes)) => {
                writeln!(text, "  {rate}: {launches} launches")?;
                writeln!(text, "    FLOPs {flops}")?;
                writeln!(text, "    bytes {bytes}")?;
            }
            None => writeln!(text, "  {rate}: {launches} launches")?,
        }
    }
    if let Some([model, prompt, step]) = &plan.arenas {
        writeln!(text, "  arenas (bytes): model {model}")?;
        for size in SIZES {
            let Some(bound) = bindings(plan, size) else { continue };
            let bytes =
                |dim: &Dim| dim.eval(&bound).map_or("too large".to_owned(), |n| report::bytes(n as u64));
            let flops: i64 = plan
                .launches
                .iter()
                .filter_map(|launch| launch.flops.eval(&bound).ok())
                .fold(0, i64::saturating_add);
            let (b, h, w, t) = size;
            writeln!(
                text,
                "    B={b} H={h} W={w} T={t}: prompt {}, step {}; {:.3} TFLOP",
                bytes(prompt),
                bytes(step),
                flops as f64 / 1e12
            )?;
        }
    }
    if let Some(sizes) = largest_sample(plan) {
        let predicted = |rate| {
            let seconds = stage_seconds(plan, rate, &sizes, &Machine::cpu());
            report::duration(Duration::from_secs_f64(seconds))
        };
        let (prompt, step) = (predicted(Rate::Prompt), predicted(Rate::Step));
        let sizes: Vec<String> = sizes.iter().map(|(dim, size)| format!("{dim}={size}")).collect();
        writeln!(
            text,
            "  predicted for a `cpu` of two cores at {}: prompt {prompt}, step {step}",
            sizes.join(" ")
        )?;
    }
    let times: Vec<String> =
        timings.iter().map(|timing| format!("{} {}", timing.pass, report::duration(timing.time))).collect();
    writeln!(text, "  passes: {}", times.join(", "))
}

fn describe(plan: &Plan, timings: &[PassTiming]) -> Value {
    let stages: BTreeMap<&str, Value> = Rate::ALL
        .into_iter()
        .map(|rate| {
            let launches = plan.launches.iter().filter(|launch| launch.stage == rate).count();
            let formulas = work(plan, rate).map(|(flops, bytes)| (flops.to_string(), bytes.to_string()));
            let (flops, bytes) = formulas.unzip();
            (rate.name(), json!({ "launches": launches, "flops": flops, "bytes": bytes }))
        })
        .collect();
    let arenas: Vec<Value> = SIZES
        .into_iter()
        .filter_map(|size| {
            let bound = bindings(plan, size)?;
            let [model, prompt, step] = plan.arenas.as_ref()?;
            let (b, h, w, t) = size;
            Some(json!({
                "B": b, "H": h, "W": w, "T": t,
                "model": model.eval(&bound).ok()?,
                "prompt": prompt.eval(&bound).ok()?,
                "step": step.eval(&bound).ok()?,
            }))
        })
        .collect();
    json!({
        "name": plan.entry,
        "kernels": plan.kernels.len(),
        "launches": plan.launches.len(),
        "stages": stages,
        "arenas": arenas,
        "passes": timings.iter().map(|timing| json!({ "name": timing.pass, "seconds": timing.time.as_secs_f64() })).collect::<Vec<_>>(),
    })
}
