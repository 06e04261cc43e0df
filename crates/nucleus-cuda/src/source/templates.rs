//! The files of `kernels-templates/`, which are part of the binary.

use super::SourceError;

macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../../kernels-templates/", $name)))),*]
    };
}

/// Path and text of every file.
const FILES: &[(&str, &str)] = files! {
    "attention/f32_tiles.cuh"
    "attention/keys.cuh"
    "attention/statistics.cuh"
    "attention/tiles.cuh"
    "block/reduce.cuh"
    "block/scan.cuh"
    "matmul/epilogue.cuh"
    "matmul/factor.cuh"
    "matmul/pipeline.cuh"
    "matmul/wide.cuh"
    "prelude.cuh"
    "ptx/arithmetic.cuh"
    "ptx/async_copy.cuh"
    "ptx/convert.cuh"
    "ptx/exp2.cuh"
    "ptx/fresh.cuh"
    "ptx/matrix.cuh"
    "ptx/shared.cuh"
    "ptx/store.cuh"
    "ptx/widen.cuh"
    "scheduler/tiles.cuh"
    "sm80_bf16_attention.cuh"
    "sm80_bf16_attention_grad.cuh"
    "sm80_bf16_matmul.cuh"
    "sm80_bf16_wide_matmul.cuh"
    "sm80_expert_choice.cuh"
    "sm80_f32_attention.cuh"
    "sm80_f32_attention_grad.cuh"
    "sm80_f32_matmul.cuh"
    "sm80_f32_wide_matmul.cuh"
    "sm80_invert_index.cuh"
    "sm80_limits.cuh"
    "sm80_map.cuh"
    "sm80_row_reduction.cuh"
    "sm80_row_reduction_columns.cuh"
    "sm80_row_reduction_columns_long.cuh"
    "sm80_row_reduction_long.cuh"
    "sm80_segment_sum.cuh"
};

/// The text of a file with what it includes in place of its `#include` lines, each file once: `included` has those that are there.
pub(super) fn flatten(name: &'static str, included: &mut Vec<&'static str>) -> Result<String, SourceError> {
    if included.contains(&name) {
        return Ok(String::new());
    }
    included.push(name);
    let text = find(name).map(|(_, text)| text)?;
    let mut result = String::with_capacity(text.len());
    for line in text.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(other) => result.push_str(&flatten(find(other)?.0, included)?),
            None if line == "#pragma once" => {}
            None => {
                result.push_str(line);
                result.push('\n');
            }
        }
    }
    Ok(result)
}

fn find(name: &str) -> Result<(&'static str, &'static str), SourceError> {
    let file = FILES.iter().find(|(file, _)| *file == name);
    file.copied().ok_or_else(|| SourceError::Unsupported(format!("`{name}`, which is not part of the build")))
}
