//! Absurd configs and programs get a diagnostic, soon and in bounded memory.

use std::time::{Duration, Instant};

use crate::support::{NUCLEUS_IMAGE, errors};

/// The first line of the diagnostics, which must come within seconds.
fn complaint(text: &str, settings: &[&str]) -> String {
    let start = Instant::now();
    let errors = errors(text, settings);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    errors.lines().next().unwrap_or_default().to_owned()
}

fn model(settings: &[&str]) -> String {
    complaint(NUCLEUS_IMAGE, settings)
}

#[test]
fn absurd_configs() {
    assert_eq!(
        model(&["num_layers=1000000000"]),
        "error: config key `capacity_factors` would have 1000000000 elements, a list has 0 to 1000000"
    );
    assert_eq!(
        model(&["num_layers=-1"]),
        "error: config key `capacity_factors` would have -1 elements, a list has 0 to 1000000"
    );
    assert_eq!(
        model(&["num_layers=900000", "capacity_factors=2"]),
        "error: the graph has more than 65536 nodes"
    );
    assert_eq!(
        model(&["num_attention_heads=9000000000000000000"]),
        "error: the result does not fit a signed 64-bit integer"
    );
    assert_eq!(
        model(&["num_attention_heads=4000000000", "num_key_value_heads=4"]),
        "error: weight `time_text_embed.timestep_embedder.linear_1.weight` has shape [2048000000000, 512000000000]: at most 8 axes, sizes from 1 to 2^40, less than 2^63 bytes"
    );
    assert_eq!(
        model(&["num_attention_heads=-16", "attention_head_dim=-128"]),
        "error: num_attention_heads (-16), num_key_value_heads (4) and attention_head_dim (-128) must be at least 1"
    );
    assert_eq!(
        model(&["num_key_value_heads=0"]),
        "error: num_attention_heads (16), num_key_value_heads (0) and attention_head_dim (128) must be at least 1"
    );
    assert_eq!(
        model(&["num_key_value_heads=5"]),
        "error: num_attention_heads (16) must be a multiple of num_key_value_heads (5)"
    );
    assert_eq!(
        model(&["axes_dims_rope=[16, 56, 57]"]),
        "error: axes_dims_rope must add up to attention_head_dim (128)"
    );
    assert_eq!(model(&["axes_dims_rope=[15, 57, 56]"]), "error: axes_dims_rope must be even");
    assert_eq!(model(&["axes_dims_rope=[16, -56, 168]"]), "error: axes_dims_rope must not be negative");
    assert_eq!(
        model(&["mlp_ratio=1e300"]),
        "error: `floor`: 4e303 does not fit a signed 64-bit integer"
            .replace("4e303", &format!("{}", 2048.0 * 1e300 * 2.0 / 3.0))
    );
    assert_eq!(
        model(&["mlp_ratio=0.001"]).split(':').nth(1),
        Some(" weight `transformer_blocks.0.img_mlp.net.0.proj.weight` has shape [0, 2048]")
    );
    assert_eq!(model(&["patch_size=0"]), "error: patch_size (0) must be at least 1");
    assert_eq!(model(&["capacity_factors=-1"]), "error: capacity factors must not be negative, one is -1.0");
}

#[test]
fn programs_that_would_not_end() {
    let entry = |body: &str| format!("entry main(x: [2] per step) -> (r: [2]) {{ {body} x }}");
    assert_eq!(
        complaint(&entry("for i in 0..9223372036854775807 { }"), &[]),
        "error: loops run more than 1000000 times"
    );
    assert_eq!(
        complaint(&entry("for i in 0..1000 { for j in 0..1000 { for k in 0..1000 { } } }"), &[]),
        "error: loops run more than 1000000 times"
    );
    // Every function calls the next one twice.
    let mut text = entry("g0();");
    for i in 0..60 {
        text.push_str(&format!("fn g{i}() -> int {{ g{}() + g{}() }}\n", i + 1, i + 1));
    }
    text.push_str("fn g60() -> int { 1 }");
    assert_eq!(complaint(&text, &[]), "error: elaboration takes more than 25000000 steps");
    let chain: String = (0..70).map(|i| format!("fn g{i}() -> int {{ g{}() }}\n", i + 1)).collect();
    let text = format!("{}\n{chain}fn g70() -> int {{ 1 }}", entry("g0();"));
    assert_eq!(complaint(&text, &[]), "error: calls are nested more than 64 deep");
}

#[test]
fn deep_blocks_in_deep_calls() {
    let mut text = "entry main(x: [2] per step) -> (r: [2]) { g0(); x }\n".to_owned();
    for i in 0..60 {
        let (open, close) = ("{ ".repeat(50), " }".repeat(50));
        text.push_str(&format!("fn g{i}() -> int {{ {open}g{}(){close} }}\n", i + 1));
    }
    text.push_str("fn g60() -> int { 1 }");
    assert_eq!(complaint(&text, &[]), "error: calls and blocks are nested more than 1024 deep");
}

#[test]
fn values_that_grow() {
    let entry =
        |body: &str| format!("dim B, H, W, T;\nentry main(x: [2] per step) -> (r: [2]) {{ {body} x }}");
    let doubling = entry(r#"var s = "ab"; for i in 0..40 { s = "{s}{s}"; }"#);
    assert_eq!(complaint(&doubling, &[]), "error: a string has more than 65536 bytes");
    let nested = entry("var d = B; for i in 0..40 { d = max(d * 2 + H, d * 3 + W) + min(d, T * d); }");
    assert!(
        complaint(&nested, &[]).starts_with("error: a size expression has more than 64 terms"),
        "{}",
        complaint(&nested, &[])
    );
    let powers = entry("var d = B + H + W + T; for i in 0..40 { d = d * d; }");
    assert!(complaint(&powers, &[]).starts_with("error: a size expression has more than 64 terms"));
    let slices = entry("let z = broadcast(0.0, [B]); for i in 0..100000 { slice(z, 0, i, B); }");
    assert_eq!(complaint(&slices, &[]), "error: the graph has more than 4096 relations between sizes");
    let weights = entry("for i in 0..1000000 { weight(\"w{i}\", [2]); }");
    assert_eq!(complaint(&weights, &[]), "error: the graph has more than 100000 weights");
    let ranks = entry("broadcast(x, [1, 1, 1, 1, 1, 1, 1, 1, 2]);");
    assert_eq!(complaint(&ranks, &[]), "error: op `broadcast`: the result has 9 axes, more than 8");
}
