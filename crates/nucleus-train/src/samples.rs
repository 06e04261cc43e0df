//! Sample pictures: captions become tokens by the data set's vocabulary, noise becomes pictures by the model's entry `velocity`.
//!
//! With a trace the entry `routing` is run in its place; its output `chosen` says which experts took which tokens.

use std::path::Path;

use nucleus_data::{Dataset, DatasetError};
use nucleus_ir::DType;
use nucleus_runtime::{
    Gpu, HostTensor, Model, ModelError, Session, SessionError, SessionOptions, TensorError, TensorMap,
    WeightSource,
};
use thiserror::Error;

use crate::assemble::{AssembleError, patch_size};
use crate::pictures::{GridOptions, Picture, PictureError, RoutingTrace, grid, layers_of_choice, unpack};
use crate::recipe::{DataKind, Recipe, SampleRecipe};
use crate::sampling::{InputNames, SamplerOptions, SamplingError, SessionDenoiser, noise, sample};

/// The entry that gives velocities.
const VELOCITY: &str = "velocity";
/// The entry that also tells what experts chose, and the output that does.
const ROUTING: &str = "routing";
const CHOSEN: &str = "chosen";
/// The inputs by which text enters.
const TOKENS: &str = "tokens";
const MASK: &str = "encoder_hidden_states_mask";

/// Pictures that are sampled at once.
const BATCH: usize = 16;
/// Times of a trace.
const TRACED_TIMES: usize = 6;
/// Pixels that a picture's side has at least in a grid.
const GRID_SIDE: usize = 96;

/// Why there are no samples.
#[derive(Debug, Error)]
pub enum SampleError {
    /// The data set cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Batches have no vocabulary.
    #[error("samples need data of kind \"shards\": its vocabulary makes tokens of captions")]
    NoVocabulary,
    /// The model takes no tokens.
    #[error(
        "entry `{entry}` has no input `{TOKENS}`: samples are drawn by models that take the tokens of a caption"
    )]
    NoTokens {
        /// The entry.
        entry: &'static str,
    },
    /// A size that cannot be cut into patches.
    #[error(
        "a sample of {height} × {width} pixels cannot be cut into patches of {patch} × {patch}, as the model's patch_size asks"
    )]
    Size {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// The side of a patch.
        patch: usize,
    },
    /// The model has no such entry, or does not compile.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's configuration says nothing of patches.
    #[error(transparent)]
    Config(#[from] AssembleError),
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The sampler failed.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Nothing can be drawn.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// Not enough memory.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// What turns captions into pictures, but for the weights.
#[derive(Debug)]
pub struct Painter {
    dataset: Dataset,
    dtype: DType,
    threads: Option<usize>,
    gpu: Option<Gpu>,
}

/// Samples, and what experts chose while they were made.
#[derive(Debug)]
pub struct Samples {
    /// Every picture with its caption, in the order that was asked for.
    pub pictures: Vec<(Picture, String)>,
    /// For every picture the trace, if one was asked for, and its image there.
    pub traces: Vec<(RoutingTrace, usize)>,
}

impl Painter {
    /// Reads the vocabulary of the data that a recipe names.
    ///
    /// # Errors
    /// The data is no data set, or cannot be read.
    pub fn new(recipe: &Recipe) -> Result<Painter, SampleError> {
        match recipe.data.kind {
            DataKind::Shards { .. } => Ok(Painter {
                dataset: Dataset::open(&recipe.data.path)?,
                dtype: recipe.model.dtype.into(),
                threads: recipe.run.threads,
                gpu: None,
            }),
            DataKind::Batches => Err(SampleError::NoVocabulary),
        }
    }

    /// The same on a GPU, if one is given.
    #[must_use]
    pub fn on(self, gpu: Option<Gpu>) -> Painter {
        Painter { gpu, ..self }
    }

    /// Checks what can be checked of samples without weights.
    ///
    /// # Errors
    /// As for [`Painter::paint`], without computing anything.
    pub fn check(&self, model: &Model, samples: &[SampleRecipe], trace: bool) -> Result<(), SampleError> {
        let (entry, patch) = (entry(trace), patch_size(model)?);
        let graph = model.graph(entry)?;
        if !graph.inputs.iter().any(|input| input.name == TOKENS) {
            return Err(SampleError::NoTokens { entry });
        }
        for sample in samples {
            let (height, width) = self.size(sample);
            if height % patch != 0 || width % patch != 0 || height == 0 || width == 0 {
                return Err(SampleError::Size { height, width, patch });
            }
        }
        Ok(())
    }

    /// Draws pictures with the given weights.
    ///
    /// # Errors
    /// The model takes no tokens, a size is no multiple of its patches, or the model fails.
    pub fn paint(
        &self,
        model: &Model,
        weights: Box<dyn WeightSource>,
        samples: &[SampleRecipe],
        options: &SamplerOptions,
        trace: bool,
    ) -> Result<Samples, SampleError> {
        self.check(model, samples, trace)?;
        let patch = patch_size(model)?;
        let plan = model.compile(entry(trace), self.dtype, &mut ())?;
        let session_options =
            SessionOptions { threads: self.threads, gpu: self.gpu.clone(), ..SessionOptions::default() };
        let mut session = Session::with_source(plan, weights, &session_options, &mut |_, _| {})?;
        let mut pictures: Vec<Option<(Picture, String)>> = samples.iter().map(|_| None).collect();
        let mut traces: Vec<Option<(RoutingTrace, usize)>> = samples.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..samples.len()).collect();
        while let Some(first) = left.first() {
            let size = self.size(&samples[*first]);
            let mut batch = Vec::new();
            left.retain(|at| {
                let taken = batch.len() < BATCH && self.size(&samples[*at]) == size;
                if taken {
                    batch.push(*at);
                }
                !taken
            });
            let members: Vec<&SampleRecipe> = batch.iter().map(|at| &samples[*at]).collect();
            let grid = (size.0 / patch, size.1 / patch);
            let (drawn, trace) = self.batch(&mut session, &members, grid, patch, options, trace)?;
            for (image, (at, picture)) in batch.iter().zip(drawn).enumerate() {
                pictures[*at] = Some((picture, samples[*at].caption.clone()));
                traces[*at] = trace.clone().map(|trace| (trace, image));
            }
        }
        Ok(Samples {
            pictures: pictures.into_iter().flatten().collect(),
            traces: traces.into_iter().flatten().collect(),
        })
    }

    /// Pictures of one size, and the trace of all.
    fn batch(
        &self,
        session: &mut Session,
        samples: &[&SampleRecipe],
        (rows, columns): (usize, usize),
        patch: usize,
        options: &SamplerOptions,
        trace: bool,
    ) -> Result<(Vec<Picture>, Option<RoutingTrace>), SampleError> {
        let channels = self.dataset.description().channels * patch * patch;
        let mut start = HostTensor::zeros(DType::F32, &[samples.len(), rows * columns, channels])?;
        let each = start.as_f32_mut()?.chunks_mut(rows * columns * channels);
        for (sample, values) in samples.iter().zip(each) {
            values.copy_from_slice(noise(sample.seed, [1, rows * columns, channels])?.as_f32()?);
        }
        let captions: Vec<&str> = samples.iter().map(|sample| sample.caption.as_str()).collect();
        let given = self.text(&captions)?;
        let empty = if options.guidance > 1.0 { Some(self.text(&vec![""; captions.len()])?) } else { None };
        let dims = [("H".to_owned(), rows as i64), ("W".to_owned(), columns as i64)];
        let mut denoiser =
            SessionDenoiser::new(session, &given, empty.as_ref(), &dims, InputNames::default())?;
        let mut recorded = RoutingTrace { rows, columns, layers: Vec::new(), times: Vec::new() };
        let mut failed = None;
        let pace = options.steps.div_ceil(TRACED_TIMES).max(1);
        let result = sample(&mut denoiser, start, options, &mut |step| {
            let due = trace && (step.number - 1) % pace == 0 && failed.is_none();
            if let Some(chosen) = step.outputs.get(CHOSEN).filter(|_| due) {
                match layers_of_choice(chosen) {
                    Ok(layers) => recorded.times.push((format!("t={:.2}", step.sigma), layers)),
                    Err(error) => failed = Some(error),
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let layers = recorded.times.first().map_or(0, |(_, layers)| layers.len());
        recorded.layers = (1..=layers).map(|layer| format!("experts {layer}")).collect();
        Ok((unpack(&result, rows, columns)?, trace.then_some(recorded)))
    }

    /// Captions as the inputs of an entry: `tokens` i32 [B, T] and its mask, false for padding.
    fn text(&self, captions: &[&str]) -> Result<TensorMap, TensorError> {
        let length = self.dataset.description().token_length;
        let vocabulary = self.dataset.vocabulary();
        let tokens: Vec<i32> =
            captions.iter().flat_map(|caption| vocabulary.tokens(caption, length)).collect();
        let mask: Vec<bool> = tokens.iter().map(|token| *token != nucleus_data::format::PADDING).collect();
        let shape = [captions.len(), length];
        let mut inputs = TensorMap::new();
        inputs.insert(TOKENS, HostTensor::from_i32(&shape, &tokens)?);
        inputs.insert(MASK, HostTensor::from_bool(&shape, &mask)?);
        Ok(inputs)
    }

    /// Height and width of a sample: its own, or those of the largest bucket.
    fn size(&self, sample: &SampleRecipe) -> (usize, usize) {
        let largest = self.dataset.buckets().iter().max_by_key(|bucket| bucket.height() * bucket.width());
        let usual = || largest.map_or((0, 0), |bucket| (bucket.height(), bucket.width()));
        sample.size.unwrap_or_else(usual)
    }
}

impl Samples {
    /// All pictures in one, small ones enlarged.
    ///
    /// # Errors
    /// It would be too large.
    pub fn grid(&self) -> Result<Picture, PictureError> {
        let side = self.pictures.iter().map(|(picture, _)| picture.width()).max().unwrap_or(1);
        grid(
            &self.pictures,
            &GridOptions { enlarge: (GRID_SIDE / side.max(1)).max(1), ..GridOptions::default() },
        )
    }

    /// Writes for every picture how many experts took each token (`<number>-allocation.png`), and for every layer which tokens each expert
    /// took (`<number>-experts-<layer>.png`). Numbers count from 1.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_routing(&self, folder: &Path) -> Result<(), PictureError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| PictureError::Write { path: folder.to_path_buf(), source })?;
        for (number, ((trace, image), (picture, _))) in self.traces.iter().zip(&self.pictures).enumerate() {
            let enlarge = (GRID_SIDE / trace.columns.max(1)).max(1);
            let path = |what: String| folder.join(format!("{}-{what}.png", number + 1));
            trace.allocation(*image, enlarge)?.save(&path("allocation".to_owned()))?;
            let pictures = vec![picture.clone(); trace.times.len()];
            for layer in 0..trace.layers.len() {
                let experts = trace.experts(layer, *image, enlarge, &pictures)?;
                experts.save(&path(format!("experts-{}", layer + 1)))?;
            }
        }
        Ok(())
    }
}

fn entry(trace: bool) -> &'static str {
    if trace { ROUTING } else { VELOCITY }
}
