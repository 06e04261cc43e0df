//! The gradient fixtures agree with the evaluator's forward pass and cover every weight, and the engine of training has their gradients.

use nucleus_ir::{DType, Graph};
use nucleus_passes::remat::{Policy, Remat, remat_reported};
use nucleus_passes::{CompileOptions, Gradients};
use nucleus_runtime::reference::run_reference;
use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_tests::gradients::GradientCase;
use nucleus_tests::training::{batch, engine, gradient};
use nucleus_train::engine::Engine;

fn floats(map: &TensorMap, name: &str) -> Vec<f32> {
    map.get(name).unwrap_or_else(|| panic!("no `{name}`")).to_f32_vec()
}

/// The mean squared error of the evaluator's velocity at x_t = (1 − t)·x0 + t·noise, whose target is x0 − noise.
fn velocity_loss(case: &GradientCase) -> f64 {
    let given = case.inputs();
    let (clean, noise, times) =
        (floats(&given, "latents"), floats(&given, "noise"), floats(&given, "timestep"));
    let per_image = clean.len() / times.len();
    let at = |index: usize| times[index / per_image];
    let noisy: Vec<f32> = (0..clean.len()).map(|i| (1.0 - at(i)) * clean[i] + at(i) * noise[i]).collect();

    let mut inputs = TensorMap::new();
    for (name, tensor) in given.iter().filter(|(name, _)| !["latents", "noise"].contains(&name.as_str())) {
        inputs.insert(name.clone(), tensor.clone());
    }
    let shape = given.get("latents").expect("latents").shape();
    inputs.insert("hidden_states", HostTensor::from_f32(shape, &noisy).expect("as many as latents"));
    let graph = case.model().graph("velocity").expect("the definition elaborates");
    let outputs =
        run_reference::<f32>(&graph, &case.checkpoint(), &inputs, &case.dims).expect("the inputs fit");
    let squares = floats(&outputs, "sample").into_iter().enumerate().map(|(i, velocity)| {
        let difference = f64::from(velocity) - f64::from(clean[i]) + f64::from(noise[i]);
        difference * difference
    });
    squares.sum::<f64>() / clean.len() as f64
}

#[test]
fn the_velocity_loss_of_the_fixtures_is_that_of_the_evaluator() {
    for case in GradientCase::all() {
        let want = f64::from(floats(&case.expected(), "loss.velocity")[0]);
        let got = velocity_loss(&case);
        assert!((got - want).abs() <= 1e-5 * want, "{}: {got} instead of {want}", case.name);
    }
}

#[test]
fn the_loss_is_the_sum_of_its_parts() {
    for case in GradientCase::all() {
        let expected = case.expected();
        let part = |name: &str| f64::from(floats(&expected, name)[0]);
        let sum =
            part("loss.velocity") + case.z_loss * part("loss.router_z") + case.wavelet * part("loss.wavelet");
        assert!((sum - part("loss")).abs() <= 1e-6 * sum, "{}: {sum} instead of {}", case.name, part("loss"));
    }
}

#[test]
fn every_weight_has_a_gradient_of_its_shape() {
    for case in GradientCase::all() {
        let (graph, expected) =
            (case.model().graph("velocity").expect("the definition elaborates"), case.expected());
        for weight in &graph.weights {
            let gradient =
                expected.get(&weight.name).unwrap_or_else(|| panic!("{}: {}", case.name, weight.name));
            let shape: Vec<String> = gradient.shape().iter().map(ToString::to_string).collect();
            let want: Vec<String> = weight.ty.shape.iter().map(ToString::to_string).collect();
            assert_eq!(shape, want, "{}: {}", case.name, weight.name);
            let reached = gradient.to_f32_vec().iter().any(|x| *x != 0.0);
            assert_eq!(
                reached,
                !weight.name.ends_with("norm_added_q.weight"),
                "{}: {}",
                case.name,
                weight.name
            );
        }
        assert_eq!(expected.len(), graph.weights.len() + 4, "{}: gradients of strangers", case.name);
    }
}

/// The largest difference over the largest expected element.
fn worst_error(got: &[f32], want: &[f32]) -> f64 {
    let largest = want.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
    let difference =
        got.iter().zip(want).fold(0.0f64, |worst, (got, want)| worst.max(f64::from((got - want).abs())));
    // The gradient of a weight that the loss does not reach is exactly zero.
    if largest == 0.0 { difference } else { difference / largest }
}

#[test]
fn the_engine_has_the_gradients_of_pytorch() {
    let mut worst = (0.0, String::new());
    for case in GradientCase::all() {
        let mut engine = engine(&case, DType::F32, 2);
        engine.begin_step().expect("no step is under way");
        let losses = engine.accumulate(&batch(&case), 1.0).expect("the batch fits");
        let expected = case.expected();
        let want = f64::from(floats(&expected, "loss")[0]);
        assert!(
            (losses.total - want).abs() <= 1e-5 * want,
            "{}: loss {} instead of {want}",
            case.name,
            losses.total
        );
        for weight in engine.weights() {
            let want = expected.get(&weight.name).unwrap_or_else(|| panic!("no `{}`", weight.name));
            assert_eq!(want.shape(), weight.shape, "{}: {}", case.name, weight.name);
            let got = gradient(&engine, &weight.name);
            assert!(got.iter().all(|x| x.is_finite()), "{}: {}", case.name, weight.name);
            let error = worst_error(got, &want.to_f32_vec());
            assert!(error <= 3e-5, "{}: the gradient of `{}` is off by {error:.1e}", case.name, weight.name);
            if error > worst.0 {
                worst = (error, format!("{}: {}", case.name, weight.name));
            }
        }
    }
    println!("worst error {:.1e} of {}", worst.0, worst.1);
}

/// All gradients of a case, and the loss, as the engine makes them with that many threads.
fn gradients(case: &GradientCase, dtype: DType, threads: usize) -> (f64, Vec<f32>) {
    let mut engine = engine(case, dtype, threads);
    engine.begin_step().expect("no step is under way");
    let losses = engine.accumulate(&batch(case), 1.0).expect("the batch fits");
    let elements = engine.parameters().elements();
    (losses.total, engine.parameters().gradients[..elements].to_vec())
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let bits = |(loss, gradients): (f64, Vec<f32>)| {
        (loss.to_bits(), gradients.iter().map(|x| x.to_bits()).collect::<Vec<u32>>())
    };
    for (name, dtype) in
        [("everything", DType::F32), ("mask_batch_3", DType::F32), ("everything", DType::Bf16)]
    {
        let case = GradientCase::named(name);
        let one = bits(gradients(&case, dtype, 1));
        for threads in [2, 4] {
            assert!(bits(gradients(&case, dtype, threads)) == one, "{name} in {dtype}: {threads} threads");
        }
    }
}

/// A factor is rounded by up to 2⁻⁹ of itself. Roundings are independent, so that the some sixteen products between the loss and a weight add up to four times
/// that, 2⁻⁷, and forward and backward pass to twice that: 2⁻⁶, which half of the cases must not exceed. A token that rounding sends to another
/// expert, or past all of them, moves whole rows of gradients more than that, and these models have no more than some tens of tokens.
#[test]
fn gradients_of_bf16_products_are_as_near_as_the_rounding_of_factors() {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let mut errors = Vec::new();
    for case in GradientCase::all() {
        let (exact, rounded) = (gradients(&case, DType::F32, 2), gradients(&case, DType::Bf16, 2));
        let difference = square(&mut exact.1.iter().zip(&rounded.1).map(|(a, b)| a - b));
        let error = (difference / square(&mut exact.1.iter().copied())).sqrt();
        assert!(error > 1e-4, "{}: {error:.1e} is too near for bf16", case.name);
        assert!(error <= 0.125, "{}: {error:.1e}", case.name);
        let loss = (rounded.0 - exact.0).abs() / exact.0;
        assert!(loss <= 1.0 / 128.0, "{}: the loss is off by {loss:.1e}", case.name);
        errors.push(error);
    }
    errors.sort_by(f64::total_cmp);
    let (median, most) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    println!("RMS errors: median {median:.1e}, largest {most:.1e}");
    assert!(median <= 1.0 / 64.0, "median {median:.1e}");
}

/// What is recomputed is what was computed: gradients of the evaluator keep every bit.
#[test]
fn recomputation_keeps_every_bit_of_the_gradients() {
    for case in GradientCase::all() {
        let options = CompileOptions { gradients: Some(Gradients::default()), ..CompileOptions::default() };
        let kept = case.model().graph_in("loss", &options).expect("the loss has gradients");
        let outputs = |graph: &Graph| {
            run_reference::<f32>(graph, &case.checkpoint(), &case.inputs(), &case.dims)
                .expect("the inputs fit")
        };
        let want = outputs(&kept);
        for policy in [Policy::Cheap, Policy::Full] {
            let (graph, report) = remat_reported(&kept, &Remat::new(policy)).expect("the graph is sound");
            assert!(report.recomputed > 0, "{}", case.name);
            let got = outputs(&graph);
            for (name, want) in want.iter() {
                let got = got.get(name).expect("the same outputs").to_f32_vec();
                let same = want.to_f32_vec().iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: {policy:?} changes `{name}`", case.name);
            }
        }
    }
}
