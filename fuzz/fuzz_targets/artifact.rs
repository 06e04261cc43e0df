//! Artifacts: the container from arbitrary bytes, and plans with some bytes changed under a hash that fits.
//!
//! The first byte chooses. 0: the rest is the file. Otherwise it names a model below, whose plan is changed as the following groups of four
//! bytes say (place, what is done there, with which value) and put into a file whose metadata and hash are right. What opens is
//! compiled, and run with zeros where that is little work: a verified plan may give an error, never a crash.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nucleus_ir::{Bindings, DType};
use nucleus_plan::Plan;
use nucleus_runtime::artifact::write_artifact;
use nucleus_runtime::inputs::evaluated_shape;
use nucleus_runtime::{
    Artifact, Compiled, Extras, HostTensor, Model, ModelText, Session, SessionOptions, TensorMap,
};

const MODELS: &[&str] = &[
    "dim B, N;
     entry f(x: [B, N] per step, m: [B, N] per prompt) -> (y: [B, N]) {
         exp(x) * m + reduce_sum(broadcast(x, [B, N]), axis = 1, keep = true) }",
    "dim B, N;
     entry f(x: [B, N, 16] per step, w: [16, 24] per model) -> (y: [B, N, 24]) { exp(matmul(x, w)) }",
    "dim B, N;
     entry f(q: [B, N, 4, 8] per step, k: [B, N, 2, 8] per prompt, v: [B, N, 2, 8] per prompt) -> (y: [B, N, 4, 8]) {
         attention(q, k, v, scale = 0.35) }",
    "dim B, N;
     entry f(x: [B, N, 8] per step, a: [B, N, 4] per step) -> (y: [B, N, 8]) {
         let (slots, gates) = expert_choice(a, capacity = max(1, ceil_div(N, 4)));
         let rows = gather(x, reshape(slots, [B, 4 * max(1, ceil_div(N, 4))]));
         scatter_add(x, reshape(slots, [B, 4 * max(1, ceil_div(N, 4))]), rows) }",
];

fn models() -> &'static [Compiled] {
    static COMPILED: OnceLock<Vec<Compiled>> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let compile = |text: &&str| {
            let text = ModelText { main: ("fuzz.ir".to_owned(), (*text).to_owned()), modules: Vec::new() };
            let model = Model::from_text(&text).unwrap_or_else(|error| panic!("{error}"));
            let plan = model.compile("f", DType::F32, &mut ()).unwrap_or_else(|error| panic!("{error}"));
            Compiled {
                text,
                config: Vec::new(),
                dtype: DType::F32,
                target: "cpu".to_owned(),
                plans: vec![plan],
                cubins: Default::default(),
                tuning: Default::default(),
            }
        };
        MODELS.iter().map(compile).collect()
    })
}

/// The bytes of a plan with changes, decoded again; most changes do not get this far.
fn changed(plan: &Plan, changes: &[u8]) -> Option<Plan> {
    let mut bytes = postcard::to_stdvec(plan).expect("plans can be written");
    for change in changes.chunks_exact(4).take(64) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        match change[2] % 5 {
            0 => bytes[at] = change[3],
            1 => bytes[at] = bytes[at].wrapping_add(change[3]),
            2 => bytes[at] ^= 1 << (change[3] % 8),
            3 => bytes.insert(at, change[3]),
            _ if bytes.len() > 1 => {
                bytes.remove(at);
            }
            _ => {}
        }
    }
    postcard::from_bytes(&bytes).ok()
}

/// Roughly the points that a run computes; products count their depth.
fn work(plan: &Plan, dims: &Bindings) -> i64 {
    let mut total = 0i64;
    for launch in &plan.launches {
        let sizes: Option<Vec<i64>> = launch.sizes.iter().map(|size| size.eval(dims).ok()).collect();
        let Some(sizes) = sizes else { return i64::MAX };
        let mut all = 1i64;
        for (_, extents, _) in plan.kernel(launch.kernel).anchor.slots() {
            let extent = |size: &nucleus_plan::Size| size.value(&sizes).max(1);
            all = all.saturating_mul(extents.iter().map(extent).fold(1, i64::saturating_mul));
        }
        total = total.saturating_add(all);
    }
    total
}

fn exercise(path: &Path) {
    let artifact = match Artifact::open(path) {
        Ok(artifact) => artifact,
        Err(error) => {
            assert!(error.to_string().len() < 1 << 16);
            return;
        }
    };
    let _ = artifact.model();
    let (compiled, _) = artifact.into_parts();
    for plan in compiled.plans {
        if !plan.weights.is_empty() {
            continue;
        }
        let options = SessionOptions {
            threads: Some(1),
            memory_limit: Some(16 << 20),
            extras: Extras::Allow,
            ..SessionOptions::default()
        };
        let dims: Bindings = plan.dims.iter().zip([2, 5]).map(|(dim, size)| (dim.as_str(), size)).collect();
        let ones: Bindings = plan.dims.iter().map(|dim| (dim.as_str(), 1)).collect();
        let light = work(&plan, &dims) < 1 << 24 && work(&plan, &ones) < 1 << 24;
        if !light || plan.inputs.len() > 8 {
            continue;
        }
        let mut inputs = TensorMap::new();
        for input in &plan.inputs {
            let Ok(shape) = evaluated_shape(&input.ty, &dims) else { return };
            if shape.iter().product::<usize>() > 1 << 16 {
                return;
            }
            let Ok(tensor) = HostTensor::zeros(input.ty.dtype, &shape) else { return };
            inputs.insert(input.name.clone(), tensor);
        }
        let given: Vec<(String, i64)> = dims.iter().map(|(dim, size)| (dim.to_string(), size)).collect();
        if let Ok(mut session) = Session::new(plan, nothing(), &options) {
            for _ in 0..2 {
                if let Err(error) = session.run(&inputs, &given) {
                    let message = error.to_string();
                    assert!(!message.contains("failed inside"), "{message}");
                }
            }
        }
    }
}

/// A checkpoint without weights.
fn nothing() -> nucleus_runtime::Checkpoint {
    static PATH: OnceLock<(tempfile::TempDir, std::path::PathBuf)> = OnceLock::new();
    let (_, path) = PATH.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("nothing.safetensors");
        TensorMap::new().write(&path).expect("written");
        (folder, path)
    });
    nucleus_runtime::Checkpoint::open(path).expect("it is empty but whole")
}

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let path = DIR.get_or_init(|| tempfile::tempdir().expect("a temporary folder")).path().join("a.nuc");
    match data.split_first() {
        None => {}
        Some((0, file)) => {
            std::fs::write(&path, file).expect("a writable folder");
            exercise(&path);
        }
        Some((which, changes)) => {
            let mut compiled = models()[usize::from(*which) % MODELS.len()].clone();
            let Some(plan) = changed(&compiled.plans[0], changes) else { return };
            compiled.plans = vec![plan];
            if write_artifact(&path, &compiled, None, &mut |_, _| {}).is_ok() {
                exercise(&path);
            }
        }
    }
});
