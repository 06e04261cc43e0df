//! Training with parameters, gradients and moments on the GPU.

use nucleus_ir::DType;
use nucleus_runtime::Gpu;
use nucleus_tests::gradients::GradientCase;
use nucleus_tests::training::{batch, bits, gradient};
use nucleus_train::engine::Engine;
use nucleus_train::graph_engine::{GraphEngine, LossOptions};
use nucleus_train::groups::{AdamW, Group, Muon, Optimizer};
use nucleus_train::start::from_checkpoint;

use crate::{List, gpu};

pub(crate) const LIST: List = &[
    ("gradients_are_the_processors", gradients_are_the_processors),
    ("steps_move_the_weights_as_on_the_processor", steps_move_the_weights_as_on_the_processor),
];

/// The engine on the weights of a fixture: matrices under Muon if asked for, the rest under AdamW.
fn engine(case: &GradientCase, muon: bool, gpu: Option<&Gpu>) -> GraphEngine {
    let group = |patterns: &[&str], optimizer, default| {
        let params = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Group { params, optimizer, default }
    };
    let mut groups = vec![group(&["*"], Optimizer::AdamW(AdamW::default()), true)];
    if muon {
        let matrices = Optimizer::Muon(Muon { lr: 0.01, ..Muon::default() });
        groups.insert(0, group(&["*.attn.to_q.weight", "*.img_mlp.experts.*"], matrices, false));
    }
    let coefficients = vec![("z_loss".to_owned(), case.z_loss), ("wavelet".to_owned(), case.wavelet)];
    let routers = vec!["*.img_mlp.gate.weight".to_owned()];
    let options = LossOptions { dtype: DType::F32, coefficients, orthogonality: 0.01, routers, remat: None };
    let made = GraphEngine::with_gpu(case.model(), &groups, options, Some(2), gpu);
    let mut engine = made.unwrap_or_else(|error| panic!("{error}"));
    from_checkpoint(engine.parameters_mut(), &case.checkpoint()).expect("the weights are of this model");
    engine
}

#[track_caller]
fn assert_near(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    let largest = want.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let off = got.iter().zip(want).fold(0.0f32, |off, (a, b)| off.max((a - b).abs()));
    assert!(off <= tolerance * largest, "{name}: off by {off:.1e}, the largest is {largest:.1e}");
}

fn gradients_are_the_processors() {
    let (case, gpu) = (GradientCase::named("everything"), gpu());
    let mut engines = [engine(&case, false, None), engine(&case, false, Some(&gpu))];
    let losses = engines.each_mut().map(|engine| {
        engine.begin_step().expect("a step");
        let losses = engine.accumulate(&batch(&case), 1.0).unwrap_or_else(|error| panic!("{error}"));
        engine.fetch().expect("what was computed");
        losses
    });
    assert!((losses[1].total - losses[0].total).abs() <= 1e-5 * losses[0].total.abs(), "{losses:?}");
    for weight in engines[0].weights() {
        let [want, got] = engines.each_ref().map(|engine| gradient(engine, &weight.name));
        assert_near(&weight.name, got, want, 3e-5);
    }
}

fn steps_move_the_weights_as_on_the_processor() {
    let case = GradientCase::named("everything");
    let gpu = gpu();
    let run = |gpu: Option<&Gpu>| {
        let mut engine = engine(&case, true, gpu);
        let mut norms = Vec::new();
        for step in 1..=2 {
            engine.begin_step().expect("a step");
            // The first step has one microbatch, the second two.
            for _ in 0..step {
                engine.accumulate(&batch(&case), 1.0 / step as f64).unwrap_or_else(|error| panic!("{error}"));
            }
            norms.push(engine.gradient_norm().unwrap_or_else(|error| panic!("{error}")));
            engine.update(step, 1.0, 0.5).unwrap_or_else(|error| panic!("{error}"));
        }
        engine.fetch().expect("what was computed");
        assert_eq!(engine.first_non_finite().expect("it can be looked for"), None);
        (norms, bits(&engine.state()))
    };
    let ((want_norms, want), (norms, got)) = (run(None), run(Some(&gpu)));
    for (norm, want) in norms.iter().zip(&want_norms) {
        assert!((norm - want).abs() <= 1e-4 * want, "{norms:?} instead of {want_norms:?}");
    }
    assert_eq!(got.len(), want.len());
    for ((name, got), (same, want)) in got.iter().zip(&want) {
        assert_eq!(name, same);
        let [got, want] =
            [got, want].map(|bits| bits.iter().map(|bits| f32::from_bits(*bits)).collect::<Vec<f32>>());
        assert_near(name, &got, &want, 2e-3);
    }
    // What is computed does not depend on when it is looked at: the same bits again.
    let (_, again) = run(Some(&gpu));
    assert!(again == got, "two runs differ");
}
