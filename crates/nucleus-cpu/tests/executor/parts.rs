//! Parts of a contraction on the CPU: in company and alone, and malformed ones.

use nucleus_cpu::{CpuProgram, Options};
use nucleus_plan::{Anchor, Contraction, KernelId, Launch, Part, Plan, Size, Step};

use crate::contractions::{PLAIN, parts};
use crate::groups::softmax;
use crate::harness::{Case, DEFAULT, bindings, expected, plan, run};

/// Every part alone, as launches of their own, has the bits that it has in company.
#[test]
fn company_changes_no_bit() {
    let dims = bindings(&[("B", 2), ("S", 33), ("M", 40)]);
    for dtype in ["f32", "bf16"] {
        let text = parts(dtype, PLAIN);
        let whole = plan(&text);
        let case = Case { text: &text, dims: &[], ..DEFAULT };
        let given = expected(&case, &whole, &dims);
        let mut apart = whole.clone();
        let (kernel, launch) = (apart.kernels.remove(0), apart.launches.remove(0));
        let Anchor::Matmul(contraction) = &kernel.anchor else { panic!("{whole}") };
        for (number, part) in contraction.parts.iter().enumerate() {
            let mut kernel = kernel.clone();
            kernel.anchor = Anchor::Matmul(Contraction { parts: vec![part.clone()], ..contraction.clone() });
            apart.kernels.push(kernel);
            apart.launches.push(Launch { kernel: KernelId(number as u32), ..launch.clone() });
        }
        let outputs = |plan: Plan| {
            let options = Options { threads: 2, ..Options::default() };
            run(&mut CpuProgram::compile(plan, options).unwrap(), &dims, &given, true).unwrap()
        };
        assert!(outputs(whole) == outputs(apart), "{dtype}");
    }
}

#[test]
fn a_contraction_without_parts_is_refused() {
    let mut plan = plan(&parts("f32", PLAIN));
    let Anchor::Matmul(contraction) = &mut plan.kernels[0].anchor else { panic!("{plan}") };
    let parts = std::mem::take(&mut contraction.parts);
    let error = |plan: &Plan| CpuProgram::compile(plan.clone(), Options::default()).unwrap_err().to_string();
    assert!(error(&plan).contains("no parts"), "{}", error(&plan));
    // A stride too few in the second part.
    let Anchor::Matmul(contraction) = &mut plan.kernels[0].anchor else { panic!("{plan}") };
    contraction.parts = parts;
    let Some(Step::Load(access)) = contraction.parts[1].b.steps.first_mut() else { panic!("a load") };
    access.strides.pop();
    assert!(error(&plan).contains("`b1`"), "{}", error(&plan));
}

fn part(plan: &mut Plan) -> &mut Part {
    let Anchor::Matmul(contraction) = &mut plan.kernels[0].anchor else { panic!("a product") };
    &mut contraction.parts[0]
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    let refused = |change: &dyn Fn(&mut Part), expected: &str| {
        let mut plan = plan(&softmax(4, 6));
        change(part(&mut plan));
        let error = CpuProgram::compile(plan, Options::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let width = |width: u32| move |part: &mut Part| part.groups.as_mut().unwrap().width = width;
    refused(&width(0), "not whole");
    refused(&width(5), "not whole");
    refused(&|part| part.columns = Size::Arg(0), "not whole");
    refused(
        &|part| {
            part.columns = Size::Const(1 << 40);
            part.groups.as_mut().unwrap().width = 1 << 20;
        },
        "too large",
    );
    refused(&|part| part.segments = u32::MAX, "too large");
    refused(&|part| part.groups.as_mut().unwrap().phases.truncate(1), "beyond the 2");
    refused(&|part| part.groups.as_mut().unwrap().phases.swap(0, 1), "beyond the 1");
    refused(
        &|part| part.groups.as_mut().unwrap().phases[0].reductions[0].value.0 = 1,
        "a reduced value is not f32",
    );
}
