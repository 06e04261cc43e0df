//! Small programs: which kernels they become.

use nucleus_plan::{Anchor, Plan};

use crate::support::{anchors, checked, launches};

/// The plan of an entry whose body is `body`, over these inputs, checked against the evaluator.
fn plan(inputs: &str, outputs: &str, body: &str) -> Plan {
    let text = format!(
        "use std {{ feed_forward, layer_norm, linear, rms_norm, rotate, silu, softmax, zeros }};
         dim B, H, W, T;
         const S = H * W;
         entry main({inputs}) -> ({outputs}) {{ {body} }}"
    );
    checked(&text, &[], 1e-5)
}

#[track_caller]
fn expect(plan: &Plan, expected: &[(&str, usize)]) {
    let expected = expected.iter().copied().collect();
    assert_eq!(anchors(plan), expected, "\n{}\n{plan}", launches(plan));
}

fn segments(plan: &Plan) -> Vec<u32> {
    let of = |launch: &nucleus_plan::Launch| match &plan.kernel(launch.kernel).anchor {
        Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) => contraction.parts.clone(),
        _ => Vec::new(),
    };
    plan.launches.iter().flat_map(of).map(|part| part.segments).collect()
}

#[test]
fn bias_and_activation_join_their_product() {
    let plan = plan("x: [B, S, 8] per step", "y: [B, S, 6]", r#"silu(linear(x, "l", out = 6))"#);
    expect(&plan, &[("matmul", 1)]);
}

#[test]
fn a_norm_with_two_uses_is_one_pass_over_its_rows() {
    let plan = plan(
        "x: [B, S, 8] per step, scale: [B, 1, 8] per step",
        "u: [B, S, 8], m: [B, S, 8]",
        "let u = layer_norm(x); (u, u * (1.0 + scale))",
    );
    expect(&plan, &[("row_reduction", 1)]);
    let Anchor::RowReduction(reduction) = &plan.kernels[0].anchor else { panic!("{plan}") };
    // The mean, then the variance around it.
    assert_eq!(reduction.phases.len(), 2);
}

#[test]
fn softmax_is_one_kernel() {
    let plan = plan("x: [B, S, 8] per step", "y: [B, S, 8]", "softmax(x)");
    expect(&plan, &[("row_reduction", 1)]);
}

#[test]
fn a_gated_feed_forward_is_two_products() {
    let plan = plan("x: [B, S, 8] per step", "y: [B, S, 8]", "feed_forward(x, inner = 12)");
    expect(&plan, &[("matmul", 2)]);
    assert_eq!(segments(&plan), [2, 1]);
}

#[test]
fn slices_of_a_product_become_segments() {
    let plan = plan(
        "x: [B, 8] per step, y: [B, S, 8] per step",
        "z: [B, S, 8]",
        r#"let m = reshape(linear(x, "mod", out = 24), [B, 1, 24]);
           let (scale, shift, gate) = split(m, 3);
           y + tanh(gate) * (layer_norm(y) * (1.0 + scale) + shift)"#,
    );
    expect(&plan, &[("matmul", 1), ("row_reduction", 1)]);
    assert_eq!(segments(&plan), [3]);
}

#[test]
fn norm_and_rotary_embedding_are_one_kernel() {
    let plan = plan(
        "x: [B, S, 24] per step, angle: [S, 4] per prompt",
        "y: [B, S, 3, 8]",
        r#"rotate(rms_norm(reshape(x, [B, S, 3, 8]), "norm"), cos(angle), sin(angle))"#,
    );
    // The tables of sines and cosines change less often than x: kernels of their own.
    expect(&plan, &[("map", 2), ("row_reduction", 1)]);
    let step = |launch: &&nucleus_plan::Launch| launch.stage == nucleus_ir::Rate::Step;
    assert_eq!(plan.launches.iter().filter(step).count(), 1);
}

#[test]
fn a_gated_residual_joins_the_product() {
    let plan = plan(
        "x: [B, S, 8] per step, y: [B, S, 8] per step, gate: [B, 1, 8] per step",
        "z: [B, S, 8]",
        r#"y + gate * linear(x, "out", out = 8, bias = false)"#,
    );
    expect(&plan, &[("matmul", 1)]);
}

#[test]
fn a_costly_gate_is_computed_once_per_column() {
    let plan = plan(
        "x: [B, S, 8] per step, gate: [B, 1, 8] per step",
        "z: [B, S, 8]",
        r#"tanh(gate) * linear(x, "out", out = 8, bias = false)"#,
    );
    expect(&plan, &[("map", 1), ("matmul", 1)]);
}

#[test]
fn concatenated_keys_are_segments() {
    let plan = plan(
        "q: [B, S, 4, 8] per step, k: [B, S, 2, 8] per step, text: [B, T, 2, 8] per prompt, mask: bool[B, T] per prompt",
        "y: [B, S, 32]",
        "let keys = concat(k, text, axis = 1);
         let seen = concat(broadcast(true, [B, S]), mask, axis = 1);
         reshape(attention(q, keys, keys, seen, scale = 0.35), [B, S, 32])",
    );
    expect(&plan, &[("attention", 1)]);
    let Anchor::Attention(attention) = &plan.kernels[0].anchor else { panic!("{plan}") };
    let masked: Vec<bool> = attention.segments.iter().map(|segment| segment.mask.is_some()).collect();
    assert_eq!(masked, [false, true]);
}

#[test]
fn experts_gather_in_their_factor_and_combine_in_one_sum() {
    let plan = plan(
        "m: [B, S, 8] per step, x: [B, S, 8] per step, logits: [B, S, 4] per step",
        "y: [B, S, 8]",
        r#"let (slot_token, gate) = expert_choice(softmax(logits), capacity = max(1, ceil(2.0 * S / 4)));
           let h = grouped_matmul(gather(m, slot_token), weight("up", [4, 8, 12]));
           let (a, b) = split(h, 2);
           let routed = grouped_matmul(silu(a) * b, weight("down", [4, 6, 8]));
           let capacity = max(1, ceil(2.0 * S / 4));
           x + scatter_add(m, slot_token, routed * reshape(gate, [B, 4, capacity, 1]))"#,
    );
    expect(&plan, &[("expert_choice", 1), ("grouped_matmul", 2), ("row_reduction", 1), ("segment_sum", 1)]);
    assert_eq!(segments(&plan), [2, 1]);
    let gathers = plan.kernels.iter().any(|kernel| match &kernel.anchor {
        Anchor::GroupedMatmul(contraction) => {
            contraction.a.as_load().is_some_and(|access| access.indirect.is_some())
        }
        _ => false,
    });
    assert!(gathers, "{plan}");
}

#[test]
fn sine_and_cosine_are_written_side_by_side() {
    let plan = plan(
        "t: [B] per step",
        "y: [B, 8]",
        "let angle = reshape(t, [B, 1]) * cast(iota([4]), f32); concat(cos(angle), sin(angle), axis = -1)",
    );
    expect(&plan, &[("map", 1)]);
}

#[test]
fn a_reshape_that_mixes_axes_is_stored() {
    let plan = plan(
        "x: [B, S, 8] per step",
        "y: [B, 8 * S]",
        "exp(reshape(transpose(x, permutation = [0, 2, 1]), [B, 8 * S]))",
    );
    // Transposed elements in row-major order are not affine in one axis.
    expect(&plan, &[("map", 2)]);
}

#[test]
fn repeated_layers_share_their_kernels() {
    let plan = plan(
        "x: [B, S, 8] per step",
        "y: [B, S, 8]",
        r#"var y = x;
           for i in 0..6 { y = y + feed_forward(layer_norm(y), inner = 8); }
           y"#,
    );
    expect(&plan, &[("matmul", 12), ("row_reduction", 6)]);
    // First and last layer differ from the others in what they read and write at most.
    assert!(plan.kernels.len() <= 5, "{} kernels", plan.kernels.len());
}

#[test]
fn inputs_and_weights_may_be_outputs() {
    let plan = plan(
        "x: [B, S, 8] per step",
        "a: [B, S, 8], b: [B, 8 * S], c: [3], d: [B, 8, S], e: [B, S, 8]",
        r#"let y = exp(x);
           (x, reshape(y, [B, 8 * S]), weight("w", [3]), transpose(y, permutation = [0, 2, 1]), y)"#,
    );
    expect(&plan, &[("map", 5)]);
}

#[test]
fn sums_over_leading_axes_take_their_products_in() {
    // The first reads all of memory, the second what is left of it.
    let sums = "reduce_sum(reduce_sum(x * g, axis = 1), axis = 0)";
    let plan = plan("x: [B, S, 8] per step, g: [B, S, 8] per step", "y: [8]", sums);
    expect(&plan, &[("row_reduction", 2)]);
}

#[test]
fn a_gradient_of_modulation_is_one_pass_over_tokens() {
    let plan = plan(
        "x: [B, S, 8] per step, g: [B, S, 8] per step, m: [B, 1, 8] per step",
        "scale: [B, 1, 8]",
        "reduce_sum(g * m * x, axis = 1, keep = true)",
    );
    expect(&plan, &[("row_reduction", 1)]);
    let Anchor::RowReduction(reduction) = &plan.kernels[0].anchor else { panic!("{plan}") };
    // Images, then features, which lie side by side.
    assert_eq!((reduction.rows.len(), reduction.phases.len()), (2, 1));
    let load = reduction.phases[0].function.accesses().next().unwrap();
    assert!(load.strides[1].is(1), "{plan}");
}

#[test]
fn gradients_of_concatenated_keys_are_finished_piece_by_piece() {
    let plan = plan(
        "q: [B, S, 4, 8] per step, dy: [B, S, 4, 8] per step, k: [B, S, 2, 8] per step, text: [B, T, 2, 8] per prompt,
         mask: bool[B, T] per prompt, table: [S, 1, 8] per prompt",
        "a: [B, S, 32], b: [B, S, 2, 8], c: [B, T, 2, 8], d: [B, S, 2, 8], e: [B, T, 16]",
        "let keys = concat(k, text, axis = 1);
         let seen = concat(broadcast(true, [B, S]), mask, axis = 1);
         let (dq, dk, dv) = attention_grad(q, keys, keys, dy, seen, scale = 0.35);
         let image = slice(dk, axis = 1, start = 0, end = S);
         (reshape(2.0 * dq, [B, S, 32]), image * table, -slice(dk, axis = 1, start = S, end = S + T),
          exp(slice(dv, axis = 1, start = 0, end = S)), reshape(abs(slice(dv, axis = 1, start = S, end = S + T)), [B, T, 16]))",
    );
    expect(&plan, &[("attention_grad", 1)]);
    let Anchor::AttentionGrad(grad) = &plan.kernels[0].anchor else { panic!("{plan}") };
    let masked: Vec<bool> = grad.segments.iter().map(|segment| segment.keys.mask.is_some()).collect();
    assert_eq!(masked, [false, true]);
    // The gradients themselves are not stored.
    assert!(
        plan.buffers.iter().all(|buffer| !matches!(buffer.place, nucleus_plan::Place::Arena { .. })),
        "{plan}"
    );
}

#[test]
fn a_gradient_that_another_gradient_waits_for_stays_apart() {
    let plan = plan(
        "q: [B, 4, 2, 8] per step, dy: [B, 4, 2, 8] per step, k: [B, 4, 2, 8] per step",
        "a: [B, 4, 2, 8], b: [B, 4, 2, 8]",
        "let (dq, dk, dv) = attention_grad(q, k, k, dy, scale = 0.35);
         (dq * reduce_sum(dk, axis = 3, keep = true), tanh(dk) + tanh(dv))",
    );
    expect(&plan, &[("attention_grad", 1), ("map", 1), ("row_reduction", 1)]);
}

/// A kernel whose only value its readers had rather compute themselves, from what another kernel stores, is none. Here the gradient `left` of
/// a maximum is stored because all that leads to it is too long for one function; behind the `after` nothing takes it along.
#[test]
fn a_value_that_is_left_to_its_readers_needs_no_kernel() {
    for functions in 0..6 {
        let text = format!(
            "dim B, H, W, T;
            entry main(
                a: [B, T, 4] per step, x: [B, T, 2, 3] per step, y: [B, T, 2, 3] per step, z: [3, 2, T] per step,
                index: i32[B, T] per step
            ) -> (r: [B, T, 6]) {{
                let most = reshape(reduce_max(x, axis = 0, keep = true), [T, 2, 3]);
                var b = a;
                for i in 0..{functions} {{ b = tanh(b); }}
                let event = select(a < b, -(a / sqrt(abs(b) + 1.0)), a / sqrt(abs(b) + 1.0));
                let again = tanh(transpose(after(most, event), [2, 1, 0]));
                let slope = transpose(z + z * (1.0 - again * again), [2, 1, 0]);
                let largest = equal(x, broadcast(after(most, event), [B, T, 2, 3]));
                let share = broadcast(reshape(slope, [1, T, 2, 3]) / 3.0, [B, T, 2, 3]);
                let left = -select(largest, share, 0.0 * x);
                let (dq, dk, dv) = attention_grad(x, x, y, left + y, scale = 0.5);
                let sum = reshape(dq + dk + dv * y, [B, T, 6]);
                let (offsets, positions) = invert_index(min(index, T - 1), size = T);
                segment_sum(sum, offsets, positions, reshape(left, [B, T, 6]))
            }}"
        );
        checked(&text, &[], 1e-5);
    }
}
