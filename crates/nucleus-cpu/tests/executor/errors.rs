//! What cannot run is an error that says why.

use nucleus_cpu::{BindError, BoundPlan, CompileError, CpuProgram, ExecuteError, Options};
use nucleus_plan::{Anchor, Step};

use crate::harness::{Case, DEFAULT, Expected, bindings, expected, plan, run};
use crate::leading_axes::LONG;
use crate::routing::{PLAIN, TOGETHER, combine};

pub(crate) const GATHER: &str = "
    dim N, S;
    input x: f32[S, 4] per step;
    input index: i32[N] per step;
    output y: f32[N, 4];
    buffer b0: f32[S, 4] input 0;
    buffer b1: i32[N] input 1;
    buffer b2: f32[N, 4] output 0;
    kernel k0(read f32, read i32, write f32) sizes 1 map {
        space s0, 4;
        function {
            v0 = load o0[i1 + 4*o1[i0]];
            store o2[4*i0 + i1] = v0;
        }
    }
    launch k0(b0, b1, b2) sizes N per step;
";

impl Expected {
    /// Replaces one element of a tensor.
    pub(crate) fn replace(&mut self, name: &str, position: usize, value: f64) {
        self.tensors.get_mut(name).unwrap()[position] = value;
    }
}

fn compile(text: &str) -> Result<CpuProgram, CompileError> {
    CpuProgram::compile(plan(text), Options { threads: 1, ..Options::default() })
}

pub(crate) fn bind(text: &str, dims: &[(&str, i64)]) -> Result<BoundPlan, BindError> {
    compile(text).unwrap().bind(&bindings(dims)).map(|bound| bound.sizes().clone())
}

#[test]
fn an_index_outside_its_buffer() {
    for bad in [-1.0, 5.0, f64::from(i32::MAX), f64::from(i32::MIN)] {
        let fine = |name: &str, _: usize| (name == "index").then_some(0.0);
        let dims = [("N", 9), ("S", 5)];
        let case = Case { text: GATHER, dims: &dims, value: &fine, ..DEFAULT };
        let mut given = expected(&case, &plan(GATHER), &bindings(&dims));
        given.replace("index", 7, bad);
        let outcome = run(&mut compile(GATHER).unwrap(), &bindings(&dims), &given, false);
        match outcome {
            Err(ExecuteError::Index { value, size: 5, .. }) => assert_eq!(value as f64, bad),
            other => panic!("{bad}: {other:?}"),
        }
    }
}

#[test]
fn sizes_that_leave_a_buffer() {
    let text = GATHER.replace("4*i0 + i1] = v0", "5*i0 + i1] = v0");
    let error = bind(&text, &[("N", 3), ("S", 2)]).unwrap_err();
    assert!(matches!(error, BindError::Bounds { launch: 0, .. }), "{error}");
    assert!(error.to_string().contains("operand 2 has 12 elements; 0 to 13 are touched"), "{error}");
    assert!(bind(&text, &[("N", 1), ("S", 2)]).is_ok());
}

#[test]
fn indices_that_the_launch_itself_writes() {
    let text = "
    dim N;
    input x: i32[N] per step;
    output y: i32[N];
    buffer b0: i32[N] input 0;
    buffer b1: i32[N] output 0;
    kernel k0(read i32, read i32, write i32) sizes 1 map {
        space s0;
        function {
            v0 = load o0[1*o1[i0]];
            store o2[i0] = v0;
        }
    }
    launch k0(b0, b1, b1) sizes N per step;
";
    // The indices are looked at before the launch, which would then change them.
    let error = bind(text, &[("N", 3)]).unwrap_err().to_string();
    assert!(error.contains("operands 1 and 2 share memory, and one is written"), "{error}");
    assert!(bind(&text.replace("k0(b0, b1, b1)", "k0(b0, b0, b1)"), &[("N", 3)]).is_ok());
}

/// A product whose factors are one element each, repeated.
pub(crate) fn repeated(depth: i64) -> String {
    format!(
        "
    dim N;
    input x: f32[N] per step;
    output y: f32[N, 2];
    buffer b0: f32[N] input 0;
    buffer b1: f32[N, 2] output 0;
    kernel k0(read f32, write f32) sizes 1 matmul f32 {{
        batch;
        rows s0;
        columns 2; segments 1; depth {depth};
        a {{ v0 = load o0[0]; return v0; }}
        b {{ v0 = load o0[0]; return v0; }}
        epilogue {{ v0 = accumulator 0; store o1[2*i0 + i1] = v0; }}
    }}
    launch k0(b0, b1) sizes N per step;
"
    )
}

#[test]
fn more_memory_than_there_may_be() {
    // Small buffers, but a factor that would take 128 GB once packed.
    let dims = [("N", 3)];
    let limit = Options { threads: 2, memory_limit: 1 << 20, ..Options::default() };
    let outcome = |depth: i64| {
        let text = repeated(depth);
        let shallow = repeated(1);
        let case = Case { text: &shallow, dims: &dims, ..DEFAULT };
        let given = expected(&case, &plan(&shallow), &bindings(&dims));
        run(&mut CpuProgram::compile(plan(&text), limit).unwrap(), &bindings(&dims), &given, false)
    };
    assert!(outcome(100).is_ok());
    let error = outcome(1 << 30).unwrap_err();
    assert!(matches!(error, ExecuteError::Memory { launch: 0, .. }), "{error}");
    // Beyond that the sizes themselves are refused, long before they overflow.
    for depth in [1 << 48, i64::MAX] {
        let error = bind(&repeated(depth), &dims).unwrap_err();
        assert!(matches!(error, BindError::Bounds { .. }), "{error}");
    }
}

#[test]
fn arenas_inputs_and_outputs_together_within_the_limit() {
    let program = |memory_limit| {
        CpuProgram::compile(plan(GATHER), Options { threads: 1, memory_limit, ..Options::default() }).unwrap()
    };
    // x has 80 bytes, the index 36 and y 144.
    let dims = bindings(&[("N", 9), ("S", 5)]);
    assert!(program(260).bind(&dims).is_ok());
    assert!(matches!(program(259).bind(&dims), Err(BindError::Memory { needed: 260, limit: 259, .. })));
}

#[test]
fn dims_without_a_value_or_absurd_ones() {
    assert!(matches!(bind(GATHER, &[("N", 3)]), Err(BindError::Dim { name, .. }) if name == "S"));
    assert!(matches!(bind(GATHER, &[("N", 0), ("S", 1)]), Err(BindError::Dim { name, .. }) if name == "N"));
    assert!(matches!(bind(GATHER, &[("N", 1 << 50), ("S", 1)]), Err(BindError::Memory { .. })));
    assert!(matches!(bind(GATHER, &[("N", i64::MAX), ("S", i64::MAX)]), Err(BindError::Memory { .. })));
}

#[test]
fn a_constraint_that_does_not_hold() {
    let text =
        GATHER.replace("    buffer b0", "    require N <= S, \"as many rows as sources\";\n    buffer b0");
    let error = bind(&text, &[("N", 3), ("S", 2)]).unwrap_err();
    assert_eq!(error.to_string(), "as many rows as sources: `N` = 3 exceeds `S` = 2");
}

#[test]
fn launches_and_functions_that_do_not_fit() {
    for (from, to) in [
        ("launch k0(b0, b1, b2) sizes N", "launch k0(b0, b1) sizes N"),
        ("launch k0(b0, b1, b2) sizes N", "launch k0(b0, b1, b2) sizes N, S"),
        ("launch k0(b0, b1, b2) sizes N", "launch k0(b1, b0, b2) sizes N"),
        ("kernel k0(read f32, read i32, write f32)", "kernel k0(read f32, update i32, write f32)"),
        ("space s0, 4", "space s1, 4"),
        ("v0 = load o0[i1 + 4*o1[i0]]", "v0 = load o1[i0]"),
        ("v0 = load o0[i1 + 4*o1[i0]]", "v0 = load o7[i0]"),
    ] {
        let text = GATHER.replace(from, to);
        assert_ne!(text, GATHER);
        assert!(compile(&text).is_err(), "{to}");
    }
}

#[test]
fn results_of_later_phases_are_refused() {
    let mut later = plan(LONG);
    let Anchor::RowReduction(reduction) = &mut later.kernels[0].anchor else { panic!("{later}") };
    reduction.phases[0].function.steps.push(Step::Accumulator(0));
    let error = CpuProgram::compile(later, Options::default()).unwrap_err();
    assert!(error.to_string().contains("beyond the 0"), "{error}");
    // The plan itself is a good one.
    let program = CpuProgram::compile(plan(LONG), Options::default()).unwrap();
    program.bind(&bindings(&[("R", 1), ("N", 2)])).unwrap();
}

#[test]
fn a_partition_that_leaves_its_buffers_or_meets_itself_is_refused() {
    let text = combine(TOGETHER, PLAIN);
    let dims = [("B", 2), ("S", 5), ("C", 2)];
    assert!(bind(&text, &dims).is_ok());
    for (from, to, why) in [
        ("b5: i32[B, S + 1]", "b5: i32[B, S]", "operand 2`: 10 elements where 12 are needed"),
        ("b6: i32[B, 3*C]", "b6: i32[B, C]", "operand 3`: 4 elements where 12 are needed"),
        (
            "b4: f32[B, 3, C]",
            "b4: f32[B, C]",
            "slot `epilogue`: operand 5 has 4 elements; 0 to 11 are touched",
        ),
        (
            "offsets o2; positions o3",
            "offsets o2; positions o2",
            "operand 2 is written whole and used otherwise",
        ),
        (
            "offsets o2; positions o3",
            "offsets o1; positions o3",
            "operand 1 is written whole and used otherwise",
        ),
        ("o5[s4*i0 + s2*i1 + i2]", "o5[s4*i0 + i1 + i2]", "a point stores an element of operand 5"),
    ] {
        let broken = text.replace(from, to);
        assert_ne!(broken, text);
        let error = bind(&broken, &dims).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
