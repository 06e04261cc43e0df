//! Op by op: every row of the op table, on shapes and attributes chosen by hand.

use nucleus_cpu::kernels::Isa;
use nucleus_ir::graph::Output;
use nucleus_ir::graph_printer::print_graph;
use nucleus_ir::ops::op_table;
use nucleus_ir::{DType, Dim, Float, Op, Value};

use crate::builder::{Builder, Leaves, shape, size};
use crate::support::{Subject, dims};

type Case = Box<dyn Fn(&mut Builder)>;

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];
const NUMBERS: [DType; 4] = [DType::F32, DType::Bf16, DType::F16, DType::I32];

/// Sizes of B, H, W and T: all ones, odd ones, more than a vector, enough for several threads.
const SIZES: [[i64; 4]; 4] = [[1, 1, 1, 1], [2, 3, 1, 5], [3, 2, 9, 17], [2, 19, 15, 70]];

/// The graphs in which an op is tested.
fn cases(op: &str) -> Vec<Case> {
    match op {
        "constant" => constants(),
        "size" => each(&["B", "H*W", "T/3", "7"], |b, text| {
            b.output(Op::Size { dim: size(text) }, &[]);
        }),
        "iota" => {
            let shapes = [("T", 0), ("H, W", 0), ("H, W", 1), ("B, T, 2", 2), ("1, T", 0), ("0, 3", 1)];
            each(&shapes, |b, (dims, axis)| {
                b.output(Op::Iota { shape: shape(dims), axis }, &[]);
            })
        }
        "neg" => unary(&NUMBERS, Op::Neg),
        "abs" => unary(&NUMBERS, Op::Abs),
        "exp" => unary(&FLOATS, Op::Exp),
        "log" => unary(&FLOATS, Op::Log),
        "sqrt" => unary(&FLOATS, Op::Sqrt),
        "rsqrt" => unary(&FLOATS, Op::Rsqrt),
        "tanh" => unary(&FLOATS, Op::Tanh),
        "sigmoid" => unary(&FLOATS, Op::Sigmoid),
        "sin" => unary(&FLOATS, Op::Sin),
        "cos" => unary(&FLOATS, Op::Cos),
        "add" => binary(&NUMBERS, Op::Add),
        "sub" => binary(&NUMBERS, Op::Sub),
        "mul" => binary(&NUMBERS, Op::Mul),
        "div" => binary(&NUMBERS, Op::Div),
        "max" => binary(&NUMBERS, Op::Max),
        "min" => binary(&NUMBERS, Op::Min),
        "less" => binary(&DType::COMPUTED, Op::Less),
        "less_equal" => binary(&DType::COMPUTED, Op::LessEqual),
        "equal" => binary(&DType::COMPUTED, Op::Equal),
        "and" => binary(&[DType::Bool], Op::And),
        "or" => binary(&[DType::Bool], Op::Or),
        "not" => unary(&[DType::Bool], Op::Not),
        "select" => selects(),
        "cast" => {
            DType::COMPUTED.iter().flat_map(|to| unary(&DType::COMPUTED, Op::Cast { to: *to })).collect()
        }
        "stop_gradient" => unary(&DType::COMPUTED, Op::StopGradient),
        "after" => each(&DType::COMPUTED, |b, dtype| {
            let (x, y) = (b.tensor(dtype, "B, T, 5"), b.tensor(DType::F32, "T"));
            b.output(Op::After, &[x, y]);
            // The event is computed itself, and what waits for it is a computation that is done twice.
            let event = b.value(Op::Exp, &[y]);
            b.graph.outputs.push(Output { name: "event".to_owned(), value: event });
            let later = b.value(Op::After, &[x, event]);
            let operands = [x, later].map(|x| b.value(Op::Cast { to: DType::F32 }, &[x]));
            let twice = operands.map(|x| b.value(Op::Tanh, &[x]));
            b.output(Op::Add, &twice);
            b.output(Op::After, &[later, later]);
        }),
        "reshape" => reshapes(),
        "transpose" => transposes(),
        "broadcast" => broadcasts(),
        "slice" => slices(),
        "concat" => concats(),
        "gather" => gathers(),
        "scatter_add" => sums_by_index(|b, base, index, updates| {
            b.output(Op::ScatterAdd, &[base, index, updates]);
        }),
        "segment_sum" => sums_by_index(|b, base, index, updates| {
            let size = b.graph.ty(base).shape[1].clone();
            let inverse = b.output(Op::InvertIndex { size }, &[index]);
            b.output(Op::SegmentSum, &[base, inverse[0], inverse[1], updates]);
        }),
        "invert_index" => {
            each(&[("B, 5", "T"), ("B, 2, 3, 2", "H*W"), ("1, 1", "1"), ("2, 40", "8")], |b, (dims, rows)| {
                let index = b.index(dims, rows);
                b.output(Op::InvertIndex { size: size(rows) }, &[index]);
            })
        }
        "reduce_sum" => reductions(|axis, keep| Op::ReduceSum { axis, keep }),
        "reduce_max" => reductions(|axis, keep| Op::ReduceMax { axis, keep }),
        "matmul" => matmuls(),
        "grouped_matmul" => grouped_matmuls(),
        "attention" => attentions(),
        "attention_grad" => attention_grads(),
        "expert_choice" => expert_choices(),
        _ => panic!("op `{op}` has no cases here"),
    }
}

fn each<T: Clone + 'static>(list: &[T], build: impl Fn(&mut Builder, T) + Clone + 'static) -> Vec<Case> {
    let case = |item: &T| -> Case {
        let (item, build) = (item.clone(), build.clone());
        Box::new(move |b| build(b, item.clone()))
    };
    list.iter().map(case).collect()
}

fn constants() -> Vec<Case> {
    let values = [
        (0.1, DType::F32),
        (-0.1, DType::Bf16),
        (0.1, DType::F16),
        (-7.0, DType::I32),
        (1.0, DType::Bool),
        (f64::INFINITY, DType::F32),
    ];
    each(&values, |b, (value, dtype)| {
        let constant = b.output(Op::Constant { value: Float(value), dtype }, &[]);
        b.output(Op::Broadcast { shape: shape("B, 3") }, &constant);
    })
}

/// Element by element: dense, scalar, without elements, and read through a transposition of a slice.
fn unary(dtypes: &[DType], op: Op) -> Vec<Case> {
    each(dtypes, move |b, dtype| {
        for dims in ["", "1", "37", "B, T, 5", "B, H*W, 64", "2, 0, 3"] {
            let x = b.tensor(dtype, dims);
            b.output(op.clone(), &[x]);
        }
        let x = b.tensor(dtype, "B, T, 9");
        let part = b.slice(x, 2, "2", "7");
        let turned = b.transpose(part, &[2, 0, 1]);
        b.output(op.clone(), &[turned]);
    })
}

/// Element by element: equal shapes, operands that repeat along different axes, and one operand twice.
fn binary(dtypes: &[DType], op: Op) -> Vec<Case> {
    each(dtypes, move |b, dtype| {
        for dims in ["", "1", "37", "B, H*W, 8", "2, 0, 3"] {
            let operands = [b.tensor(dtype, dims), b.tensor(dtype, dims)];
            b.output(op.clone(), &operands);
        }
        let full = b.tensor(dtype, "B, T, 5");
        for dims in ["", "5", "T, 1", "B, 1, 1", "1, T, 5"] {
            let part = b.tensor(dtype, dims);
            let part = b.broadcast(part, "B, T, 5");
            b.output(op.clone(), &[full, part]);
            b.output(op.clone(), &[part, full]);
        }
        b.output(op.clone(), &[full, full]);
        let turned = b.tensor(dtype, "5, T, B");
        let turned = b.transpose(turned, &[2, 1, 0]);
        b.output(op.clone(), &[full, turned]);
    })
}

fn selects() -> Vec<Case> {
    each(&DType::COMPUTED, |b, dtype| {
        let operands = ["B, T, 5", "B, T, 5"].map(|dims| b.tensor(dtype, dims));
        for dims in ["B, T, 5", "T, 1", "", "B, 1, 5"] {
            let condition = b.tensor(DType::Bool, dims);
            let condition = b.broadcast(condition, "B, T, 5");
            b.output(Op::Select, &[condition, operands[0], operands[1]]);
        }
        let condition = b.constant(1.0, DType::Bool);
        let scalars = [b.tensor(dtype, ""), b.tensor(dtype, "")];
        b.output(Op::Select, &[condition, scalars[1], scalars[0]]);
    })
}

fn reshapes() -> Vec<Case> {
    each(&DType::COMPUTED, |b, dtype| {
        let shapes = [
            ("B, T, 6", "B*T, 6"),
            ("B, T, 6", "B, T, 2, 3"),
            ("B, T, 6", "6, T, B"),
            ("B, H*W, 4", "B, H, W, 2, 2"),
            ("B, 1, T", "1, B, T, 1"),
            ("", "1, 1"),
            ("1, 1", ""),
            ("T, 0", "0, 3, B"),
        ];
        for (from, to) in shapes {
            let x = b.tensor(dtype, from);
            b.output(Op::Reshape { shape: shape(to) }, &[x]);
        }
        let x = b.tensor(dtype, "B, T, 6");
        let turned = b.transpose(x, &[2, 1, 0]);
        b.output(Op::Reshape { shape: shape("6, T*B") }, &[turned]);
        b.output(Op::Reshape { shape: shape("2, 3, T, B") }, &[turned]);
        let part = b.slice(x, 2, "1", "5");
        b.output(Op::Reshape { shape: shape("B*T, 2, 2") }, &[part]);
        b.output(Op::Reshape { shape: shape("B, T*4") }, &[part]);
        let repeated = b.broadcast(x, "3, B, T, 6");
        b.output(Op::Reshape { shape: shape("3*B, T*6") }, &[repeated]);
    })
}

fn transposes() -> Vec<Case> {
    each(&DType::COMPUTED, |b, dtype| {
        let permutations: [(&str, &[usize]); 7] = [
            ("", &[]),
            ("T", &[0]),
            ("T, 33", &[1, 0]),
            ("B, H*W, 8", &[0, 2, 1]),
            ("B, T, 2, 3", &[2, 0, 3, 1]),
            ("B, 1, T, 2, 3", &[4, 3, 2, 1, 0]),
            ("B, 0, T", &[2, 1, 0]),
        ];
        for (dims, permutation) in permutations {
            let x = b.tensor(dtype, dims);
            let permutation = permutation.to_vec();
            b.output(Op::Transpose { permutation }, &[x]);
        }
    })
}

fn broadcasts() -> Vec<Case> {
    each(&DType::COMPUTED, |b, dtype| {
        let shapes = [
            ("", ""),
            ("", "B, T"),
            ("T, 1", "B, T, 3"),
            ("B, 1, 1, 4", "B, H, W, 4"),
            ("1", "1"),
            ("5", "B, T, 5"),
            ("1, 3", "0, 3"),
        ];
        for (from, to) in shapes {
            let x = b.tensor(dtype, from);
            b.output(Op::Broadcast { shape: shape(to) }, &[x]);
        }
    })
}

fn slices() -> Vec<Case> {
    each(&DType::COMPUTED, |b, dtype| {
        let cuts = [
            ("B, T, 9", 2, "2", "7"),
            ("B, T, 9", 2, "8", "9"),
            ("B, T, 9", 2, "4", "4"),
            ("B, T, 9", 1, "0", "T/2"),
            ("B, T, 9", 1, "0", "1"),
            ("B, T, 9", 0, "0", "B"),
            ("H*W, 3", 0, "W", "H*W"),
        ];
        for (dims, axis, start, end) in cuts {
            let x = b.tensor(dtype, dims);
            b.output(Op::Slice { axis, start: size(start), end: size(end) }, &[x]);
        }
        let x = b.tensor(dtype, "B, T, 9");
        let once = b.slice(x, 2, "1", "8");
        b.output(Op::Slice { axis: 2, start: size("3"), end: size("7") }, &[once]);
        let turned = b.transpose(once, &[1, 2, 0]);
        b.output(Op::Slice { axis: 1, start: size("0"), end: size("2") }, &[turned]);
    })
}

fn concats() -> Vec<Case> {
    each(&DType::COMPUTED, |b, dtype| {
        let lists: [(usize, &[&str]); 6] = [
            (0, &["T, 3", "1, 3", "H*W, 3"]),
            (1, &["B, T, 3", "B, 1, 3", "B, H*W, 3"]),
            (2, &["B, T, 3", "B, T, 1", "B, T, 40"]),
            (1, &["B, T"]),
            (1, &["B, 0", "B, 2", "B, 0"]),
            (0, &["1", "1", "1"]),
        ];
        for (axis, list) in lists {
            let pieces: Vec<Value> = list.iter().map(|dims| b.tensor(dtype, dims)).collect();
            b.output(Op::Concat { axis }, &pieces);
        }
        let x = b.tensor(dtype, "B, T, 6");
        let halves = [b.slice(x, 2, "0", "3"), b.slice(x, 2, "3", "6")];
        b.output(Op::Concat { axis: 2 }, &[halves[1], halves[0], x, halves[1]]);
        let turned = b.transpose(x, &[0, 2, 1]);
        let wide = b.tensor(dtype, "B, 2, T");
        b.output(Op::Concat { axis: 1 }, &[turned, wide, turned]);
        let scalar = b.tensor(dtype, "");
        let filled = b.broadcast(scalar, "B, T, 2");
        b.output(Op::Concat { axis: 2 }, &[filled, x]);
    })
}

fn gathers() -> Vec<Case> {
    each(&DType::COMPUTED, |b, dtype| {
        let shapes = [
            ("B, T, 4", "B, 5", "T"),
            ("B, H*W", "B, 2, 3", "H*W"),
            ("B, T, 2, 33", "B, 1", "T"),
            ("2, 8, 3", "2, 0", "8"),
            ("1, 1, 1", "1, 40", "1"),
            ("B, T, 0", "B, 3", "T"),
        ];
        for (data, index, rows) in shapes {
            let (data, index) = (b.tensor(dtype, data), b.index(index, rows));
            b.output(Op::Gather, &[data, index]);
        }
        let (data, index) = (b.tensor(dtype, "B, 4, T"), b.index("B, 9", "T"));
        let turned = b.transpose(data, &[0, 2, 1]);
        b.output(Op::Gather, &[turned, index]);
    })
}

fn sums_by_index(build: impl Fn(&mut Builder, Value, Value, Value) + Clone + 'static) -> Vec<Case> {
    let shapes = [
        ("B, T, 4", "B, 5", "B, 5, 4", "T"),
        ("B, H*W", "B, 2, 30", "B, 2, 30", "H*W"),
        ("B, T, 2, 33", "B, 7", "B, 7, 2, 33", "T"),
        ("1, 1, 3", "1, 40", "1, 40, 3", "1"),
        ("2, 8, 3", "2, 0", "2, 0, 3", "8"),
        ("B, T, 130", "B, 4, 16", "B, 4, 16, 130", "T"),
    ];
    let list: Vec<_> = FLOATS.iter().flat_map(|dtype| shapes.map(|shape| (*dtype, shape))).collect();
    each(&list, move |b, (dtype, (base, index, updates, rows))| {
        let (base, updates) = (b.tensor(dtype, base), b.tensor(dtype, updates));
        let index = b.index(index, rows);
        build(b, base, index, updates);
    })
}

fn reductions(op: impl Fn(usize, bool) -> Op + Clone + 'static) -> Vec<Case> {
    each(&NUMBERS, move |b, dtype| {
        for (dims, axis) in [
            ("B, T, 7", 0),
            ("B, T, 7", 1),
            ("B, T, 7", 2),
            ("1", 0),
            ("1000", 0),
            ("B, 0, 3", 1),
            ("B, 3, 0", 1),
            ("B, T, 1", 2),
            ("H, W, 130", 2),
        ] {
            let x = b.tensor(dtype, dims);
            b.output(op(axis, false), &[x]);
            b.output(op(axis, true), &[x]);
        }
        let x = b.tensor(dtype, "B, T");
        let repeated = b.broadcast(x, "4, B, T");
        b.output(op(0, false), &[repeated]);
    })
}

fn matmuls() -> Vec<Case> {
    // Leading axes, M, K, N.
    let sizes = [
        ("", "1", "1", "1"),
        ("", "5", "7", "3"),
        ("", "17", "33", "65"),
        ("", "T", "300", "2"),
        ("B", "H*W", "24", "40"),
        ("B, 3", "T", "5", "9"),
        ("B", "4", "T", "H*W"),
        ("", "6", "0", "5"),
        ("B", "1", "16", "1"),
    ];
    let joined = |leading: &str, rows: &str, columns: &str| {
        [leading, rows, columns]
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join(", ")
    };
    let list: Vec<_> = FLOATS.iter().flat_map(|dtype| sizes.map(|sizes| (*dtype, sizes))).collect();
    each(&list, move |b, (dtype, (leading, m, k, n))| {
        for transpose_a in [false, true] {
            for transpose_b in [false, true] {
                let (rows, depth) = if transpose_a { (k, m) } else { (m, k) };
                let a = b.tensor(dtype, &joined(leading, rows, depth));
                let (depth, columns) = if transpose_b { (n, k) } else { (k, n) };
                // One matrix serves all only if the left factor is not turned.
                if !transpose_a {
                    let one = b.tensor(dtype, &joined("", depth, columns));
                    b.output(Op::Matmul { transpose_a, transpose_b }, &[a, one]);
                }
                let many = b.tensor(dtype, &joined(leading, depth, columns));
                b.output(Op::Matmul { transpose_a, transpose_b }, &[a, many]);
            }
        }
    })
}

fn grouped_matmuls() -> Vec<Case> {
    let sizes = [("B", 1, "1", 1, 1), ("B", 3, "T", 5, 7), ("1", 4, "H*W", 33, 18), ("B", 8, "9", 16, 64)];
    let list: Vec<_> = FLOATS.iter().flat_map(|dtype| sizes.map(|sizes| (*dtype, sizes))).collect();
    each(&list, |b, (dtype, (batch, groups, rows, k, n))| {
        let x = b.tensor(dtype, &format!("{batch}, {groups}, {rows}, {k}"));
        let w = b.tensor(dtype, &format!("{groups}, {k}, {n}"));
        b.output(Op::GroupedMatmul { transpose_b: false }, &[x, w]);
        let w = b.tensor(dtype, &format!("{groups}, {n}, {k}"));
        b.output(Op::GroupedMatmul { transpose_b: true }, &[x, w]);
        // Every group takes the same rows by index.
        let data = b.tensor(dtype, &format!("{batch}, 6, {k}"));
        let index = b.index(&format!("{batch}, {groups}, {rows}"), "6");
        let gathered = b.value(Op::Gather, &[data, index]);
        b.output(Op::GroupedMatmul { transpose_b: true }, &[gathered, w]);
    })
}

fn attentions() -> Vec<Case> {
    // Query heads, key heads, head size, queries, keys.
    let sizes = [
        (1, 1, 1, "1", "1"),
        (2, 2, 8, "T", "T"),
        (4, 2, 6, "H*W", "T"),
        (6, 1, 3, "T", "H*W"),
        (2, 1, 80, "5", "T"),
        (4, 4, 16, "1", "200"),
    ];
    let list: Vec<_> = FLOATS.iter().flat_map(|dtype| sizes.map(|sizes| (*dtype, sizes))).collect();
    each(&list, |b, (dtype, (heads, key_heads, d, rows, keys))| {
        let q = b.tensor(dtype, &format!("B, {rows}, {heads}, {d}"));
        let [k, v] = [0, 1].map(|_| b.tensor(dtype, &format!("B, {keys}, {key_heads}, {d}")));
        let mask = b.tensor(DType::Bool, &format!("B, {keys}"));
        let attention = |scale| Op::Attention { scale: Float(scale) };
        b.output(attention(1.0 / f64::from(d).sqrt()), &[q, k, v]);
        b.output(attention(0.5), &[q, k, v, mask]);
        b.output(attention(-1.0), &[q, k, v, mask]);
        b.output(attention(0.0), &[q, k, k]);
        let never = b.constant(0.0, DType::Bool);
        let never = b.broadcast(never, &format!("B, {keys}"));
        b.output(attention(0.5), &[q, k, v, never]);
        // Keys in pieces, of which one has no mask of its own.
        let always = b.constant(1.0, DType::Bool);
        let always = b.broadcast(always, "B, 3");
        let more = [0, 1].map(|_| b.tensor(dtype, &format!("B, 3, {key_heads}, {d}")));
        let operands = [(k, more[0]), (v, more[1]), (mask, always)];
        let joined = operands.map(|(first, second)| b.value(Op::Concat { axis: 1 }, &[first, second]));
        b.output(attention(0.3), &[q, joined[0], joined[1], joined[2]]);
    })
}

fn attention_grads() -> Vec<Case> {
    // Query heads, key heads, head size, queries, keys.
    let sizes = [
        (1, 1, 1, "1", "1"),
        (2, 2, 8, "T", "T"),
        (4, 2, 6, "H*W", "T"),
        (6, 1, 3, "T", "H*W"),
        (2, 1, 80, "5", "T"),
        (2, 2, 16, "1", "200"),
        (2, 1, 8, "600", "T"),
    ];
    let list: Vec<_> = FLOATS.iter().flat_map(|dtype| sizes.map(|sizes| (*dtype, sizes))).collect();
    each(&list, |b, (dtype, (heads, key_heads, d, rows, keys))| {
        let [q, dy] = [0, 1].map(|_| b.tensor(dtype, &format!("B, {rows}, {heads}, {d}")));
        let [k, v] = [0, 1].map(|_| b.tensor(dtype, &format!("B, {keys}, {key_heads}, {d}")));
        let mask = b.tensor(DType::Bool, &format!("B, {keys}"));
        let grad = |scale| Op::AttentionGrad { scale: Float(scale) };
        b.output(grad(1.0 / f64::from(d).sqrt()), &[q, k, v, dy]);
        b.output(grad(-0.5), &[q, k, v, dy, mask]);
        b.output(grad(0.0), &[q, k, k, q]);
        let never = b.constant(0.0, DType::Bool);
        let never = b.broadcast(never, &format!("B, {keys}"));
        b.output(grad(0.5), &[q, k, v, dy, never]);
        // Keys in pieces, of which one has no mask of its own; what follows from the gradients of each piece, and from the whole.
        let always = b.constant(1.0, DType::Bool);
        let always = b.broadcast(always, "B, 3");
        let more = [0, 1].map(|_| b.tensor(dtype, &format!("B, 3, {key_heads}, {d}")));
        let operands = [(k, more[0]), (v, more[1]), (mask, always)];
        let joined = operands.map(|(first, second)| b.value(Op::Concat { axis: 1 }, &[first, second]));
        for whole in [false, true] {
            let scale = if whole { 0.3 } else { 0.4 };
            let operands = [q, joined[0], joined[1], dy, joined[2]];
            let node = b.graph.add_node(grad(scale), &operands, None).expect("a valid node");
            let [dq, dk, dv] = b.graph.node(node).results[..] else { unreachable!("three gradients") };
            b.output(Op::Tanh, &[dq]);
            let factor = b.f32(&format!("B, {keys}, 1, {d}"));
            let factor = b.broadcast(factor, &format!("B, {keys}, {key_heads}, {d}"));
            for gradient in [dk, dv] {
                let image = b.slice(gradient, 1, "0", keys);
                let image = b.output(Op::Mul, &[image, factor])[0];
                b.output(Op::Cast { to: DType::Bf16 }, &[image]);
                let text = Op::Slice {
                    axis: 1,
                    start: size(keys),
                    end: size(keys).add(&Dim::constant(3)).expect("a small size"),
                };
                let text = b.value(text, &[gradient]);
                if whole {
                    b.output(Op::Reshape { shape: shape(&format!("B, 3, {}", key_heads * d)) }, &[text]);
                } else {
                    b.output(Op::Exp, &[text]);
                }
            }
            // What needs two gradients at a time, or all of one.
            let one = b.slice(dk, 1, "0", keys);
            let other = b.slice(dv, 1, "0", keys);
            b.output(Op::Add, &[one, other]);
            if whole {
                b.output(Op::Neg, &[dk]);
            }
        }
    })
}

fn expert_choices() -> Vec<Case> {
    // Tokens, experts, capacity.
    let sizes =
        [("1", 1, "1"), ("T", 5, "1"), ("T", 5, "T"), ("T", 5, "T/3"), ("H*W", 8, "H*W/4"), ("300", 3, "40")];
    each(&sizes, |b, (tokens, experts, capacity)| {
        let dims = format!("B, {tokens}, {experts}");
        let choice = Op::ExpertChoice { capacity: size(capacity) };
        let affinity = b.f32(&dims);
        b.output(choice.clone(), &[affinity]);
        // Eight different values: ties; one value: nothing but ties.
        let whole = b.tensor(DType::I32, &dims);
        let tied = b.value(Op::Cast { to: DType::F32 }, &[whole]);
        b.output(choice.clone(), &[tied]);
        let one = b.f32("");
        let equal = b.broadcast(one, &dims);
        b.output(choice.clone(), &[equal]);
        // With the lists of every token and gates normalised over them, from affinities between 0 and 1.
        for scores in [affinity, tied, equal] {
            let share = b.value(Op::Sigmoid, &[scores]);
            token_partition(b, &choice, share, tokens);
        }
    })
}

/// A choice, its inverse, its affinities over their sums per token, and the sum of what the slots bring back.
fn token_partition(b: &mut Builder, choice: &Op, affinity: Value, tokens: &str) {
    let chosen = b.output(choice.clone(), &[affinity]);
    let lists = b.output(Op::InvertIndex { size: size(tokens) }, &[chosen[0]]);
    let zero = b.constant(0.0, DType::F32);
    let zeros = b.broadcast(zero, &format!("B, {tokens}"));
    let total = b.value(Op::SegmentSum, &[zeros, lists[0], lists[1], chosen[1]]);
    let total = b.value(Op::Gather, &[total, chosen[0]]);
    let gate = b.output(Op::Div, &[chosen[1], total]);
    let rest = b.value(Op::Sub, &[chosen[1], gate[0]]);
    b.output(Op::Exp, &[rest]);
    b.output(Op::SegmentSum, &[zeros, lists[0], lists[1], gate[0]]);
}

/// Every case with inputs and with weights, at every size.
fn differences(op: &str, isa: Isa) -> Vec<String> {
    let mut failures = Vec::new();
    for (number, case) in cases(op).iter().enumerate() {
        for leaves in [Leaves::Inputs, Leaves::Weights] {
            let mut builder = Builder::new(op, leaves);
            case(&mut builder);
            let graph = builder.graph;
            assert!(
                graph.nodes().any(|(_, node)| node.op.name() == op),
                "case {number} of `{op}` is without it"
            );
            let agrees = Subject::new(&graph, DType::F32, &[isa]).and_then(|mut subject| {
                SIZES.iter().try_for_each(|sizes| {
                    let dims = dims(*sizes);
                    let same = subject.check(&dims, number as u64);
                    same.map_err(|error| format!("B, H, W, T = {sizes:?}: {error}"))
                })
            });
            if let Err(error) = agrees {
                failures.push(format!("`{op}`, case {number}, {leaves:?}: {error}\n{}", print_graph(&graph)));
            }
        }
    }
    failures
}

#[test]
fn every_op_agrees_with_the_evaluator() {
    let failures: Vec<String> =
        op_table().iter().flat_map(|info| differences(info.name, Isa::supported()[0])).collect();
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}

/// The ops whose kernels are written for an instruction set.
#[test]
fn every_instruction_set_agrees_with_the_evaluator() {
    for isa in &Isa::supported()[1..] {
        for op in ["matmul", "grouped_matmul", "attention", "attention_grad"] {
            let failures = differences(op, *isa);
            assert!(failures.is_empty(), "{isa}: {} cases fail:\n{}", failures.len(), failures.join("\n"));
        }
    }
}
