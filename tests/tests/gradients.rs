//! The gradient fixtures agree with the evaluator's forward pass, and cover every weight.

use nucleus_ir::Graph;
use nucleus_passes::remat::{Policy, Remat, remat_reported};
use nucleus_passes::{CompileOptions, Gradients};
use nucleus_runtime::reference::run_reference;
use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_tests::gradients::GradientCase;

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
