//! The text of a graph: the flat form that every stage prints, in the grammar of hand-written models.
//!
//! One entry: dims, inputs, constraints as `require`, then one `let` per weight and per node in the order of the value table, then the
//! outputs. Elaborating the text gives back the same graph, value numbers included, provided that the inputs come first in the
//! value table, as they do wherever a graph is built.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use crate::dtype::DType;
use crate::float::Float;
use crate::graph::{Graph, Input, NodeData, Value, ValueDef};
use crate::lexer::is_name;
use crate::ops::Attribute;
use crate::types::{Rate, ShapeDisplay, TensorType};

/// The text of `graph`.
pub fn print_graph(graph: &Graph) -> String {
    let mut text = String::new();
    let printed = Printer::new(graph).print(&mut text);
    debug_assert!(printed.is_ok(), "writing to a string cannot fail");
    text
}

struct Printer<'a> {
    graph: &'a Graph,
    /// Prefixes of the names of results and weights, chosen so that they meet no input and no dim.
    result_prefix: String,
    weight_prefix: String,
}

impl<'a> Printer<'a> {
    fn new(graph: &'a Graph) -> Printer<'a> {
        let taken: BTreeSet<&str> = graph
            .inputs
            .iter()
            .map(|input| input.name.as_str())
            .chain(graph.dims.iter().map(|dim| dim.as_str()))
            .collect();
        let free = |prefix: &str| {
            let mut prefix = prefix.to_owned();
            let numbered = |name: &str, prefix: &str| {
                name.strip_prefix(prefix).is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
            };
            while taken.iter().any(|name| numbered(name, &prefix)) {
                prefix.push('_');
            }
            prefix
        };
        Printer { graph, result_prefix: free("v"), weight_prefix: free("w") }
    }

    fn print(&self, text: &mut String) -> fmt::Result {
        let graph = self.graph;
        if !graph.dims.is_empty() {
            let names: Vec<&str> = graph.dims.iter().map(|dim| dim.as_str()).collect();
            writeln!(text, "dim {};\n", names.join(", "))?;
        }
        writeln!(text, "entry {}(", graph.name)?;
        for input in &graph.inputs {
            self.print_input(text, input)?;
        }
        text.push_str(") -> (");
        for (index, output) in graph.outputs.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let ty = graph.ty(output.value);
            if is_name(&output.name) {
                write!(text, "{comma}{}: {ty}", output.name)?;
            } else {
                write!(text, "{comma}{}: {ty}", Quoted(&output.name))?;
            }
        }
        text.push_str(") {\n");
        for constraint in &graph.constraints {
            writeln!(
                text,
                "    require {} <= {}, {};",
                constraint.smaller,
                constraint.larger,
                Quoted(&constraint.what)
            )?;
        }
        for (value, data) in graph.values() {
            match data.def {
                ValueDef::Input(_) => {}
                ValueDef::Weight(index) => {
                    let weight = &graph.weights[index];
                    write!(text, "    let {}", self.name(value))?;
                    let changes = (weight.rate != Rate::Model).then_some(weight.rate);
                    print_rate(text, data.rate.or(changes))?;
                    write!(text, " = weight({}, {}", Quoted(&weight.name), ShapeDisplay(&weight.ty.shape))?;
                    if weight.ty.dtype != DType::F32 {
                        write!(text, ", {}", weight.ty.dtype)?;
                    }
                    text.push_str(");\n");
                }
                ValueDef::Result { node, index: 0 } => self.print_node(text, graph.node(node))?,
                ValueDef::Result { .. } => {}
            }
        }
        let outputs: Vec<String> = graph.outputs.iter().map(|output| self.name(output.value)).collect();
        match outputs.as_slice() {
            [] => {}
            [one] => writeln!(text, "    {one}")?,
            several => writeln!(text, "    ({})", several.join(", "))?,
        }
        text.push_str("}\n");
        Ok(())
    }

    fn print_input(&self, text: &mut String, input: &Input) -> fmt::Result {
        write!(text, "    {}: {} {}", input.name, input.ty, input.rate)?;
        if let Some(default) = input.default {
            text.push_str(" optional = ");
            match input.ty.dtype {
                DType::Bool => write!(text, "{}", default.0 != 0.0)?,
                DType::I32 | DType::I8 => write!(text, "{}", default.0 as i64)?,
                DType::F32 | DType::Bf16 | DType::F16 => print_float(text, default)?,
            }
        }
        text.push_str(",\n");
        Ok(())
    }

    fn print_node(&self, text: &mut String, node: &NodeData) -> fmt::Result {
        let types: Vec<&TensorType> = node.results.iter().map(|result| self.graph.ty(*result)).collect();
        match node.results.as_slice() {
            [result] => write!(text, "    let {}: {}", self.name(*result), types[0])?,
            results => {
                let names: Vec<String> = results.iter().map(|result| self.name(*result)).collect();
                let types: Vec<String> = types.iter().map(ToString::to_string).collect();
                write!(text, "    let ({}): ({})", names.join(", "), types.join(", "))?;
            }
        }
        print_rate(text, self.graph.value(node.results[0]).rate)?;
        write!(text, " = {}(", node.op.name())?;
        let mut separator = "";
        for operand in &node.operands {
            write!(text, "{separator}{}", self.name(*operand))?;
            separator = ", ";
        }
        let info = node.op.info();
        for (known, (name, value)) in info.attributes.iter().zip(node.op.attributes()) {
            if known.default.as_ref() != Some(&value) {
                write!(text, "{separator}{name} = ")?;
                print_attribute(text, &value)?;
                separator = ", ";
            }
        }
        text.push(')');
        if let Some(scope) = &node.scope {
            write!(text, " at {}", Quoted(scope))?;
        }
        text.push_str(";\n");
        Ok(())
    }

    fn name(&self, value: Value) -> String {
        match self.graph.def(value) {
            ValueDef::Input(index) => self.graph.inputs[index].name.clone(),
            ValueDef::Weight(_) => format!("{}{}", self.weight_prefix, value.index()),
            ValueDef::Result { .. } => format!("{}{}", self.result_prefix, value.index()),
        }
    }
}

fn print_rate(text: &mut String, rate: Option<Rate>) -> fmt::Result {
    match rate {
        Some(rate) => write!(text, " {rate}"),
        None => Ok(()),
    }
}

fn print_attribute(text: &mut String, attribute: &Attribute) -> fmt::Result {
    match attribute {
        Attribute::Bool(value) => write!(text, "{value}"),
        Attribute::Float(value) => print_float(text, *value),
        Attribute::DType(dtype) => write!(text, "{dtype}"),
        Attribute::Dim(dim) => write!(text, "{dim}"),
        Attribute::Shape(shape) => write!(text, "{}", ShapeDisplay(shape)),
        Attribute::Axis(axis) => write!(text, "{axis}"),
        Attribute::Axes(axes) => write!(text, "{axes:?}"),
    }
}

/// A float as the lexer reads it: `inf` and `nan` are names, the sign of a NaN is a prefix.
fn print_float(text: &mut String, value: Float) -> fmt::Result {
    if value.0.is_nan() {
        text.write_str(if value.0.is_sign_negative() { "-nan" } else { "nan" })
    } else {
        write!(text, "{value}")
    }
}

/// A string literal.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' | '{' | '}' => {
                    f.write_char('\\')?;
                    f.write_char(character)?;
                }
                '\n' => f.write_str("\\n")?,
                '\t' => f.write_str("\\t")?,
                other => f.write_char(other)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::{Dim, Symbol};
    use crate::graph::{Output, Weight};
    use crate::ops::Op;

    #[test]
    fn a_graph_prints_one_line_per_value() {
        let dims = ["B", "v1"].map(Symbol::new).to_vec();
        let mut graph = Graph::new("scores", dims);
        let ty = TensorType::new(DType::F32, vec![Dim::symbol("B"), Dim::symbol("v1"), Dim::constant(4)]);
        let x = graph.add_input(Input { name: "x".to_owned(), ty, rate: Rate::Step, default: None });
        let ty = TensorType::new(DType::Bool, vec![Dim::symbol("B")]);
        graph.add_input(Input { name: "mask".to_owned(), ty, rate: Rate::Prompt, default: Some(Float(1.0)) });
        let ty = TensorType::new(DType::F32, vec![Dim::constant(3), Dim::constant(4)]);
        let weight = graph.add_weight(Weight::new("a{\"b\"}.weight".to_owned(), ty));
        let op = Op::Matmul { transpose_a: false, transpose_b: true };
        let scores = graph.add(op, &[x, weight], Some("a.b".into())).unwrap();
        graph.set_rate(scores, Rate::Step);
        let capacity = Dim::symbol("v1").ceil_div(&Dim::constant(3)).unwrap();
        let chosen = graph.add_node(Op::ExpertChoice { capacity }, &[scores], None).unwrap();
        let results = graph.node(chosen).results.clone();
        for (name, value) in ["tokens", "gate"].into_iter().zip(results) {
            graph.outputs.push(Output { name: name.to_owned(), value });
        }
        assert_eq!(
            print_graph(&graph),
            r#"dim B, v1;

entry scores(
    x: f32[B, v1, 4] per step,
    mask: bool[B] per prompt optional = true,
) -> (tokens: i32[B, 3, ceil_div(v1, 3)], gate: f32[B, 3, ceil_div(v1, 3)]) {
    require 1 <= ceil_div(v1, 3), "the capacity of expert_choice is at least 1";
    require ceil_div(v1, 3) <= v1, "the capacity of expert_choice is at most the number of tokens";
    let w2 = weight("a\{\"b\"\}.weight", [3, 4]);
    let v_3: f32[B, v1, 3] per step = matmul(x, w2, transpose_b = true) at "a.b";
    let (v_4, v_5): (i32[B, 3, ceil_div(v1, 3)], f32[B, 3, ceil_div(v1, 3)]) = expert_choice(v_3, capacity = ceil_div(v1, 3));
    (v_4, v_5)
}
"#
        );
    }
}
