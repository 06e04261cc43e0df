//! 8-bit weights through compiler, backend and files: against the evaluator, against the weights they stand for, and from every source.

use std::sync::Mutex;

use nucleus_ir::{DType, TensorType};
use nucleus_passes::CompileOptions;
use nucleus_passes::quantize::Quantize;
use nucleus_runtime::artifact::write_artifact;
use nucleus_runtime::checkpoint::CheckpointError;
use nucleus_runtime::reference::run_reference;
use nucleus_runtime::weights::Scaled;
use nucleus_runtime::{
    Artifact, Checkpoint, Compiled, Extras, HostTensor, Model, RandomWeights, Session, SessionOptions,
    WeightError, WeightSource, WeightSpec,
};
use nucleus_tests::parity::{Case, relative_error, rms_error};

/// The fixtures are small: here a weight of this many elements is worth its scale.
const LEAST: Quantize = Quantize { least_elements: 64 };

/// As for any plan in f32: sums run in another order than the evaluator's.
const F32_TOLERANCE: f64 = 1e-5;

fn options(dtype: DType, quantize: Option<Quantize>) -> CompileOptions {
    CompileOptions { dtype, quantize, ..CompileOptions::default() }
}

fn run(
    case: &Case,
    model: &Model,
    weights: impl WeightSource + 'static,
    options: &CompileOptions,
    threads: usize,
) -> Vec<f32> {
    let plan = model.compile_with("velocity", options, &mut ()).expect("the definition compiles");
    let session_options = SessionOptions { threads: Some(threads), ..SessionOptions::default() };
    let mut session = Session::new(plan, weights, &session_options).expect("the weights fit");
    let outputs = session.run(&case.inputs(), &case.dims).expect("the inputs fit");
    outputs.get("sample").expect("the entry has this output").to_f32_vec()
}

fn run_cpu(case: &Case, options: &CompileOptions, threads: usize) -> Vec<f32> {
    run(case, &case.model(), case.checkpoint(), options, threads)
}

fn rms(values: &[f32]) -> f64 {
    rms_error(values, &vec![0.0; values.len()])
}

#[test]
fn the_backend_agrees_with_the_evaluator_on_quantised_models() {
    let mut failures = Vec::new();
    for case in Case::all().into_iter().filter(|case| case.dtype == DType::F32) {
        let options = options(DType::F32, Some(LEAST));
        let graph = case.model().graph_in("velocity", &options).expect("the definition compiles");
        assert!(graph.weights.iter().any(|weight| weight.ty.dtype == DType::I8), "{}", case.name);
        let want = run_reference::<f32>(&graph, &case.checkpoint(), &case.inputs(), &case.dims)
            .expect("the inputs fit");
        let want = want.get("sample").expect("the entry has this output").to_f32_vec();
        let one = run_cpu(&case, &options, 1);
        let error = relative_error(&one, &want);
        if error > F32_TOLERANCE {
            failures.push(format!("{}: {error:.2e}", case.name));
        }
        for threads in [2, 4] {
            let several = run_cpu(&case, &options, threads);
            let same = one.iter().zip(&several).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: {threads} threads give other bits than one", case.name);
        }
    }
    assert!(failures.is_empty(), "off by more than {F32_TOLERANCE:.0e} of the largest value: {failures:?}");
}

/// A weight is off by at most half of 1/127 of its channel's largest, and evenly spread below that: 1/(127·2·√3) of the largest in the root
/// mean square, which is 0.4 % of a weight whose own distribution is even. A product is off by as much, and the products that follow each
/// other in these models by about twice that.
#[test]
fn the_error_of_int8_is_that_of_its_rounding() {
    let mut failures = Vec::new();
    for name in ["dense", "gqa_4_1", "odd_grid", "all_moe", "sharded", "sigmoid"] {
        let case = Case::named(name);
        let exact = run_cpu(&case, &options(DType::F32, None), 2);
        let error = |dtype, quantize| {
            let answer = run_cpu(&case, &options(dtype, quantize), 2);
            100.0 * rms_error(&answer, &exact) / rms(&exact)
        };
        let int8 = error(DType::F32, Some(LEAST));
        let (bf16, both) = (error(DType::Bf16, None), error(DType::Bf16, Some(LEAST)));
        println!("{name}: RMS error int8 {int8:.2} %, bf16 {bf16:.2} %, int8 with bf16 {both:.2} %");
        // Independent errors add in squares.
        if int8 > 1.2 || both > 1.2 * bf16.hypot(1.2) {
            failures.push(name);
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn made_up_weights_are_the_same_in_every_type() {
    let case = Case::named("all_moe");
    let (model, random) = (case.model(), RandomWeights { seed: 3 });
    let float = run(&case, &model, random, &options(DType::F32, None), 2);
    assert!(rms(&float) > 1e-3 && rms(&float) < 1e3, "activations keep their size: {}", rms(&float));
    let quantised = run(&case, &model, random, &options(DType::F32, Some(LEAST)), 2);
    let error = relative_error(&quantised, &float);
    assert!(error <= F32_TOLERANCE, "int8 differs by {error:.2e}");
    let graph =
        model.graph_in("velocity", &options(DType::F32, Some(LEAST))).expect("the definition compiles");
    let evaluated =
        run_reference::<f32>(&graph, &random, &case.inputs(), &case.dims).expect("the inputs fit");
    let evaluated = evaluated.get("sample").expect("the entry has this output").to_f32_vec();
    assert!(relative_error(&quantised, &evaluated) <= F32_TOLERANCE);

    let other = run(&case, &model, RandomWeights { seed: 4 }, &options(DType::F32, None), 2);
    assert!(relative_error(&other, &float) > 0.01, "another seed is another model");
}

#[test]
fn an_artifact_holds_what_is_otherwise_quantised_at_load() {
    let case = Case::named("mask_batch_3");
    let options = options(case.dtype, Some(LEAST));
    let model = case.model();
    let compiled = Compiled {
        text: model.text().clone(),
        config: model.config().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect(),
        dtype: case.dtype,
        target: "cpu".to_owned(),
        plans: vec![model.compile_with("velocity", &options, &mut ()).expect("the definition compiles")],
        cubins: nucleus_cuda::StoredCubins::new(),
        tuning: nucleus_cuda::Tuning::default(),
    };
    assert!(compiled.is_quantised());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.nuc");
    write_artifact(&path, &compiled, Some(&case.checkpoint()), &mut |_, _| {}).expect("a writable folder");

    let (compiled, weights) = Artifact::open(&path).expect("just written").into_parts();
    let weights = weights.expect("weights were given");
    let specs = compiled.weight_specs();
    let quantised: Vec<&WeightSpec> = specs.iter().filter(|spec| spec.channel_axis.is_some()).collect();
    assert!(!quantised.is_empty());
    for spec in quantised {
        let stored = |name: &str| weights.get(name).and_then(|view| view.dtype());
        assert_eq!(stored(&spec.name), Some(DType::I8), "{}", spec.name);
        let scale = spec.scale_name().expect("it is quantised");
        assert_eq!(stored(&scale), Some(DType::F32), "{scale}");
    }
    let plan = compiled.plans[0].clone();
    let mut session = Session::new(plan, weights, &SessionOptions::default()).expect("the weights fit");
    let outputs = session.run(&case.inputs(), &case.dims).expect("the inputs fit");
    let sample = outputs.get("sample").expect("the entry has this output").to_f32_vec();
    assert_eq!(sample, run_cpu(&case, &options, 1));
}

/// Passes everything on, and writes down what happens.
struct Watched {
    source: Checkpoint,
    events: &'static Mutex<Vec<String>>,
}

impl WeightSource for Watched {
    fn check(&self, needed: &[WeightSpec], extras: Extras) -> Result<(), CheckpointError> {
        WeightSource::check(&self.source, needed, extras)
    }

    fn load(&self, weight: &WeightSpec, threads: usize) -> Result<HostTensor, WeightError> {
        self.source.load(weight, threads)
    }

    fn load_scaled(&self, weight: &WeightSpec, threads: usize) -> Result<Scaled, WeightError> {
        self.events.lock().expect("no panic").push(format!("+{}", weight.name));
        self.source.load_scaled(weight, threads)
    }

    fn release(&self, name: &str) {
        self.events.lock().expect("no panic").push(format!("-{name}"));
        WeightSource::release(&self.source, name);
    }
}

/// No more than one weight is held besides the packed ones: each is released before the next one is asked for.
#[test]
fn weights_are_loaded_one_at_a_time() {
    static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let case = Case::named("all_moe");
    let source = Watched { source: case.checkpoint(), events: &EVENTS };
    run(&case, &case.model(), source, &options(DType::F32, Some(LEAST)), 2);
    let events = EVENTS.lock().expect("no panic");
    // Given back twice: what it was read from, and when it is packed.
    let mut held: Option<(&str, usize)> = None;
    let mut loaded = 0;
    for event in events.iter() {
        let (kind, name) = event.split_at(1);
        match held {
            _ if kind == "+" => {
                assert_eq!(held, None, "`{name}` is loaded while another weight is held");
                held = Some((name, 2));
                loaded += 1;
            }
            Some((known, times)) if known == name => held = (times > 1).then_some((known, times - 1)),
            _ => {}
        }
    }
    assert!(loaded > 10, "only {loaded} weights were quantised");
    let mut once: Vec<&String> = events.iter().filter(|event| event.starts_with('+')).collect();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), loaded, "a weight is quantised once");
}

#[test]
fn quantised_files_are_checked() {
    let ty = |dtype, shape: &[i64]| TensorType::new(dtype, shape.iter().map(|&n| n.into()).collect());
    let weights =
        [("w", ty(DType::I8, &[4, 8])), ("w.scale", ty(DType::F32, &[4, 1])), ("b", ty(DType::F32, &[4]))];
    let specs = WeightSpec::list(weights.iter().map(|(name, ty)| (*name, ty)));
    assert_eq!(
        specs.iter().map(|spec| (spec.name.as_str(), spec.channel_axis)).collect::<Vec<_>>(),
        [("w", Some(1)), ("b", None)]
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let check = |tensors: &[(&str, HostTensor)], specs: &[WeightSpec]| {
        let mut map = nucleus_runtime::TensorMap::new();
        tensors.iter().for_each(|(name, tensor)| drop(map.insert(*name, tensor.clone())));
        map.write(&path).expect("a writable folder");
        let checkpoint = Checkpoint::open(&path).expect("just written");
        WeightSource::check(&checkpoint, specs, Extras::Refuse).map_err(|error| error.to_string())
    };
    let bytes = |shape: &[usize]| HostTensor::zeros(DType::I8, shape).expect("small");
    let floats = |shape: &[usize]| HostTensor::zeros(DType::F32, shape).expect("small");
    let ints = |shape: &[usize]| HostTensor::zeros(DType::I32, shape).expect("small");
    let b = ("b", floats(&[4]));

    let stored = [("w", bytes(&[4, 8])), ("w.scale", floats(&[4, 1])), b.clone()];
    assert_eq!(check(&stored, &specs), Ok(()));
    assert_eq!(check(&[("w", floats(&[4, 8])), b.clone()], &specs), Ok(()), "quantised when it is loaded");
    let refused = |tensors: &[(&str, HostTensor)], specs: &[WeightSpec], want: &str| {
        let message = check(tensors, specs).expect_err(want);
        assert!(message.contains(want), "{message}");
    };
    refused(&[("w", bytes(&[4, 8])), b.clone()], &specs, "weight `w.scale` is missing");
    let scale = ("w.scale", floats(&[4, 1]));
    refused(
        &[("w", bytes(&[8, 4])), scale.clone(), b.clone()],
        &specs,
        "`w` has shape [8, 4], the model needs [4, 8]",
    );
    let flat = ("w.scale", floats(&[4]));
    refused(
        &[("w", bytes(&[4, 8])), flat, b.clone()],
        &specs,
        "`w.scale` has shape [4], the model needs [4, 1]",
    );
    let whole = ("w.scale", ints(&[4, 1]));
    refused(&[("w", bytes(&[4, 8])), whole, b.clone()], &specs, "`w.scale` is stored as I32");
    refused(&[("w", ints(&[4, 8])), b.clone()], &specs, "`w` is stored as I32");
    // Scales beside floats would be applied to nothing.
    refused(&[("w", floats(&[4, 8])), scale, b.clone()], &specs, "`w.scale` is not used");
    // The reverse: a model without quantisation.
    let plain = WeightSpec::list([("w", &ty(DType::F32, &[4, 8])), ("b", &ty(DType::F32, &[4]))]);
    refused(&stored, &plain, "compile it with `--quantize int8`");
}
