//! The command line's grammar and its help texts.

mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use values::{
    Backend, ComputeType, HeaviestEnd, MergeWeights, Processor, Quantization, Recompute, Target, WeightsFrom,
};
use values::{at_least_one, dim, size, sizes, target, weights_from};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "nucleusc",
    version,
    about = "Compiles and runs sparse mixture-of-experts diffusion transformers from one text",
    after_help = "Examples:
  nucleusc check ir-specs/nucleus_image.ir
  nucleusc compile ir-specs/nucleus_image.ir --dtype bf16 -o nucleus-image.nuc
  nucleusc run ir-specs/nucleus_image.ir --weights checkpoint/transformer \\
      --inputs in.safetensors --output out.safetensors --dim H=64 --dim W=64
  nucleusc inspect nucleus-image.nuc
  nucleusc merge out/run --last 16 -o merged

`nucleusc COMMAND --help` explains a command."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Verify a model and summarise it
    #[command(after_help = "Examples:
  nucleusc check ir-specs/nucleus_image.ir
  nucleusc check model.ir --config checkpoint/transformer/config.json
  nucleusc check model.ir --entry velocity --set num_layers=4 --set use_sigmoid=true")]
    Check(CheckArguments),
    /// Compile a model into one artifact
    #[command(
        after_help = "The artifact is a safetensors file: the plans, the model's texts and, with --weights, the weights.

For GPUs it also holds the machine code of every kernel, so that what runs it needs no compiler. NVRTC makes it, with no GPU and no
driver: `tools/fetch-nvrtc` fetches it, or NUCLEUS_NVRTC names the library or its folder. Kernels are kept in NUCLEUS_CACHE, else in
~/.cache/nucleus, and compiled once; NUCLEUS_CACHE_BYTES limits what they take, by default to 1 GiB. Trust such an artifact as you trust a program.

Tiles of matrix products are chosen by a cost model of the architecture, or by --tuning: a table of what was measured, on devices that it
names or on all of an architecture. `--emit tiles` writes the table of the choices made, to start from. The artifact then runs on the devices
of the table with their tiles, and on others of its architectures as if they were not in it. docs/cuda.md describes tables.

Examples:
  nucleusc compile ir-specs/nucleus_image.ir --dtype bf16 -o nucleus-image.nuc
  nucleusc compile model.ir --weights checkpoint/transformer -o model.nuc
  nucleusc compile model.ir --weights checkpoint/transformer --quantize int8 -o small.nuc
  nucleusc compile model.ir -o model.nuc --emit simplify,plan --emit-dir stages
  nucleusc compile model.ir --entry loss --gradients -o loss.nuc --emit differentiate --emit-dir stages
  nucleusc compile model.ir --target cuda:sm_80,sm_90 -o model.nuc --emit cuda,cubin --emit-dir kernels
  nucleusc compile model.ir --target cuda:sm_90 -o model.nuc --emit tiles --emit-dir kernels
  nucleusc compile model.ir --target cuda:sm_90 --tuning kernels/tiles.toml -o model.nuc"
    )]
    Compile(CompileArguments),
    /// Run an entry of a model on given inputs
    #[command(
        after_help = "Inputs and outputs are safetensors files whose tensors are named as the entry's inputs and outputs.
Sizes that the inputs' shapes decide need no --dim.

Examples:
  nucleusc run ir-specs/nucleus_image.ir --weights checkpoint/transformer \\
      --inputs in.safetensors --output out.safetensors --dim H=64 --dim W=64
  nucleusc run model.nuc --inputs in.safetensors --output out.safetensors --dim H=16   # weights inside"
    )]
    Run(RunArguments),
    /// Time an entry of a model
    #[command(
        after_help = "Without --inputs, random inputs of the given sizes are used. Times are medians: of whole runs (all stages but the
loading) and of steps for which the prompt is prepared. A sweep loads and compiles the model once.

Examples:
  nucleusc bench ir-specs/nucleus_image.ir --weights slice --dim B=1 --dim H=32 --dim W=32 --dim T=64
  nucleusc bench ir-specs/nucleus_image.ir --weights slice --dim B=1 --dim T=64 --sweep H=8,16,32,64 --sweep W=8,16,32,64
  nucleusc bench model.nuc --inputs in.safetensors --dim H=32 --repeat 10 --json
  nucleusc bench model.ir --weights slice --backend cuda --tuning tiles.toml --dim B=1 --dim H=32 --dim W=32 --dim T=64 --profile
  nucleusc bench ir-specs/nucleus_image.ir --weights random --quantize int8 --dim B=1 --dim H=16 --dim W=16 --dim T=64"
    )]
    Bench(BenchArguments),
    /// Compute the loss of a batch and its gradient with respect to every weight
    #[command(
        after_help = "The model has an entry `loss` whose first output is what is differentiated. Inputs are named as the entry's inputs; a tensor `grid`
(two integers) gives the sizes H and W. The output holds `loss` [1] and the gradient of every weight under its checkpoint name.

Examples:
  nucleusc grad ir-specs/nucleus_image.ir --weights checkpoint/transformer \\
      --inputs batch.safetensors --output grads.safetensors --dim H=16 --dim W=16"
    )]
    Grad(GradArguments),
    /// Train a model by a recipe
    #[command(
        after_help = "`docs/training.md` describes recipes and what a run writes. A run that was stopped, or killed, goes on from its newest checkpoint when it is
started again.

Examples:
  nucleusc train recipes/emoji.toml
  nucleusc train recipe.toml --check            # reads recipe, model and data, and trains nothing
  nucleusc train recipe.toml --bench 10 --json  # times steps, and writes nothing
  nucleusc train recipe.toml --bench 5 --profile  # and every kind of kernel"
    )]
    Train(TrainArguments),
    /// Draw pictures of captions with a model that a recipe trains
    #[command(
        after_help = "Weights are those of the newest checkpoint of the recipe's run, or of --weights; the vocabulary is that of its data set. Without
--caption the samples of the recipe are drawn.

Examples:
  nucleusc sample recipes/emoji.toml --caption \"red apple\" --caption \"dog face\" -o grid.png
  nucleusc sample recipes/emoji.toml --weights merged --count 8 --caption \"red apple\" -o apples.png
  nucleusc sample recipes/emoji.toml --caption \"red apple\" -o apple.png --routing maps"
    )]
    Sample(SampleArguments),
    /// Show what is in an artifact, a checkpoint or a file of tensors
    #[command(after_help = "Examples:
  nucleusc inspect model.nuc
  nucleusc inspect checkpoint/transformer
  nucleusc inspect out.safetensors --json")]
    Inspect(InspectArguments),
    /// Average checkpoints of a run, which stands for a decay of its learning rate
    #[command(
        after_help = "A run at a constant learning rate ends by averaging its last checkpoints. With `--weights inverse-sqrt` the i-th
checkpoint, counted from the heaviest end, has the weight 1/√i before all are divided by their sum:

  --heaviest newest   the newest has 1, the one before it 1/√2, …: the result stays close to the end of the run
  --heaviest oldest   the oldest has 1, the next 1/√2, …: updates count as under a learning rate that falls as 1 − √(i/n)

Checkpoints of a run are ordered by their steps, however they are listed; other folders are taken from the oldest to the
newest, or the other way with --newest-first. All must have the same weights, in the same shapes and types. Sums are made in
f64. The result is a diffusers folder in the inputs' types, with a note of what was averaged in merge.json.

Examples:
  nucleusc merge out/emoji -o merged --last 16              # the last 16 checkpoints of a run
  nucleusc merge out/emoji/checkpoint-* -o merged --heaviest oldest
  nucleusc merge older/transformer newer/transformer -o soup --weights uniform"
    )]
    Merge(MergeArguments),
    /// Make data sets from captioned pictures, and look at them
    #[command(subcommand)]
    Data(crate::data::DataCommand),
}

/// Where config values come from.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArguments {
    /// Values of config keys from a checkpoint's config.json
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Value of one config key; may be repeated, and wins over --config
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `nucleusc check`.
#[derive(Args, Debug)]
pub struct CheckArguments {
    /// The model's text
    #[arg(value_name = "MODEL.ir")]
    pub model: PathBuf,
    /// Where config values come from.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// An entry to verify; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub entry: Vec<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `nucleusc compile`.
#[derive(Args, Debug)]
pub struct CompileArguments {
    /// The model's text
    #[arg(value_name = "MODEL.ir")]
    pub model: PathBuf,
    /// Where config values come from.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// A diffusers folder or safetensors file whose weights go into the artifact; its config.json is used unless --config is given
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// An entry to compile; may be repeated [default: the first of the model]
    #[arg(long, value_name = "NAME")]
    pub entry: Vec<String>,
    /// Compile the entries with the gradients of their first output, a scalar, as further outputs: one for each weight
    #[arg(long)]
    pub gradients: bool,
    /// Let the backward pass of --gradients compute forward values again instead of keeping them
    #[arg(long, value_name = "HOW", requires = "gradients")]
    pub remat: Option<Recompute>,
    /// Element type of products [default: that of --weights, else f32]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<ComputeType>,
    /// Store large weights of products over tokens (from 2^20 elements) as 8-bit integers; sums stay f32
    #[arg(long, value_name = "TYPE")]
    pub quantize: Option<Quantization>,
    /// The machine to compile for: `cpu`, or NVIDIA GPUs by their architectures, `cuda:sm_80,sm_90`
    #[arg(long, value_name = "TARGET", default_value = "cpu", value_parser = target)]
    pub target: Target,
    /// For GPUs, a table of measured tiles of matrix products, which come before the cost model's; the artifact keeps what applies
    #[arg(long, value_name = "TABLE.toml")]
    pub tuning: Option<PathBuf>,
    /// The artifact to write
    #[arg(short, long, value_name = "OUT.nuc")]
    pub output: PathBuf,
    /// Stages whose text is written: names of passes, or `plan`; for GPUs also `cuda` and `cubin`, the kernels, and `tiles`, the table of their
    /// tiles; or `all`
    #[arg(long, value_name = "STAGE,…", value_delimiter = ',')]
    pub emit: Vec<String>,
    /// Where they go: one file per entry and stage, `KERNEL.ARCHITECTURE.cu` and `.cubin` of every distinct kernel, and `tiles.toml`
    #[arg(long, value_name = "DIR", requires = "emit")]
    pub emit_dir: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// What `run` and `bench` share.
#[derive(Args, Debug)]
pub struct SessionArguments {
    /// The model's text, or a compiled artifact
    #[arg(value_name = "MODEL.ir|OUT.nuc")]
    pub model: PathBuf,
    /// A diffusers folder or safetensors file, whose config.json is used unless --config is given; or `random`, perhaps with a seed, for
    /// weights made up on the spot
    #[arg(long, value_name = "DIR|random[:SEED]", value_parser = weights_from)]
    pub weights: Option<WeightsFrom>,
    /// Where config values come from.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Run-time size; may be repeated
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim)]
    pub dims: Vec<(String, i64)>,
    /// The entry [default: the first of the model]
    #[arg(long, value_name = "NAME")]
    pub entry: Option<String>,
    /// Element type of products [default: that of the checkpoint, bf16 for random weights]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<ComputeType>,
    /// Hold large weights of products over tokens (from 2^20 elements) as 8-bit integers; an artifact says so by itself
    #[arg(long, value_name = "TYPE")]
    pub quantize: Option<Quantization>,
    /// Threads [default: the number of cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// A table of measured tiles of matrix products, which come before the cost model's; needs --backend cuda
    #[arg(long, value_name = "TABLE.toml")]
    pub tuning: Option<PathBuf>,
}

/// `nucleusc run`.
#[derive(Args, Debug)]
pub struct RunArguments {
    /// What is run.
    #[command(flatten)]
    pub session: SessionArguments,
    /// The inputs, a safetensors file
    #[arg(long, value_name = "in.safetensors")]
    pub inputs: PathBuf,
    /// Where the outputs go, a safetensors file
    #[arg(long, value_name = "out.safetensors")]
    pub output: PathBuf,
    /// What runs the model
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    pub backend: Backend,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `nucleusc grad`.
#[derive(Args, Debug)]
pub struct GradArguments {
    /// The model's text
    #[arg(value_name = "MODEL.ir")]
    pub model: PathBuf,
    /// A diffusers folder or safetensors file, whose config.json is used unless --config is given
    #[arg(long, value_name = "DIR")]
    pub weights: PathBuf,
    /// Where config values come from.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// The inputs, a safetensors file
    #[arg(long, value_name = "batch.safetensors")]
    pub inputs: PathBuf,
    /// Where loss and gradients go, a safetensors file
    #[arg(long, value_name = "grads.safetensors")]
    pub output: PathBuf,
    /// Run-time size; may be repeated
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim)]
    pub dims: Vec<(String, i64)>,
    /// Element type of products [default: f32]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<ComputeType>,
    /// Threads [default: the number of cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What computes
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    pub backend: Processor,
    /// A table of measured tiles of matrix products, which come before the cost model's; needs --backend cuda
    #[arg(long, value_name = "TABLE.toml")]
    pub tuning: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `nucleusc train`.
#[derive(Args, Debug)]
pub struct TrainArguments {
    /// The recipe
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: PathBuf,
    /// Read everything and stop before the first step
    #[arg(long, conflicts_with = "bench")]
    pub check: bool,
    /// Time that many steps, after one that warms up, and write nothing
    #[arg(long, value_name = "N")]
    pub bench: Option<usize>,
    /// With --bench: print the time of every kind of kernel of forward and backward pass and of every optimiser, measured and predicted
    #[arg(long, requires = "bench")]
    pub profile: bool,
    /// With --bench: write the launches of forward and backward pass, with their mean times, in Chrome's trace format, for Perfetto
    #[arg(long, value_name = "out.json", requires = "bench")]
    pub trace: Option<PathBuf>,
    /// What computes
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    pub backend: Processor,
    /// A table of measured tiles of matrix products, which come before the cost model's; needs --backend cuda
    #[arg(long, value_name = "TABLE.toml")]
    pub tuning: Option<PathBuf>,
    /// Print JSON instead of text: one object per step and one at the end
    #[arg(long)]
    pub json: bool,
}

/// `nucleusc sample`.
#[derive(Args, Debug)]
pub struct SampleArguments {
    /// The recipe
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: PathBuf,
    /// A checkpoint of the run, or a diffusers folder [default: the newest checkpoint in the recipe's `out`]
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// What a picture shows; may be repeated [default: the recipe's samples]
    #[arg(long, value_name = "TEXT")]
    pub caption: Vec<String>,
    /// Pictures of each caption
    #[arg(long, value_name = "N", default_value_t = 1, requires = "caption", value_parser = at_least_one)]
    pub count: usize,
    /// Seed of the first picture's noise; the next have the next seeds
    #[arg(long, value_name = "N", default_value_t = 0, requires = "caption")]
    pub seed: u64,
    /// Height and width in pixels [default: those of the largest bucket]
    #[arg(long, value_name = "HEIGHTxWIDTH", requires = "caption", value_parser = size)]
    pub size: Option<(usize, usize)>,
    /// Steps of the sampler [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub steps: Option<usize>,
    /// Classifier-free guidance [default: the recipe's]
    #[arg(long, value_name = "NUMBER")]
    pub guidance: Option<f32>,
    /// What computes
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    pub backend: Processor,
    /// A table of measured tiles of matrix products, which come before the cost model's; needs --backend cuda
    #[arg(long, value_name = "TABLE.toml")]
    pub tuning: Option<PathBuf>,
    /// The grid of pictures, a PNG file
    #[arg(short, long, value_name = "grid.png")]
    pub output: PathBuf,
    /// Also draw which tokens each expert takes and how many experts take each token, into this folder
    #[arg(long, value_name = "DIR")]
    pub routing: Option<PathBuf>,
}

/// `nucleusc bench`.
#[derive(Args, Debug)]
pub struct BenchArguments {
    /// What is run.
    #[command(flatten)]
    pub session: SessionArguments,
    /// The inputs, a safetensors file [default: random values]
    #[arg(long, value_name = "in.safetensors")]
    pub inputs: Option<PathBuf>,
    /// Several values of one run-time size, a measurement for each; several sizes with equally many are walked together
    #[arg(long, value_name = "NAME=SIZE,SIZE…", value_parser = sizes)]
    pub sweep: Vec<(String, Vec<i64>)>,
    /// What computes
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    pub backend: Processor,
    /// Timed runs after one that warms up
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repeat: usize,
    /// Print the time of every kind of kernel, measured and predicted
    #[arg(long)]
    pub profile: bool,
    /// Write the launches of one run in Chrome's trace format, for Perfetto
    #[arg(long, value_name = "out.json")]
    pub trace: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `nucleusc inspect`.
#[derive(Args, Debug)]
pub struct InspectArguments {
    /// An artifact (.nuc), a checkpoint folder, or a safetensors file
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// Print the artifact's plans as text
    #[arg(long)]
    pub plan: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `nucleusc merge`.
#[derive(Args, Debug)]
pub struct MergeArguments {
    /// Diffusers folders or checkpoints of a run; a run's folder stands for all its checkpoints
    #[arg(value_name = "CKPT", required = true)]
    pub checkpoints: Vec<PathBuf>,
    /// The folder to write; it must not exist
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// How the weights fall
    #[arg(long, value_name = "SERIES", default_value = "inverse-sqrt")]
    pub weights: MergeWeights,
    /// The end that weighs most
    #[arg(long, value_name = "END", default_value = "newest")]
    pub heaviest: HeaviestEnd,
    /// The checkpoints are listed from the newest to the oldest
    #[arg(long)]
    pub newest_first: bool,
    /// Average only the newest N
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub last: Option<usize>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}
