//! The proof against trying all pairs of points, and kernels that race.

use super::{Place, check_races, may_meet};
use crate::Plan;
use crate::text::parse_plan;

fn place(offset: i64, axes: &[(i64, i64)]) -> Place {
    Place { slot: 0, store: true, indirect: false, offset, axes: axes.to_vec() }
}

fn points(axes: &[(i64, i64)]) -> Vec<Vec<i64>> {
    let mut list = vec![Vec::new()];
    for (_, extent) in axes {
        list = list
            .iter()
            .flat_map(|point| (0..*extent).map(move |x| [point.as_slice(), &[x]].concat()))
            .collect();
    }
    list
}

fn element(place: &Place, point: &[i64]) -> i64 {
    place.offset + place.axes.iter().zip(point).map(|((stride, _), x)| stride * x).sum::<i64>()
}

/// Whether two points that differ along the shared axes touch one element, by trying all.
fn meet(a: &Place, b: &Place, together: Option<usize>) -> bool {
    let (a_points, b_points) = (points(&a.axes), points(&b.axes));
    a_points.iter().any(|p| {
        b_points.iter().any(|q| {
            let differ = together.is_none_or(|together| p[..together] != q[..together]);
            differ && element(a, p) == element(b, q)
        })
    })
}

#[test]
fn whatever_meets_is_seen_and_equal_strides_are_told_exactly() {
    let mut state = 7u64;
    let mut below = |bound: i64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as i64 % bound
    };
    let (mut met, mut exact) = (0, 0);
    for _ in 0..20_000 {
        let rank = 1 + below(3) as usize;
        let axes: Vec<(i64, i64)> = (0..rank).map(|_| (below(14) - 4, 1 + below(4))).collect();
        let same = below(3) > 0;
        let other: Vec<(i64, i64)> = axes
            .iter()
            .map(|&(stride, extent)| (if same { stride } else { below(14) - 4 }, extent))
            .collect();
        let (a, b) = (place(below(9), &axes), place(below(9), &other));
        let together = [None, Some(rank), Some(rank - 1)][below(3) as usize];
        let (told, truth) = (may_meet(&a, &b, together), meet(&a, &b, together));
        assert!(told || !truth, "{a:?} {b:?} {together:?}");
        if same && (together != Some(rank - 1)) {
            assert_eq!(told, truth, "{a:?} {b:?} {together:?}");
            exact += 1;
            met += i32::from(truth);
        }
    }
    assert!(met > 1000 && exact - met > 1000, "{met} of {exact} meet");
}

#[test]
fn layouts_of_tensors_are_free_of_races() {
    // Rotary embeddings: neighbours in one row, written by one point.
    let pairs = [(64, 100), (2, 32)];
    assert!(!may_meet(&place(0, &pairs), &place(1, &pairs), Some(2)));
    // Rows of 9: eight elements and a sum behind them.
    assert!(!may_meet(&place(8, &[(9, 50)]), &place(0, &[(9, 50), (1, 8)]), Some(1)));
    assert!(may_meet(&place(7, &[(9, 50)]), &place(9, &[(9, 50), (1, 8)]), Some(1)));
    // Large and transposed, at once.
    let heads = [(1 << 40, 1 << 10), (128, 1 << 20), (1 << 27, 64), (1, 128)];
    assert!(!may_meet(&place(0, &heads), &place(0, &heads), Some(4)));
    // Two axes of one stride, too long to try all: refused.
    let long = [(1, 1 << 30), (1, 1 << 30)];
    assert!(may_meet(&place(0, &long), &place(0, &long), Some(2)));
}

/// A kernel over [N, 4] with these steps, from operand 0 to operand 1, both [N, 4].
fn map(steps: &str) -> Plan {
    let text = format!(
        "plan test {{ dim N;
        input x: f32[N, 4] per step;
        output y: f32[N, 4];
        buffer b0: f32[N, 4] input 0;
        buffer b1: f32[N, 4] output 0;
        kernel k0(read f32, update f32) sizes 1 map {{
            space s0, 4;
            function {{ {steps} }}
        }}
        launch k0(b0, b1) sizes N per step flops 0 bytes 0; }}"
    );
    parse_plan(&text).unwrap()
}

#[track_caller]
fn races(steps: &str) -> Option<String> {
    let plan = map(steps);
    let mut budget = 1000;
    check_races(&plan.kernels[0], &[5], &mut budget).err().map(|(slot, why)| format!("{slot}: {why}"))
}

#[test]
fn maps_that_race() {
    let own = "v0 = load o0[4*i0 + i1]; store o1[4*i0 + i1] = v0;";
    assert_eq!(races(own), None);
    assert_eq!(races("v0 = load o1[4*i0 + i1]; store o1[4*i0 + i1] = v0;"), None);
    let meets = |what: &str| {
        Some(format!("function: a point stores an element of operand 1 that another point {what}"))
    };
    assert_eq!(races("v0 = load o0[4*i0 + i1]; store o1[4*i0] = v0;"), meets("stores"));
    assert_eq!(races("v0 = load o0[4*i0 + i1]; store o1[3*i0 + i1] = v0;"), meets("stores"));
    assert_eq!(
        races("v0 = load o0[4*i0 + i1]; store o1[4*i0 + i1] = v0; store o1[1 + 4*i0 + i1] = v0;"),
        meets("stores")
    );
    assert_eq!(races("v0 = load o1[4 + 4*i0 + i1]; store o1[4*i0 + i1] = v0;"), meets("reads"));
    assert_eq!(races("v0 = load o1[i1]; store o1[4*i0 + i1] = v0;"), meets("reads"));
    let mut budget = 0;
    let why = check_races(&map(own).kernels[0], &[5], &mut budget).unwrap_err().1;
    assert!(why.contains("in too many ways"), "{why}");
}
