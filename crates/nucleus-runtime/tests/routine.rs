//! Routines: plans on memory of the caller.

use nucleus_ir::{DType, Symbol};
use nucleus_passes::differentiate::Gradients;
use nucleus_passes::pipeline::CompileOptions;
use nucleus_plan::{in_place, next_values};
use nucleus_runtime::{Arguments, HostTensor, Model, ModelText, Profile, Routine, RoutineError, Threads};

fn try_routine(text: &str, options: &CompileOptions) -> Result<Routine, RoutineError> {
    let text = ModelText { main: ("test.ir".to_owned(), text.to_owned()), modules: Vec::new() };
    let model = Model::from_text(&text).unwrap_or_else(|error| panic!("{error}"));
    let plan = model.compile_with("step", options, &mut ()).unwrap_or_else(|error| panic!("{error}"));
    Routine::new(plan, &Threads::new(2).expect("threads"), None)
}

fn routine(text: &str) -> Routine {
    try_routine(text, &CompileOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// x ← x − rate · g, rate 0.5 unless it is given.
const UPDATE: &str = "dim N;
entry step(x: [N, 4] per step, g: [N, 4] per step, rate: [] per step optional = 0.5) -> (x: [N, 4]) {
    x - rate * g
}";

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32 - 3.0).collect()
}

fn dims(n: i64) -> Vec<(String, i64)> {
    vec![("N".to_owned(), n)]
}

#[test]
fn an_update_is_made_in_place_and_at_any_size() {
    let mut update = routine(UPDATE);
    assert_eq!(in_place(update.plan()), [Some(0)]);
    for rows in [3, 1, 300, 3] {
        let (mut x, g) = (numbers(4 * rows), vec![2.0f32; 4 * rows]);
        let mut arguments = Arguments::new();
        arguments.input("g", g.as_slice()).output("x", x.as_mut_slice());
        update.run(&dims(rows as i64), &mut arguments, None).expect("the arguments fit");
        let want: Vec<f32> = numbers(4 * rows).iter().map(|x| x - 1.0).collect();
        assert_eq!(x, want, "{rows} rows");
        assert_eq!(update.bindings().and_then(|sizes| sizes.get(&Symbol::new("N"))), Some(rows as i64));
    }
}

#[test]
fn more_sizes_than_are_kept_come_back() {
    let mut update = routine(UPDATE);
    for rows in (1..20).chain(1..20) {
        let (mut x, g) = (numbers(4 * rows), numbers(4 * rows));
        let mut arguments = Arguments::new();
        arguments.input("g", g.as_slice()).output("x", x.as_mut_slice());
        update.run(&dims(rows as i64), &mut arguments, None).expect("the arguments fit");
        let want: Vec<f32> = g.iter().map(|g| 0.5 * g).collect();
        assert_eq!(x, want, "{rows} rows");
    }
}

#[test]
fn optional_inputs_have_their_default_unless_given() {
    let mut update = routine(UPDATE);
    let (g, rate) = (numbers(4), 2.0f32);
    let mut x = numbers(4);
    let mut arguments = Arguments::new();
    arguments.input("g", g.as_slice()).input("rate", &rate).output("x", x.as_mut_slice());
    update.run(&dims(1), &mut arguments, None).expect("the arguments fit");
    let want: Vec<f32> = g.iter().map(|g| -g).collect();
    assert_eq!(x, want);
}

/// A state that is updated is read from its memory, whatever its default.
#[test]
fn a_default_is_not_taken_for_what_an_output_holds() {
    let text = "dim N;
entry step(x: [N, 4] per step optional = 100.0) -> (x: [N, 4]) { x + 1.0 }";
    let mut update = routine(text);
    let mut x = numbers(4);
    update.run(&dims(1), Arguments::new().output("x", x.as_mut_slice()), None).expect("the arguments fit");
    let want: Vec<f32> = numbers(4).iter().map(|x| x + 1.0).collect();
    assert_eq!(x, want);
}

#[test]
fn an_input_that_is_given_beside_its_next_value_stays() {
    let mut update = routine(UPDATE);
    let (before, g, mut x) = (numbers(8), vec![1.0f32; 8], vec![f32::NAN; 8]);
    let mut arguments = Arguments::new();
    arguments.input("x", before.as_slice()).input("g", g.as_slice()).output("x", x.as_mut_slice());
    update.run(&dims(2), &mut arguments, None).expect("the arguments fit");
    assert_eq!(before, numbers(8));
    let want: Vec<f32> = numbers(8).iter().map(|x| x - 0.5).collect();
    assert_eq!(x, want);
}

#[test]
fn what_cannot_be_written_in_place_is_copied() {
    let text = "entry step(m: [3, 3] per step, scale: [] per step) -> (m: [3, 3], sum: []) {
    let turned = transpose(m, [1, 0]);
    (scale * turned, reduce_sum(reduce_sum(m, axis = 0), axis = 0))
}";
    let mut turn = routine(text);
    assert_eq!(next_values(turn.plan()), [Some(0), None]);
    assert_eq!(in_place(turn.plan()), [None, None]);
    let mut m: Vec<f32> = (0..9).map(|i| i as f32).collect();
    let (scale, mut sum) = (2.0f32, 0.0f32);
    for (want, total) in [
        ([0.0, 6.0, 12.0, 2.0, 8.0, 14.0, 4.0, 10.0, 16.0], 36.0),
        ([0.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0], 72.0),
    ] {
        let mut arguments = Arguments::new();
        arguments.input("scale", &scale).output("m", m.as_mut_slice()).output("sum", &mut sum);
        turn.run(&[], &mut arguments, None).expect("the arguments fit");
        assert_eq!(m, want);
        assert_eq!(sum, total);
    }
}

#[test]
fn sizes_follow_from_shapes_where_tensors_have_one() {
    let mut update = routine(UPDATE);
    let g = HostTensor::from_f32(&[2, 4], &numbers(8)).expect("a tensor");
    let mut x = HostTensor::from_f32(&[2, 4], &[0.0; 8]).expect("a tensor");
    update.run(&[], Arguments::new().input("g", &g).output("x", &mut x), None).expect("the arguments fit");
    let want: Vec<f32> = numbers(8).iter().map(|g| -0.5 * g).collect();
    assert_eq!(x.to_f32_vec(), want);
}

#[test]
fn weights_under_training_are_the_callers() {
    let text = "entry step(x: [2, 3] per step) -> (loss: []) {
    let y = matmul(x, weight(\"w\", [3, 4]));
    reduce_sum(reduce_sum(y, axis = 0), axis = 0)
}";
    let options = CompileOptions { gradients: Some(Gradients::default()), ..CompileOptions::default() };
    let mut loss = try_routine(text, &options).unwrap_or_else(|error| panic!("{error}"));
    let (x, mut value, mut gradient) = ([1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], 0.0f32, vec![0.0f32; 12]);
    for factor in [1.0f32, 2.0] {
        let w = vec![factor; 12];
        let mut arguments = Arguments::new();
        arguments.input("x", &x[..]).weight("w", w.as_slice());
        arguments.output("loss", &mut value).output("grad.w", gradient.as_mut_slice());
        let mut profile = Profile::default();
        loss.run(&[], &mut arguments, Some(&mut profile)).expect("the arguments fit");
        assert_eq!(value, factor * 4.0 * 21.0);
        assert_eq!(gradient, [5.0, 5.0, 5.0, 5.0, 7.0, 7.0, 7.0, 7.0, 9.0, 9.0, 9.0, 9.0]);
        assert_eq!(profile.seconds.len(), loss.plan().launches.len());
    }
    assert!(loss.limits().expect("a processor").flops > 1e6);
}

#[test]
fn weights_that_never_change_are_refused() {
    let text = "entry step(x: [2, 3] per step) -> (y: [2, 3]) { x * weight(\"w\", [2, 3]) }";
    let message = try_routine(text, &CompileOptions::default()).err().expect("`w` is per model").to_string();
    assert!(message.contains("weight `w` of `step` is per model"), "{message}");
    let text = "entry step(x: [2] per step, mask: [2] per prompt) -> (y: [2]) { x * mask }";
    let message =
        try_routine(text, &CompileOptions::default()).err().expect("`mask` is per prompt").to_string();
    assert!(message.contains("input `mask` of `step` is per prompt"), "{message}");
}

#[test]
fn wrong_arguments_are_named() {
    let mut update = routine(UPDATE);
    let (g, half) = (numbers(8), HostTensor::zeros(DType::Bf16, &[2, 4]).expect("a tensor"));
    let fails = |update: &mut Routine, rows: i64, arguments: &mut Arguments<'_>, parts: &[&str]| {
        let error = update.run(&dims(rows), arguments, None).expect_err("a wrong argument");
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "no {parts:?} in {message}");
    };
    let (mut x, mut y) = (numbers(8), numbers(8));
    fails(&mut update, 2, Arguments::new().output("x", &mut x[..]), &["input `g` of `step`", "is not given"]);
    fails(&mut update, 2, Arguments::new().input("g", &g[..]), &["output `x` of `step`", "is not given"]);
    fails(
        &mut update,
        2,
        Arguments::new().input("g", &g[..]).input("h", &g[..]).output("x", &mut x[..]),
        &["`step` takes no input `h`"],
    );
    fails(
        &mut update,
        2,
        Arguments::new().input("g", &g[..]).output("x", &mut x[..]).output("y", &mut y[..]),
        &["`step` takes no output `y`"],
    );
    fails(
        &mut update,
        2,
        Arguments::new().input("g", &g[..]).weight("w", &g[..]).output("x", &mut x[..]),
        &["`step` takes no weight `w`"],
    );
    fails(
        &mut update,
        2,
        Arguments::new().input("g", &g[..4]).output("x", &mut x[..]),
        &["input `g`", "32 bytes", "16 bytes of f32"],
    );
    fails(
        &mut update,
        2,
        Arguments::new().input("g", &g[..]).output("x", &mut x[..4]),
        &["output `x`", "32 bytes", "16 bytes of f32"],
    );
    fails(
        &mut update,
        2,
        Arguments::new().input("g", &half).output("x", &mut x[..]),
        &["input `g`", "16 bytes of bf16"],
    );
    fails(&mut update, 0, Arguments::new().input("g", &g[..]).output("x", &mut x[..]), &["N"]);
    // After all that it runs.
    let mut arguments = Arguments::new();
    arguments.input("g", &g[..]).output("x", &mut x[..]);
    update.run(&dims(2), &mut arguments, None).expect("the arguments fit");
}

#[test]
fn an_input_that_is_missing_is_not_read_from_an_output_of_another_name() {
    let text = "entry step(x: [4] per step) -> (y: [4]) { x + 1.0 }";
    let mut step = routine(text);
    let mut y = [0.0f32; 4];
    let error = step.run(&[], Arguments::new().output("y", &mut y[..]), None).expect_err("`x` is missing");
    assert!(matches!(error, RoutineError::Missing { what: "input", .. }), "{error}");
}
