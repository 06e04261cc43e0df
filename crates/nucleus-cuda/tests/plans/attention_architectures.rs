//! Attention takes other tiles on other architectures: more of them in flight, or smaller ones.

use nucleus_cuda::Architecture;

use crate::attention_shapes::{ALL, Shape};
use crate::harness::{check_on, plan};

const SHAPE: Shape = Shape { dtype: "bf16", heads: 2, key_heads: 1, head: 128, pad: 0 };

#[test]
fn other_tiles_give_the_same_answers() {
    for name in ["sm_89", "sm_90"] {
        let architecture: Architecture = name.parse().unwrap();
        let on = |text: &str, sizes: [usize; 4]| {
            SHAPE.with_case(text, sizes, false, &|case| check_on(architecture, &plan(text), case));
        };
        on(&SHAPE.forward(), [1, 20, 70, 40]);
        on(&SHAPE.gradients(&ALL), [1, 40, 40, 20]);
    }
}
