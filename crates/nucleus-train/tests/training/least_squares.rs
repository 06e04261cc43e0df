//! A small honest engine: velocity = x_t · W + b on every token, mean squared error against x0 − noise, plus a ridge on W; AdamW.

use nucleus_runtime::{HostTensor, TensorMap};
use nucleus_train::data::{Batch, DataError, Draws, Place, Source};
use nucleus_train::engine::{Engine, EngineError, Losses, NonFinite, State, StateMut, StateTensor};
use nucleus_train::groups::WeightInfo;
use nucleus_train::random::{Purpose, Streams};
use nucleus_train::recipe::{Recipe, Stage, Stages};
use nucleus_train::timesteps::TimestepSampling;

/// Channels of a token.
pub(crate) const CHANNELS: usize = 3;

/// Tokens of a picture.
pub(crate) const TOKENS: usize = 4;

const RIDGE: f32 = 1e-3;
const NAMES: [&str; 2] = ["blocks.2.proj.weight", "out.bias"];
const SHAPES: [&[usize]; 2] = [&[CHANNELS, CHANNELS], &[CHANNELS]];

/// What the loop asked for, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    Stage(Stage),
    Begin,
    Accumulate(f64),
    Norm,
    Update { step: u64, lr_factor: f64, gradient_scale: f64 },
}

pub(crate) struct LeastSquares {
    /// W and b.
    pub(crate) weights: [Vec<f32>; 2],
    gradients: [Vec<f32>; 2],
    moments: [[Vec<f32>; 2]; 2],
    pub(crate) calls: Vec<Call>,
    /// From this call of `accumulate` on, the gradient of W is not finite.
    pub(crate) spoil_gradient_from: Option<usize>,
}

impl LeastSquares {
    pub(crate) fn new() -> LeastSquares {
        let zeros = || SHAPES.map(|shape| vec![0.0; shape.iter().product()]);
        LeastSquares {
            weights: zeros(),
            gradients: zeros(),
            moments: [zeros(), zeros()],
            calls: Vec::new(),
            spoil_gradient_from: None,
        }
    }

    /// What was asked for since the last time.
    pub(crate) fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.calls)
    }
}

/// Losses of a batch; gradients are added to `gradients`, times `scale`.
fn loss(weights: &[Vec<f32>; 2], batch: &Batch, scale: f32, gradients: &mut [Vec<f32>; 2]) -> Losses {
    let read = |name: &str| batch.tensors.get(name).unwrap().as_f32().unwrap();
    let (latents, noise, levels) = (read("latents"), read("noise"), read("timestep"));
    let [w, b] = weights;
    let rows = latents.len() / CHANNELS;
    let mut sum = 0.0f64;
    for row in 0..rows {
        let t = levels[row / (rows / levels.len())];
        let at = row * CHANNELS..(row + 1) * CHANNELS;
        let (x0, e) = (&latents[at.clone()], &noise[at]);
        let x: Vec<f32> = x0.iter().zip(e).map(|(x0, e)| (1.0 - t) * x0 + t * e).collect();
        for out in 0..CHANNELS {
            let velocity: f32 = b[out] + (0..CHANNELS).map(|c| x[c] * w[c * CHANNELS + out]).sum::<f32>();
            let error = velocity - (x0[out] - e[out]);
            sum += f64::from(error * error);
            let slope = scale * 2.0 * error / latents.len() as f32;
            gradients[1][out] += slope;
            for c in 0..CHANNELS {
                gradients[0][c * CHANNELS + out] += slope * x[c];
            }
        }
    }
    for (gradient, w) in gradients[0].iter_mut().zip(w) {
        *gradient += scale * 2.0 * RIDGE * w;
    }
    let velocity = sum / latents.len() as f64;
    let ridge = w.iter().map(|w| f64::from(RIDGE * w * w)).sum::<f64>();
    Losses { total: velocity + ridge, parts: vec![("velocity".into(), velocity), ("ridge".into(), ridge)] }
}

impl Engine for LeastSquares {
    fn weights(&self) -> Vec<WeightInfo> {
        let infos = NAMES.iter().zip(SHAPES);
        infos.map(|(name, shape)| WeightInfo { name: (*name).to_owned(), shape: shape.to_vec() }).collect()
    }

    fn begin_stage(&mut self, stage: &Stage) -> Result<(), EngineError> {
        self.calls.push(Call::Stage(stage.clone()));
        Ok(())
    }

    fn begin_step(&mut self) -> Result<(), EngineError> {
        self.calls.push(Call::Begin);
        self.gradients.iter_mut().for_each(|gradient| gradient.fill(0.0));
        Ok(())
    }

    fn accumulate(&mut self, batch: &Batch, scale: f64) -> Result<Losses, EngineError> {
        self.calls.push(Call::Accumulate(scale));
        if batch.dims != [("H".to_owned(), 2), ("W".to_owned(), 2)] {
            return Err(EngineError::new("the grid is not 2 × 2"));
        }
        let losses = loss(&self.weights, batch, scale as f32, &mut self.gradients);
        if self.spoil_gradient_from.is_some_and(|from| self.calls.len() > from) {
            self.gradients[0][4] = f32::NAN;
        }
        Ok(losses)
    }

    fn gradient_norm(&mut self) -> Result<f64, EngineError> {
        self.calls.push(Call::Norm);
        Ok(self.gradients.iter().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt())
    }

    fn update(&mut self, step: u64, lr_factor: f64, gradient_scale: f64) -> Result<(), EngineError> {
        self.calls.push(Call::Update { step, lr_factor, gradient_scale });
        let (lr, betas) = ((0.05 * lr_factor) as f32, [0.9f32, 0.99]);
        let [first, second] = &mut self.moments;
        for part in 0..2 {
            let state = first[part].iter_mut().zip(&mut second[part]);
            for ((w, g), (m, v)) in self.weights[part].iter_mut().zip(&self.gradients[part]).zip(state) {
                let g = g * gradient_scale as f32;
                *m = betas[0] * *m + (1.0 - betas[0]) * g;
                *v = betas[1] * *v + (1.0 - betas[1]) * g * g;
                let unbiased = |moment: f32, beta: f32| moment / (1.0 - beta.powi(step as i32));
                *w -= lr * unbiased(*m, betas[0]) / (unbiased(*v, betas[1]).sqrt() + 1e-8);
            }
        }
        Ok(())
    }

    fn first_non_finite(&mut self) -> Result<Option<NonFinite>, EngineError> {
        let spoilt = |gradient: &Vec<f32>| gradient.iter().any(|g| !g.is_finite());
        let found = self.gradients.iter().position(spoilt);
        Ok(found.map(|part| NonFinite::Gradient(NAMES[part].to_owned())))
    }

    fn state(&self) -> State<'_> {
        let tensor = |part: usize, suffix: &str, values| StateTensor {
            name: format!("{}{suffix}", NAMES[part]),
            shape: SHAPES[part].to_vec(),
            values,
        };
        State {
            weights: (0..2).map(|part| tensor(part, "", &self.weights[part][..])).collect(),
            optimizer: (0..4)
                .map(|n| tensor(n % 2, [".first", ".second"][n / 2], &self.moments[n / 2][n % 2][..]))
                .collect(),
        }
    }

    fn state_mut(&mut self) -> StateMut<'_> {
        let tensor = |part: usize, suffix: &str, values| StateTensor {
            name: format!("{}{suffix}", NAMES[part]),
            shape: SHAPES[part].to_vec(),
            values,
        };
        let weights = self.weights.iter_mut().enumerate();
        let moments = self.moments.iter_mut().flatten().enumerate();
        StateMut {
            weights: weights.map(|(part, values)| tensor(part, "", &mut values[..])).collect(),
            optimizer: moments
                .map(|(n, values)| tensor(n % 2, [".first", ".second"][n / 2], &mut values[..]))
                .collect(),
        }
    }
}

/// Pictures whose channels are a fixed function of one another, so that there is something to learn.
pub(crate) struct Pictures {
    pub(crate) draws: Draws,
    /// The step whose batch cannot be read.
    pub(crate) broken: Option<u64>,
    /// The step whose latents are not finite.
    pub(crate) spoilt: Option<u64>,
}

impl Pictures {
    pub(crate) fn new(seed: u64) -> Pictures {
        let draws = Draws { streams: Streams::new(seed), timesteps: TimestepSampling::default() };
        Pictures { draws, broken: None, spoilt: None }
    }
}

impl Source for Pictures {
    fn batch(&mut self, place: &Place<'_>) -> Result<Batch, DataError> {
        if self.broken == Some(place.step) {
            return Err(DataError::Stage { stage: place.at.number + 1, problem: "it broke".to_owned() });
        }
        let items = place.at.stage.batch;
        let mut stream = self.draws.streams.stream(Purpose::Items, &[place.index]);
        let mut normal = vec![0.0f32; items * TOKENS * CHANNELS];
        stream.fill_normal(&mut normal);
        let mut noise = vec![0.0f32; normal.len()];
        stream.fill_normal(&mut noise);
        let mut latents: Vec<f32> =
            normal.chunks(CHANNELS).flat_map(|token| [token[0], token[0] * 0.5, 1.0]).collect();
        if self.spoilt == Some(place.step) {
            latents[7] = f32::INFINITY;
        }
        let levels = self.draws.timesteps.sample(&mut stream, TOKENS, items);
        let shape = [items, TOKENS, CHANNELS];
        let mut tensors = TensorMap::new();
        tensors.insert("latents", HostTensor::from_f32(&shape, &latents)?);
        tensors.insert("noise", HostTensor::from_f32(&shape, &noise)?);
        tensors.insert("timestep", HostTensor::from_f32(&[items], &levels)?);
        let dims = vec![("H".to_owned(), 2), ("W".to_owned(), 2)];
        Ok(Batch { tensors, dims, items, image_tokens: TOKENS })
    }

    fn check(&self, _stages: &Stages) -> Result<(), DataError> {
        Ok(())
    }
}

/// A recipe that writes to `out`; `more` follows behind `[run]`.
pub(crate) fn recipe(out: &std::path::Path, steps: u64, more: &str) -> Recipe {
    let text = format!(
        "[model]\ncheckpoint = 'c'\n[data]\nkind = 'shards'\npath = 'd'\nbatch = 4\n[schedule]\nwarmup_steps = 4\n\
         [[group]]\nparams = ['*']\noptimizer = 'adamw'\nlr = 0.05\n\
         [run]\nsteps = {steps}\nout = '{}'\ncheckpoint_every = 5\n{more}",
        out.display()
    );
    Recipe::parse(std::path::Path::new("/recipe.toml"), &text).unwrap()
}
