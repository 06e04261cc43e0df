//! The sampler beside diffusers' scheduler, and over a session.

use nucleus_runtime::{HostTensor, Session, SessionOptions, TensorMap};
use nucleus_tests::parity::{Case, root};
use nucleus_train::sampling::{
    Denoiser, InputNames, SamplerOptions, SamplingError, SessionDenoiser, Text, noise, sample, sigmas,
    timestep,
};

/// The velocity of `tools/make-sampler-fixture`: a scale and an offset per channel.
struct Affine(TensorMap);

impl Affine {
    fn values(&self, name: &str) -> &[f32] {
        self.0.get(name).expect("it is in the fixture").as_f32().expect("f32")
    }
}

impl Denoiser for Affine {
    fn denoise(&mut self, text: Text, latents: &HostTensor, time: f32) -> Result<TensorMap, SamplingError> {
        let text = if text == Text::Given { "given" } else { "empty" };
        let (scale, offset) = (self.values(&format!("scale.{text}")), self.values(&format!("offset.{text}")));
        let mut velocity = latents.clone();
        for token in velocity.as_f32_mut()?.chunks_mut(4) {
            for (channel, value) in token.iter_mut().enumerate() {
                *value = scale[channel] * *value + offset[channel] * time;
            }
        }
        Ok([("velocity".to_owned(), velocity)].into_iter().collect())
    }

    fn output(&self) -> &str {
        "velocity"
    }
}

fn fixture(name: &str) -> TensorMap {
    TensorMap::read(&root().join("tests/fixtures/sampling").join(name)).expect("the fixture is there")
}

#[test]
fn steps_are_those_of_diffusers() {
    let mut model = Affine(fixture("euler.safetensors"));
    for steps in [1usize, 2, 7, 50] {
        let levels = sigmas(steps);
        assert_eq!(levels, model.values(&format!("sigmas.{steps}")), "{steps} steps");
        let times: Vec<f32> = levels[..steps].iter().map(|&sigma| timestep(sigma)).collect();
        assert_eq!(times, model.values(&format!("times.{steps}")), "{steps} steps");
        for guidance in [1u8, 4, 8] {
            let options = SamplerOptions { steps, guidance: f32::from(guidance) };
            let start = model.0.get("noise").expect("it is in the fixture").clone();
            let mut seen = Vec::new();
            let latents = sample(&mut model, start, &options, &mut |step| {
                assert_eq!((step.steps, step.sigma), (steps, levels[step.number - 1]));
                seen.push(step.number);
            })
            .expect("sampled");
            assert!(seen.iter().copied().eq(1..=steps));
            let expected = model.values(&format!("latents.{steps}.{guidance}"));
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (found, expected) in latents.as_f32().expect("f32").iter().zip(expected) {
                // Sums of squares in f64 here and in f32 there: an ulp or two of the largest value per step.
                let error = (found - expected).abs() / largest;
                assert!(error <= 1e-6, "{steps} steps, guidance {guidance}: {found} for {expected}");
            }
        }
    }
}

/// A session of a parity fixture, with the inputs of its text and those of another.
fn session(case: &str, threads: usize) -> (Session, TensorMap, TensorMap, Case) {
    let case = Case::named(case);
    let checkpoint = case.checkpoint();
    let plan = case.model().compile("velocity", case.dtype, &mut ()).expect("compiles");
    let options = SessionOptions { threads: Some(threads), ..SessionOptions::default() };
    let session = Session::new(plan, checkpoint, &options).expect("a session");
    let mut given = case.inputs();
    given.remove("hidden_states");
    given.remove("timestep");
    let mut empty = given.clone();
    let text = empty.get_mut("encoder_hidden_states").expect("a text");
    text.as_f32_mut().expect("f32").iter_mut().for_each(|value| *value *= -0.25);
    (session, given, empty, case)
}

#[test]
fn a_session_samples_what_whole_runs_do() {
    let (mut session, given, empty, case) = session("dense", 1);
    let batch = given.get("encoder_hidden_states").expect("a text").shape()[0];
    let tokens: i64 =
        case.dims.iter().filter(|(dim, _)| dim == "H" || dim == "W").map(|(_, size)| size).product();
    let start = noise(3, [batch, tokens as usize, 8]).expect("memory");
    let options = SamplerOptions { steps: 3, guidance: 2.5 };

    let names = InputNames::default();
    let mut model = SessionDenoiser::new(&mut session, &given, Some(&empty), &case.dims, names.clone())
        .expect("prepared");
    let sampled = sample(&mut model, start.clone(), &options, &mut |_| {}).expect("sampled");

    // The same in other words: whole runs, and the formulas as they are written.
    let mut x: Vec<f32> = start.as_f32().expect("f32").to_vec();
    for step in 0..3 {
        let sigma = [1.0f32, 2.0 / 3.0, 1.0 / 3.0][step];
        let mut velocity = |text: &TensorMap| {
            let mut inputs = text.clone();
            inputs.insert("hidden_states", HostTensor::from_f32(start.shape(), &x).expect("memory"));
            inputs.insert("timestep", HostTensor::from_f32(&[batch], &vec![sigma; batch]).expect("memory"));
            session.run(&inputs, &case.dims).expect("runs").get("sample").expect("an output").to_f32_vec()
        };
        let (c, u) = (velocity(&given), velocity(&empty));
        for token in (0..x.len()).step_by(8) {
            let v: Vec<f64> =
                (token..token + 8).map(|i| f64::from(u[i]) + 2.5 * f64::from(c[i] - u[i])).collect();
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let scale =
                norm(&mut c[token..token + 8].iter().map(|&v| f64::from(v))) / norm(&mut v.iter().copied());
            for (i, v) in v.iter().enumerate() {
                x[token + i] += (v * scale / 3.0) as f32;
            }
        }
    }
    for (found, expected) in sampled.as_f32().expect("f32").iter().zip(&x) {
        assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
    }
}

#[test]
fn samples_do_not_depend_on_threads() {
    let sampled = |threads: usize| {
        let (mut session, given, empty, case) = session("all_moe", threads);
        let batch = given.get("encoder_hidden_states").expect("a text").shape()[0];
        let size =
            |name: &str| case.dims.iter().find(|(dim, _)| dim == name).map_or(1, |&(_, size)| size as usize);
        let shape = session.signature().inputs.iter().find(|input| input.name == "hidden_states");
        let channels =
            shape.and_then(|input| input.ty.shape.last()?.as_constant()).expect("constant") as usize;
        let names = InputNames::default();
        let mut model =
            SessionDenoiser::new(&mut session, &given, Some(&empty), &case.dims, names).expect("prepared");
        let start = noise(3, [batch, size("H") * size("W"), channels]).expect("memory");
        sample(&mut model, start, &SamplerOptions { steps: 4, guidance: 4.0 }, &mut |_| {}).expect("sampled")
    };
    let one = sampled(1);
    for threads in [2, 4] {
        assert_eq!(sampled(threads), one, "{threads} threads");
    }
}

#[test]
fn mistakes_are_named() {
    let mut model = Affine(fixture("euler.safetensors"));
    let start = model.0.get("noise").expect("noise").clone();
    let mut refused = |start: HostTensor, steps: usize, guidance: f32| {
        sample(&mut model, start, &SamplerOptions { steps, guidance }, &mut |_| {})
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(start.clone(), 0, 4.0).contains("at least one step"));
    assert!(refused(start.clone(), 4, f32::NAN).contains("guidance NaN is not a number from 0"));
    let flat = HostTensor::from_f32(&[2, 3], &[0.0; 6]).expect("memory");
    assert!(refused(flat, 4, 1.0).contains("the noise is f32[2, 3]"));
    let broken =
        HostTensor::from_f32(&[2, 1, 4], &[0.0, 0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0]).expect("memory");
    assert!(
        refused(broken, 4, 4.0)
            .contains("at step 1 of 4 (σ = 1) the model's velocity for image 1 is not finite")
    );

    let (mut session, given, _, case) = session("dense", 1);
    let names = InputNames { velocity: "picture".to_owned(), ..InputNames::default() };
    let mut model = SessionDenoiser::new(&mut session, &given, None, &case.dims, names).expect("prepared");
    let batch = given.get("encoder_hidden_states").expect("a text").shape()[0];
    let start = noise(0, [batch, 16, 8]).expect("memory");
    let options = |guidance| SamplerOptions { steps: 1, guidance };
    let error =
        sample(&mut model, start.clone(), &options(1.0), &mut |_| {}).expect_err("refused").to_string();
    assert!(error.starts_with("output `picture` of the model is missing"), "{error}");
    let mut model = SessionDenoiser::new(&mut session, &given, None, &case.dims, InputNames::default())
        .expect("prepared");
    let error =
        sample(&mut model, start.clone(), &options(4.0), &mut |_| {}).expect_err("refused").to_string();
    assert!(error.contains("give its inputs, or a guidance of at most 1"), "{error}");
    sample(&mut model, start, &options(1.0), &mut |_| {}).expect("no empty text is needed");
}
