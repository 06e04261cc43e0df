//! Plan → text.

use std::fmt::{self, Display, Formatter, Write};

use crate::buffer::{Buffer, Place};
use crate::kernel::{
    Anchor, Attention, AttentionGrad, Contraction, Kernel, KeySegment, OperandMode, Part, Phase, ReductionOp,
};
use crate::plan::{Launch, Plan};
use crate::scalar::{Access, ScalarFunction, Size, Step};

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write(f, &|_| None)
    }
}

impl Plan {
    /// The text, with what `note` says of a launch as a comment behind it.
    pub(super) fn write(
        &self,
        f: &mut dyn fmt::Write,
        note: &dyn Fn(&Launch) -> Option<String>,
    ) -> fmt::Result {
        writeln!(f, "plan {} {{", self.entry)?;
        if !self.dims.is_empty() {
            let dims: Vec<&str> = self.dims.iter().map(|dim| dim.as_str()).collect();
            writeln!(f, "    dim {};", dims.join(", "))?;
        }
        for input in &self.inputs {
            write!(f, "    input {}: {} {}", input.name, input.ty, input.rate)?;
            if let Some(default) = input.default {
                write!(f, " optional = {default}")?;
            }
            writeln!(f, ";")?;
        }
        for output in &self.outputs {
            writeln!(f, "    output {}: {};", name(&output.name), output.ty)?;
        }
        for constraint in &self.constraints {
            writeln!(
                f,
                "    require {} <= {}, {};",
                constraint.smaller,
                constraint.larger,
                quoted(&constraint.what)
            )?;
        }
        for (name, ty) in &self.weights {
            writeln!(f, "    weight {}: {ty};", quoted(name))?;
        }
        if let Some([model, prompt, step]) = &self.arenas {
            writeln!(f, "    arenas model {model}, prompt {prompt}, step {step};")?;
        }
        for (index, buffer) in self.buffers.iter().enumerate() {
            writeln!(f, "    buffer b{index}: {buffer};")?;
        }
        for (index, kernel) in self.kernels.iter().enumerate() {
            writeln!(f, "\n    kernel k{index}{kernel}")?;
        }
        if !self.launches.is_empty() {
            writeln!(f)?;
        }
        for launch in &self.launches {
            match note(launch) {
                Some(note) => writeln!(f, "    {launch}    // {note}")?,
                None => writeln!(f, "    {launch}")?,
            }
        }
        writeln!(f, "}}")
    }
}

/// A name as it is if it is one word, else in quotes: gradients are called as their weights are.
fn name(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if begins && text.chars().all(word) { text.to_owned() } else { quoted(text) }
}

pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

impl Display for Buffer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} ", self.dtype, nucleus_ir::types::ShapeDisplay(&self.shape))?;
        match &self.place {
            Place::Weight(name) => write!(f, "weight {}", quoted(name)),
            Place::Input(position) => write!(f, "input {position}"),
            Place::Output(position) => write!(f, "output {position}"),
            Place::Arena { rate, offset: None } => write!(f, "arena {}", rate.name()),
            Place::Arena { rate, offset: Some(offset) } => write!(f, "arena {} at {offset}", rate.name()),
            Place::State(name) => write!(f, "state {}", quoted(name)),
        }
    }
}

impl Display for Launch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "launch k{}(", self.kernel.0)?;
        list(f, self.operands.iter().map(|buffer| format!("b{}", buffer.0)))?;
        f.write_str(")")?;
        if !self.sizes.is_empty() {
            f.write_str(" sizes ")?;
            list(f, &self.sizes)?;
        }
        write!(f, " {} flops {} bytes {}", self.stage, self.flops, self.bytes)?;
        if let Some(scope) = &self.scope {
            write!(f, " at {}", quoted(scope))?;
        }
        f.write_str(";")
    }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        list(
            f,
            self.operands.iter().map(|operand| format!("{} {}", mode_name(operand.mode), operand.dtype)),
        )?;
        write!(f, ") sizes {} {}", self.size_args, self.anchor.name())?;
        if let Anchor::Matmul(Contraction { dtype, .. }) | Anchor::GroupedMatmul(Contraction { dtype, .. }) =
            &self.anchor
        {
            write!(f, " {dtype}")?;
        }
        if let Anchor::Attention(Attention { dtype, .. })
        | Anchor::AttentionGrad(AttentionGrad { dtype, .. }) = &self.anchor
        {
            write!(f, " {dtype}")?;
        }
        f.write_str(" {\n")?;
        body(f, &self.anchor)?;
        f.write_str("    }")
    }
}

pub(super) const fn mode_name(mode: OperandMode) -> &'static str {
    match mode {
        OperandMode::Read => "read",
        OperandMode::Write => "write",
        OperandMode::ReadWrite => "update",
    }
}

pub(super) const fn reduction_name(op: ReductionOp) -> &'static str {
    match op {
        ReductionOp::Sum => "sum",
        ReductionOp::Max => "max",
    }
}

fn body(f: &mut Formatter<'_>, anchor: &Anchor) -> fmt::Result {
    match anchor {
        Anchor::Map(map) => {
            sizes(f, "space", &map.space)?;
            function(f, "function", &map.function)
        }
        Anchor::RowReduction(reduction) => {
            sizes(f, "rows", &reduction.rows)?;
            writeln!(f, "        columns {};", reduction.columns)?;
            phases(f, &reduction.phases)?;
            function(f, "row", &reduction.row)?;
            function(f, "element", &reduction.element)
        }
        Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => {
            sizes(f, "batch", &c.batch)?;
            sizes(f, "rows", &c.rows)?;
            let single = match c.parts.as_slice() {
                [part] => Some(part),
                _ => None,
            };
            f.write_str("        ")?;
            if let Some(part) = single {
                write!(f, "{} ", columns(part))?;
            }
            write!(f, "depth {};", c.depth)?;
            if let Some(tile) = c.tile {
                write!(f, " tile {}, {}, {};", tile.rows, tile.columns, tile.depth)?;
            }
            f.write_str("\n")?;
            function(f, "a", &c.a)?;
            for part in &c.parts {
                if single.is_none() {
                    writeln!(f, "        part {}", columns(part))?;
                }
                if part.symmetric {
                    f.write_str("        symmetric;\n")?;
                }
                function(f, "b", &part.b)?;
                if let Some(groups) = &part.groups {
                    writeln!(f, "        width {};", groups.width)?;
                    phases(f, &groups.phases)?;
                }
                function(f, "epilogue", &part.epilogue)?;
            }
            Ok(())
        }
        Anchor::Attention(a) => {
            writeln!(
                f,
                "        batch {}; queries {}; heads {}; key_heads {}; head_size {}; scale {};",
                a.batch, a.queries, a.heads, a.key_heads, a.head_size, a.scale
            )?;
            function(f, "q", &a.q)?;
            for segment in &a.segments {
                keys(f, segment)?;
            }
            function(f, "epilogue", &a.epilogue)
        }
        Anchor::AttentionGrad(a) => {
            writeln!(
                f,
                "        batch {}; queries {}; heads {}; key_heads {}; head_size {}; scale {};",
                a.batch, a.queries, a.heads, a.key_heads, a.head_size, a.scale
            )?;
            function(f, "q", &a.q)?;
            function(f, "dy", &a.dy)?;
            for segment in &a.segments {
                keys(f, &segment.keys)?;
                function(f, "dk", &segment.dk)?;
                function(f, "dv", &segment.dv)?;
            }
            function(f, "dq", &a.dq)
        }
        Anchor::ExpertChoice(c) => {
            write!(
                f,
                "        batch {}; tokens {}; experts {}; capacity {}; slot_token o{};",
                c.batch, c.tokens, c.experts, c.capacity, c.slot_token
            )?;
            if let Some(inverse) = c.inverse {
                write!(f, " offsets o{}; positions o{};", inverse.offsets, inverse.positions)?;
            }
            f.write_str("\n")?;
            function(f, "affinity", &c.affinity)?;
            function(f, "epilogue", &c.epilogue)
        }
        Anchor::InvertIndex(i) => writeln!(
            f,
            "        batch {}; positions {}; targets {}; index o{}; offsets_out o{}; positions_out o{};",
            i.batch, i.positions, i.targets, i.index, i.offsets_out, i.positions_out
        ),
        Anchor::SegmentSum(s) => {
            writeln!(f, "        batch {}; targets {};", s.batch, s.targets)?;
            sizes(f, "rest", &s.rest)?;
            writeln!(
                f,
                "        offsets o{}; positions o{}; position_count {};",
                s.offsets, s.positions, s.position_count
            )?;
            function(f, "base", &s.base)?;
            function(f, "update", &s.update)?;
            function(f, "epilogue", &s.epilogue)
        }
    }
}

fn keys(f: &mut Formatter<'_>, segment: &KeySegment) -> fmt::Result {
    writeln!(f, "        keys {};", segment.length)?;
    function(f, "k", &segment.k)?;
    function(f, "v", &segment.v)?;
    match &segment.mask {
        Some(mask) => function(f, "mask", mask),
        None => Ok(()),
    }
}

fn phases(f: &mut Formatter<'_>, phases: &[Phase]) -> fmt::Result {
    for phase in phases {
        function(f, "phase", &phase.function)?;
        for reduction in &phase.reductions {
            writeln!(f, "        reduce {} v{};", reduction_name(reduction.op), reduction.value.0)?;
        }
    }
    Ok(())
}

fn columns(part: &Part) -> String {
    let segments = if part.interleaved { "interleaved" } else { "segments" };
    format!("columns {}; {segments} {};", part.columns, part.segments)
}

fn sizes(f: &mut Formatter<'_>, name: &str, sizes: &[Size]) -> fmt::Result {
    write!(f, "        {name}")?;
    if !sizes.is_empty() {
        f.write_str(" ")?;
        list(f, sizes)?;
    }
    f.write_str(";\n")
}

fn list<T: Display>(f: &mut Formatter<'_>, items: impl IntoIterator<Item = T>) -> fmt::Result {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

fn function(f: &mut Formatter<'_>, name: &str, function: &ScalarFunction) -> fmt::Result {
    if function.steps.is_empty() && function.result.is_none() {
        return writeln!(f, "        {name} {{ }}");
    }
    writeln!(f, "        {name} {{")?;
    for (index, step) in function.steps.iter().enumerate() {
        f.write_str("            ")?;
        match step {
            Step::Load(access) => write!(f, "v{index} = load {access}")?,
            Step::Constant { value, dtype } => write!(f, "v{index} = constant {value} {dtype}")?,
            Step::Affine { offset, strides } => write!(f, "v{index} = affine[{}]", affine(*offset, strides))?,
            Step::Accumulator(position) => write!(f, "v{index} = accumulator {position}")?,
            Step::Apply { op, args } => {
                write!(f, "v{index} = {}(", op.name())?;
                list(f, args.iter().map(|arg| format!("v{}", arg.0)))?;
                if let nucleus_ir::ScalarOp::Cast(to) = op {
                    write!(f, ", {to}")?;
                }
                f.write_str(")")?;
            }
            Step::Store { access, value } => write!(f, "store {access} = v{}", value.0)?,
        }
        f.write_str(";\n")?;
    }
    if let Some(result) = function.result {
        writeln!(f, "            return v{};", result.0)?;
    }
    f.write_str("        }\n")
}

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Size::Const(value) => write!(f, "{value}"),
            Size::Arg(position) => write!(f, "s{position}"),
        }
    }
}

impl Display for Access {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "o{}[{}", self.operand, affine(self.offset, &self.strides))?;
        if let Some(indirect) = &self.indirect {
            write!(f, " + {}*{}", indirect.stride, indirect.index)?;
        }
        f.write_str("]")
    }
}

/// `offset + stride*i0 + …` without the terms that are zero.
fn affine(offset: Size, strides: &[Size]) -> String {
    let mut text = String::new();
    if !offset.is(0) {
        text = offset.to_string();
    }
    for (axis, stride) in strides.iter().enumerate().filter(|(_, stride)| !stride.is(0)) {
        if !text.is_empty() {
            text.push_str(" + ");
        }
        let written = if stride.is(1) { write!(text, "i{axis}") } else { write!(text, "{stride}*i{axis}") };
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
    if text.is_empty() { "0".to_owned() } else { text }
}
