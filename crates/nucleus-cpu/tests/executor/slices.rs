//! Launches that run slice by slice: which do, and what happens where buffers lie across each other. That slices change no bit is checked by
//! every other case, too, which runs in slices wherever it can.

use nucleus_cpu::{BufferPointer, BufferTable, CpuProgram, Options, Slicing};
use nucleus_ir::Rate;
use nucleus_plan::BufferId;

use crate::case::{Case, DEFAULT, bindings, decode, encode, error, expected, plan};
use crate::harness::check;

/// A chain over a batch: scaled values, the product with their transpose, its rows less their largest element, and two products with that.
const CHAIN: &str = "
    dim N, K, L;
    input x: f32[N, K, L] per step;
    input scale: f32[] per step;
    output y: f32[N, K, L];
    buffer b0: f32[N, K, L] input 0;
    buffer b1: f32[] input 1;
    buffer b2: f32[N, K, L] output 0;
    buffer b3: f32[N, K, L] arena step;
    buffer b4: f32[N, K, K] arena step;
    buffer b5: f32[N, K, K] arena step;
    buffer b6: f32[N, K, L] arena step;
    kernel k0(read f32, read f32, write f32) sizes 1 map {
        space s0;
        function {
            v0 = load o0[i0];
            v1 = load o1[0];
            v2 = mul(v0, v1);
            store o2[i0] = v2;
        }
    }
    kernel k1(read f32, write f32) sizes 5 matmul f32 {
        batch s0;
        rows s1;
        columns s1; segments 1; depth s2;
        a { v0 = load o0[s3*i0 + s2*i1 + i2]; return v0; }
        symmetric;
        b { v0 = load o0[s3*i0 + i1 + s2*i2]; return v0; }
        epilogue { v0 = accumulator 0; store o1[s4*i0 + s1*i1 + i2] = v0; }
    }
    kernel k2(read f32, write f32) sizes 3 row_reduction {
        rows s0, s1;
        columns s1;
        phase { v0 = load o0[s2*i0 + s1*i1 + i2]; }
        reduce max v0;
        row { }
        element {
            v0 = load o0[s2*i0 + s1*i1 + i2];
            v1 = accumulator 0;
            v2 = sub(v0, v1);
            store o1[s2*i0 + s1*i1 + i2] = v2;
        }
    }
    kernel k3(read f32, read f32, write f32) sizes 5 matmul f32 {
        batch s0;
        rows s1;
        columns s2; segments 1; depth s1;
        a { v0 = load o0[s4*i0 + s1*i1 + i2]; return v0; }
        b { v0 = load o1[s3*i0 + s2*i1 + i2]; return v0; }
        epilogue {
            v0 = accumulator 0;
            v1 = load o1[s3*i0 + s2*i1 + i2];
            v2 = add(v0, v1);
            store o2[s3*i0 + s2*i1 + i2] = v2;
        }
    }
    launch k0(b0, b1, b3) sizes N*K*L per step;
    launch k1(b3, b4) sizes N, K, L, K*L, K*K per step;
    launch k2(b4, b5) sizes N, K, K*K per step;
    launch k3(b5, b3, b6) sizes N, K, L, K*L, K*K per step;
    launch k3(b5, b6, b2) sizes N, K, L, K*L, K*K per step;
";

/// The runs that go slice by slice: their first launch, and the first behind them.
fn sliced(text: &str, dims: &[(&str, i64)], threads: usize, slicing: Slicing) -> Vec<(usize, usize)> {
    let options = Options { threads, slicing, ..Options::default() };
    let program = CpuProgram::compile(plan(text), options).unwrap();
    program.bind(&bindings(dims)).unwrap().sliced().map(|run| (run.start, run.end)).collect()
}

#[test]
fn a_chain_over_a_batch() {
    for [n, k, l] in [[1, 3, 2], [2, 1, 1], [3, 17, 40], [5, 33, 7], [2, 130, 20]] {
        let dims = [("N", n), ("K", k), ("L", l)];
        check(&Case { text: CHAIN, dims: &dims, tolerance: 1e-5, ..DEFAULT });
        let expected = if n > 1 { vec![(0, 5)] } else { Vec::new() };
        assert_eq!(sliced(CHAIN, &dims, 2, Slicing::Wherever), expected, "{n} items");
    }
}

#[test]
fn slices_are_taken_where_they_keep_much_near() {
    let dims = |n, k, l| [("N", n), ("K", k), ("L", l)];
    let worthwhile = |dims: &[(&str, i64)], threads| sliced(CHAIN, dims, threads, Slicing::Worthwhile);
    assert_eq!(worthwhile(&dims(32, 128, 256), 2), [(0, 5)]);
    // All of it stays near.
    assert!(worthwhile(&dims(4, 16, 16), 2).is_empty());
    // No slice of it stays near.
    assert!(worthwhile(&dims(4, 512, 4096), 2).is_empty());
    // One thread would have nothing to do for a quarter of the time, but not where there is one thread.
    assert!(worthwhile(&dims(3, 256, 1024), 2).is_empty());
    assert_eq!(worthwhile(&dims(3, 256, 1024), 1), [(0, 5)]);
    assert!(sliced(CHAIN, &dims(32, 128, 256), 2, Slicing::Never).is_empty());
}

/// A slice that reads what another writes, in ways that each are a small change of the chain.
#[test]
fn what_slices_share_is_not_sliced() {
    let dims = [("N", 4), ("K", 16), ("L", 24)];
    let with = |from: &str, to: &str| {
        assert!(CHAIN.contains(from));
        sliced(&CHAIN.replace(from, to), &dims, 2, Slicing::Wherever)
    };
    // The first item's rows are added to every item's: what writes them comes before all of it.
    let own = "v1 = load o1[s3*i0 + s2*i1 + i2];\n            v2 = add";
    assert_eq!(with(own, "v1 = load o1[s2*i1 + i2];\n            v2 = add"), [(1, 4), (4, 5)]);
    // A reduction whose first axis is not the batch: every slice of it has rows of all items.
    let text = CHAIN.replace("rows s0, s1;\n        columns s1;", "rows s1, s0;\n        columns s1;");
    let text = text.replace("o0[s2*i0 + s1*i1 + i2]", "o0[s1*i0 + s2*i1 + i2]");
    let text = text.replace("store o1[s2*i0 + s1*i1 + i2]", "store o1[s1*i0 + s2*i1 + i2]");
    assert_eq!(sliced(&text, &dims, 2, Slicing::Wherever), [(0, 2), (3, 5)]);
    check(&Case { text: &text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
}

/// Runs the chain with its input and its output in one piece of memory, the output `shift` bytes further on.
fn in_place(shift: usize, slicing: Slicing) -> (Vec<u8>, Vec<f64>) {
    let dims = [("N", 6), ("K", 16), ("L", 32)];
    let plan = plan(CHAIN);
    let case = Case { text: CHAIN, dims: &dims, ..DEFAULT };
    let dims = bindings(&dims);
    let expected = expected(&case, &plan, &dims);
    let program =
        CpuProgram::compile(plan.clone(), Options { threads: 2, slicing, ..Options::default() }).unwrap();
    let bound = program.bind(&dims).unwrap();
    let bytes = bound.sizes().buffer_bytes(BufferId(0));
    let x = encode(&expected.tensors["x"], plan.buffers[0].dtype);
    let mut together = vec![0u8; bytes + 2 * shift];
    together[shift..shift + bytes].copy_from_slice(&x);
    let mut others: Vec<Vec<u8>> = (0..plan.buffers.len())
        .map(|buffer| vec![0u8; bound.sizes().buffer_bytes(BufferId(buffer as u32))])
        .collect();
    others[1] = encode(&expected.tensors["scale"], plan.buffers[1].dtype);
    let mut table = BufferTable::new(&plan);
    let base = together.as_mut_ptr();
    for (number, (buffer, memory)) in plan.buffers.iter().zip(&mut others).enumerate() {
        let data = match number {
            0 => base.wrapping_add(shift),
            2 => base.wrapping_add(2 * shift),
            _ => memory.as_mut_ptr(),
        };
        let pointer = BufferPointer { data, bytes: memory.len(), dtype: buffer.dtype };
        table.set(BufferId(number as u32), pointer);
    }
    // SAFETY: every buffer has the bytes that the bound plan says, alive to the end of this function; input and output share memory, which
    // the launches, one after the other, allow: the input is read by the first, the output written by the last.
    unsafe { program.execute(&bound, Rate::Step, &table, None).unwrap() };
    (together[2 * shift..].to_vec(), expected.outputs[0].clone())
}

#[test]
fn memory_that_buffers_share() {
    for shift in [0, 64, 4 * 16 * 32, 1000 * 4] {
        let (never, wanted) = in_place(shift, Slicing::Never);
        let (wherever, _) = in_place(shift, Slicing::Wherever);
        assert_eq!(never, wherever, "{shift} bytes apart");
        let error = error(&decode(&wherever, nucleus_ir::DType::F32), &wanted, 0.0);
        assert!(error <= 1e-5, "{shift} bytes apart: {error}");
    }
}
