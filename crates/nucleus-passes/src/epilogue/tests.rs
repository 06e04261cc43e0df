//! Which reductions move into products, and that answers stay the same.

use nucleus_ir::Bindings;
use nucleus_plan::reference::{Tensors, evaluate};
use nucleus_plan::text::parse_plan;
use nucleus_plan::{Anchor, Part, Plan, verify_plan};

use super::epilogue;

/// `x W`, with a bias if the epilogue says so, into `t`; then the root mean square of groups of four pairs, which are turned.
fn plan() -> String {
    "plan test {
    dim N;
    input x: f32[N, 3] per step;
    input turn: f32[N, 4] per step;
    output y: f32[N, 16];
    weight \"w\": f32[3, 16];
    weight \"bias\": f32[16];
    buffer b0: f32[N, 3] input 0;
    buffer b1: f32[3, 16] weight \"w\";
    buffer b2: f32[N, 16] arena step;
    buffer b3: f32[N, 4] input 1;
    buffer b4: f32[N, 16] output 0;
    buffer b5: f32[16] weight \"bias\";
    kernel k0(read f32, read f32, read f32, write f32) sizes 1 matmul f32 {
        batch;
        rows s0;
        columns 16; segments 1; depth 3;
        a { v0 = load o0[3*i0 + i1]; return v0; }
        b { v0 = load o1[16*i0 + i1]; return v0; }
        epilogue {
            v0 = accumulator 0;
            v1 = load o2[i1];
            v2 = add(v0, v1);
            store o3[16*i0 + i1] = v2;
        }
    }
    kernel k1(read f32, read f32, write f32) sizes 1 row_reduction {
        rows s0, 2;
        columns 4;
        phase {
            v0 = load o0[16*i0 + 8*i1 + 2*i2];
            v1 = mul(v0, v0);
            v2 = load o0[1 + 16*i0 + 8*i1 + 2*i2];
            v3 = mul(v2, v2);
            v4 = add(v1, v3);
        }
        reduce sum v4;
        row { }
        element {
            v0 = accumulator 0;
            v1 = rsqrt(v0);
            v2 = load o0[16*i0 + 8*i1 + 2*i2];
            v3 = mul(v2, v1);
            v4 = load o0[1 + 16*i0 + 8*i1 + 2*i2];
            v5 = mul(v4, v1);
            v6 = load o1[4*i0 + i2];
            v7 = mul(v3, v6);
            v8 = sub(v7, v5);
            store o2[16*i0 + 8*i1 + 2*i2] = v8;
            v10 = add(v3, v5);
            store o2[1 + 16*i0 + 8*i1 + 2*i2] = v10;
        }
    }
    launch k0(b0, b1, b5, b2) sizes N per step flops 96*N bytes 76*N at \"l.q\";
    launch k1(b2, b3, b4) sizes N per step flops 80*N bytes 144*N at \"l.norm\";
}"
    .to_owned()
}

/// The plan after the pass, verified; its answers are those before, within rounding.
fn passed(text: &str) -> Plan {
    let before = parse_plan(text).unwrap();
    assert_eq!(verify_plan(&before), Ok(()));
    let after = epilogue(before.clone()).unwrap();
    assert_eq!(verify_plan(&after), Ok(()), "{after}");
    assert_eq!(parse_plan(&after.to_string()), Ok(after.clone()), "{after}");
    let dims = Bindings::from_iter([("N", 3)]);
    let mut tensors = Tensors::new();
    let inputs = before.inputs.iter().map(|input| (&input.name, &input.ty));
    for (name, ty) in inputs.chain(before.weights.iter().map(|(name, ty)| (name, ty))) {
        let count = ty.elements().unwrap().eval(&dims).unwrap();
        let value = |at: i64| f64::from(((at * 7 + name.len() as i64) % 11) as i32 - 5) / 4.0;
        tensors.insert(name.clone(), (0..count).map(value).collect());
    }
    let [before, after] = [&before, &after].map(|plan| evaluate(plan, &dims, &tensors, &tensors).unwrap());
    for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
        assert!((before - after).abs() <= 1e-5 * before.abs().max(1.0), "{before} {after}");
    }
    assert_eq!(before.concat().len(), after.concat().len());
    epilogue(parse_plan(text).unwrap()).unwrap()
}

fn parts(plan: &Plan) -> Vec<&Part> {
    let kernels = plan.launches.iter().map(|launch| plan.kernel(launch.kernel));
    let parts = kernels.flat_map(|kernel| match &kernel.anchor {
        Anchor::Matmul(contraction) => contraction.parts.as_slice(),
        _ => &[],
    });
    parts.collect()
}

#[test]
fn pairs_of_heads_become_interleaved_segments() {
    let plan = passed(&plan());
    assert_eq!((plan.launches.len(), plan.kernels.len()), (1, 1), "{plan}");
    let [part] = parts(&plan)[..] else { panic!("{plan}") };
    assert_eq!((part.segments, part.interleaved), (2, true));
    assert_eq!(part.columns, nucleus_plan::Size::Const(8));
    assert_eq!(part.groups.as_ref().map(|groups| groups.width), Some(4));
    let launch = &plan.launches[0];
    assert_eq!(launch.flops.to_string(), "176*N");
    assert_eq!(launch.scope.as_deref(), Some("l"));
    // Rows of x, turns and results; weight and bias. What lay between them is no buffer any more.
    assert_eq!(launch.bytes.to_string(), "92*N + 256");
    assert_eq!(plan.buffers.len(), 5);
}

/// Whether the changed plan, whose answers must stay, still has a reduction of its own.
#[track_caller]
fn stays(changes: &[(&str, &str)]) {
    let mut text = plan();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let plan = passed(&text);
    assert!(plan.launches.len() > 1 && parts(&plan).iter().all(|part| part.groups.is_none()), "{plan}");
}

#[test]
fn results_that_others_use_are_stored() {
    let copy = "kernel k2(read f32, write f32) sizes 1 map {
        space s0, 16;
        function { v0 = load o0[16*i0 + i1]; store o1[16*i0 + i1] = v0; }
    }
    launch k0(";
    stays(&[
        ("    output y: f32[N, 16];\n", "    output y: f32[N, 16];\n    output z: f32[N, 16];\n"),
        ("    kernel k0", "    buffer b6: f32[N, 16] output 1;\n    kernel k0"),
        ("launch k0(", copy),
        ("at \"l.norm\";", "at \"l.norm\";\n    launch k2(b2, b6) sizes N per step flops 0 bytes 0;"),
    ]);
    stays(&[
        ("    output y: f32[N, 16];\n", "    output y: f32[N, 16];\n    output z: f32[N, 16];\n"),
        ("f32[N, 16] arena step", "f32[N, 16] output 1"),
    ]);
}

#[test]
fn elements_of_other_points_are_loaded() {
    // The neighbours of each pair the other way round, of another head, and of another row.
    let (even, odd) = ("load o0[16*i0 + 8*i1 + 2*i2]", "load o0[1 + 16*i0 + 8*i1 + 2*i2]");
    stays(&[(odd, "load o0[7 + 16*i0 + 8*i1 + -2*i2]")]);
    stays(&[(even, "load o0[8 + 16*i0 + -8*i1 + 2*i2]")]);
    stays(&[(even, "load o0[8*i1 + 2*i2]")]);
    stays(&[(even, "load o0[16*i0 + 8*i1 + i2]")]);
}

#[test]
fn results_of_rows_and_wide_groups_stay_apart() {
    stays(&[
        ("    output y: f32[N, 16];\n", "    output y: f32[N, 16];\n    output z: f32[N, 2];\n"),
        ("    kernel k0", "    buffer b6: f32[N, 2] output 1;\n    kernel k0"),
        ("kernel k1(read f32, read f32, write f32)", "kernel k1(read f32, read f32, write f32, write f32)"),
        ("row { }", "row { v0 = accumulator 0; store o3[2*i0 + i1] = v0; }"),
        ("launch k1(b2, b3, b4)", "launch k1(b2, b3, b4, b6)"),
    ]);
    let wide = [("4*", "256*"), ("8*", "512*"), ("16*", "1024*"), (", 16]", ", 1024]"), ("[16]", "[1024]")];
    let sizes = [(", 4]", ", 256]"), ("columns 16", "columns 1024"), ("columns 4", "columns 256")];
    stays(&[wide.as_slice(), &sizes].concat());
}

#[test]
fn a_product_that_is_expensive_to_repeat_is_stored() {
    let steps: String = (3..12).map(|i| format!("v{i} = tanh(v{});\n", i - 1)).collect();
    stays(&[("store o3[16*i0 + i1] = v2;", &format!("{steps} store o3[16*i0 + i1] = v11;"))]);
}

#[test]
fn one_group_of_all_columns_needs_no_axis_of_groups() {
    let text = plan()
        .replace("rows s0, 2;", "rows s0;")
        .replace("columns 4;", "columns 8;")
        .replace("16*i0 + 8*i1 + 2*i2", "16*i0 + 2*i1")
        .replace("load o1[4*i0 + i2]", "load o1[8*i0 + i1]")
        .replace("f32[N, 4]", "f32[N, 8]");
    let plan = passed(&text);
    let [part] = parts(&plan)[..] else { panic!("{plan}") };
    assert_eq!(part.groups.as_ref().map(|groups| groups.width), Some(8));
}

/// What the product reads is overwritten before the reduction: state that is updated in place.
#[test]
fn a_product_does_not_wait_past_a_change_of_its_factors() {
    let mut plan = parse_plan(&plan().replace("f32[3, 16] weight \"w\"", "f32[3, 16] state \"w\"")).unwrap();
    let update = "plan update {
        kernel k0(update f32) sizes 0 map {
            space 48;
            function { v0 = load o0[i0]; v1 = add(v0, v0); store o0[i0] = v1; }
        }
        launch k0(b1) per step flops 0 bytes 0;
    }";
    let update = parse_plan(update).unwrap();
    plan.kernels.extend(update.kernels);
    let mut launch = update.launches[0].clone();
    launch.kernel.0 = 2;
    plan.launches.insert(1, launch);
    assert_eq!(epilogue(plan.clone()).unwrap().launches.len(), 3);
    plan.launches.swap(1, 2);
    assert_eq!(epilogue(plan).unwrap().launches.len(), 2);
}
