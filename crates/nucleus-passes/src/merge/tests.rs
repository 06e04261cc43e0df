//! Where merging begins and ends.

use nucleus_ir::DType;
use nucleus_plan::text::parse_plan;
use nucleus_plan::{Anchor, Plan, verify_plan};

use super::rebuild::merged;
use super::{contraction, merge};

/// Products of `x` with `count` weights, each to an output of its own.
fn products(count: usize) -> Plan {
    let each = |line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
    let text = format!(
        "plan test {{
            dim N;
            input x: f32[N, 8] per step;
            {}
            {}
            buffer b0: f32[N, 8] input 0;
            {}
            {}
            kernel k0(read f32, read f32, write f32) sizes 1 matmul f32 {{
                batch;
                rows s0;
                columns 4; segments 1; depth 8;
                a {{ v0 = load o0[8*i0 + i1]; return v0; }}
                b {{ v0 = load o1[4*i0 + i1]; return v0; }}
                epilogue {{ v0 = accumulator 0; store o2[4*i0 + i1] = v0; }}
            }}
            {}
        }}",
        each(&|i| format!("output y{i}: f32[N, 4];\n")),
        each(&|i| format!("weight \"w{i}\": f32[8, 4];\n")),
        each(&|i| format!("buffer b{}: f32[8, 4] weight \"w{i}\";\n", 1 + i)),
        each(&|i| format!("buffer b{}: f32[N, 4] output {i};\n", 1 + count + i)),
        each(&|i| {
            let (weight, output) = (1 + i, 1 + count + i);
            format!(
                "launch k0(b0, b{weight}, b{output}) sizes N per step flops 64*N bytes 48*N + 128 at \"l.{i}\";\n"
            )
        }),
    );
    let plan = parse_plan(&text).unwrap();
    assert_eq!(verify_plan(&plan), Ok(()));
    plan
}

fn parts(plan: &Plan) -> Vec<usize> {
    plan.launches.iter().filter_map(|launch| Some(contraction(plan, launch)?.parts.len())).collect()
}

#[test]
fn a_launch_has_as_many_parts_as_it_may_have() {
    let plan = merge(products(150)).unwrap();
    assert_eq!(verify_plan(&plan), Ok(()));
    assert_eq!(parts(&plan), [64, 64, 22]);
    assert_eq!(
        plan.kernels.len(),
        2,
        "launches of as many parts share a kernel, the single product's is gone"
    );
}

#[test]
fn a_merged_launch_counts_its_left_factor_once() {
    let plan = merge(products(3)).unwrap();
    let launch = &plan.launches[0];
    assert_eq!(launch.flops.to_string(), "192*N");
    assert_eq!(launch.bytes.to_string(), "80*N + 384");
    assert_eq!((launch.operands.len(), launch.sizes.len()), (7, 1));
    assert_eq!(launch.scope.as_deref(), Some("l"));
}

#[test]
fn a_merged_plan_stays_as_it_is() {
    let once = merge(products(5)).unwrap();
    assert_eq!(merge(once.clone()).unwrap(), once);
}

#[test]
fn a_launch_alone_is_made_again_with_the_same_bytes() {
    let plan = products(1);
    let (kernel, launch) = merged(&plan, &[0]).unwrap();
    assert_eq!((&kernel, &launch), (&plan.kernels[0], &plan.launches[0]));
}

/// What one product reads, another launch between the two overwrites: state that is updated in place.
#[test]
fn products_around_a_change_of_their_weight_stay_apart() {
    let mut plan = products(2);
    let text = plan
        .to_string()
        .replace("f32[8, 4] weight \"w0\"", "f32[8, 4] state \"w\"")
        .replace("f32[8, 4] weight \"w1\"", "f32[8, 4] state \"w\"");
    plan = parse_plan(&text).unwrap();
    // Both products read one state, which the update lies between.
    plan.launches[1].operands[1] = plan.launches[0].operands[1];
    assert_eq!(parts(&merge(plan.clone()).unwrap()), [2]);
    let update = "plan update {
        kernel k0(update f32) sizes 0 map {
            space 32;
            function { v0 = load o0[i0]; v1 = add(v0, v0); store o0[i0] = v1; }
        }
        launch k0(b1) per step flops 0 bytes 0;
    }";
    let update = parse_plan(update).unwrap();
    plan.kernels.extend(update.kernels);
    let mut launch = update.launches[0].clone();
    launch.kernel.0 = 1;
    plan.launches.insert(1, launch);
    assert_eq!(parts(&merge(plan.clone()).unwrap()), [1, 1]);
    // After both products it is not in their way.
    plan.launches.swap(1, 2);
    assert_eq!(parts(&merge(plan).unwrap()), [2]);
}

#[test]
fn other_types_and_sizes_stay_apart() {
    let mut plan = products(2);
    let kernel = plan.kernels[0].clone();
    plan.kernels.push(kernel);
    plan.launches[1].kernel.0 = 1;
    assert_eq!(parts(&merge(plan.clone()).unwrap()), [2], "kernels may differ");
    let Anchor::Matmul(contraction) = &mut plan.kernels[1].anchor else { panic!("{plan}") };
    contraction.dtype = DType::Bf16;
    assert_eq!(parts(&merge(plan.clone()).unwrap()), [1, 1]);
    let Anchor::Matmul(contraction) = &mut plan.kernels[1].anchor else { panic!("{plan}") };
    contraction.dtype = DType::F32;
    plan.launches[1].sizes[0] = plan.launches[1].sizes[0].mul(&nucleus_ir::Dim::constant(1)).unwrap();
    assert_eq!(parts(&merge(plan.clone()).unwrap()), [2]);
    plan.launches[1].sizes[0] = nucleus_ir::Dim::constant(1);
    assert_eq!(parts(&merge(plan).unwrap()), [1, 1]);
}
