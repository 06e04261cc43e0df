//! `docs/ops.md`, generated from the op table and the list of builtin functions.

use std::fmt::Write;

use crate::ops::{Attribute, AttributeInfo, OpInfo, OperandCount, op_table};
use crate::types::ShapeDisplay;
use crate::verify::BUILTINS;

const HEAD: &str = "\
# Ops

This file is generated from the op table in `crates/nucleus-ir/src/ops.rs`; `NUCLEUS_BLESS=1 cargo test -p nucleus-ir --test ops_doc`
writes it anew. `docs/language.md` describes the language around it.

An op takes tensors by position, then attributes, which are compile-time values, by name: `matmul(a, b, transpose_b = true)`.
Where the number of operands is fixed, attributes may also follow them by position: `reshape(x, [B, S])`. An axis may be
counted from the end with a negative number.

Type rules name element types `T` (any), `N` (a number: a float or `i32`), `F` (a float: `f32`, `bf16`, `f16`), and shapes by
letters: `s` is any shape, `r…` any number of axes. Operands of an element-wise op have one shape; in the text, operators and
calls broadcast by the rules of NumPy, and elaboration writes the `broadcast` out. Arithmetic on `bf16` and `f16` is done in `f32` and rounded
to nearest even.
";

/// The text of `docs/ops.md`.
pub fn markdown() -> String {
    let mut out = String::from(HEAD);
    // Writing to a string cannot fail.
    let _ = write_tables(&mut out);
    out
}

fn write_tables(out: &mut String) -> std::fmt::Result {
    let table = op_table();
    let element_wise = |row: &OpInfo| row.doc.contains("element by element") || row.name == "cast";
    writeln!(out, "\n## Element-wise ops\n\n| op | type rule | meaning |\n|---|---|---|")?;
    for row in table.iter().filter(|row| element_wise(row)) {
        writeln!(out, "| `{}` | `{}` | {} |", signature(row), row.rule, cell(row.doc))?;
    }
    writeln!(out, "\n## Other ops")?;
    for row in table.iter().filter(|row| !element_wise(row)) {
        writeln!(out, "\n### `{}`\n", row.name)?;
        writeln!(out, "`{}`\n\nTypes: `{}`\n\n{}", signature(row), row.rule, paragraph(row.doc))?;
        for (index, attribute) in row.attributes.iter().enumerate() {
            let gap = if index == 0 { "\n" } else { "" };
            writeln!(out, "{gap}- `{}`: {}", attribute.name, attribute.doc)?;
        }
    }
    writeln!(
        out,
        "\n## Builtin functions\n\nThese are computed by elaboration or written in terms of ops. \
         Arguments are given by position or by name.\n\n| function | gives |\n|---|---|"
    )?;
    for builtin in BUILTINS {
        let params: Vec<String> = builtin
            .params
            .iter()
            .map(|(name, required)| if *required { (*name).to_owned() } else { format!("[{name}]") })
            .collect();
        writeln!(out, "| `{}({})` | {} |", builtin.name, params.join(", "), cell(builtin.doc))?;
    }
    Ok(())
}

/// `matmul(a, b, transpose_a: bool = false)`
fn signature(row: &OpInfo) -> String {
    let operands = row.operands.iter().map(|operand| match operand.count {
        OperandCount::One => operand.name.to_owned(),
        OperandCount::Optional => format!("[{}]", operand.name),
        OperandCount::Many => format!("{}…", operand.name),
    });
    let attributes = row.attributes.iter().map(attribute);
    format!("{}({})", row.name, operands.chain(attributes).collect::<Vec<_>>().join(", "))
}

fn attribute(info: &AttributeInfo) -> String {
    let default = match &info.default {
        None => return format!("{}: {}", info.name, info.kind.name()),
        Some(default) => default,
    };
    let value = match default {
        Attribute::Bool(value) => value.to_string(),
        Attribute::Float(value) => value.to_string(),
        Attribute::DType(dtype) => dtype.to_string(),
        Attribute::Dim(dim) => dim.to_string(),
        Attribute::Shape(shape) => ShapeDisplay(shape).to_string(),
        Attribute::Axis(axis) => axis.to_string(),
        Attribute::Axes(axes) => format!("{axes:?}"),
    };
    format!("{}: {} = {value}", info.name, info.kind.name())
}

/// A doc comment as one paragraph.
fn paragraph(doc: &str) -> String {
    doc.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The same inside a table, where a bar would begin another column.
fn cell(doc: &str) -> String {
    paragraph(doc).replace('|', "\\|")
}
