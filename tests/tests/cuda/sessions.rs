//! Sessions whose kernels are maps: stages, sizes, prompts, weights of other types, indices.

use nucleus_ir::{DType, Rate};
use nucleus_runtime::{
    Checkpoint, HostTensor, Model, ModelText, Profile, RandomWeights, Session, SessionOptions, TensorMap,
};

use crate::{List, gpu};

pub(crate) const LIST: List = &[
    ("stages_and_sizes", stages_and_sizes),
    ("prompts_take_turns", prompts_take_turns),
    ("weights_are_converted_on_the_way", weights_are_converted_on_the_way),
    ("launches_are_timed", launches_are_timed),
    ("indices_of_inputs_are_checked", indices_of_inputs_are_checked),
    ("prompts_of_other_sessions_are_refused", prompts_of_other_sessions_are_refused),
    ("limits_are_measured", limits_are_measured),
];

/// A value per model, one per prompt, and one per step that needs both.
const MODEL: &str = "dim B, N;
entry f(x: [B, N, 8] per step, p: [N, 8] per prompt) -> (y: [B, N, 8], z: [N, B, 8]) {
    let gain = exp(weight(\"w\", [8]) * 0.25);
    let q = tanh(p) * broadcast(gain, [N, 8]);
    let y = x * broadcast(q, [B, N, 8]) + broadcast(weight(\"v\", [8]), [B, N, 8]);
    (y, transpose(y, permutation = [1, 0, 2]))
}";

fn model(text: &str) -> Model {
    let text = ModelText { main: ("test.ir".to_owned(), text.to_owned()), modules: Vec::new() };
    Model::from_text(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// The same entry on the processor and on the GPU, with made-up weights.
fn pair(text: &str) -> [Session; 2] {
    [None, Some(gpu())].map(|gpu| {
        let plan = model(text).compile("f", DType::F32, &mut ()).unwrap_or_else(|error| panic!("{error}"));
        let options = SessionOptions { gpu, ..SessionOptions::default() };
        Session::new(plan, RandomWeights { seed: 3 }, &options).unwrap_or_else(|error| panic!("{error}"))
    })
}

fn noise(shape: &[usize], seed: usize) -> HostTensor {
    let count = shape.iter().product();
    let values: Vec<f32> =
        (0..count).map(|i: usize| ((i * 37 + seed * 101) % 64) as f32 / 32.0 - 1.0).collect();
    HostTensor::from_f32(shape, &values).expect("a tensor")
}

fn inputs(batch: usize, rows: usize, seed: usize) -> TensorMap {
    let mut inputs = TensorMap::new();
    inputs.insert("x", noise(&[batch, rows, 8], seed));
    inputs.insert("p", noise(&[rows, 8], seed + 1));
    inputs
}

/// The inputs of one rate.
fn of_rate(session: &Session, inputs: &TensorMap, step: bool) -> TensorMap {
    let mut map = TensorMap::new();
    for spec in session.signature().inputs.iter().filter(|spec| (spec.rate == Rate::Step) == step) {
        map.insert(spec.name.clone(), inputs.get(&spec.name).expect("it is given").clone());
    }
    map
}

#[track_caller]
fn assert_same(got: &TensorMap, want: &TensorMap) {
    assert_eq!(got.len(), want.len());
    for (name, want) in want.iter() {
        let got = got.get(name).unwrap_or_else(|| panic!("no `{name}`"));
        assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{name}");
        for (got, want) in got.to_f32_vec().iter().zip(want.to_f32_vec()) {
            assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{name}: {got} instead of {want}");
        }
    }
}

fn stages_and_sizes() {
    let [mut cpu, mut gpu] = pair(MODEL);
    let stages: Vec<Rate> = gpu.plan().launches.iter().map(|launch| launch.stage).collect();
    assert!(Rate::ALL.iter().all(|rate| stages.contains(rate)), "{stages:?}");
    for (batch, rows) in [(1, 1), (3, 5), (2, 300), (3, 5), (1, 1)] {
        let inputs = inputs(batch, rows, batch + rows);
        let want = cpu.run(&inputs, &[]).expect("the inputs fit");
        for _ in 0..3 {
            assert_same(&gpu.run(&inputs, &[]).expect("the inputs fit"), &want);
        }
    }
    assert!(gpu.memory_use().plain >= 64 && gpu.memory_use().arenas > 0);
    assert!(gpu.gpu().is_some() && cpu.gpu().is_none());
}

fn prompts_take_turns() {
    let [mut cpu, mut gpu] = pair(MODEL);
    let given: Vec<TensorMap> = [(2, 4, 1), (2, 4, 9), (1, 50, 5)].map(|(b, n, s)| inputs(b, n, s)).into();
    let dims = |inputs: &TensorMap| {
        let x = inputs.get("x").expect("it is given").shape();
        vec![("B".to_owned(), x[0] as i64), ("N".to_owned(), x[1] as i64)]
    };
    let want: Vec<TensorMap> = given.iter().map(|inputs| cpu.run(inputs, &[]).expect("they fit")).collect();
    let prompts: Vec<_> = given
        .iter()
        .map(|inputs| gpu.prepare(&of_rate(&cpu, inputs, false), &dims(inputs)).expect("they fit"))
        .collect();
    for _ in 0..2 {
        for ((prompt, inputs), want) in prompts.iter().zip(&given).zip(&want) {
            assert_same(&gpu.step(prompt, &of_rate(&cpu, inputs, true)).expect("they fit"), want);
        }
    }
}

fn weights_are_converted_on_the_way() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut weights = TensorMap::new();
    weights.insert("w", noise(&[8], 7).to_dtype(DType::Bf16).expect("floats"));
    weights.insert("v", noise(&[8], 8).to_dtype(DType::F16).expect("floats"));
    let path = folder.path().join("weights.safetensors");
    weights.write(&path).expect("a writable folder");
    let inputs = inputs(2, 3, 4);
    let [want, got] = [None, Some(gpu())].map(|gpu| {
        let plan = model(MODEL).compile("f", DType::F32, &mut ()).expect("it compiles");
        let options = SessionOptions { gpu, ..SessionOptions::default() };
        let checkpoint = Checkpoint::open(&path).expect("it was written");
        let mut session = Session::new(plan, checkpoint, &options).unwrap_or_else(|error| panic!("{error}"));
        session.run(&inputs, &[]).expect("the inputs fit")
    });
    assert_same(&got, &want);
}

fn launches_are_timed() {
    let [_, mut gpu] = pair(MODEL);
    let (inputs, mut profile) = (inputs(2, 3, 4), Profile::default());
    let timed = gpu.run_profiled(&inputs, &[], Some(&mut profile)).expect("the inputs fit");
    let plain = gpu.run(&inputs, &[]).expect("the inputs fit");
    assert_same(&timed, &plain);
    let launches = &gpu.plan().launches;
    assert_eq!(profile.seconds.len(), launches.len());
    for (launch, seconds) in launches.iter().zip(&profile.seconds) {
        assert_eq!(*seconds > 0.0, launch.stage != Rate::Model, "{launch:?} took {seconds}");
    }
}

fn indices_of_inputs_are_checked() {
    let text = "dim B, N;
entry f(table: [B, 7, 4] per step, i: i32[B, N] per step) -> (y: [B, N, 4]) { gather(table, i) * 2.0 }";
    let mut inputs = TensorMap::new();
    inputs.insert("table", noise(&[2, 7, 4], 1));
    let [mut cpu, mut gpu] = pair(text);
    let index = |values: &[i32]| HostTensor::from_i32(&[2, 3], values).expect("a tensor");
    inputs.insert("i", index(&[0, 6, 3, 2, 2, 5]));
    let want = cpu.run(&inputs, &[]).expect("the inputs fit");
    assert_same(&gpu.run(&inputs, &[]).expect("the inputs fit"), &want);
    for bad in [7, -1] {
        inputs.insert("i", index(&[0, 6, bad, 2, 2, 5]));
        let message = gpu.run(&inputs, &[]).expect_err("an index is outside").to_string();
        assert!(message.contains(&format!("an index is {bad}, outside 0..7")), "{message}");
    }
    inputs.insert("i", index(&[0, 6, 3, 2, 2, 5]));
    assert_same(&gpu.run(&inputs, &[]).expect("the device was not touched"), &want);
}

fn prompts_of_other_sessions_are_refused() {
    let ([mut cpu, mut gpu], [_, mut other]) = (pair(MODEL), pair(MODEL));
    let given = inputs(1, 2, 3);
    let dims = [("B".to_owned(), 1)];
    let prompt = other.prepare(&of_rate(&gpu, &given, false), &dims).expect("they fit");
    for session in [&mut cpu, &mut gpu] {
        let message = session.step(&prompt, &given).expect_err("it is another's").to_string();
        assert!(message.contains("another session"), "{message}");
    }
}

fn limits_are_measured() {
    let gpu = gpu();
    for products in [DType::F32, DType::Bf16] {
        let limits = gpu.limits(products).unwrap_or_else(|error| panic!("{error}"));
        assert!(limits.flops > 1e3 && limits.copy_bytes.is_some_and(|bytes| bytes > 1e3), "{limits:?}");
    }
}
