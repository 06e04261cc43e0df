//! Every way in which a small valid plan can be broken is seen.

use nucleus_ir::{DType, Dim, Rate, ScalarOp, Symbol, TensorType};

use super::verify_plan;
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
