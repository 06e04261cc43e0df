//! Every way in which a small valid plan can be broken is seen.

use nucleus_ir::{DType, Dim, Rate, ScalarOp, Symbol, TensorType};

use super::verify_plan;
use crate::text::parse_plan;
use crate::*;

fn access(operand: u32) -> Access {
    Access { operand, offset: Size::Const(0), strides: vec![Size::Const(8), Size::Const(1)], indirect: None }
}

/// `y = exp x`, then `z = y`, over [B, 8].
fn plan() -> Plan {
    let shape = vec![Dim::symbol("B"), Dim::constant(8)];
    let ty = TensorType::new(DType::F32, shape.clone());
    let kernel = |op: Option<ScalarOp>| {
        let mut function = ScalarFunction::default();
        let x = function.push(Step::Load(access(0)));
        let value = op.map_or(x, |op| function.push(Step::Apply { op, args: vec![x] }));
        function.push(Step::Store { access: access(1), value });
        Kernel {
            operands: vec![
                Operand { dtype: DType::F32, mode: OperandMode::Read },
                Operand { dtype: DType::F32, mode: OperandMode::Write },
            ],
            size_args: 1,
            anchor: Anchor::Map(Map { space: vec![Size::Arg(0), Size::Const(8)], function }),
        }
    };
    let buffer = |place| Buffer { dtype: DType::F32, shape: shape.clone(), place };
    let launch = |kernel, operands: [u32; 2]| Launch {
        kernel: KernelId(kernel),
        stage: Rate::Step,
        operands: operands.map(BufferId).to_vec(),
        sizes: vec![Dim::symbol("B")],
        flops: Dim::constant(0),
        bytes: Dim::constant(0),
        scope: None,
    };
    Plan {
        entry: "test".to_owned(),
        dims: vec![Symbol::new("B")],
        inputs: vec![PlanInput { name: "x".to_owned(), ty: ty.clone(), rate: Rate::Step, default: None }],
        outputs: vec![PlanOutput { name: "z".to_owned(), ty }],
        buffers: vec![
            buffer(Place::Input(0)),
            buffer(Place::Arena { rate: Rate::Step, offset: None }),
            buffer(Place::Output(0)),
        ],
        kernels: vec![kernel(Some(ScalarOp::Exp)), kernel(None)],
        launches: vec![launch(0, [0, 1]), launch(1, [1, 2])],
        ..Plan::default()
    }
}

fn function(plan: &mut Plan) -> &mut ScalarFunction {
    match &mut plan.kernels[0].anchor {
        Anchor::Map(map) => &mut map.function,
        _ => unreachable!("the sample is a map"),
    }
}

#[track_caller]
fn broken(change: impl FnOnce(&mut Plan), expected: &str) {
    let mut plan = plan();
    change(&mut plan);
    let errors = verify_plan(&plan).unwrap_err();
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(shown.iter().any(|error| error.contains(expected)), "{shown:?}");
}

#[test]
fn the_sample_is_valid() {
    assert_eq!(verify_plan(&plan()), Ok(()));
}

#[test]
fn numbers_beyond_the_limits() {
    broken(|plan| plan.dims = vec![Symbol::new("B"); 200_000], "200000 dims");
    broken(|plan| function(plan).steps = vec![Step::Accumulator(0); 1 << 17], "131072 steps");
    broken(
        |plan| {
            if let Anchor::Map(map) = &mut plan.kernels[1].anchor {
                map.space = vec![Size::Const(1); 65];
            }
        },
        "65 axes",
    );
}

#[test]
fn references_out_of_range() {
    broken(|plan| function(plan).steps[0] = Step::Load(access(5)), "there is no operand 5");
    broken(|plan| plan.kernels[0].size_args = 0, "there is no size argument 0");
    broken(|plan| plan.launches[1].kernel = KernelId(9), "there is no kernel k9");
    broken(|plan| plan.launches[1].operands[0] = BufferId(9), "there is no buffer b9");
    broken(|plan| plan.launches[0].sizes.clear(), "0 sizes for 1 size arguments");
    broken(|plan| plan.buffers[0].place = Place::Input(3), "stands for nothing");
}

#[test]
fn bytes_outside_of_weights() {
    broken(|plan| plan.buffers[1].dtype = DType::I8, "buffer b1: is i8, which only weights may be");
    let constant = Step::Constant { value: nucleus_ir::Float(1.0), dtype: DType::I8 };
    broken(|plan| function(plan).steps[0] = constant, "there are no constants of i8");
    broken(
        |plan| function(plan).steps[1] = Step::Apply { op: ScalarOp::Cast(DType::I8), args: vec![StepId(0)] },
        "not defined for its operands",
    );
}

#[test]
fn functions_that_do_not_type() {
    broken(|plan| function(plan).steps[1] = Step::Accumulator(0), "there is no accumulator 0");
    broken(
        |plan| function(plan).steps[1] = Step::Apply { op: ScalarOp::Not, args: vec![StepId(0)] },
        "not defined for its operands",
    );
    broken(
        |plan| function(plan).steps[1] = Step::Apply { op: ScalarOp::Exp, args: vec![StepId(1)] },
        "does not come before",
    );
    broken(
        |plan| {
            function(plan).steps[1] = Step::Apply { op: ScalarOp::Cast(DType::Bf16), args: vec![StepId(0)] }
        },
        "has not the operand's dtype",
    );
    broken(|plan| function(plan).result = Some(StepId(0)), "a result without use");
    broken(
        |plan| match &mut function(plan).steps[0] {
            Step::Load(access) => drop(access.strides.pop()),
            _ => unreachable!("the first step loads"),
        },
        "1 strides for 2 axes",
    );
    broken(|plan| plan.kernels[0].operands[0].mode = OperandMode::Write, "operand 0 is not bound for this");
}

#[test]
fn orders_that_cannot_run() {
    broken(|plan| plan.launches.swap(0, 1), "b1 is read before it is written");
    broken(|plan| plan.launches.push(plan.launches[0].clone()), "b1 is written after it was read");
    broken(|plan| plan.launches[1].stage = Rate::Prompt, "after a launch");
    broken(|plan| plan.launches[0].stage = Rate::Prompt, "changes after its stage");
    broken(|plan| drop(plan.launches.pop()), "an output that is never written");
    broken(|plan| plan.launches[1].operands[1] = BufferId(0), "is written");
}

#[test]
fn accesses_outside_their_buffer() {
    broken(
        |plan| match &mut function(plan).steps[0] {
            Step::Load(access) => access.offset = Size::Const(1),
            _ => unreachable!("the first step loads"),
        },
        "accesses elements 1 to 8 of b0, which has 8",
    );
}

/// An expert choice with its inverse and normalised gates.
const PARTITION: &str = "plan test { dim C, S;
    require C <= S, \"capacity\";
    input x: f32[2, S, 3] per step;
    output token: i32[2, 3, C];
    output gate: f32[2, 3, C];
    buffer b0: f32[2, S, 3] input 0;
    buffer b1: i32[2, 3, C] output 0;
    buffer b2: i32[2, S + 1] arena step;
    buffer b3: i32[2, 3*C] arena step;
    buffer b4: f32[2, 3, C] output 1;
    kernel k0(read f32, write i32, write i32, write i32, write f32) sizes 4 expert_choice {
        batch 2; tokens s0; experts 3; capacity s1; slot_token o1; offsets o2; positions o3;
        affinity { v0 = load o0[s2*i0 + 3*i1 + i2]; return v0; }
        epilogue {
            v0 = accumulator 0;
            v1 = accumulator 1;
            v2 = div(v0, v1);
            store o4[s3*i0 + s1*i1 + i2] = v2;
        }
    }
    launch k0(b0, b1, b2, b3, b4) sizes S, C, 3*S, 3*C per step flops 0 bytes 0;
}";

#[test]
fn partitions_that_do_not_fit() {
    let check = |text: &str| verify_plan(&parse_plan(text).unwrap());
    assert_eq!(check(PARTITION), Ok(()));
    let whole = "written whole and used otherwise";
    for (from, to, expected) in [
        ("accumulator 1", "accumulator 2", "epilogue, step 1: there is no accumulator 2"),
        ("return v0", "v1 = accumulator 0; return v0", "affinity, step 1: there is no accumulator 0"),
        ("capacity s1", "capacity s4", "there is no size argument 4"),
        ("positions o3", "positions o5", "there is no operand 5"),
        ("positions o3", "positions o0", "operand 0 does not fit its use"),
        ("positions o3", "positions o4", "operand 4 does not fit its use"),
        ("positions o3", "positions o1", whole),
        ("offsets o2", "offsets o3", whole),
        ("v1 = accumulator 1", "v1 = load o4[s3*i0 + s1*i1]", "operand 4 is not bound for this"),
        ("store o4[s3*i0 + s1*i1 + i2] = v2", "store o4[s3*i0 + s1*i1] = v2", "that another point stores"),
        ("s3*i0 + s1*i1 + i2] = v2", "1 + s3*i0 + s1*i1 + i2] = v2", "epilogue accesses elements 1 to"),
        ("b2: i32[2, S + 1]", "b2: i32[2, S]", "4 elements of b2 are used, which has 2"),
        ("b3: i32[2, 3*C]", "b3: i32[3, C]", "6 elements of b3 are used, which has 3"),
        ("b3: i32[2, 3*C]", "b3: f32[2, 3*C]", "operand 3 is i32, b3 is f32"),
        ("(b0, b1, b2, b3, b4)", "(b0, b1, b2, b1, b4)", "b1 is written and bound to another operand too"),
    ] {
        let broken = PARTITION.replace(from, to);
        assert_ne!(broken, PARTITION);
        let errors = check(&broken).unwrap_err();
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(shown.iter().any(|error| error.contains(expected)), "{to}: {shown:?}");
    }
}

#[test]
fn arena_places() {
    let place = |offset| Place::Arena { rate: Rate::Step, offset: Some(Dim::constant(offset)) };
    let arenas = |size| Some([0, 0, size].map(Dim::constant));
    broken(|plan| plan.arenas = arenas(1 << 20), "has no offset");
    let small = |plan: &mut Plan| {
        plan.arenas = arenas(64);
        plan.buffers[1].place = place(0);
    };
    broken(small, "of an arena of 64 bytes");
    let odd = |plan: &mut Plan| {
        plan.arenas = arenas(1 << 20);
        plan.buffers[1].place = place(32);
    };
    broken(odd, "lies at 32");
    let overlapping = |plan: &mut Plan| {
        plan.arenas = arenas(1 << 20);
        plan.buffers[1].place = place(0);
        // A second value that is in use at the same time, in the same place.
        let twin = plan.buffers[1].clone();
        plan.buffers.push(twin);
        let mut writer = plan.launches[0].clone();
        writer.operands[1] = BufferId(3);
        plan.launches.insert(1, writer);
    };
    broken(overlapping, "while both are in use");
}

/// Two products of x, one of them in two segments, with a residual in the epilogue of the other.
const PARTS: &str = "plan test {
    dim N;
    input x: f32[N, 8] per step;
    output y: f32[N, 3];
    output z: f32[N, 2];
    weight \"a\": f32[8, 3];
    weight \"b\": f32[8, 4];
    buffer b0: f32[N, 8] input 0;
    buffer b1: f32[8, 3] weight \"a\";
    buffer b2: f32[8, 4] weight \"b\";
    buffer b3: f32[N, 3] output 0;
    buffer b4: f32[N, 2] output 1;
    kernel k0(read f32, read f32, read f32, write f32, write f32) sizes 1 matmul f32 {
        batch;
        rows s0;
        depth 8;
        a { v0 = load o0[8*i0 + i1]; return v0; }
        part columns 3; segments 1;
        b { v0 = load o1[3*i0 + i1]; return v0; }
        epilogue { v0 = accumulator 0; v1 = load o0[8*i0 + i1]; v2 = add(v0, v1); store o3[3*i0 + i1] = v2; }
        part columns 2; segments 2;
        b { v0 = load o2[4*i0 + i1]; return v0; }
        epilogue { v0 = accumulator 0; v1 = accumulator 1; v2 = mul(v0, v1); store o4[2*i0 + i1] = v2; }
    }
    launch k0(b0, b1, b2, b3, b4) sizes N per step flops 0 bytes 0;
}
";

#[track_caller]
fn broken_parts(from: &str, to: &str, expected: &str) {
    let text = PARTS.replace(from, to);
    assert_ne!(text, PARTS);
    let errors = verify_plan(&crate::text::parse_plan(&text).unwrap()).unwrap_err();
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(shown.iter().any(|error| error.contains(expected)), "{shown:?}");
}

#[test]
fn parts_of_a_contraction() {
    let plan = crate::text::parse_plan(PARTS).unwrap();
    assert_eq!(verify_plan(&plan), Ok(()));
    // Numbers of the second part's own.
    broken_parts("segments 2", "segments 1", "epilogue1, step 1: there is no accumulator 1");
    broken_parts("segments 2", "segments 0", "a segment in each");
    broken_parts("columns 2", "columns s1", "there is no size argument 1");
    broken_parts("o2[4*i0 + i1]", "o2[4*i0 + 2*i1]", "b1 accesses elements 0 to 34 of b2, which has 32");
    broken_parts("o4[2*i0 + i1]", "o4[i0 + i1]", "epilogue1: a point stores an element of operand 4");
    // Parts may run at the same time: what one stores, no other may touch.
    let both = "epilogue1: a point stores an element of operand 3";
    broken_parts("store o4[2*i0 + i1]", "store o3[3*i0 + i1]", both);
    let update = PARTS.replace("write f32, write f32)", "update f32, write f32)");
    let text = update.replace("v1 = accumulator 1;", "v1 = load o3[3*i0];");
    let plan = crate::text::parse_plan(&text).unwrap();
    let (slot, why) = check_races(&plan.kernels[0], &[5], &mut 100).unwrap_err();
    assert_eq!(slot, "epilogue0");
    assert_eq!(why, "a point stores an element of operand 3 that another point reads");
}

#[test]
fn numbers_of_parts() {
    let (before, rest) = PARTS.split_once("        part columns 3").unwrap();
    let (_, after) = rest.split_once("    }\n    launch").unwrap();
    let without = format!("{before}    }}\n    launch{after}");
    let errors = verify_plan(&crate::text::parse_plan(&without).unwrap()).unwrap_err();
    assert!(errors.iter().any(|error| error.what.contains("a product needs a part")), "{errors:?}");

    let mut plan = crate::text::parse_plan(PARTS).unwrap();
    if let Anchor::Matmul(contraction) = &mut plan.kernels[0].anchor {
        contraction.parts = vec![contraction.parts[0].clone(); 5000];
    }
    let errors = verify_plan(&plan).unwrap_err();
    assert!(
        errors.iter().any(|error| error.what.contains("has 5000 phases, segments or parts")),
        "{errors:?}"
    );

    let strides = |plan: &mut Plan, count: usize| {
        if let Anchor::Matmul(contraction) = &mut plan.kernels[0].anchor
            && let Some(Step::Load(access)) = contraction.parts[1].b.steps.first_mut()
        {
            access.strides.resize(count, Size::Const(1));
        }
    };
    for count in [0, 1, 3] {
        let mut plan = crate::text::parse_plan(PARTS).unwrap();
        strides(&mut plan, count);
        let errors = verify_plan(&plan).unwrap_err();
        let what = format!("b1, step 0: {count} strides for 2 axes");
        assert!(errors.iter().any(|error| error.what == what), "{errors:?}");
    }
}

/// Softmax over groups of four of the twelve columns of a product.
const GROUPS: &str = "plan test {
    dim B;
    input x: f32[B, 2] per step;
    output y: f32[B, 12];
    weight \"w\": f32[2, 12];
    buffer b0: f32[B, 2] input 0;
    buffer b1: f32[2, 12] weight \"w\";
    buffer b2: f32[B, 12] output 0;
    kernel k0(read f32, read f32, write f32) sizes 1 matmul f32 {
        batch;
        rows s0;
        columns 12; segments 1; depth 2;
        a { v0 = load o0[2*i0 + i1]; return v0; }
        b { v0 = load o1[12*i0 + i1]; return v0; }
        width 4;
        phase { v0 = accumulator 0; }
        reduce max v0;
        phase { v0 = accumulator 0; v1 = accumulator 1; v2 = sub(v0, v1); v3 = exp(v2); }
        reduce sum v3;
        epilogue {
            v0 = accumulator 0;
            v1 = accumulator 1;
            v2 = sub(v0, v1);
            v3 = exp(v2);
            v4 = accumulator 2;
            v5 = div(v3, v4);
            store o2[12*i0 + 4*i1 + i2] = v5;
        }
    }
    launch k0(b0, b1, b2) sizes B per step flops 0 bytes 0;
}";

#[test]
fn groups_of_columns() {
    assert_eq!(verify_plan(&crate::text::parse_plan(GROUPS).unwrap()), Ok(()));
    let broken = |from: &str, to: &str, expected: &str| {
        let changed = GROUPS.replace(from, to);
        assert_ne!(changed, GROUPS, "{from}");
        let errors = verify_plan(&crate::text::parse_plan(&changed).unwrap()).unwrap_err();
        assert!(errors.iter().any(|error| error.what.contains(expected)), "{errors:?}");
    };
    for width in ["0", "5", "4294967295"] {
        broken(
            "width 4",
            &format!("width {width}"),
            &format!("groups of {width} columns in 12, of 1 segments"),
        );
    }
    broken("columns 12", "columns s0", "columns must be constant and whole groups");
    broken("columns 12; segments 1", "columns 12; segments 4000000000", "may have 4096 accumulators");
    broken("v4 = accumulator 2", "v4 = accumulator 3", "epilogue0, step 4: there is no accumulator 3");
    broken("phase { v0 = accumulator 0; }", "phase { v0 = accumulator 1; }", "phase0.0, step 0: there is no");
    broken(
        "v1 = accumulator 1; v2 = sub(v0, v1); v3 = exp(v2); }",
        "v1 = accumulator 2; v2 = sub(v0, v1); v3 = exp(v2); }",
        "phase0.1, step 1: there is no accumulator 2",
    );
    broken("reduce max v0", "reduce max v7", "reduction of step 7, which is not f32");
    broken("store o2[12*i0 + 4*i1 + i2]", "store o2[12*i0 + 3*i1 + i2]", "another point stores");
    broken("store o2[12*i0 + 4*i1 + i2]", "store o2[12*i0 + 12*i1 + i2]", "accesses elements");
    broken(
        "phase { v0 = accumulator 0; }",
        "phase { v0 = accumulator 0; store o2[12*i0 + 4*i1 + i2] = v0; }",
        "this function computes an operand and may not store",
    );

    let mut plan = crate::text::parse_plan(GROUPS).unwrap();
    if let Anchor::Matmul(contraction) = &mut plan.kernels[0].anchor
        && let Some(groups) = &mut contraction.parts[0].groups
    {
        groups.phases = vec![groups.phases[0].clone(); 5000];
    }
    let errors = verify_plan(&plan).unwrap_err();
    assert!(
        errors.iter().any(|error| error.what.contains("has 5001 phases, segments or parts")),
        "{errors:?}"
    );
}

/// The gradients of attention over two key segments, whose keys' gradients lie one behind the other.
const GRADIENTS: &str = "plan test {
    dim S;
    input q: f32[2, S, 4, 8] per step;
    input k: f32[2, S, 2, 8] per step;
    input t: f32[2, 3, 2, 8] per step;
    input mask: bool[2, 3] per step;
    output dq: f32[2, S, 4, 8];
    output dk: f32[2, S + 3, 2, 8];
    buffer b0: f32[2, S, 4, 8] input 0;
    buffer b1: f32[2, S, 2, 8] input 1;
    buffer b2: f32[2, 3, 2, 8] input 2;
    buffer b3: bool[2, 3] input 3;
    buffer b4: f32[2, S, 4, 8] output 0;
    buffer b5: f32[2, S + 3, 2, 8] output 1;
    kernel k0(read f32, read f32, read f32, read bool, write f32, write f32) sizes 5 attention_grad f32 {
        batch 2; queries s0; heads 4; key_heads 2; head_size 8; scale 0.3;
        q { v0 = load o0[s1*i0 + 32*i1 + 8*i2 + i3]; return v0; }
        dy { v0 = load o0[s1*i0 + 32*i1 + 8*i2 + i3]; return v0; }
        keys s0;
        k { v0 = load o1[s2*i0 + 16*i1 + 8*i2 + i3]; return v0; }
        v { v0 = load o1[s2*i0 + 16*i1 + 8*i2 + i3]; return v0; }
        dk { v0 = accumulator 0; store o5[s3*i0 + 16*i1 + 8*i2 + i3] = v0; }
        dv { }
        keys 3;
        k { v0 = load o2[48*i0 + 16*i1 + 8*i2 + i3]; return v0; }
        v { v0 = load o2[48*i0 + 16*i1 + 8*i2 + i3]; return v0; }
        mask { v0 = load o3[3*i0 + i1]; return v0; }
        dk { v0 = accumulator 0; store o5[s4 + s3*i0 + 16*i1 + 8*i2 + i3] = v0; }
        dv { }
        dq { v0 = accumulator 0; store o4[s1*i0 + 32*i1 + 8*i2 + i3] = v0; }
    }
    launch k0(b0, b1, b2, b3, b4, b5) sizes S, 32*S, 16*S, 16*S + 48, 16*S per step flops 0 bytes 0;
}
";

#[test]
fn gradients_of_attention() {
    let check = |text: &str| verify_plan(&parse_plan(text).unwrap());
    assert_eq!(check(GRADIENTS), Ok(()));
    for (from, to, expected) in [
        ("dq { v0 = accumulator 0", "dq { v0 = accumulator 1", "dq, step 0: there is no accumulator 1"),
        ("dk { v0 = accumulator 0", "dk { v0 = accumulator 2", "dk0, step 0: there is no accumulator 2"),
        ("key_heads 2", "key_heads 3", "heads a multiple of key heads"),
        ("key_heads 2", "key_heads 0", "heads a multiple of key heads"),
        ("attention_grad f32", "attention_grad bf16", "dy: needs a result of dtype bf16"),
        ("attention_grad f32", "attention_grad i32", "keys of a float type"),
        (
            "mask { v0 = load o3[3*i0 + i1]",
            "mask { v0 = load o2[3*i0 + i1]",
            "mask1: needs a result of dtype bool",
        ),
        ("dv { }", "dv { v0 = load o0[i3]; return v0; }", "dv0: has a result without use"),
        ("dy { v0 = load o0[s1*i0", "dy { v0 = load o0[s9*i0", "there is no size argument 9"),
        ("keys 3", "keys 4", "dk1 accesses elements"),
        (
            "store o5[s4 +",
            "store o5[16 +",
            "a point stores an element of operand 5 that another point stores",
        ),
        (
            "store o5[s3*i0 + 16*i1 + 8*i2 + i3]",
            "store o5[s3*i0 + 16*i1 + 8*i2]",
            "that another point stores",
        ),
        ("dv { }", "dv { v0 = accumulator 0; store o4[0] = v0; }", "that another point stores"),
    ] {
        let broken = GRADIENTS.replacen(from, to, 1);
        assert_ne!(broken, GRADIENTS);
        let errors = check(&broken).unwrap_err();
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(shown.iter().any(|error| error.contains(expected)), "{to}: {shown:?}");
    }
    let none = GRADIENTS.find("        keys s0").unwrap()..GRADIENTS.find("        dq {").unwrap();
    let mut broken = GRADIENTS.to_owned();
    broken.replace_range(none, "");
    assert!(check(&broken).is_err());
}
