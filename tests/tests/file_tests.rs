//! File tests: every `tests/files/*/*.ir` is a program whose comments say what to do with it and what to expect.
//!
//! ```text
//! // test: simplify          the command: `parse`, `verify`, `run`, or the last pass to run
//! // dtype: bf16             compute dtype; f32 without it
//! // quantize: 64            weights with at least so many elements become int8, if they qualify; none without it
//! // gradients: w, v           the gradients of these weights are further outputs, of all with `all`; none without it
//! // input gradients: x        and those of these inputs
//! // remat: full              the backward pass recomputes, `cheap` things or so that so many bytes suffice; nothing without it
//! // set: num_layers=2       a config value, as on the command line; may be repeated
//! // entry: loss             the entry; the first one without it
//! // dims: B=2, S=5          evaluate before and after the passes, plans too: all must give the same answer
//! // snapshot                the whole output must be that of the file beside it, named *.expected
//! // check: text             the output has this text after that of the check before
//! // check-not: text         the output has this text nowhere
//! // count: 2 text           the output has this text exactly so many times
//! // error: text             the command fails with a message that has this text
//! // input x: 1, 2, 3        for `run`: the elements of an input or weight …
//! // output y: 6             … and of an output, compared to a relative 1e-6
//! ```
//!
//! `NUCLEUS_BLESS=1 cargo test -p nucleus-tests --test file_tests` rewrites the `.expected` files.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Failed, Trial};
use nucleus_interp::{Data, Options, Real, Tensor, evaluate};
use nucleus_ir::diagnostics::{has_errors, render};
use nucleus_ir::graph::{Input, Weight};
use nucleus_ir::source::SourceMap;
use nucleus_ir::{Bindings, DType, Graph, TensorType};
use nucleus_passes::differentiate::Gradients;
use nucleus_passes::elaborate::{Config, Program, elaborate};
use nucleus_passes::pipeline::{CompileError, CompileOptions, Form, compile_to};
use nucleus_passes::quantize::Quantize;
use nucleus_passes::remat::{Policy, Remat};
use nucleus_plan::{Plan, reference};
use nucleus_tests::evaluation::{MadeUp, largest_difference};

/// The most by which an answer may change between `f64` evaluations: constants are folded in `f32`.
const FOLDING_ERROR: f64 = 1e-6;

/// The most by which a plan's answer may differ from its graph's in `f32`: sums run in another order.
const F32_ERROR: f64 = 1e-5;

/// The same where values are stored in `bf16`: one unit in the last of eight bits.
const NARROW_ERROR: f64 = 1.0 / 128.0;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::from_args();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("files");
    let mut files = Vec::new();
    for folder in fs::read_dir(&root)? {
        for file in fs::read_dir(folder?.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "ir") {
                files.push(path);
            }
        }
    }
    files.sort();
    let trials = files.into_iter().map(|path| {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        Trial::test(name, move || run_file(&path).map_err(Failed::from))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit()
}

/// What the comments of a file say.
#[derive(Default)]
struct Directives {
    test: String,
    dtype: Option<DType>,
    quantize: Option<Quantize>,
    gradients: Option<Gradients>,
    remat: Option<Policy>,
    settings: Vec<String>,
    entry: Option<String>,
    dims: Option<Bindings>,
    snapshot: bool,
    checks: Vec<String>,
    check_nots: Vec<String>,
    counts: Vec<(usize, String)>,
    errors: Vec<String>,
    inputs: BTreeMap<String, Vec<f64>>,
    outputs: BTreeMap<String, Vec<f64>>,
}

impl Directives {
    fn read(text: &str) -> Result<Directives, String> {
        let mut directives = Directives::default();
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("// ")) {
            let (key, value) = match line.split_once(':') {
                Some((key, value)) => (key.trim(), value.trim()),
                None => (line.trim(), ""),
            };
            let words: Vec<&str> = key.split(' ').collect();
            match words[..] {
                ["test"] => directives.test = value.to_owned(),
                ["dtype"] => {
                    let dtype = DType::from_name(value).ok_or_else(|| format!("no dtype `{value}`"))?;
                    directives.dtype = Some(dtype);
                }
                ["quantize"] => {
                    let least_elements = value.parse().map_err(|_| format!("`{value}` is not a count"))?;
                    directives.quantize = Some(Quantize { least_elements });
                }
                ["gradients"] => directives.gradients().weights = (value != "all").then(|| names(value)),
                ["input", "gradients"] => directives.gradients().inputs = names(value),
                ["remat"] => {
                    directives.remat = Some(match value {
                        "cheap" => Policy::Cheap,
                        "full" => Policy::Full,
                        bytes => Policy::Memory(
                            bytes
                                .parse()
                                .map_err(|_| format!("`{bytes}` is no policy and no number of bytes"))?,
                        ),
                    });
                }
                ["set"] => directives.settings.push(value.to_owned()),
                ["entry"] => directives.entry = Some(value.to_owned()),
                ["dims"] => directives.dims = Some(read_dims(value)?),
                ["snapshot"] => directives.snapshot = true,
                ["check"] => directives.checks.push(value.to_owned()),
                ["check-not"] => directives.check_nots.push(value.to_owned()),
                ["count"] => {
                    let count = value.split_once(' ').and_then(|(n, text)| Some((n.parse().ok()?, text)));
                    let (count, text) =
                        count.ok_or_else(|| format!("`{value}` is not a count and a text"))?;
                    directives.counts.push((count, text.to_owned()));
                }
                ["error"] => directives.errors.push(value.to_owned()),
                ["input", name] => drop(directives.inputs.insert(name.to_owned(), read_numbers(value)?)),
                ["output", name] => drop(directives.outputs.insert(name.to_owned(), read_numbers(value)?)),
                _ => {}
            }
        }
        if directives.test.is_empty() {
            return Err("the file has no `// test: COMMAND`".to_owned());
        }
        let expects = directives.snapshot
            || directives.dims.is_some()
            || !directives.checks.is_empty()
            || !directives.check_nots.is_empty()
            || !directives.counts.is_empty()
            || !directives.errors.is_empty()
            || !directives.outputs.is_empty();
        if expects { Ok(directives) } else { Err("the file expects nothing".to_owned()) }
    }

    fn gradients(&mut self) -> &mut Gradients {
        self.gradients.get_or_insert_with(|| Gradients { weights: Some(Vec::new()), ..Gradients::default() })
    }
}

fn names(text: &str) -> Vec<String> {
    text.split(',').map(|name| name.trim().to_owned()).collect()
}

fn read_dims(text: &str) -> Result<Bindings, String> {
    let mut dims = Bindings::new();
    for pair in text.split(',') {
        let parsed =
            pair.split_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse().ok()?)));
        let (name, value) = parsed.ok_or_else(|| format!("`{pair}` is not a dim and its value"))?;
        dims.bind(name, value);
    }
    Ok(dims)
}

fn read_numbers(text: &str) -> Result<Vec<f64>, String> {
    text.split(',')
        .map(|number| number.trim().parse().map_err(|error| format!("`{number}`: {error}")))
        .collect()
}

/// What a command gave: its text, or the message of its failure.
type Outcome = Result<String, String>;

fn run_file(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let directives = Directives::read(&text)?;
    let mut sources = SourceMap::new();
    let file =
        sources.add(path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into()), text);
    let outcome = match directives.test.as_str() {
        "parse" => {
            let (module, diagnostics) = nucleus_ir::parse(&sources, file);
            if has_errors(&diagnostics) {
                Err(render(&sources, &diagnostics, false))
            } else {
                Ok(nucleus_ir::printer::print(&module))
            }
        }
        "verify" => load(&mut sources, file).map(|program| render(&sources, program.warnings(), false)),
        "run" => load(&mut sources, file).and_then(|program| run_entry(&sources, &program, &directives)),
        _ => load(&mut sources, file).and_then(|program| compile(&sources, &program, &directives)),
    };
    compare(path, &directives, outcome)
}

fn load(sources: &mut SourceMap, file: nucleus_ir::source::FileId) -> Result<Program, String> {
    Program::load(sources, file, &|_| None).map_err(|diagnostics| render(sources, &diagnostics, false))
}

fn config(directives: &Directives) -> Result<Config, String> {
    let mut config = Config::new();
    for setting in &directives.settings {
        config.set(setting).map_err(|error| error.to_string())?;
    }
    Ok(config)
}

fn entry<'a>(program: &'a Program, directives: &'a Directives) -> Result<&'a str, String> {
    let first = program.entries().first().copied();
    directives.entry.as_deref().or(first).ok_or_else(|| "the program has no entry".to_owned())
}

fn compile(sources: &SourceMap, program: &Program, directives: &Directives) -> Outcome {
    let options = CompileOptions {
        dtype: directives.dtype.unwrap_or(DType::F32),
        gradients: directives.gradients.clone(),
        quantize: directives.quantize,
        remat: directives.remat.map(Remat::new),
        verify: true,
    };
    let mut elaborated = None;
    let mut differentiated = None;
    let mut last_graph = None;
    let mut observer = |pass: &'static nucleus_passes::pipeline::Pass, form: &Form, _| {
        if let Form::Graph(graph) = form {
            if pass.name == "elaborate" {
                elaborated = Some(graph.clone());
            }
            if pass.name == "differentiate" {
                differentiated = Some(graph.clone());
            }
            last_graph = Some(graph.clone());
        }
    };
    let entry = entry(program, directives)?;
    let form = compile_to(program, &config(directives)?, entry, &options, &mut observer, &directives.test)
        .map_err(|error| match error {
            CompileError::Program(diagnostics) => render(sources, &diagnostics, false),
            other => other.to_string(),
        })?;
    if let (Some(dims), Some(before), Some(with_gradients), Some(after)) =
        (&directives.dims, &elaborated, &differentiated, &last_graph)
    {
        let mut forward = with_gradients.clone();
        forward.outputs.truncate(before.outputs.len());
        same_answer(before, &forward, dims, options.dtype)?;
        same_answer(with_gradients, after, dims, options.dtype)?;
    }
    if let (Some(dims), Some(graph), Form::Plan(plan)) = (&directives.dims, &last_graph, &form) {
        plan_answer(graph, plan, dims, options.dtype)?;
    }
    Ok(form.text())
}

/// The plan gives the outputs of the graph that it was made from. Both round where the graph says; in `bf16` and `f16` sums in another
/// order may round to the neighbour.
fn plan_answer(graph: &Graph, plan: &Plan, dims: &Bindings, compute: DType) -> Result<(), String> {
    let made_up = MadeUp::default();
    let want = made_up.outputs::<f32>(graph, dims).map_err(|error| format!("graph: {error}"))?;
    let input = |input: &Input| {
        let tensor = made_up.tensor::<f64>(&input.name, &input.ty, dims)?;
        Some((input.name.clone(), numbers(tensor.data())))
    };
    let weight = |weight: &Weight| {
        let tensor = made_up.weight::<f64>(graph, &weight.name)?;
        Some((weight.name.clone(), numbers(tensor.data())))
    };
    let inputs = graph.inputs.iter().filter_map(input).collect();
    let weights = graph.weights.iter().filter_map(weight).collect();
    let got = reference::evaluate(plan, dims, &inputs, &weights).map_err(|error| format!("plan: {error}"))?;
    let got: Vec<_> = want
        .iter()
        .zip(got)
        .map(|((name, want), got)| Ok((name.clone(), tensor(&got, &want.ty(), &Bindings::new())?)))
        .collect::<Result<_, String>>()?;
    let difference = largest_difference(&want, &got)?;
    let allowed = if compute == DType::F32 { F32_ERROR } else { NARROW_ERROR };
    if difference > allowed {
        return Err(format!("the plan's answer differs from the graph's by {difference:e}"));
    }
    Ok(())
}

fn numbers<F: Real>(data: &Data<F>) -> Vec<f64> {
    match data {
        Data::Float(x) => x.iter().map(|x| x.to_f64()).collect(),
        Data::Int(x) => x.iter().map(|x| f64::from(*x)).collect(),
        Data::Bool(x) => x.iter().map(|x| f64::from(u8::from(*x))).collect(),
    }
}

/// Both graphs give the same outputs: up to the folding of constants in `f64`, up to a few roundings of products in `bf16`.
fn same_answer(before: &Graph, after: &Graph, dims: &Bindings, compute: DType) -> Result<(), String> {
    let made_up = MadeUp::default();
    let want = made_up.outputs::<f64>(before, dims).map_err(|error| format!("before: {error}"))?;
    let got = made_up.outputs::<f64>(after, dims).map_err(|error| format!("after: {error}"))?;
    let difference = largest_difference(&want, &got)?;
    if difference > FOLDING_ERROR {
        return Err(format!(
            "the passes change the answer by {difference:e} ({compute} storage not rounded)"
        ));
    }
    Ok(())
}

fn run_entry(sources: &SourceMap, program: &Program, directives: &Directives) -> Outcome {
    let graph = elaborate(program, &config(directives)?, entry(program, directives)?)
        .map_err(|diagnostics| render(sources, &diagnostics, false))?;
    let dims = directives.dims.clone().unwrap_or_default();
    let given = |name: &str, ty: &TensorType| -> Option<Tensor<f32>> {
        tensor(directives.inputs.get(name)?, ty, &dims).ok()
    };
    let inputs = graph
        .inputs
        .iter()
        .filter_map(|input| Some((input.name.clone(), given(&input.name, &input.ty)?)))
        .collect();
    let weights = |name: &str| {
        let weight = graph.weights.iter().find(|weight| weight.name == name)?;
        given(name, &weight.ty)
    };
    let outputs =
        evaluate(&graph, &dims, &inputs, &weights, &Options::default()).map_err(|error| error.to_string())?;
    for name in directives.outputs.keys() {
        if outputs.iter().all(|(output, _)| output != name) {
            return Err(format!("there is no output `{name}`"));
        }
    }
    let mut text = String::new();
    for (name, output) in outputs {
        if let Some(want) = directives.outputs.get(&name) {
            let want = tensor(want, &output.ty(), &Bindings::new())?;
            let (want, got) = ([(name.clone(), want)], [(name.clone(), output.clone())]);
            let difference = largest_difference(&want, &got)?;
            if difference > FOLDING_ERROR {
                return Err(format!("output `{name}` is {:?}", output.data()));
            }
        }
        text += &format!("{name}: {:?}\n", output.data());
    }
    Ok(text)
}

fn tensor(elements: &[f64], ty: &TensorType, dims: &Bindings) -> Result<Tensor<f32>, String> {
    let sizes = ty.shape.iter().map(|dim| usize::try_from(dim.eval(dims).ok()?).ok());
    let shape: Vec<usize> = sizes.collect::<Option<_>>().ok_or_else(|| format!("{ty} has unbound sizes"))?;
    let data = match ty.dtype {
        DType::F32 | DType::Bf16 | DType::F16 => Data::Float(elements.iter().map(|x| *x as f32).collect()),
        DType::I32 | DType::I8 => Data::Int(elements.iter().map(|x| *x as i32).collect()),
        DType::Bool => Data::Bool(elements.iter().map(|x| *x != 0.0).collect()),
    };
    Tensor::new(ty.dtype, shape, data).map_err(|error| error.to_string())
}

fn compare(path: &Path, directives: &Directives, outcome: Outcome) -> Result<(), String> {
    let output = match (outcome, directives.errors.is_empty()) {
        (Ok(output), true) => output,
        (Ok(output), false) => return Err(format!("it should have failed but gave:\n{output}")),
        (Err(message), true) => return Err(message),
        (Err(message), false) => {
            let missing: Vec<&String> =
                directives.errors.iter().filter(|error| !message.contains(*error)).collect();
            return if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("{missing:?} not found in:\n{message}"))
            };
        }
    };
    let mut rest = output.as_str();
    for check in &directives.checks {
        let place =
            rest.find(check).ok_or_else(|| format!("`{check}` not found, in order, in:\n{output}"))?;
        rest = &rest[place + check.len()..];
    }
    if let Some(found) = directives.check_nots.iter().find(|text| output.contains(*text)) {
        return Err(format!("`{found}` found in:\n{output}"));
    }
    for (count, text) in &directives.counts {
        let found = output.matches(text).count();
        if found != *count {
            return Err(format!("`{text}` found {found} times, not {count}, in:\n{output}"));
        }
    }
    if directives.snapshot { compare_snapshot(path.with_extension("expected"), &output) } else { Ok(()) }
}

fn compare_snapshot(path: PathBuf, output: &str) -> Result<(), String> {
    if std::env::var_os("NUCLEUS_BLESS").is_some() {
        return fs::write(&path, output).map_err(|error| error.to_string());
    }
    let want = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    if want == output {
        return Ok(());
    }
    let same = want.lines().zip(output.lines()).take_while(|(want, got)| want == got).count();
    let line = |text: &str| text.lines().nth(same).unwrap_or("(end)").to_owned();
    Err(format!(
        "differs from {} in line {}\n  want: {}\n  got:  {}\nwhole output:\n{output}",
        path.display(),
        same + 1,
        line(&want),
        line(output)
    ))
}
