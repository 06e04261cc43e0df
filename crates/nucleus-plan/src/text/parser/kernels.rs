//! Kernels: an anchor with its extents and the scalar functions in its slots.

use nucleus_ir::DType;

use super::{Parsed, Parser};
use crate::kernel::{
    Anchor, Attention, AttentionGrad, ColumnGroups, Contraction, ExpertChoice, GradSegment, InverseMap,
    InvertIndex, Kernel, KeySegment, Map, Operand, OperandMode, Part, Phase, Reduction, ReductionOp,
    RowReduction, SegmentSum, Tile,
};
use crate::scalar::{Size, StepId};
use crate::text::printer::{mode_name, reduction_name};

impl Parser<'_> {
    pub(super) fn kernel(&mut self) -> Parsed<Kernel> {
        self.expect("(")?;
        let operands = if self.peek() == Some(")") { Vec::new() } else { self.list(Parser::operand)? };
        self.expect(")")?;
        self.expect("sizes")?;
        let size_args = self.unsigned()?;
        let anchor = self.name()?;
        let dtype = if self.peek() == Some("{") { DType::F32 } else { self.dtype()? };
        self.expect("{")?;
        let anchor = match anchor {
            "map" => {
                let space = self.sizes("space")?;
                Anchor::Map(Map { function: self.function("function", space.len())?, space })
            }
            "row_reduction" => Anchor::RowReduction(self.row_reduction()?),
            "matmul" => Anchor::Matmul(self.contraction(dtype)?),
            "grouped_matmul" => Anchor::GroupedMatmul(self.contraction(dtype)?),
            "attention" => Anchor::Attention(self.attention(dtype)?),
            "attention_grad" => Anchor::AttentionGrad(self.attention_grad(dtype)?),
            "expert_choice" => Anchor::ExpertChoice(self.expert_choice()?),
            "invert_index" => Anchor::InvertIndex(InvertIndex {
                batch: self.field("batch", Parser::size)?,
                positions: self.field("positions", Parser::size)?,
                targets: self.field("targets", Parser::size)?,
                index: self.field("index", |parser| parser.numbered("o"))?,
                offsets_out: self.field("offsets_out", |parser| parser.numbered("o"))?,
                positions_out: self.field("positions_out", |parser| parser.numbered("o"))?,
            }),
            "segment_sum" => Anchor::SegmentSum(self.segment_sum()?),
            _ => return Err(self.error(&format!("`{anchor}` is not an anchor"))),
        };
        self.expect("}")?;
        Ok(Kernel { operands, size_args, anchor })
    }

    fn operand(&mut self) -> Parsed<Operand> {
        let name = self.name()?;
        let mode = [OperandMode::Read, OperandMode::Write, OperandMode::ReadWrite]
            .into_iter()
            .find(|mode| mode_name(*mode) == name)
            .ok_or_else(|| self.error("expected read, write or update before this"))?;
        Ok(Operand { dtype: self.dtype()?, mode })
    }

    fn row_reduction(&mut self) -> Parsed<RowReduction> {
        let rows = self.sizes("rows")?;
        let columns = self.field("columns", Parser::size)?;
        let phases = self.phases(rows.len() + 1)?;
        let row = self.function("row", rows.len())?;
        let element = self.function("element", rows.len() + 1)?;
        Ok(RowReduction { rows, columns, phases, row, element })
    }

    fn phases(&mut self, axes: usize) -> Parsed<Vec<Phase>> {
        let mut phases = Vec::new();
        while self.peek() == Some("phase") {
            let function = self.function("phase", axes)?;
            let mut reductions = Vec::new();
            while self.accept("reduce") {
                let name = self.name()?;
                let op = [ReductionOp::Sum, ReductionOp::Max]
                    .into_iter()
                    .find(|op| reduction_name(*op) == name)
                    .ok_or_else(|| self.error("expected sum or max before this"))?;
                reductions.push(Reduction { op, value: StepId(self.numbered("v")?) });
                self.expect(";")?;
            }
            phases.push(Phase { function, reductions });
        }
        Ok(phases)
    }

    fn contraction(&mut self, dtype: DType) -> Parsed<Contraction> {
        let batch = self.sizes("batch")?;
        let rows = self.sizes("rows")?;
        // One part has its columns here, several are blocks of their own.
        let single = if self.peek() == Some("columns") { Some(self.columns()?) } else { None };
        let depth = self.field("depth", Parser::size)?;
        let tile = if self.peek() == Some("tile") {
            let sides = self.field("tile", |parser| parser.list(Parser::unsigned))?;
            match sides.as_slice() {
                [rows, columns, depth] => Some(Tile { rows: *rows, columns: *columns, depth: *depth }),
                _ => return Err(self.error("a tile has three sides")),
            }
        } else {
            None
        };
        let axes = batch.len() + rows.len() + 1;
        let a = self.function("a", axes)?;
        let mut parts = Vec::new();
        if let Some(columns) = single {
            parts.push(self.part(columns, batch.len() + 2, axes)?);
        } else {
            while self.accept("part") {
                let columns = self.columns()?;
                parts.push(self.part(columns, batch.len() + 2, axes)?);
            }
        }
        Ok(Contraction { batch, rows, depth, a, dtype, tile, parts })
    }

    /// The rest of a part whose columns, segments and whether these are interleaved are known.
    fn part(
        &mut self,
        (columns, segments, interleaved): (Size, u32, bool),
        b_axes: usize,
        axes: usize,
    ) -> Parsed<Part> {
        let symmetric = self.accept("symmetric");
        if symmetric {
            self.expect(";")?;
        }
        let b = self.function("b", b_axes)?;
        let groups = if self.peek() == Some("width") {
            let width = self.field("width", Parser::unsigned)?;
            Some(ColumnGroups { width, phases: self.phases(axes + 1)? })
        } else {
            None
        };
        let epilogue = self.function("epilogue", axes + usize::from(groups.is_some()))?;
        Ok(Part { columns, segments, interleaved, symmetric, b, groups, epilogue })
    }

    fn columns(&mut self) -> Parsed<(Size, u32, bool)> {
        let columns = self.field("columns", Parser::size)?;
        let interleaved = self.peek() == Some("interleaved");
        let name = if interleaved { "interleaved" } else { "segments" };
        Ok((columns, self.field(name, Parser::unsigned)?, interleaved))
    }

    fn attention(&mut self, dtype: DType) -> Parsed<Attention> {
        let batch = self.field("batch", Parser::size)?;
        let queries = self.field("queries", Parser::size)?;
        let heads = self.field("heads", Parser::unsigned)?;
        let key_heads = self.field("key_heads", Parser::unsigned)?;
        let head_size = self.field("head_size", Parser::unsigned)?;
        let scale = self.field("scale", Parser::float)?;
        let q = self.function("q", 4)?;
        let mut segments = Vec::new();
        while self.peek() == Some("keys") {
            segments.push(self.key_segment()?);
        }
        let epilogue = self.function("epilogue", 4)?;
        Ok(Attention { batch, queries, heads, key_heads, head_size, scale, dtype, q, segments, epilogue })
    }

    fn key_segment(&mut self) -> Parsed<KeySegment> {
        let length = self.field("keys", Parser::size)?;
        let k = self.function("k", 4)?;
        let v = self.function("v", 4)?;
        let mask = if self.peek() == Some("mask") { Some(self.function("mask", 2)?) } else { None };
        Ok(KeySegment { length, k, v, mask })
    }

    fn attention_grad(&mut self, dtype: DType) -> Parsed<AttentionGrad> {
        let batch = self.field("batch", Parser::size)?;
        let queries = self.field("queries", Parser::size)?;
        let heads = self.field("heads", Parser::unsigned)?;
        let key_heads = self.field("key_heads", Parser::unsigned)?;
        let head_size = self.field("head_size", Parser::unsigned)?;
        let scale = self.field("scale", Parser::float)?;
        let q = self.function("q", 4)?;
        let dy = self.function("dy", 4)?;
        let mut segments = Vec::new();
        while self.peek() == Some("keys") {
            let keys = self.key_segment()?;
            segments.push(GradSegment { keys, dk: self.function("dk", 4)?, dv: self.function("dv", 4)? });
        }
        let dq = self.function("dq", 4)?;
        Ok(AttentionGrad { batch, queries, heads, key_heads, head_size, scale, dtype, q, dy, segments, dq })
    }

    fn expert_choice(&mut self) -> Parsed<ExpertChoice> {
        Ok(ExpertChoice {
            batch: self.field("batch", Parser::size)?,
            tokens: self.field("tokens", Parser::size)?,
            experts: self.field("experts", Parser::size)?,
            capacity: self.field("capacity", Parser::size)?,
            slot_token: self.field("slot_token", |parser| parser.numbered("o"))?,
            inverse: match self.peek() {
                Some("offsets") => Some(InverseMap {
                    offsets: self.field("offsets", |parser| parser.numbered("o"))?,
                    positions: self.field("positions", |parser| parser.numbered("o"))?,
                }),
                _ => None,
            },
            affinity: self.function("affinity", 3)?,
            epilogue: self.function("epilogue", 3)?,
        })
    }

    fn segment_sum(&mut self) -> Parsed<SegmentSum> {
        let batch = self.field("batch", Parser::size)?;
        let targets = self.field("targets", Parser::size)?;
        let rest = self.sizes("rest")?;
        let offsets = self.field("offsets", |parser| parser.numbered("o"))?;
        let positions = self.field("positions", |parser| parser.numbered("o"))?;
        let position_count = self.field("position_count", Parser::size)?;
        let axes = 2 + rest.len();
        let base = self.function("base", axes)?;
        let update = self.function("update", axes)?;
        let epilogue = self.function("epilogue", axes)?;
        Ok(SegmentSum { batch, targets, rest, offsets, positions, position_count, base, update, epilogue })
    }
}
