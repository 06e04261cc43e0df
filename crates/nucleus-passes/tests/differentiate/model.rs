//! The loss of Nucleus-Image.

use std::collections::BTreeMap;

use nucleus_interp::Tensor;
use nucleus_ir::{Bindings, Rate};
use nucleus_passes::differentiate::Gradients;

use crate::finite::{Point, check, graph, outputs, point};

const NUCLEUS_IMAGE: &str = include_str!("../../../../ir-specs/nucleus_image.ir");

/// One dense layer and two with experts.
const SMALL: &[&str] = &[
    "num_layers=3",
    "num_attention_heads=2",
    "num_key_value_heads=1",
    "attention_head_dim=8",
    "joint_attention_dim=6",
    "axes_dims_rope=[4, 2, 2]",
    "in_channels=8",
    "out_channels=2",
    "num_experts=4",
    "moe_intermediate_dim=5",
    "mlp_ratio=12.0",
    "dense_moe_strategy=leave_first_block_dense",
    "capacity_factors=[0.0, 2.0, 1.3]",
];

fn dims() -> Bindings {
    Bindings::from_iter([("B", 2), ("H", 3), ("W", 2), ("T", 3)])
}

fn settings(more: &[&'static str]) -> Vec<&'static str> {
    SMALL.iter().chain(more).copied().collect()
}

/// Finite differences of every weight, with all terms of the loss.
fn all_weights(more: &[&'static str]) {
    let graph = graph(NUCLEUS_IMAGE, &settings(more), "loss");
    let (gradients, seen) = check(&graph, &Gradients::default(), &dims(), 3, 1);
    let weights = graph.weights.len();
    assert_eq!(gradients.outputs.len(), 4 + weights);
    assert!(gradients.weights.iter().all(|weight| weight.rate == Rate::Step));
    // Two directions for every weight. Nothing depends on the weight that no layer uses.
    assert!(seen.kinks < 4 && seen.compared + seen.kinks == 2 * weights, "{seen:?}");
    assert_eq!(seen.nonzero + seen.kinks, 2 * (weights - 3), "{seen:?}");
}

#[test]
fn gradients_with_softmax_routing() {
    all_weights(&[]);
}

#[test]
fn gradients_with_sigmoid_routing_and_without_grouped_heads() {
    all_weights(&["use_sigmoid=true", "num_key_value_heads=2"]);
}

fn scalar(point: &mut Point, name: &str, value: f64) {
    point.insert(name.to_owned(), Tensor::float(&[], vec![value]).unwrap());
}

#[test]
fn the_loss_is_the_sum_of_its_terms() {
    let graph = graph(NUCLEUS_IMAGE, &settings(&[]), "loss");
    let mut at = point(&graph, &dims(), 5);
    scalar(&mut at, "z_loss", 0.25);
    scalar(&mut at, "wavelet", 0.5);
    let got: BTreeMap<String, f64> =
        outputs(&graph, &dims(), &at).into_iter().map(|(name, x)| (name, x[0])).collect();
    let sum = got["velocity"] + 0.25 * got["z_loss"] + 0.5 * got["wavelet"];
    assert!((got["loss"] - sum).abs() < 1e-12 && got["z_loss"] > 0.0, "{got:?}");
    // Left out, they do not count.
    at.remove("z_loss");
    at.remove("wavelet");
    let without = outputs(&graph, &dims(), &at);
    assert_eq!(without["loss"], [got["velocity"]]);
}

/// The errors of the predicted clean latent, laid out as a picture, transformed, squared and averaged band by band.
#[test]
fn the_wavelet_term_is_that_of_a_haar_transform() {
    let loss = graph(NUCLEUS_IMAGE, &settings(&[]), "loss");
    let dims = Bindings::from_iter([("B", 2), ("H", 3), ("W", 2), ("T", 3)]);
    let at = point(&loss, &dims, 5);
    let floats = |name: &str| at[name].floats().unwrap().to_vec();
    let (latents, noise, t) = (floats("latents"), floats("noise"), floats("timestep"));
    let (batch, rows, columns, channels, patch) = (2, 3, 2, 2, 2);
    let per_image = rows * columns * channels * patch * patch;
    let level = |index: usize| t[index / per_image];
    let noisy: Vec<f64> =
        (0..latents.len()).map(|i| (1.0 - level(i)) * latents[i] + level(i) * noise[i]).collect();

    let velocity = graph(NUCLEUS_IMAGE, &settings(&[]), "velocity");
    let mut inputs = at.clone();
    let shape = at["latents"].shape().to_vec();
    inputs.insert("hidden_states".to_owned(), Tensor::float(&shape, noisy.clone()).unwrap());
    inputs.retain(|name, _| !["latents", "noise", "z_loss", "wavelet"].contains(&name.as_str()));
    let v = outputs(&velocity, &dims, &inputs).remove("sample").unwrap();
    let error: Vec<f64> = (0..v.len()).map(|i| noisy[i] + level(i) * v[i] - latents[i]).collect();

    // Tokens [B, (row, column), (channel, dy, dx)] to pictures [B, channel, 2·row + dy, 2·column + dx].
    let (height, width) = (rows * patch, columns * patch);
    let mut picture = vec![0.0; error.len()];
    for (index, x) in error.iter().enumerate() {
        let (dx, dy) = (index % 2, index / 2 % 2);
        let (channel, token) = (index / 4 % channels, index / (4 * channels));
        let (image, row, column) = (token / (rows * columns), token / columns % rows, token % columns);
        picture[((image * channels + channel) * height + row * patch + dy) * width + column * patch + dx] =
            *x;
    }
    let mut bands = [0.0; 4];
    for plane in picture.chunks(height * width) {
        for row in (0..height).step_by(2) {
            for column in (0..width).step_by(2) {
                let pixel = |dy: usize, dx: usize| plane[(row + dy) * width + column + dx];
                let [a, b, c, d] = [pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1)];
                for (band, x) in
                    bands.iter_mut().zip([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d])
                {
                    *band += (x / 2.0) * (x / 2.0);
                }
            }
        }
    }
    let per_band = (batch * per_image / 4) as f64;
    let want: f64 = bands.iter().map(|band| band / per_band).sum();
    let got = outputs(&loss, &dims, &at)["wavelet"][0];
    assert!((want - got).abs() < 1e-12 * want, "{got} instead of {want}");
}

/// The z term is Σ over layers with experts; a model without experts has none.
#[test]
fn a_dense_model_has_no_z_term() {
    let dense = graph(NUCLEUS_IMAGE, &settings(&["moe_enabled=false"]), "loss");
    assert_eq!(outputs(&dense, &dims(), &point(&dense, &dims(), 5))["z_loss"], [0.0]);
}

#[test]
#[should_panic(
    expected = "training needs a model that predicts what it is given: in_channels is 12, but the velocity has 8 channels"
)]
fn a_model_that_predicts_something_else_cannot_be_trained() {
    graph(NUCLEUS_IMAGE, &settings(&["in_channels=12"]), "loss");
}
