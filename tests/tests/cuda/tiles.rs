//! Measured tiles from compiling to running: artifacts hold kernels for the devices of a table and for all others, and loading finds them.

use std::sync::{Arc, Mutex};

use nucleus_cuda::tuning::{tile_choices, tile_table};
use nucleus_cuda::{Architecture, Compiler, KernelSource, StoredCubins, Tile, compile, distinct_kernels};
use nucleus_ir::DType;
use nucleus_passes::pipeline::CompileOptions;
use nucleus_plan::Plan;
use nucleus_runtime::artifact::write_artifact;
use nucleus_runtime::gpu::{Cubins, NoCubin, TileCounts, Tuning};
use nucleus_runtime::routine::{Arguments, Routine};
use nucleus_runtime::{
    Artifact, Compiled, Gpu, HostTensor, Model, ModelText, RandomWeights, Session, SessionOptions, TensorMap,
};
use nucleus_tests::parity::relative_error;

use crate::{List, gpu};

pub(crate) const LIST: List = &[
    (
        "artifacts_have_tiles_for_their_devices_and_for_others",
        artifacts_have_tiles_for_their_devices_and_for_others,
    ),
    ("routines_take_measured_tiles", routines_take_measured_tiles),
    ("tiles_that_cannot_be_are_errors_when_loaded", tiles_that_cannot_be_are_errors_when_loaded),
];

const MODEL: &str = "dim B, N;
entry f(x: [B, N, 40] per step) -> (y: [B, N, 24], z: [B, N, 24]) {
    let y = matmul(tanh(x), weight(\"w\", [40, 24]));
    (y, matmul(exp(x), weight(\"v\", [40, 24])))
}";

/// Smaller than whatever the model chooses for f32.
const TILE: Tile = Tile { rows: 32, columns: 32, depth: 16, stages: 3, warps: 1, across: 1, blocks: 2 };

fn model() -> Model {
    let text = ModelText { main: ("test.ir".to_owned(), MODEL.to_owned()), modules: Vec::new() };
    Model::from_text(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn plan() -> Plan {
    model().compile("f", DType::F32, &mut ()).unwrap_or_else(|error| panic!("{error}"))
}

/// A table of this tile for every product of a plan; on a device, or on all of the architecture.
fn table(plan: &Plan, architecture: Architecture, device: Option<&str>, tile: Tile) -> Tuning {
    let mut choices = tile_choices([plan], &[architecture], &Tuning::default()).expect("it can be printed");
    for choice in &mut choices {
        assert_ne!(choice.tile.tile, tile, "it is to differ from the model's");
        choice.tile.tile = tile;
        choice.device = device.map(str::to_owned);
    }
    Tuning::parse(&tile_table(&choices), "of the test").unwrap_or_else(|error| panic!("{error}"))
}

/// What an artifact carries and nothing else, and the tiles that it was asked for.
#[derive(Clone, Default)]
struct Stored {
    cubins: StoredCubins,
    asked: Arc<Mutex<Vec<Tile>>>,
}

impl Cubins for Stored {
    fn cubins(
        &self,
        sources: &[&KernelSource],
        architecture: Architecture,
        _progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Vec<u8>>, NoCubin> {
        let tiles = sources.iter().filter_map(|source| source.tile).map(|chosen| chosen.tile);
        self.asked.lock().expect("nobody panicked").extend(tiles);
        let stored = |source: &&KernelSource| {
            let cubin = self.cubins.get(source, architecture).map(<[u8]>::to_vec);
            cubin.ok_or_else(|| NoCubin { source: format!("`{}` is not stored", source.name).into() })
        };
        sources.iter().map(stored).collect()
    }
}

fn inputs() -> TensorMap {
    let values: Vec<f32> = (0..2 * 37 * 40).map(|i| (i * 37 % 64) as f32 / 32.0 - 1.0).collect();
    let mut inputs = TensorMap::new();
    inputs.insert("x", HostTensor::from_f32(&[2, 37, 40], &values).expect("a tensor"));
    inputs
}

fn run(plan: &Plan, gpu: Option<Gpu>) -> (TensorMap, Option<TileCounts>) {
    let options = SessionOptions { gpu, ..SessionOptions::default() };
    let session = Session::new(plan.clone(), RandomWeights { seed: 3 }, &options);
    let mut session = session.unwrap_or_else(|error| panic!("{error}"));
    let outputs = session.run(&inputs(), &[]).unwrap_or_else(|error| panic!("{error}"));
    (outputs, session.tiles())
}

/// An artifact compiled with a table, opened again.
fn artifact(plan: &Plan, architecture: Architecture, tuning: &Tuning) -> Compiled {
    let kernels = distinct_kernels([plan], &[architecture], tuning).expect("they can be printed");
    let compiler = Compiler::standard().unwrap_or_else(|error| panic!("{error}"));
    let kernels = compiler.compile_kernels(kernels, 2, &|_, _| {}).unwrap_or_else(|error| panic!("{error}"));
    let compiled = Compiled {
        text: model().text().clone(),
        config: Vec::new(),
        dtype: DType::F32,
        target: format!("cuda:{architecture}"),
        plans: vec![plan.clone()],
        cubins: compile::stored(&kernels).expect("they are whole"),
        tuning: tuning.of_plans([plan], &[architecture]),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.nuc");
    write_artifact(&path, &compiled, None, &mut |_, _| {}).expect("a writable folder");
    Artifact::open(&path).unwrap_or_else(|error| panic!("{error}")).into_parts().0
}

fn artifacts_have_tiles_for_their_devices_and_for_others() {
    let plan = plan();
    let (device, architecture) = (gpu().device().name().to_owned(), gpu().device().architecture());
    let (want, none) = run(&plan, None);
    assert_eq!(none, None, "the processor has no such tiles");
    for (named, measured) in [(Some(device.as_str()), true), (None, true), (Some("another"), false)] {
        let compiled = artifact(&plan, architecture, &table(&plan, architecture, named, TILE));
        assert!(!compiled.tuning.is_empty(), "the artifact keeps the table");
        let stored = Stored { cubins: compiled.cubins, ..Stored::default() };
        let gpu = Gpu::open(Arc::new(stored.clone())).unwrap_or_else(|error| panic!("{error}"));
        let (outputs, counts) = run(&compiled.plans[0], Some(gpu.tuned(compiled.tuning)));
        let asked = stored.asked.lock().expect("nobody panicked").clone();
        assert!(
            !asked.is_empty() && asked.iter().all(|tile| (*tile == TILE) == measured),
            "{named:?}: {asked:?}"
        );
        let counts = counts.expect("a GPU");
        assert_eq!(
            (counts.measured > 0, counts.modelled > 0),
            (measured, !measured),
            "{named:?}: {counts:?}"
        );
        for (name, want) in want.iter() {
            let got = outputs.get(name).expect("the entry has this output");
            let error = relative_error(&got.to_f32_vec(), &want.to_f32_vec());
            assert!(error <= 2e-6, "{named:?}, {name}: {error:.1e}");
        }
    }
}

fn routines_take_measured_tiles() {
    let text = "dim N; entry f(x: [N, 40] per step, w: [40, 24] per step) -> (y: [N, 24]) { matmul(x, w) }";
    let text = ModelText { main: ("test.ir".to_owned(), text.to_owned()), modules: Vec::new() };
    let model = Model::from_text(&text).unwrap_or_else(|error| panic!("{error}"));
    let plan = model.compile_with("f", &CompileOptions::default(), &mut ()).expect("it compiles");
    let gpu = gpu();
    let tuning = table(&plan, gpu.device().architecture(), Some(gpu.device().name()), TILE);
    let compiled = artifact(&plan, gpu.device().architecture(), &tuning);
    let stored = Stored { cubins: compiled.cubins, ..Stored::default() };
    let tuned = Gpu::open(Arc::new(stored.clone())).unwrap_or_else(|error| panic!("{error}")).tuned(tuning);
    let mut routine = Routine::new(plan, &tuned, None).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(*stored.asked.lock().expect("nobody panicked"), [TILE]);
    let (x, w, mut y) = (vec![0.5f32; 3 * 40], vec![2.0f32; 40 * 24], vec![f32::NAN; 3 * 24]);
    let mut arguments = Arguments::new();
    arguments.input("x", x.as_slice()).input("w", w.as_slice()).output("y", y.as_mut_slice());
    routine.run(&[("N".to_owned(), 3)], &mut arguments, None).expect("the arguments fit");
    assert_eq!(y, [40.0; 3 * 24]);
}

fn tiles_that_cannot_be_are_errors_when_loaded() {
    let (gpu, plan) = (gpu(), plan());
    let wrong = Tile { depth: 64, warps: 2, ..TILE };
    let tuning = table(&plan, gpu.device().architecture(), None, wrong);
    let options = SessionOptions { gpu: Some(gpu.tuned(tuning)), ..SessionOptions::default() };
    let refused =
        Session::new(plan, RandomWeights { seed: 3 }, &options).err().expect("f32 has no such depth");
    let message = refused.to_string();
    for part in [
        "kernel k",
        "of `f`: the table of tiles of the test, line ",
        "`depth = 64`: products in f32 have 16 or 32",
    ] {
        assert!(message.contains(part), "no `{part}` in {message}");
    }
}
