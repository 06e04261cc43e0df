//! Mistakes that people make, and the whole of what is said about them.

use crate::support::errors;

#[track_caller]
fn expect(text: &str, expected: &str) {
    assert_eq!(errors(text.trim_start(), &[]).trim_end(), expected.trim());
}

#[test]
fn the_rank_of_an_argument() {
    expect(
        r#"
use std { linear };
dim B, S;
entry main(x: [B, 8] per step) -> (r: [B, S, 4]) {
    linear(x, "proj", out = 4)
}
"#,
        r#"
error: output `r` has type f32[B, 4], expected f32[B, S, 4]
 --> test.ir:4:5
  |
3 | entry main(x: [B, 8] per step) -> (r: [B, S, 4]) {
  |                                       --------- the stated type
4 |     linear(x, "proj", out = 4)
  |     ^^^^^^^^^^^^^^^^^^^^^^^^^^ this value
"#,
    );
}

#[test]
fn a_shape_that_does_not_match() {
    expect(
        r#"
dim B, S;
fn scaled(x: [B, S, 8], by: [B, 8]) -> [B, S, 8] { x * reshape(by, [B, 1, 8]) }
entry main(x: [B, S, 8] per step, t: [B, 4] per step) -> (r: [B, S, 8]) {
    scaled(x, t)
}
"#,
        r#"
error: argument `by` of `scaled` has type f32[B, 4], expected f32[B, 8]
 --> test.ir:4:15
  |
2 | fn scaled(x: [B, S, 8], by: [B, 8]) -> [B, S, 8] { x * reshape(by, [B, 1, 8]) }
  |                             ------ the parameter is declared here
3 | entry main(x: [B, S, 8] per step, t: [B, 4] per step) -> (r: [B, S, 8]) {
4 |     scaled(x, t)
  |               ^ this argument
"#,
    );
}

#[test]
fn an_element_type_that_does_not_match() {
    expect(
        r#"
use std { silu, softmax };
dim B;
entry main(n: i32[B, 4] per step) -> (r: [B, 4]) {
    softmax(n)
}
"#,
        r#"
error: argument `x` of `softmax` has type i32[B, 4], expected f32[..., 4]
  --> test.ir:4:13
   |
 4 |     softmax(n)
   |             ^ this argument
   |
  ::: std.ir:19:15
   |
19 | fn softmax(x: [..., K]) -> [..., K] {
   |               -------- the parameter is declared here
"#,
    );
}

#[test]
fn shapes_that_do_not_broadcast() {
    expect(
        r#"
dim B, S;
entry main(x: [B, S, 8] per step, y: [B, 8] per step) -> (r: [B, S, 8]) {
    x * y
}
"#,
        r#"
error: shapes do not broadcast: f32[B, S, 8] and f32[B, 8]
 --> test.ir:3:5
  |
3 |     x * y
  |     ^^^^^ one side has S where another has B
"#,
    );
}

#[test]
fn an_error_inside_functions_shows_the_calls() {
    expect(
        r#"
use std { feed_forward };
dim B;
fn block(x: [B, 8], layer: int) -> [B, 8] {
    scope "layers.{layer}" { feed_forward(x, inner = 6 / 2) }
}
entry main(x: [B, 8] per step) -> (r: [B, 8]) {
    var y = x;
    for i in 0..3 { y = block(y, i); }
    y
}
"#,
        r#"
error: argument `inner` of `feed_forward` must be an int or a size, given a float
  --> test.ir:4:54
   |
 4 |     scope "layers.{layer}" { feed_forward(x, inner = 6 / 2) }
   |                                                      ^^^^^ this argument
...
 8 |     for i in 0..3 { y = block(y, i); }
   |                         ----------- in this call of `block`
   |
  ::: std.ir:49:30
   |
49 | fn feed_forward(x: [..., K], inner: int) -> [..., K] {
   |                              ----- the parameter is declared here
   |
   = help: `/` on ints is a float; use floor_div, ceil_div, floor or ceil
"#,
    );
}

#[test]
fn an_error_inside_std() {
    expect(
        r#"
use std { linear };
dim B;
fn head(x: [B, 8]) -> [B, 4] { linear(x, "head", out = 0) }
entry main(x: [B, 8] per step) -> (r: [B, 4]) { head(x) }
"#,
        r#"
error: weight `head.weight` has shape [0, 8]: at most 8 axes, sizes from 1 to 2^40, less than 2^63 bytes
  --> std.ir:43:23
   |
43 |     let y = matmul(x, weight("{name}.weight", [out, K]), transpose_b = true);
   |                       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ in this call
   |
  ::: test.ir:3:32
   |
 3 | fn head(x: [B, 8]) -> [B, 4] { linear(x, "head", out = 0) }
   |                                -------------------------- in this call of `linear`
 4 | entry main(x: [B, 8] per step) -> (r: [B, 4]) { head(x) }
   |                                                 ------- in this call of `head`

error: weight `head.bias` has shape [0]: at most 8 axes, sizes from 1 to 2^40, less than 2^63 bytes
  --> std.ir:44:19
   |
44 |     if bias { y + weight("{name}.bias", [out]) } else { y }
   |                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^ in this call
   |
  ::: test.ir:3:32
   |
 3 | fn head(x: [B, 8]) -> [B, 4] { linear(x, "head", out = 0) }
   |                                -------------------------- in this call of `linear`
 4 | entry main(x: [B, 8] per step) -> (r: [B, 4]) { head(x) }
   |                                                 ------- in this call of `head`
"#,
    );
}

#[test]
fn contracted_sizes() {
    expect(
        r#"
dim B;
entry main(x: [B, 8] per step) -> (r: [B, 4]) {
    matmul(x, weight("w", [4, 6]), transpose_b = true)
}
"#,
        r#"
error: op `matmul`: contracted sizes 8 and 6 differ
 --> test.ir:3:5
  |
3 |     matmul(x, weight("w", [4, 6]), transpose_b = true)
  |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ in this operation
"#,
    );
}

#[test]
fn a_fraction_as_a_size() {
    expect(
        r#"
const D = 7;
entry main(x: [7] per step) -> (r: [1]) {
    slice(x, axis = 0, start = 0, end = D / 2)
}
"#,
        r#"
error: attribute `end` of op `slice` must be a size, given a float
 --> test.ir:3:41
  |
3 |     slice(x, axis = 0, start = 0, end = D / 2)
  |                                         ^^^^^
  |
  = help: `/` on ints is a float; use floor_div or ceil_div
"#,
    );
}

#[test]
fn a_scaled_size_without_ceil() {
    expect(
        r#"
dim B, S;
entry main(x: [B, S, 4] per step) -> (r: [B, S, 4]) {
    let (token, gate) = expert_choice(x, capacity = 1.5 * S / 4);
    x
}
"#,
        r#"
error: attribute `capacity` of op `expert_choice` must be a size, given a scaled size
 --> test.ir:3:53
  |
3 |     let (token, gate) = expert_choice(x, capacity = 1.5 * S / 4);
  |                                                     ^^^^^^^^^^^
  |
  = help: `ceil` makes a size of a scaled size
"#,
    );
}

#[test]
fn an_axis_that_is_not_there() {
    expect(
        r#"
dim B;
entry main(x: [B, 8] per step) -> (r: [B]) {
    reduce_sum(x, axis = 2)
}
"#,
        r#"
error: `reduce_sum`: there is no axis 2 among 2 axes
 --> test.ir:3:26
  |
3 |     reduce_sum(x, axis = 2)
  |                          ^ this axis
  |
  = help: axes are 0 … 1 or, from the end, -1 … -2
"#,
    );
}

#[test]
fn an_attribute_of_the_wrong_kind() {
    expect(
        r#"
dim B;
entry main(x: [B, 8] per step) -> (r: [B]) {
    reduce_sum(x, axis = -1, keep = 0)
}
"#,
        r#"
error: attribute `keep` of op `reduce_sum` must be a bool, given an int
 --> test.ir:3:37
  |
3 |     reduce_sum(x, axis = -1, keep = 0)
  |                                     ^
"#,
    );
}

#[test]
fn an_index_outside_of_a_list() {
    expect(
        r#"
const SIZES = [4, 8];
entry main(x: [8] per step) -> (r: [8]) {
    for i in 0..3 { weight("w{i}", [SIZES[i]]); }
    x
}
"#,
        r#"
error: index 2 is outside of a list of 2
 --> test.ir:3:43
  |
3 |     for i in 0..3 { weight("w{i}", [SIZES[i]]); }
  |                                     ----- ^ this index
  |                                     |
  |                                     this has 2 elements
"#,
    );
}

#[test]
fn a_weight_with_two_shapes() {
    expect(
        r#"
entry main(x: [8] per step) -> (r: [8]) {
    scope "a" { x * weight("w", [8]) };
    scope "a" { weight("w", [4]) };
    x
}
"#,
        r#"
error: weight `a.w` is f32[8] at its first mention and f32[4] here
 --> test.ir:3:17
  |
3 |     scope "a" { weight("w", [4]) };
  |                 ^^^^^^^^^^^^^^^^ in this call
"#,
    );
}

#[test]
fn a_weight_of_run_time_size() {
    expect(
        r#"
dim B;
entry main(x: [B] per step) -> (r: [B]) {
    x * weight("w", [B])
}
"#,
        r#"
error: weight `w` has shape [B]: it cannot depend on run-time sizes
 --> test.ir:3:9
  |
3 |     x * weight("w", [B])
  |         ^^^^^^^^^^^^^^^^ in this call
"#,
    );
}

#[test]
fn a_tensor_as_a_condition() {
    expect(
        r#"
dim B;
entry main(x: [B] per step) -> (r: [B]) {
    if x < 0.0 { x } else { -x }
}
"#,
        r#"
error: a condition must be a compile-time bool, given a tensor bool[B]
 --> test.ir:3:8
  |
3 |     if x < 0.0 { x } else { -x }
  |        ^^^^^^^ this condition
  |
  = help: `select(condition, a, b)` chooses between elements at run time
"#,
    );
}

#[test]
fn a_comparison_of_run_time_sizes() {
    expect(
        r#"
dim B, S;
entry main(x: [B, S] per step) -> (r: [B, S]) {
    if B < S { x } else { -x }
}
"#,
        r#"
error: whether B and S compare so depends on run-time sizes; only `require` can state it
 --> test.ir:3:8
  |
3 |     if B < S { x } else { -x }
  |        ^^^^^ in this expression
"#,
    );
}

#[test]
fn an_output_of_another_type() {
    expect(
        r#"
dim B;
entry main(x: [B, 8] per step) -> (r: [B, 8]) {
    reshape(x, [8, B])
}
"#,
        r#"
error: output `r` has type f32[8, B], expected f32[B, 8]
 --> test.ir:3:5
  |
2 | entry main(x: [B, 8] per step) -> (r: [B, 8]) {
  |                                       ------ the stated type
3 |     reshape(x, [8, B])
  |     ^^^^^^^^^^^^^^^^^^ this value
"#,
    );
}

#[test]
fn too_few_results() {
    expect(
        r#"
dim B;
entry main(x: [B, 8] per step) -> (a: [B, 4], b: [B, 4], c: [B, 4]) {
    let both = split(x, 2);
    both
}
"#,
        r#"
error: entry `main` has 3 outputs, its body gives 2
 --> test.ir:4:5
  |
4 |     both
  |     ^^^^ the value of the body
"#,
    );
}

#[test]
fn parts_that_are_not_equal() {
    expect(
        r#"
dim B;
entry main(x: [B, 8] per step) -> (r: [B, 8]) {
    let (a, b, c) = split(x, 3);
    x
}
"#,
        r#"
error: axis 1 of [B, 8] does not split into 3 equal parts
 --> test.ir:3:21
  |
3 |     let (a, b, c) = split(x, 3);
  |                     ^^^^^^^^^^^ in this operation
  |
  = help: the count is from 1 to 1024 and divides the size
"#,
    );
}

#[test]
fn an_overflow() {
    expect(
        r#"
config { width: int = 4_000_000_000; }
const AREA = width * width * width;
entry main(x: [8] per step) -> (r: [8]) { x }
"#,
        r#"
error: the result does not fit a signed 64-bit integer
 --> test.ir:2:14
  |
2 | const AREA = width * width * width;
  |              ^^^^^^^^^^^^^ in this expression
"#,
    );
}

#[test]
fn a_requirement_that_does_not_hold() {
    expect(
        r#"
config { heads: int = 6; groups: int = 4; }
require heads % groups == 0, "heads ({heads}) must be a multiple of groups ({groups})";
entry main(x: [8] per step) -> (r: [8]) { x }
"#,
        r#"
error: heads (6) must be a multiple of groups (4)
 --> test.ir:2:9
  |
2 | require heads % groups == 0, "heads ({heads}) must be a multiple of groups ({groups})";
  |         ^^^^^^^^^^^^^^^^^^^ this does not hold
"#,
    );
}

#[test]
fn an_int_tensor_meets_a_float() {
    expect(
        r#"
dim B;
entry main(n: i32[B] per step) -> (r: i32[B]) {
    n * 0.5
}
"#,
        r#"
error: `mul` on elements of i32 does not take a float 0.5
 --> test.ir:3:5
  |
3 |     n * 0.5
  |     ^^^^^^^ in this operation
"#,
    );
}

#[test]
fn several_at_once() {
    expect(
        r#"
dim B;
entry main(x: [B, 8] per step, n: i32[B] per step) -> (r: [B, 8]) {
    let a = x + n;
    let b = exp(a);
    let c = log(n);
    x % 2
}
"#,
        r#"
error: shapes do not broadcast: f32[B, 8] and i32[B]
 --> test.ir:3:13
  |
3 |     let a = x + n;
  |             ^^^^^ one side has 8 where another has B

error: op `log` is not defined for i32[B]; it takes F[s] → F[s]
 --> test.ir:5:13
  |
5 |     let c = log(n);
  |             ^^^^^^ in this operation

error: `%` is not defined for a tensor f32[B, 8] and an int
 --> test.ir:6:5
  |
6 |     x % 2
  |     ^^^^^ in this expression
"#,
    );
}
