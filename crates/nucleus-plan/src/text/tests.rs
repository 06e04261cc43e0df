//! The printed form reads back.

use nucleus_ir::{DType, Dim, Float, Rate, ScalarOp, Symbol, TensorType};

use super::parse_plan;
use crate::*;

fn access(operand: u32, offset: Size, strides: &[Size]) -> Access {
    Access { operand, offset, strides: strides.to_vec(), indirect: None }
}

fn store(operand: u32, axes: usize) -> ScalarFunction {
    let mut function = ScalarFunction::default();
    let value = function.push(Step::Accumulator(0));
    let cast = function.push(Step::Apply { op: ScalarOp::Cast(DType::Bf16), args: vec![value] });
    function.push(Step::Store {
        access: access(operand, Size::Const(-3), &vec![Size::Arg(1); axes]),
        value: cast,
    });
    function
}

fn load(operand: u32, axes: usize) -> ScalarFunction {
    ScalarFunction::load(access(operand, Size::Const(0), &vec![Size::Const(1); axes]))
}

/// Every anchor, every step, every place.
fn sample() -> Plan {
    let gather = ScalarFunction::load(Access {
        operand: 0,
        offset: Size::Arg(0),
        strides: vec![Size::Const(0), Size::Const(0), Size::Const(0), Size::Const(1)],
        indirect: Some(Box::new(Indirect {
            index: access(
                1,
                Size::Const(0),
                &[Size::Arg(2), Size::Const(-5), Size::Const(0), Size::Const(0)],
            ),
            stride: Size::Const(64),
        })),
    });
    let mut everything = ScalarFunction::default();
    let x = everything.push(Step::Load(access(0, Size::Const(0), &[Size::Const(0), Size::Const(0)])));
    let y = everything.push(Step::Constant { value: Float(-1.5e-12), dtype: DType::F32 });
    let z = everything.push(Step::Constant { value: Float(f64::NEG_INFINITY), dtype: DType::F32 });
    let less = everything.push(Step::Apply { op: ScalarOp::Less, args: vec![x, y] });
    let chosen = everything.push(Step::Apply { op: ScalarOp::Select, args: vec![less, x, z] });
    everything.push(Step::Affine { offset: Size::Arg(0), strides: vec![Size::Const(-1), Size::Const(2)] });
    everything.push(Step::Store {
        access: access(1, Size::Arg(0), &[Size::Const(64), Size::Const(1)]),
        value: chosen,
    });
    let anchors = vec![
        Anchor::Map(Map { space: vec![Size::Arg(0), Size::Const(64)], function: everything.clone() }),
        Anchor::RowReduction(RowReduction {
            rows: vec![Size::Arg(0)],
            columns: Size::Const(64),
            phases: vec![Phase {
                function: load(0, 2),
                reductions: vec![
                    Reduction { op: ReductionOp::Sum, value: StepId(0) },
                    Reduction { op: ReductionOp::Max, value: StepId(0) },
                ],
            }],
            row: ScalarFunction::default(),
            element: store(1, 2),
        }),
        Anchor::GroupedMatmul(Contraction {
            batch: vec![Size::Const(8)],
            rows: vec![Size::Arg(0), Size::Arg(1)],
            depth: Size::Const(64),
            a: gather,
            dtype: DType::Bf16,
            tile: Some(Tile { rows: 96, columns: 128, depth: 64 }),
            parts: vec![Part {
                columns: Size::Const(128),
                segments: 2,
                interleaved: false,
                symmetric: false,
                b: load(2, 3),
                groups: None,
                epilogue: store(3, 4),
            }],
        }),
        Anchor::Matmul(Contraction {
            batch: Vec::new(),
            rows: vec![Size::Arg(0)],
            depth: Size::Const(65),
            a: load(0, 2),
            dtype: DType::F32,
            tile: None,
            parts: vec![
                Part {
                    columns: Size::Const(8),
                    segments: 1,
                    interleaved: false,
                    symmetric: false,
                    b: load(1, 2),
                    groups: None,
                    epilogue: store(2, 2),
                },
                Part {
                    columns: Size::Arg(1),
                    segments: 3,
                    interleaved: true,
                    symmetric: false,
                    b: load(3, 2),
                    groups: None,
                    epilogue: store(4, 2),
                },
            ],
        }),
        Anchor::Matmul(Contraction {
            batch: Vec::new(),
            rows: vec![Size::Arg(0)],
            depth: Size::Const(65),
            a: load(0, 2),
            dtype: DType::F32,
            tile: None,
            parts: vec![Part {
                columns: Size::Const(32),
                segments: 2,
                interleaved: true,
                symmetric: false,
                b: load(1, 2),
                groups: Some(ColumnGroups {
                    width: 8,
                    phases: vec![
                        Phase {
                            function: load(0, 3),
                            reductions: vec![Reduction { op: ReductionOp::Max, value: StepId(0) }],
                        },
                        Phase { function: load(2, 3), reductions: Vec::new() },
                    ],
                }),
                epilogue: store(2, 3),
            }],
        }),
        Anchor::Attention(Attention {
            batch: Size::Arg(0),
            queries: Size::Arg(1),
            heads: 16,
            key_heads: 4,
            head_size: 128,
            scale: Float(0.088),
            dtype: DType::F32,
            q: load(0, 4),
            segments: vec![
                KeySegment { length: Size::Arg(1), k: load(1, 4), v: load(2, 4), mask: None },
                KeySegment { length: Size::Arg(2), k: load(1, 4), v: load(2, 4), mask: Some(load(3, 2)) },
            ],
            epilogue: store(4, 4),
        }),
        Anchor::AttentionGrad(AttentionGrad {
            batch: Size::Arg(0),
            queries: Size::Arg(1),
            heads: 16,
            key_heads: 4,
            head_size: 128,
            scale: Float(0.088),
            dtype: DType::Bf16,
            q: load(0, 4),
            dy: load(1, 4),
            segments: vec![
                GradSegment {
                    keys: KeySegment { length: Size::Arg(1), k: load(1, 4), v: load(2, 4), mask: None },
                    dk: store(4, 4),
                    dv: ScalarFunction::default(),
                },
                GradSegment {
                    keys: KeySegment {
                        length: Size::Const(7),
                        k: load(1, 4),
                        v: load(2, 4),
                        mask: Some(load(3, 2)),
                    },
                    dk: ScalarFunction::default(),
                    dv: store(5, 4),
                },
            ],
            dq: store(6, 4),
        }),
        Anchor::ExpertChoice(ExpertChoice {
            batch: Size::Arg(0),
            tokens: Size::Arg(1),
            experts: Size::Const(64),
            capacity: Size::Arg(2),
            affinity: load(0, 3),
            slot_token: 1,
            inverse: None,
            epilogue: ScalarFunction::default(),
        }),
        Anchor::ExpertChoice(ExpertChoice {
            batch: Size::Arg(0),
            tokens: Size::Arg(1),
            experts: Size::Const(64),
            capacity: Size::Arg(2),
            affinity: load(0, 3),
            slot_token: 1,
            inverse: Some(InverseMap { offsets: 2, positions: 3 }),
            epilogue: store(4, 3),
        }),
        Anchor::InvertIndex(InvertIndex {
            batch: Size::Arg(0),
            positions: Size::Arg(1),
            targets: Size::Arg(2),
            index: 0,
            offsets_out: 1,
            positions_out: 2,
        }),
        Anchor::SegmentSum(SegmentSum {
            batch: Size::Arg(0),
            targets: Size::Arg(1),
            rest: vec![],
            offsets: 0,
            positions: 1,
            position_count: Size::Arg(2),
            base: load(2, 2),
            update: load(3, 2),
            epilogue: store(4, 2),
        }),
    ];
    let b = Dim::symbol("B");
    let tokens = Dim::symbol("H").mul(&Dim::symbol("W")).unwrap();
    let odd = Dim::max(&tokens.ceil_scale(1.3, 4.0).unwrap(), &b.sub(&Dim::constant(2)).unwrap()).unwrap();
    let buffer = |place| Buffer { dtype: DType::F32, shape: vec![b.clone(), odd.clone()], place };
    Plan {
        entry: "velocity".to_owned(),
        dims: ["B", "H", "W"].map(Symbol::new).to_vec(),
        constraints: vec![nucleus_ir::Constraint {
            smaller: odd.clone(),
            larger: tokens.clone(),
            what: "a \"quoted\" name".to_owned(),
        }],
        inputs: vec![PlanInput {
            name: "mask".to_owned(),
            ty: TensorType::new(DType::Bool, vec![b.clone()]),
            rate: Rate::Prompt,
            default: Some(Float(1.0)),
        }],
        outputs: ["sample", "grad.a.weight"]
            .map(|name| PlanOutput { name: name.to_owned(), ty: TensorType::scalar(DType::F32) })
            .to_vec(),
        weights: vec![("a.weight".to_owned(), TensorType::new(DType::Bf16, vec![Dim::constant(4)]))],
        buffers: vec![
            buffer(Place::Weight("a.weight".to_owned())),
            buffer(Place::Input(0)),
            buffer(Place::Output(0)),
            buffer(Place::State("m".to_owned())),
            buffer(Place::Arena { rate: Rate::Model, offset: None }),
            buffer(Place::Arena { rate: Rate::Step, offset: Some(odd.clone()) }),
        ],
        kernels: anchors
            .into_iter()
            .map(|anchor| Kernel {
                operands: vec![
                    Operand { dtype: DType::F32, mode: OperandMode::Read },
                    Operand { dtype: DType::Bf16, mode: OperandMode::ReadWrite },
                    Operand { dtype: DType::I32, mode: OperandMode::Write },
                ],
                size_args: 3,
                anchor,
            })
            .collect(),
        launches: vec![Launch {
            kernel: KernelId(0),
            stage: Rate::Step,
            operands: vec![BufferId(0), BufferId(1)],
            sizes: vec![odd, tokens],
            flops: Dim::constant(0),
            bytes: b,
            scope: Some("transformer_blocks.0".to_owned()),
        }],
        arenas: Some([Dim::constant(0), Dim::symbol("H"), Dim::constant(64)]),
    }
}

#[test]
fn every_anchor_reads_back() {
    let plan = sample();
    let text = plan.to_string();
    assert_eq!(parse_plan(&text), Ok(plan), "{text}");
}

#[test]
fn broken_text_is_an_error_with_its_line() {
    let text = sample().to_string();
    let error = parse_plan(&text.replace("depth 64", "depth sixty")).unwrap_err();
    assert!(error.message.contains("expected"), "{error}");
    assert!(error.line > 10, "{error}");
    for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
        if text[cut..].trim().len() > 1 {
            assert!(parse_plan(&text[..cut]).is_err(), "cut at {cut}");
        }
    }
    let nested = format!("plan p {{ arenas model {}0", "max(1, ".repeat(100_000));
    assert!(parse_plan(&nested).unwrap_err().message.contains("nested too deeply"));
}
