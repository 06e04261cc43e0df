//! From syntax tree to text: the canonical layout of the language.
//!
//! `parse(print(module)) == module` for every tree that the parser makes. Comments are not part of the tree and are lost. A tree made
//! by hand may hold what no text says (a negative literal, an `else` that is not a block); it is printed as the text that
//! means the same.

mod document;
mod expressions;

use crate::ast::{
    ConfigKey, ConfigType, Entry, Function, Item, Module, Name, Param, ParamType, Require, ResultType,
    TensorPattern,
};
use crate::graph_printer::Quoted;
use crate::lexer::is_name;
use crate::types::Rate;

use document::{Doc, group, list, render, spaced_list, text};
use expressions::{begins_with_list, body, expression, is_type_word};

/// The text of a module.
pub fn print(module: &Module) -> String {
    let mut out = String::new();
    for (index, item) in module.items.iter().enumerate() {
        if index > 0 && !stands_with(&module.items[index - 1], item) {
            out.push('\n');
        }
        render(&print_item(item), &mut out);
        out.push('\n');
    }
    out
}

/// The text of an expression, on as few lines as its blocks allow.
pub fn print_expr(expr: &crate::ast::Expr) -> String {
    let mut out = String::new();
    render(&[expression(expr)], &mut out);
    out
}

/// True if no empty line stands between two items.
fn stands_with(before: &Item, item: &Item) -> bool {
    matches!(
        (before, item),
        (Item::Use { .. }, Item::Use { .. })
            | (Item::Const { .. }, Item::Const { .. })
            | (Item::Dims(_), Item::Dims(_))
            | (Item::Require(_), Item::Require(_))
    )
}

fn print_item(item: &Item) -> Vec<Doc> {
    match item {
        Item::Use { module, names } => {
            let names = names.iter().map(|name| vec![word(name)]).collect();
            vec![text(format!("use {} ", module.node)), spaced_list("{", names, "}"), text(";")]
        }
        Item::Config(keys) if keys.is_empty() => vec![text("config { }")],
        Item::Config(keys) => {
            let lines = keys.iter().flat_map(|key| [Doc::HardLine, group(config_key(key))]).collect();
            vec![text("config {"), Doc::Indent(lines), Doc::HardLine, text("}")]
        }
        Item::Const { name, value } => {
            vec![text(format!("const {} = ", name.node)), expression(value), text(";")]
        }
        Item::Dims(names) => {
            let names: Vec<&str> = names.iter().map(|name| name.node.as_str()).collect();
            vec![text(format!("dim {};", names.join(", ")))]
        }
        Item::Require(require) => vec![print_require(require)],
        Item::Function(function) => print_function(function),
        Item::Entry(entry) => print_entry(entry),
    }
}

fn word(name: &Name) -> Doc {
    text(name.node.clone())
}

fn config_key(key: &ConfigKey) -> Vec<Doc> {
    let mut docs = vec![text(format!("{}: ", key.name.node))];
    config_type(&key.ty, &mut docs);
    if let Some(default) = &key.default {
        docs.extend([text(" = "), expression(default)]);
    }
    docs.push(text(";"));
    docs
}

fn config_type(ty: &ConfigType, docs: &mut Vec<Doc>) {
    match ty {
        ConfigType::Int => docs.push(text("int")),
        ConfigType::Float => docs.push(text("float")),
        ConfigType::Bool => docs.push(text("bool")),
        ConfigType::String => docs.push(text("string")),
        ConfigType::List(element, length) => {
            docs.push(text("["));
            config_type(element, docs);
            if let Some(length) = length {
                docs.extend([text("; "), expression(length)]);
            }
            docs.push(text("]"));
        }
        ConfigType::Optional(inner) => {
            config_type(inner, docs);
            docs.push(text("?"));
        }
    }
}

fn print_require(require: &Require) -> Doc {
    group(vec![
        text("require "),
        expression(&require.condition),
        text(","),
        Doc::Indent(vec![Doc::Line, expression(&require.message)]),
        text(";"),
    ])
}

fn print_function(function: &Function) -> Vec<Doc> {
    let params = function.params.iter().map(param).collect();
    let mut docs = vec![text(format!("fn {}", function.name.node)), list("(", params, ")")];
    match &function.result {
        Some(ResultType::Tensor(ty)) => docs.extend([text(" -> "), pattern(ty)]),
        Some(ResultType::Tuple(types)) => {
            let types = types.iter().map(|ty| vec![pattern(ty)]).collect();
            docs.extend([text(" -> "), list("(", types, ")")]);
        }
        Some(ResultType::Value(ty)) => docs.extend([text(" -> "), param_type(ty)]),
        None => {}
    }
    docs.push(text(" "));
    docs.push(group(body(&function.body)));
    docs
}

fn param(param: &Param) -> Vec<Doc> {
    let mut docs = vec![text(format!("{}: ", param.name.node)), param_type(&param.ty)];
    if let Some(default) = &param.default {
        docs.extend([text(" = "), expression(default)]);
    }
    docs
}

fn print_entry(entry: &Entry) -> Vec<Doc> {
    let inputs = entry.inputs.iter().map(|input| {
        let mut docs = vec![text(format!("{}: ", input.name.node)), pattern(&input.ty), rate(input.rate)];
        if let Some(default) = &input.default {
            docs.extend([text(" optional = "), expression(default)]);
        }
        docs
    });
    let outputs = entry.outputs.iter().map(|output| {
        let name = &output.name.node;
        let name = if is_name(name) { name.clone() } else { Quoted(name).to_string() };
        vec![text(format!("{name}: ")), pattern(&output.ty)]
    });
    vec![
        text(format!("entry {}", entry.name.node)),
        list("(", inputs.collect(), ")"),
        text(" -> "),
        list("(", outputs.collect(), ")"),
        text(" "),
        group(body(&entry.body)),
    ]
}

/// ` per step`
fn rate(rate: Rate) -> Doc {
    text(format!(" {rate}"))
}

fn param_type(ty: &ParamType) -> Doc {
    match ty {
        ParamType::Tensor(ty) => pattern(ty),
        ParamType::AnyTensor => text("tensor"),
        ParamType::Int => text("int"),
        ParamType::Float => text("float"),
        ParamType::Bool => text("bool"),
        ParamType::String => text("string"),
        ParamType::List(element) => group(vec![text("["), param_type(element), text("]")]),
    }
}

fn pattern(ty: &TensorPattern) -> Doc {
    let mut items = Vec::with_capacity(ty.dims.len() + 1);
    if ty.leading {
        items.push(vec![text("...")]);
    }
    for (index, dim) in ty.dims.iter().enumerate() {
        // `[int]` and `[[…` are types of lists.
        let is_list = ty.dtype.is_none()
            && !ty.leading
            && index == 0
            && (begins_with_list(dim) || ty.dims.len() == 1 && is_type_word(dim));
        items.push(if is_list { vec![text("("), expression(dim), text(")")] } else { vec![expression(dim)] });
    }
    let shape = document::filled_list("[", items, "]");
    match ty.dtype {
        Some(dtype) => group(vec![text(dtype.name()), shape]),
        None => shape,
    }
}
