//! Optimisers against plain loops in f64.

use nucleus_runtime::Threads;

use super::*;
use crate::groups::{WeightInfo, assign};

fn group(pattern: &str, optimizer: Optimizer) -> Group {
    Group { params: vec![pattern.to_owned()], optimizer, default: false }
}

/// Numbers in −1 … 1 that look random.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Parameters with random weights and gradients, and their optimisers.
fn made(groups: &[Group], shapes: &[(&str, &[usize])]) -> (Parameters, Optimizers) {
    let weights: Vec<WeightInfo> = shapes
        .iter()
        .map(|(name, shape)| WeightInfo { name: (*name).to_owned(), shape: shape.to_vec() })
        .collect();
    let assignment = assign(groups, &weights).unwrap();
    let mut parameters = Parameters::new(&weights, groups, &assignment).unwrap();
    let elements = parameters.elements();
    parameters.values[..elements].copy_from_slice(&numbers(elements, 1));
    parameters.gradients[..elements].copy_from_slice(&numbers(elements, 2));
    let optimizers = Optimizers::new(&parameters, groups, &Threads::new(2).unwrap()).unwrap();
    (parameters, optimizers)
}

fn assert_close(given: &[f32], wanted: &[f64], limit: f64) {
    assert_eq!(given.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    for (position, (given, wanted)) in given.iter().zip(wanted).enumerate() {
        let error = (f64::from(*given) - wanted).abs() / largest;
        assert!(error <= limit, "element {position} is {given}, not {wanted}: {error:e}");
    }
}

#[test]
fn three_steps_of_adamw() {
    let adamw = AdamW { lr: 0.01, weight_decay: 0.1, betas: [0.8, 0.95], eps: 1e-6 };
    let groups = [group("*", Optimizer::AdamW(adamw))];
    let (mut parameters, mut optimizers) = made(&groups, &[("a", &[7, 300]), ("b", &[5])]);
    let elements = parameters.elements();
    let mut weights: Vec<f64> = parameters.values[..elements].iter().map(|x| f64::from(*x)).collect();
    let (mut m, mut v) = (vec![0.0; elements], vec![0.0; elements]);
    for step in 1..=3 {
        let gradients = numbers(elements, 10 + step);
        parameters.gradients[..elements].copy_from_slice(&gradients);
        optimizers.update(&mut parameters, &groups, step, 0.5, 0.25).unwrap();
        for i in 0..elements {
            let g = f64::from(gradients[i]) * 0.25;
            m[i] = 0.8 * m[i] + 0.2 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            let mean = m[i] / (1.0 - 0.8f64.powi(step as i32));
            let square: f64 = v[i] / (1.0 - 0.95f64.powi(step as i32));
            weights[i] = weights[i] * (1.0 - 0.005 * 0.1) - 0.005 * mean / (square.sqrt() + 1e-6);
        }
    }
    assert_close(&parameters.values[..elements], &weights, 1e-6);
    assert_close(&parameters.first[..elements], &m, 1e-6);
    assert_close(&parameters.second, &v, 1e-6);
}

/// x · y, or x · yᵀ, of [rows, inner] and [inner, columns].
fn product(x: &[f64], y: &[f64], inner: usize, columns: usize, transposed: bool) -> Vec<f64> {
    let at = |k: usize, c: usize| if transposed { y[c * inner + k] } else { y[k * columns + c] };
    let row =
        |row: &[f64]| (0..columns).map(|c| (0..inner).map(|k| row[k] * at(k, c)).sum()).collect::<Vec<f64>>();
    x.chunks(inner).flat_map(row).collect()
}

fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    let rows = x.len() / columns;
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}

fn orthogonalized(u: &[f64], columns: usize, steps: usize) -> Vec<f64> {
    let rows = u.len() / columns;
    if rows > columns {
        return transposed(&orthogonalized(&transposed(u, columns), rows, steps), rows);
    }
    let norm = u.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-7);
    let mut x: Vec<f64> = u.iter().map(|x| x / norm).collect();
    for _ in 0..steps {
        let a = product(&x, &x, columns, rows, true);
        let aa = product(&a, &a, rows, rows, false);
        let b: Vec<f64> = a.iter().zip(&aa).map(|(a, aa)| -4.7750 * a + 2.0315 * aa).collect();
        let bx = product(&b, &x, rows, columns, false);
        x.iter_mut().zip(bx).for_each(|(x, bx)| *x = 3.4445 * *x + bx);
    }
    x
}

#[test]
fn two_steps_of_muon_on_every_kind_of_matrix() {
    let kinds = [
        (AdjustLr::MatchRmsAdamW, true, (NsForm::Gram, DType::F32), 1e-5),
        (AdjustLr::Original, false, (NsForm::Direct, DType::F32), 1e-5),
        (AdjustLr::MatchRmsAdamW, true, (NsForm::Direct, DType::Bf16), 2e-3),
        (AdjustLr::Original, true, (NsForm::Gram, DType::Bf16), 4e-3),
    ];
    for (adjust_lr, nesterov, (ns_form, ns_dtype), limit) in kinds {
        let usual = Muon { lr: 0.02, weight_decay: 0.1, momentum: 0.9, ..Muon::default() };
        let muon = Muon { nesterov, adjust_lr, ns_form, ns_dtype, ..usual };
        let groups = [group("*", Optimizer::Muon(muon))];
        let shapes: [(&str, &[usize]); 6] = [
            ("a.to_q.weight", &[12, 20]),
            ("b.to_q.weight", &[12, 20]),
            ("a.to_out.weight", &[20, 12]),
            ("a.net.0.proj.weight", &[24, 10]),
            ("a.experts.gate_up_proj", &[3, 9, 14]),
            ("a.experts.down_proj", &[3, 7, 9]),
        ];
        let (mut parameters, mut optimizers) = made(&groups, &shapes);
        let elements = parameters.elements();
        let mut weights: Vec<f64> = parameters.values[..elements].iter().map(|x| f64::from(*x)).collect();
        let mut buffer = vec![0.0f64; elements];
        let weight_infos: Vec<WeightInfo> = parameters.list().iter().map(|p| p.info.clone()).collect();
        let assignment = assign(&groups, &weight_infos).unwrap();
        for step in 1..=2 {
            let gradients = numbers(elements, 20 + step);
            parameters.gradients[..elements].copy_from_slice(&gradients);
            optimizers.update(&mut parameters, &groups, step, 1.0, 0.5).unwrap();
            let g: Vec<f64> = gradients.iter().map(|g| f64::from(*g) * 0.5).collect();
            buffer.iter_mut().zip(&g).for_each(|(b, g)| *b = 0.9 * *b + 0.1 * g);
            for (parameter, assigned) in parameters.list().iter().zip(&assignment.weights) {
                let layout = assigned.layout.unwrap();
                let start = parameter.range.start;
                let factor = 0.02 * adjust_lr.factor(layout.rows, layout.columns);
                for matrix in 0..layout.matrices() {
                    let points = (0..layout.rows).flat_map(|r| (0..layout.columns).map(move |c| (r, c)));
                    let at: Vec<usize> = points.map(|(r, c)| start + layout.index(matrix, r, c)).collect();
                    let u = |i: &usize| if nesterov { 0.1 * g[*i] + 0.9 * buffer[*i] } else { buffer[*i] };
                    let o = orthogonalized(&at.iter().map(u).collect::<Vec<f64>>(), layout.columns, 5);
                    for (i, o) in at.iter().zip(o) {
                        weights[*i] = weights[*i] * (1.0 - 0.02 * 0.1) - factor * o;
                    }
                }
            }
        }
        assert_close(&parameters.values[..elements], &weights, limit);
        assert_close(&parameters.first[..elements], &buffer, 1e-6);
    }
}

/// A [`ROWS`, `COLUMNS`] matrix whose singular values are those given, and then 0: a sum of products of columns of two cosine transforms, which are
/// orthonormal.
fn with_singular_values(values: &[f64]) -> Vec<f32> {
    let basis = |size: usize, vector: usize, i: usize| {
        let scale = if vector == 0 { 1.0 } else { 2.0f64.sqrt() } / (size as f64).sqrt();
        scale * (std::f64::consts::PI * (i as f64 + 0.5) * vector as f64 / size as f64).cos()
    };
    let element = |r, c| {
        let terms = values.iter().enumerate();
        terms.map(|(k, value)| value * basis(ROWS, k, r) * basis(COLUMNS, k, c)).sum::<f64>() as f32
    };
    (0..ROWS).flat_map(|r| (0..COLUMNS).map(move |c| element(r, c))).collect()
}

const ROWS: usize = 48;
const COLUMNS: usize = 80;

/// The table of docs/training.md: errors of all forms of the iteration beside f64, over the largest element.
#[test]
fn forms_of_the_newton_schulz_iteration() {
    let spread = |decades: f64| -> Vec<f64> {
        (0..ROWS).map(|k| 10f64.powf(-decades * k as f64 / (ROWS - 1) as f64)).collect()
    };
    let one_large = |rest: f64| -> Vec<f64> { (0..ROWS).map(|k| if k == 0 { 1.0 } else { rest }).collect() };
    let kinds = [
        ("random numbers", numbers(ROWS * COLUMNS, 7)),
        ("singular values 1 … 1e-2", with_singular_values(&spread(2.0))),
        ("singular values 1 … 1e-6", with_singular_values(&spread(6.0))),
        ("one of 1, others 1e-2", with_singular_values(&one_large(1e-2))),
        ("one of 1, others 1e-3", with_singular_values(&one_large(1e-3))),
        ("one of 1, others 1e-4", with_singular_values(&one_large(1e-4))),
        ("rank 8", with_singular_values(&one_large(1.0)[..8])),
        ("zeros", vec![0.0; ROWS * COLUMNS]),
    ];
    for (kind, gradient) in &kinds {
        for ns_steps in [1, 5, 7] {
            let wanted: Vec<f64> = gradient.iter().map(|g| f64::from(*g)).collect();
            let wanted = orthogonalized(&wanted, COLUMNS, ns_steps);
            let largest = wanted.iter().fold(1e-30f64, |largest, x| largest.max(x.abs()));
            // Factors rounded to bf16 are 2⁻⁹ off; in two steps in a row what that leaves of singular values that are 0 beside the others grows 12 times.
            let forms = [
                (NsForm::Direct, DType::F32, 2e-3),
                (NsForm::Gram, DType::F32, 4e-3),
                (NsForm::Direct, DType::Bf16, 6e-2),
                (NsForm::Gram, DType::Bf16, 1.5e-1),
            ];
            for (ns_form, ns_dtype, limit) in forms {
                let (adjust_lr, nesterov) = (AdjustLr::Original, false);
                let numbers = Muon { lr: 1.0, weight_decay: 0.0, momentum: 0.0, ..Muon::default() };
                let muon = Muon { nesterov, adjust_lr, ns_steps, ns_form, ns_dtype, ..numbers };
                let groups = [group("*", Optimizer::Muon(muon))];
                let (mut parameters, mut optimizers) = made(&groups, &[("w", &[ROWS, COLUMNS])]);
                parameters.values.fill(0.0);
                parameters.gradients[..gradient.len()].copy_from_slice(gradient);
                optimizers.update(&mut parameters, &groups, 1, 1.0, 1.0).unwrap();
                let differences =
                    parameters.values.iter().zip(&wanted).map(|(w, o)| (f64::from(-w) - o).abs());
                let error = differences.fold(0.0, f64::max) / largest;
                println!("{kind}, {ns_steps} steps, {ns_form:?} {ns_dtype}: {error:.1e}");
                assert!(error <= limit, "{kind}, {ns_steps} steps, {ns_form:?} {ns_dtype}: {error:e}");
            }
        }
    }
}

#[test]
fn norms_and_sums_of_gradients() {
    let groups = [group("*", Optimizer::AdamW(AdamW::default()))];
    let (parameters, mut optimizers) = made(&groups, &[("a", &[9000])]);
    let wanted: f64 = parameters.gradients.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
    let given = optimizers.sum_of_squares(&parameters).unwrap();
    assert!((given - wanted).abs() <= 1e-6 * wanted, "{given} {wanted}");
    let mut sum = numbers(1000, 3);
    let more = numbers(1000, 4);
    let wanted: Vec<f64> = sum.iter().zip(&more).map(|(a, b)| f64::from(*a) + 0.25 * f64::from(*b)).collect();
    optimizers.accumulate(sum.as_mut_slice().into(), more.as_slice().into(), 1000, 0.25).unwrap();
    assert_close(&sum, &wanted, 1e-6);
}

#[test]
fn rows_of_a_router_move_apart() {
    let groups = [group("*", Optimizer::AdamW(AdamW::default()))];
    let (_, mut optimizers) = made(&groups, &[("a", &[4])]);
    let mut router = numbers(4 * 6, 5);
    let overlap = |router: &[f32]| {
        let row = |i: usize| &router[i * 6..(i + 1) * 6];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let cosine =
            |i: usize, j: usize| dot(row(i), row(j)) / (dot(row(i), row(i)) * dot(row(j), row(j))).sqrt();
        (0..4).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| cosine(i, j).powi(2)).sum::<f64>()
    };
    let mut before = overlap(&router);
    for _ in 0..20 {
        optimizers.orthogonalize(router.as_mut_slice().into(), 4, 6, 0.05).unwrap();
        let after = overlap(&router);
        assert!(after < before, "{after} {before}");
        before = after;
    }
}

#[test]
fn state_is_updated_in_place() {
    let backend = Backend::from(&Threads::new(1).unwrap());
    let shape = [("count", "4".to_owned()), ("rows", "16".to_owned()), ("columns", "24".to_owned())];
    let columns = [shape.as_slice(), &[("halves", "columns".to_owned())]].concat();
    let tall = [("count", "4".to_owned()), ("rows", "24".to_owned()), ("columns", "16".to_owned())];
    for (text, entry, settings) in [
        (ADAMW, "update", &[][..]),
        (GRADIENTS, "accumulate", &[][..]),
        (MUON, "update", &shape[..]),
        (MUON, "update", &columns[..]),
        (MUON, "update", &tall[..]),
        (ORTHOGONALITY, "update", &shape[1..]),
    ] {
        let routine = program(text, entry, entry.to_owned(), settings, &backend).unwrap().routine;
        let shared = nucleus_plan::in_place(routine.plan());
        assert!(
            shared.iter().all(Option::is_some),
            "{} {settings:?}: {shared:?}\n{}",
            text.0,
            routine.plan()
        );
    }
}
