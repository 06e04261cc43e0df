//! Recipes run by the engine of real training: against PyTorch's loop, stopped and resumed, in stages, and with numbers that are not finite.

use nucleus_ir::DType;
use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_tests::gradients::GradientCase;
use nucleus_tests::training::{Bits, Run, Watch, batch, bits, engine};
use nucleus_train::assemble::assemble;
use nucleus_train::data::{Batch, DataError, Place, Source};
use nucleus_train::engine::Engine;
use nucleus_train::graph_engine::GraphEngine;
use nucleus_train::log::StepRecord;
use nucleus_train::recipe::Stages;
use nucleus_train::trainer::{BoxError, Observer};

const RECIPES: [&str; 2] = ["match_rms_adamw", "original"];

fn losses(records: &[StepRecord]) -> Vec<u64> {
    records.iter().map(|record| record.loss.to_bits()).collect()
}

fn values<'a>(state: &'a Bits, name: &str) -> impl Iterator<Item = f32> + 'a {
    let (_, bits) = state.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no `{name}`"));
    bits.iter().map(|bits| f32::from_bits(*bits))
}

#[test]
fn six_steps_are_those_of_pytorch() {
    for name in RECIPES {
        let run = Run::of(name);
        let (seen, state) = run.train();
        let columns = ["loss", "grad_norm", "lr_factor"].map(|column| run.expected_column(column));
        assert_eq!(seen.records.len(), 6, "{name}");
        let (mut of_loss, mut of_norm, mut of_weights) = (0.0f64, 0.0f64, (0.0f64, ""));
        let lr = seen.records.last().expect("six steps").lr;
        for (step, record) in seen.records.iter().enumerate() {
            of_loss = of_loss.max((record.loss / columns[0][step] - 1.0).abs());
            of_norm = of_norm.max((record.grad_norm / columns[1][step] - 1.0).abs());
            assert!((record.lr / lr - columns[2][step]).abs() <= 1e-12, "{name}: step {}", step + 1);
        }
        let expected = run.expected_weights();
        for weight in expected.names() {
            let view = expected.get(weight).expect("a name of the checkpoint");
            let mut want = vec![0.0; view.elements()];
            view.load_f32(&mut want).expect("floats");
            let largest = want.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let off =
                want.iter().zip(values(&state, weight)).fold(0.0f32, |off, (a, b)| off.max((a - b).abs()));
            assert_eq!(want.len(), values(&state, weight).count(), "{name}: {weight}");
            let error = f64::from(off / largest);
            assert!(error <= 1e-4, "{name}: `{weight}` is off by {error:.1e}");
            if error > of_weights.0 {
                of_weights = (error, weight);
            }
        }
        println!(
            "{name}: losses {of_loss:.1e}, norms {of_norm:.1e}, weights {:.1e} ({})",
            of_weights.0, of_weights.1
        );
        assert!(of_loss <= 1e-5, "{name}: losses are off by {of_loss:.1e}");
        assert!(of_norm <= 1e-5, "{name}: norms of gradients are off by {of_norm:.1e}");
    }
}

#[test]
fn a_run_that_is_stopped_goes_on_with_the_same_bits() {
    for (name, dtype) in [("match_rms_adamw", "f32"), ("original", "f32"), ("original", "bf16")] {
        let make = || Run::of(name).with("dtype = \"f32\"", &format!("dtype = \"{dtype}\""));
        let (whole, parted) = (make(), make());
        let (_, want) = whole.train();
        let mut watch = Watch { stop_after: Some(3), ..Watch::default() };
        let (summary, half) = parted.train_changed(&mut watch, |_, source| source);
        let summary = summary.expect("the run succeeds");
        assert!(summary.stopped && summary.reached == 3, "{name}: {summary:?}");
        assert!(half != want, "{name}: steps change something");
        let mut watch = Watch::default();
        let (summary, got) = parted.train_changed(&mut watch, |_, source| source);
        let summary = summary.expect("the run succeeds");
        assert!(summary.from == 3 && summary.reached == 6, "{name}: {summary:?}");
        assert_eq!(watch.notes, [""; 0], "{name}");
        assert!(got == want, "{name} in {dtype}: other bits after resuming");
        for file in
            ["transformer/diffusion_pytorch_model.safetensors", "optimizer.safetensors", "trainer.json"]
        {
            let read = |run: &Run| std::fs::read(run.out().join("checkpoint-6").join(file)).expect("written");
            assert!(read(&whole) == read(&parted), "{name} in {dtype}: {file}");
        }
    }
}

#[test]
fn runs_do_not_depend_on_the_number_of_threads() {
    for dtype in ["f32", "bf16"] {
        let trained = |threads: usize| {
            let run = Run::of("original")
                .with("dtype = \"f32\"", &format!("dtype = \"{dtype}\""))
                .with("[run]\n", &format!("[run]\nthreads = {threads}\n"))
                .with("orthogonality = 0.0", "orthogonality = 0.01");
            let (seen, state) = run.train();
            (losses(&seen.records), state)
        };
        let one = trained(1);
        for threads in [2, 4] {
            assert!(trained(threads) == one, "{dtype}: {threads} threads");
        }
    }
}

#[test]
fn accumulated_gradients_are_the_mean_of_those_of_the_microbatches() {
    let case = GradientCase::named("everything");
    let mut engine = engine(&case, DType::F32, 2);
    let first = batch(&case);
    let mut second = first.clone();
    let noise = first.tensors.get("noise").expect("a tensor of the batch");
    let turned: Vec<f32> = noise.to_f32_vec().iter().map(|x| 0.5 - x).collect();
    second.tensors.insert("noise", HostTensor::from_f32(noise.shape(), &turned).expect("as many"));
    let mut gradients = |batches: &[&Batch]| {
        engine.begin_step().expect("no step is under way");
        for batch in batches {
            engine.accumulate(batch, 1.0 / batches.len() as f64).expect("the batch fits");
        }
        engine.parameters().gradients.clone()
    };
    let apart = [gradients(&[&first]), gradients(&[&second])];
    assert!(apart[0] != apart[1]);
    let together = gradients(&[&first, &second]);
    let largest = together.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for (at, got) in together.iter().enumerate() {
        let want = f32::midpoint(apart[0][at], apart[1][at]);
        assert!((got - want).abs() <= 1e-7 * largest, "element {at}: {got} instead of {want}");
    }
    // What a step leaves is not seen by the next.
    assert!(gradients(&[&first]) == apart[0]);
}

#[test]
fn a_step_of_several_microbatches_logs_their_mean() {
    let run = Run::of("original").with("steps = 6", "steps = 1\naccumulate = 3");
    let (seen, _) = run.train();
    let recipe = run.recipe();
    let mut parts = assemble(&recipe).expect("the parts fit");
    let mut sum = 0.0;
    for microbatch in 0..3 {
        let batch = parts.source.batch(&Place::of(&recipe.stages, 1, microbatch)).expect("a batch");
        parts.engine.begin_step().expect("no step is under way");
        sum += parts.engine.accumulate(&batch, 1.0).expect("the batch fits").total;
    }
    let loss = seen.records[0].loss;
    assert!((loss - sum / 3.0).abs() <= 1e-12 * loss, "{loss} instead of {}", sum / 3.0);
}

fn config(path: &std::path::Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).expect("a configuration");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn the_capacity_factors_of_a_stage_are_those_of_a_configuration() {
    let stages = |second: &str| {
        Run::of("original")
            .with("[run]", &format!("[[stage]]\nsteps = 3\n[[stage]]\nsteps = 3\n{second}\n[run]"))
    };
    let (plain, plain_state) = Run::of("original").train();
    // The configuration's own factors change nothing.
    let (same, same_state) = stages("capacity_factor = [0.0, 2.0, 1.5]").train();
    assert!(losses(&same.records) == losses(&plain.records) && same_state == plain_state);
    // Others do, from the stage on, and go into its checkpoints.
    let sparse = stages("capacity_factor = [0.0, 1.0, 0.5]");
    let (seen, _) = sparse.train();
    let (got, want) = (losses(&seen.records), losses(&plain.records));
    assert_eq!(got[..3], want[..3]);
    assert_ne!(got[3], want[3]);
    assert_eq!(seen.records.iter().map(|record| record.stage).collect::<Vec<usize>>(), [1, 1, 1, 2, 2, 2]);
    let written = config(&sparse.out().join("checkpoint-6/transformer/config.json"));
    assert_eq!(written["capacity_factors"], serde_json::json!([0.0, 1.0, 0.5]));
    // From the first step on they are a run of another configuration.
    let staged =
        Run::of("original").with("[run]", "[[stage]]\nsteps = 6\ncapacity_factor = [0.0, 1.0, 0.5]\n[run]");
    let configured = Run::of("original");
    let path = configured.folder().join("transformer/config.json");
    let mut changed = config(&path);
    changed["capacity_factors"] = serde_json::json!([0.0, 1.0, 0.5]);
    std::fs::write(&path, changed.to_string()).expect("a writable folder");
    let ((staged, staged_state), (configured, configured_state)) = (staged.train(), configured.train());
    assert!(losses(&staged.records) == losses(&configured.records) && staged_state == configured_state);
}

#[test]
fn capacity_factors_of_another_number_of_layers_are_refused() {
    let run = Run::of("original").with("[run]", "[[stage]]\nsteps = 6\ncapacity_factor = [1.0]\n[run]");
    let (trained, _) = run.train_changed(&mut Watch::default(), |_, source| source);
    let message = trained.expect_err("one factor for three layers").to_string();
    assert!(message.contains("`capacity_factor` lists 1 numbers, the model has 3 layers"), "{message}");
}

#[test]
fn the_orthogonality_update_moves_routers_alone() {
    let one_step = |coefficient: &str| {
        let text = format!("orthogonality = {coefficient}");
        Run::of("original").with("orthogonality = 0.0", &text).with("steps = 6", "steps = 1")
    };
    let (_, without) = one_step("0.0").train();
    let pushed = one_step("0.1");
    let (seen, with) = pushed.train();
    // Warm-up holds for this update as well.
    let coefficient = 0.1 * seen.records[0].lr / 0.004;
    let mut routers = 0;
    for ((name, before), (_, after)) in without.iter().zip(&with) {
        if !name.ends_with("img_mlp.gate.weight") || name.contains('/') {
            assert!(before == after, "`{name}` moves");
            continue;
        }
        routers += 1;
        let (rows, columns) = (4, before.len() / 4);
        let before: Vec<f64> = before.iter().map(|bits| f64::from(f32::from_bits(*bits))).collect();
        let row = |at: usize| &before[at * columns..][..columns];
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let length = |at: usize| dot(row(at), row(at)).sqrt();
        for i in 0..rows {
            for column in 0..columns {
                let push: f64 = (0..rows)
                    .filter(|j| *j != i)
                    .map(|j| dot(row(i), row(j)) / length(i) / length(j) * row(j)[column] / length(j))
                    .sum();
                let want = row(i)[column] - coefficient * push;
                let got = f64::from(f32::from_bits(after[i * columns + column]));
                assert!((got - want).abs() <= 1e-6, "`{name}` [{i}, {column}]: {got} instead of {want}");
            }
        }
    }
    assert_eq!(routers, 2, "the model has two layers with experts");
}

/// Data whose tensor `name` has a NaN in the batch of a step.
struct Poisoned {
    source: Box<dyn Source>,
    step: u64,
    name: &'static str,
}

impl Source for Poisoned {
    fn batch(&mut self, place: &Place<'_>) -> Result<Batch, DataError> {
        let mut batch = self.source.batch(place)?;
        if place.step == self.step {
            let tensor = batch.tensors.get(self.name).expect("a tensor of the batch");
            let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32_vec());
            values[1] = f32::NAN;
            batch.tensors.insert(self.name, HostTensor::from_f32(&shape, &values).expect("as many"));
        }
        Ok(batch)
    }

    fn check(&self, stages: &Stages) -> Result<(), DataError> {
        self.source.check(stages)
    }
}

/// Checkpoints of the run, by name.
fn kept(run: &Run) -> Vec<String> {
    let entries = std::fs::read_dir(run.out()).expect("the folder of the run");
    let names = entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("checkpoint")).collect();
    names.sort();
    names
}

#[test]
fn a_batch_that_is_not_finite_stops_the_run_and_costs_nothing() {
    let (_, want) = Run::of("original").train();
    for name in ["latents", "encoder_hidden_states"] {
        let run = Run::of("original").with("[run]", "[run]\ncheckpoint_every = 2");
        let poison =
            |_: &mut GraphEngine, source| Box::new(Poisoned { source, step: 4, name }) as Box<dyn Source>;
        let (trained, _) = run.train_changed(&mut Watch::default(), poison);
        let message = trained.expect_err("a batch is not finite").to_string();
        let tensor = format!("tensor `{name}` of the batch");
        for part in ["step 4: the loss is NaN", &tensor, "every layer", "the checkpoint of step 2 is kept"] {
            assert!(message.contains(part), "no `{part}` in {message}");
        }
        assert_eq!(kept(&run), ["checkpoint-2"]);
        // With sound data the run goes on, as if nothing had been.
        let (_, got) = run.train();
        assert!(got == want, "{name}: other bits");
    }
}

#[test]
fn files_that_are_not_finite_are_named_with_their_step() {
    let (_, want) = Run::of("original").train();
    for value in [f32::INFINITY, f32::NAN] {
        let run = Run::of("original").with("[run]", "[run]\ncheckpoint_every = 1");
        let file = run.folder().join("batches/001.safetensors");
        let sound = std::fs::read(&file).expect("a batch");
        run.change_batch("001.safetensors", |tensors| {
            let tensor = tensors.get("latents").expect("a batch has latents");
            let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32_vec());
            values[3] = value;
            tensors.insert("latents", HostTensor::from_f32(&shape, &values).expect("as many"));
        });
        let (trained, _) = run.train_changed(&mut Watch::default(), |_, source| source);
        let message = trained.expect_err("a file is not finite").to_string();
        let element = format!("001.safetensors` is not finite: element 3 is {value}");
        for part in ["step 2: tensor `latents` in `", &element, "the checkpoint of step 1 is kept"] {
            assert!(message.contains(part), "no `{part}` in {message}");
        }
        assert_eq!(kept(&run), ["checkpoint-1"]);
        // When the file is sound again the run goes on from there.
        std::fs::write(&file, sound).expect("a writable folder");
        let (_, got) = run.train();
        assert!(got == want, "{value}: other bits");
    }
}

/// Bytes of the arenas of a step of a deeper and wider model under a recipe with this line in `[model]`, and its loss.
fn arenas(line: &str) -> Result<(u64, f64), String> {
    let run = Run::of("original")
        .with("[model]", &format!("[model]\n{line}"))
        .with("checkpoint = \"transformer\"", "config = \"transformer/config.json\"");
    let path = run.folder().join("transformer/config.json");
    let mut deeper = config(&path);
    for (key, value) in [
        ("num_layers", serde_json::json!(8)),
        ("capacity_factors", serde_json::json!([0.0, 2.0, 1.5, 2.0, 1.5, 2.0, 1.5, 2.0])),
        ("num_attention_heads", serde_json::json!(16)),
        ("attention_head_dim", serde_json::json!(32)),
        ("axes_dims_rope", serde_json::json!([8, 12, 12])),
        ("moe_intermediate_dim", serde_json::json!(256)),
    ] {
        deeper[key] = value;
    }
    std::fs::write(&path, deeper.to_string()).expect("a writable folder");
    // Large enough for activations to be most of the memory.
    run.change_batch("000.safetensors", |tensors| {
        let zeros = |shape: &[usize]| HostTensor::zeros(DType::F32, shape).expect("a small tensor");
        *tensors = TensorMap::new();
        for (name, tensor) in [
            ("latents", zeros(&[2, 144, 8])),
            ("encoder_hidden_states", zeros(&[2, 16, 24])),
            ("grid", HostTensor::from_i32(&[2], &[12, 12]).expect("two sides")),
        ] {
            tensors.insert(name, tensor);
        }
    });
    let recipe = run.recipe();
    let mut parts = assemble(&recipe).map_err(|error| error.to_string())?;
    let batch = parts.source.batch(&Place::of(&recipe.stages, 1, 0)).expect("a batch");
    parts.engine.begin_step().expect("no step is under way");
    let losses = parts.engine.accumulate(&batch, 1.0).expect("the batch fits");
    Ok((parts.engine.memory().1, losses.total))
}

#[test]
fn memory_is_a_budget_for_what_the_backward_pass_reads() {
    let [none, auto] = ["", "remat = \"auto\""].map(|line| arenas(line).expect("no budget, no error"));
    let ample = arenas("memory = \"1 GiB\"").expect("there is enough");
    // The least is in the message, and enough.
    let message = arenas("memory = \"1 B\"").expect_err("a byte is too little");
    let least = message.split("holds ").nth(1).and_then(|rest| rest.split(" of forward").next());
    let least = least.unwrap_or_else(|| panic!("no size in {message}"));
    assert!(message.contains("B = ") && message.contains("the budget is 0.001 MiB"), "{message}");
    let tight = arenas(&format!("memory = \"{least}\"")).unwrap_or_else(|error| panic!("{error}"));
    println!("arenas: none {}, auto {}, {least}: {}, ample {}", none.0, auto.0, tight.0, ample.0);
    assert!(tight.0 < auto.0 && auto.0 < none.0 && ample.0 > tight.0);
    for (_, loss) in [auto, ample, tight] {
        assert!((loss - none.1).abs() <= 1e-6 * none.1, "{loss} instead of {}", none.1);
    }
}

/// Breaks a weight after a step, when samples are due.
struct Breaks {
    weight: &'static str,
    value: f32,
    after: u64,
}

impl Observer<GraphEngine> for Breaks {
    fn sample(&mut self, step: u64, engine: &mut GraphEngine) -> Result<(), BoxError> {
        if step == self.after {
            let mut state = engine.state_mut();
            let weight = state.weights.iter_mut().find(|tensor| tensor.name == self.weight);
            weight.expect("a weight of the model").values[5] = self.value;
        }
        Ok(())
    }
}

#[test]
fn a_weight_that_is_not_finite_stops_the_run_and_is_named() {
    let (_, want) = Run::of("original").train();
    for (weight, layer, value) in [
        ("transformer_blocks.1.attn.to_q.weight", "transformer_blocks.1", f32::NAN),
        ("transformer_blocks.2.img_mlp.gate.weight", "transformer_blocks.2", f32::INFINITY),
        ("proj_out.weight", "proj_out", f32::NEG_INFINITY),
    ] {
        let run = Run::of("original")
            .with("[run]", "[run]\ncheckpoint_every = 2\nsample_every = 2")
            .with("out = \"run\"", "out = \"run\"\n[[run.sample]]\ncaption = \"a dot\"");
        let recipe = run.recipe();
        let mut parts = assemble(&recipe).expect("the parts fit");
        let mut checkpoints = nucleus_train::assemble::checkpoints(&recipe, parts.config).expect("a folder");
        let mut trainer =
            nucleus_train::trainer::Trainer::new(&recipe, &mut parts.engine, &mut *parts.source)
                .expect("groups");
        let trained = trainer.run(&mut checkpoints, &mut Breaks { weight, value, after: 4 });
        let message = trained.expect_err("a weight is not finite").to_string();
        let named = format!("the weight `{weight}` in layer `{layer}`");
        for part in ["step 5: ", &named, "the checkpoint of step 4 is kept"] {
            assert!(message.contains(part), "no `{part}` in {message}");
        }
        assert_eq!(kept(&run), ["checkpoint-2", "checkpoint-4"]);
        drop(checkpoints);
        let (_, got) = run.train();
        assert!(got == want, "{weight}: other bits");
    }
}

#[test]
fn gradients_that_are_not_finite_are_found() {
    let case = GradientCase::named("dense");
    let mut engine = engine(&case, DType::F32, 1);
    engine.begin_step().expect("no step is under way");
    engine.accumulate(&batch(&case), 1.0).expect("the batch fits");
    assert_eq!(engine.first_non_finite().expect("it can be looked for"), None);
    let before = bits(&engine.state());
    let range = engine.parameters().list()[3].range.clone();
    let name = engine.parameters().list()[3].info.name.clone();
    engine.parameters_mut().gradients[range.start] = f32::NAN;
    assert!(engine.gradient_norm().expect("a number").is_nan());
    let found = engine.first_non_finite().expect("it can be looked for");
    assert_eq!(found, Some(nucleus_train::engine::NonFinite::Gradient(name)));
    assert!(bits(&engine.state()) == before);
}
