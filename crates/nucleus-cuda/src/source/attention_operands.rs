//! What attention and its gradients have in common: the operands and segments that their templates read, and how much of them fits into
//! shared memory.

use std::fmt::Write;

use nucleus_ir::DType;
use nucleus_plan::{Access, KeySegment, Operand, ScalarFunction, Size};

use super::space::size;
use super::{Direct, Names, Slot, SourceError, constant, element, memory_type};
use crate::architecture::Architecture;
use crate::facts::Facts;

/// Heads, and how scores are scaled.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// Of queries.
    pub(super) heads: u32,
    /// Of keys and values.
    pub(super) key_heads: u32,
    /// Elements of a head.
    pub(super) size: u32,
    /// Factor on the scores.
    pub(super) scale: f64,
}

impl Heads {
    /// The head size with its padding, of which the operands of matrix instructions have whole steps.
    pub(super) fn padded(self) -> u32 {
        self.size.next_multiple_of(16)
    }

    /// Bytes of a row in shared memory, as `attention/tiles.cuh` lays them out.
    pub(super) fn row_bytes(self) -> u32 {
        let chunks = self.padded() / 8;
        (if chunks.is_multiple_of(8) { chunks } else { chunks + 1 }) * 16
    }

    /// Bytes of shared memory in which a warp brings 16 rows of results into order: `STAGE_BYTES`.
    pub(super) fn stage_bytes(self) -> u32 {
        16 * (self.padded() + 8) * 4
    }

    /// True if matrix instructions take heads of this size, up to `largest`; the templates for `f32` take all others.
    pub(super) fn fits_matrices(self, dtype: DType, largest: u32) -> bool {
        dtype != DType::F32 && self.size.is_multiple_of(8) && (8..=largest).contains(&self.size)
    }

    /// Columns of a head that a block of the templates for `f32` computes.
    pub(super) fn columns(self) -> u32 {
        if self.size <= 64 { 64 } else { 128 }
    }

    /// Blocks of the templates for `f32` that share the columns of a head.
    pub(super) fn column_chunks(self) -> u32 {
        self.size.div_ceil(self.columns())
    }

    /// Constants of every template.
    pub(super) fn constants(self, segments: usize) -> Vec<(&'static str, String)> {
        vec![
            ("HEADS", self.heads.to_string()),
            ("KEY_HEADS", self.key_heads.to_string()),
            ("HEAD_SIZE", self.size.to_string()),
            ("SEGMENTS", segments.to_string()),
        ]
    }

    /// Constants of the templates for matrix instructions.
    pub(super) fn matrix_constants(self) -> Vec<(&'static str, String)> {
        vec![("HEAD", self.padded().to_string())]
    }

    /// Constants of the templates for `f32`.
    pub(super) fn f32_constants(self) -> Vec<(&'static str, String)> {
        let lanes = if self.size.is_multiple_of(4) { 4 } else { 1 };
        vec![("COLUMNS", self.columns().to_string()), ("LANES", lanes.to_string())]
    }
}

/// Bytes of shared memory of a block of the templates for `f32`: `STAGE` + `WEIGHTS` floats.
pub(super) const F32_SHARED: u32 = 4 * (2 * 32 * 68 + 64 * 68);

/// Shared memory of a block if a multiprocessor is to hold two: each takes 1 KB for itself.
pub(super) fn half_of_shared(architecture: Architecture) -> u32 {
    (architecture.shared_memory() + 1024) / 2 - 1024
}

/// How many tiles of so many bytes a block keeps beside `fixed` bytes: 2 to `most`, such that two blocks fit if they can. `None` if not even
/// one block does.
pub(super) fn ring(architecture: Architecture, fixed: u32, tile: u32, most: u32) -> Option<u32> {
    let fit = |bytes: u32| bytes.saturating_sub(fixed) / tile;
    let both = [half_of_shared(architecture), architecture.shared_memory()].map(fit);
    both.into_iter().find(|tiles| *tiles >= 2).map(|tiles| tiles.min(most))
}

/// Prints slots.
pub(super) struct Slots<'a> {
    /// The operands of the kernel.
    pub(super) operands: &'a [Operand],
    /// What is known of its sizes.
    pub(super) facts: &'a Facts,
    /// The type of the products.
    pub(super) dtype: DType,
    /// True for the templates for matrix instructions.
    pub(super) matrices: bool,
}

impl Slots<'_> {
    /// What every template begins with: sizes, the scale, the element type.
    pub(super) fn head(&self, heads: Heads, batch: Size, queries: Size) -> String {
        let mut text = format!("constexpr float SCALE = {};\n", constant(heads.scale, DType::F32));
        for (name, count) in [("batches", batch), ("queries", queries)] {
            let count = size(count, &Direct);
            let _ = writeln!(text, "DEVICE int {name}(const Arguments& args) {{ return {count}; }}");
        }
        if self.matrices {
            let _ = writeln!(text, "typedef {} Element;", memory_type(self.dtype));
            text.push_str("struct Rows {\n    const Element* from;\n    i64 stride;\n};\n");
        }
        text
    }

    /// The function of an operand, and the structure `name` by which the template reads its rows.
    pub(super) fn rows(&self, name: &str, function: &ScalarFunction) -> Result<String, SourceError> {
        let slot = format!("value_of_{name}");
        let mut text = self.slot(&slot, function, 0)?;
        let _ = writeln!(text, "struct {name} {{");
        if self.matrices {
            let plain = self.plain_rows(function);
            let _ = writeln!(text, "    static constexpr bool COPIED = {};", plain.is_some());
            if let Some(access) = plain {
                let stride = match access.strides[1] {
                    Size::Const(stride) => stride.to_string(),
                    Size::Arg(argument) => Direct.size(argument),
                };
                let _ = writeln!(
                    text,
                    "    DEVICE Rows rows(const Arguments& args, int i0, int i1, int i2) {{\n        return {{memory<const Element>(args.o[{}]) + ({}), {stride}}};\n    }}",
                    access.operand,
                    element(&access, &Direct)
                );
            }
        }
        let _ = writeln!(
            text,
            "    template <int V>\n    DEVICE Lanes<float, V> at(const Arguments& args, int i0, int i1, int i2, int i3) {{\n        return {slot}<V>(args, i0, i1, i2, i3);\n    }}\n}};"
        );
        Ok(text)
    }

    /// The access to the first element of a row, if rows are memory that can be copied 16 bytes at a time.
    fn plain_rows(&self, function: &ScalarFunction) -> Option<Access> {
        let access = function.as_load()?;
        let aligned = self.facts.alignment(access, 3) * self.dtype.size() as i64 >= 16;
        let of_type = self.operands.get(access.operand as usize)?.dtype == self.dtype;
        let side_by_side = access.strides.len() == 4 && access.strides[3].is(1);
        (access.indirect.is_none() && aligned && of_type && side_by_side).then(|| {
            let mut first = access.clone();
            first.strides[3] = Size::Const(0);
            first
        })
    }

    /// A function over (b, row, head, column) with lanes along the columns.
    pub(super) fn slot(
        &self,
        name: &str,
        function: &ScalarFunction,
        accumulators: u32,
    ) -> Result<String, SourceError> {
        let slot = Slot {
            name: name.to_owned(),
            function,
            axes: 4,
            lanes: Some(3),
            operands: self.operands,
            facts: self.facts,
            lane_accumulators: accumulators,
            sums: 0,
            values: &[],
            parameters: "",
            names: &Direct,
        };
        slot.print()
    }

    /// A segment: its operands, its mask, and `members`, further ones of its structure.
    pub(super) fn segment(
        &self,
        number: usize,
        segment: &KeySegment,
        members: &str,
    ) -> Result<String, SourceError> {
        let mut text = self.rows(&format!("K{number}"), &segment.k)?;
        text.push_str(&self.rows(&format!("V{number}"), &segment.v)?);
        let mut taken = "i1 < length(args)".to_owned();
        if let Some(mask) = &segment.mask {
            let slot = Slot {
                name: format!("mask{number}"),
                function: mask,
                axes: 2,
                lanes: None,
                operands: self.operands,
                facts: self.facts,
                lane_accumulators: 0,
                sums: 0,
                values: &[],
                parameters: "",
                names: &Direct,
            };
            text.push_str(&slot.print()?);
            let _ = write!(taken, " && mask{number}(args, i0, i1).at[0]");
        }
        let _ = write!(
            text,
            "struct Segment{number} {{\n    typedef K{number} Keys;\n    typedef V{number} Values;\n    static constexpr bool MASKED = {};\n    DEVICE int length(const Arguments& args) {{ return {}; }}\n    DEVICE bool taken(const Arguments& args, int i0, int i1) {{ return {taken}; }}\n{members}}};\n",
            segment.mask.is_some(),
            size(segment.length, &Direct),
        );
        Ok(text)
    }

    /// From the number of a segment to the segment.
    pub(super) fn dispatch(&self, segments: usize) -> String {
        let mut lengths = String::new();
        let mut calls = String::new();
        for number in 0..segments {
            let _ = writeln!(lengths, "    if (segment == {number}) return Segment{number}::length(args);");
            let _ =
                writeln!(calls, "    if (segment == {number}) F::template run<Segment{number}>(rest...);");
        }
        format!(
            "DEVICE int segment_length(const Arguments& args, int segment) {{\n{lengths}    return 0;\n}}\n\
             template <class F, class... Rest>\nDEVICE void with_segment(int segment, Rest&&... rest) {{\n{calls}}}\n"
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every architecture that kernels are compiled for.
    pub(in crate::source) fn architectures() -> impl Iterator<Item = Architecture> {
        ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
            .into_iter()
            .filter_map(|name| name.parse().ok())
    }

    pub(in crate::source) fn heads_of(size: u32) -> Heads {
        Heads { heads: 4, key_heads: 2, size, scale: 1.0 }
    }
}
