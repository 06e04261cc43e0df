//! Blocks, statements and expressions, with as few parentheses as the grammar needs.

use crate::ast::{BinaryOperator, Block, Expr, ExprKind, Let, Statement, StringPart, UnaryOperator};
use crate::dtype::DType;

use super::document::{Doc, filled_list, group, list, render_flat, text};
use super::{pattern, print_require, rate, word};

/// Above every binary operator.
const UNARY: u8 = 6;
/// Above the prefix operators: what an index can follow.
const POSTFIX: u8 = 7;

/// How strongly an expression holds together.
fn level(expr: &Expr) -> u8 {
    match &expr.kind {
        ExprKind::Binary(operator, ..) => operator.level(),
        ExprKind::Unary(..) => UNARY,
        // Only trees made by hand have negative literals.
        ExprKind::Float(value) if value.0.is_sign_negative() => UNARY,
        ExprKind::Int(value) if *value < 0 && *value != i64::MIN => UNARY,
        _ => POSTFIX,
    }
}

/// An expression where one of at least that level must stand.
fn operand(expr: &Expr, least: u8) -> Doc {
    if level(expr) >= least { expression(expr) } else { group(vec![text("("), expression(expr), text(")")]) }
}

pub(super) fn expression(expr: &Expr) -> Doc {
    match &expr.kind {
        ExprKind::Int(i64::MIN) => text("(-9223372036854775807 - 1)"),
        ExprKind::Int(value) => text(value.to_string()),
        ExprKind::Float(value) if value.0.is_nan() => {
            text(if value.0.is_sign_negative() { "-nan" } else { "nan" })
        }
        ExprKind::Float(value) => text(value.to_string()),
        ExprKind::Bool(value) => text(if *value { "true" } else { "false" }),
        ExprKind::Null => text("null"),
        ExprKind::String(parts) => text(string(parts)),
        ExprKind::Name(name) => text(name.clone()),
        ExprKind::DType(dtype) => text(dtype.name()),
        ExprKind::List(items) => {
            let docs = items.iter().map(|item| vec![expression(item)]).collect();
            if items.iter().all(is_literal) { filled_list("[", docs, "]") } else { list("[", docs, "]") }
        }
        ExprKind::Tuple(items) => match items.as_slice() {
            [one] => group(vec![text("("), expression(one), text(",)")]),
            items => list("(", items.iter().map(|item| vec![expression(item)]).collect(), ")"),
        },
        ExprKind::Index(base, index) => {
            group(vec![operand(base, POSTFIX), text("["), expression(index), text("]")])
        }
        ExprKind::Call { callee, args, named } => {
            let mut items: Vec<Vec<Doc>> = args.iter().map(|arg| vec![expression(arg)]).collect();
            items.extend(named.iter().map(|(name, value)| vec![word(name), text(" = "), expression(value)]));
            group(vec![word(callee), list("(", items, ")")])
        }
        ExprKind::Unary(operator, inner) => {
            let symbol = match operator {
                UnaryOperator::Neg => "-",
                UnaryOperator::Not => "!",
            };
            group(vec![text(symbol), operand(inner, UNARY)])
        }
        ExprKind::Binary(operator, left, right) => binary(*operator, left, right),
        ExprKind::If { .. } => group(conditional(expr)),
        ExprKind::Scope { name, body: block } => {
            let mut docs = vec![text("scope "), expression(name), text(" ")];
            docs.extend(body(block));
            group(docs)
        }
        ExprKind::Block(block) => group(body(block)),
    }
}

/// A chain of operators of one level breaks before each of them.
fn binary(operator: BinaryOperator, left: &Expr, right: &Expr) -> Doc {
    let level = operator.level();
    let chains = level != BinaryOperator::COMPARISON;
    let mut tail = vec![(operator, right)];
    let mut first = left;
    while let ExprKind::Binary(inner, left, right) = &first.kind
        && chains
        && inner.level() == level
    {
        tail.push((*inner, right));
        first = left;
    }
    let mut rest = Vec::with_capacity(3 * tail.len());
    for (operator, right) in tail.into_iter().rev() {
        rest.extend([Doc::Line, text(format!("{} ", operator.symbol())), operand(right, level + 1)]);
    }
    group(vec![operand(first, if chains { level } else { level + 1 }), Doc::Indent(rest)])
}

fn conditional(expr: &Expr) -> Vec<Doc> {
    let mut docs = Vec::new();
    let mut next = Some(expr);
    while let Some(expr) = next.take() {
        match &expr.kind {
            ExprKind::If { condition, then, otherwise } => {
                docs.extend([text("if "), expression(condition), text(" ")]);
                docs.extend(body(then));
                if let Some(otherwise) = otherwise {
                    docs.push(text(" else "));
                    next = Some(otherwise);
                }
            }
            ExprKind::Block(block) => docs.extend(body(block)),
            _ => {
                docs.extend([text("{"), Doc::Indent(vec![Doc::Line, expression(expr)]), Doc::Line, text("}")])
            }
        }
    }
    docs
}

/// `{ … }`, broken if it holds a statement.
pub(super) fn body(block: &Block) -> Vec<Doc> {
    if block.statements.is_empty() {
        return match &block.value {
            None => vec![text("{ }")],
            Some(value) => {
                vec![text("{"), Doc::Indent(vec![Doc::Line, standing(value)]), Doc::Line, text("}")]
            }
        };
    }
    let mut lines = Vec::new();
    for (index, statement) in block.statements.iter().enumerate() {
        let is_last = index + 1 == block.statements.len() && block.value.is_none();
        lines.push(Doc::HardLine);
        lines.extend(print_statement(statement, is_last));
    }
    if let Some(value) = &block.value {
        lines.extend([Doc::HardLine, standing(value)]);
    }
    vec![text("{"), Doc::Indent(lines), Doc::HardLine, text("}")]
}

fn is_block_like(expr: &Expr) -> bool {
    matches!(expr.kind, ExprKind::If { .. } | ExprKind::Scope { .. } | ExprKind::Block(_))
}

/// An expression where a statement begins: there, a block-like expression ends with its `}`.
fn standing(expr: &Expr) -> Doc {
    fn begins_with_block(expr: &Expr) -> bool {
        is_block_like(expr) || first_operand(expr).is_some_and(begins_with_block)
    }
    if !is_block_like(expr) && begins_with_block(expr) {
        return group(vec![text("("), expression(expr), text(")")]);
    }
    expression(expr)
}

/// What the text of an expression begins with, if not with a token of its own or a parenthesis.
fn first_operand(expr: &Expr) -> Option<&Expr> {
    match &expr.kind {
        ExprKind::Binary(operator, left, _) => {
            let least = operator.level() + u8::from(operator.level() == BinaryOperator::COMPARISON);
            (level(left) >= least).then_some(left)
        }
        ExprKind::Index(base, _) => (level(base) >= POSTFIX).then_some(base),
        _ => None,
    }
}

/// True if the text begins with `[`.
pub(super) fn begins_with_list(expr: &Expr) -> bool {
    matches!(expr.kind, ExprKind::List(_)) || first_operand(expr).is_some_and(begins_with_list)
}

/// True for a name that is a type where one can stand.
pub(super) fn is_type_word(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::Name(name) => matches!(name.as_str(), "tensor" | "int" | "float" | "string"),
        ExprKind::DType(dtype) => *dtype == DType::Bool,
        _ => false,
    }
}

fn is_literal(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Bool(_) => true,
        ExprKind::Unary(UnaryOperator::Neg, inner) => is_literal(inner),
        _ => false,
    }
}

fn print_statement(statement: &Statement, is_last: bool) -> Vec<Doc> {
    match statement {
        Statement::Let(binding) => print_let(binding),
        Statement::Assign { name, value } => {
            vec![word(name), text(" = "), expression(value), text(";")]
        }
        Statement::For { name, from, to, body: block } => {
            let mut docs = vec![
                text(format!("for {} in ", name.node)),
                expression(from),
                text(".."),
                expression(to),
                text(" "),
            ];
            docs.push(group(body(block)));
            docs
        }
        Statement::Require(require) => vec![print_require(require)],
        // Without a semicolon the last one would be the value of the block.
        Statement::Expr(expr) if is_block_like(expr) && !is_last => vec![expression(expr)],
        Statement::Expr(expr) => vec![standing(expr), text(";")],
    }
}

fn print_let(binding: &Let) -> Vec<Doc> {
    let mut docs = vec![text(if binding.mutable { "var " } else { "let " })];
    if binding.tuple {
        docs.push(list("(", binding.names.iter().map(|name| vec![word(name)]).collect(), ")"));
    } else {
        docs.extend(binding.names.first().map(word));
    }
    if binding.tuple && !binding.types.is_empty() {
        docs.push(text(": "));
        docs.push(list("(", binding.types.iter().map(|ty| vec![pattern(ty)]).collect(), ")"));
    } else if let Some(ty) = binding.types.first() {
        docs.extend([text(": "), pattern(ty)]);
    }
    docs.extend(binding.rate.map(rate));
    docs.extend([text(" = "), expression(&binding.value)]);
    if let Some(scope) = &binding.scope {
        let mut quoted = String::from(" at \"");
        escape(&scope.node, &mut quoted);
        quoted.push('"');
        docs.push(text(quoted));
    }
    docs.push(text(";"));
    docs
}

/// A string stands on one line, whatever is interpolated.
fn string(parts: &[StringPart]) -> String {
    let mut out = String::from("\"");
    for part in parts {
        match part {
            StringPart::Text(text) => escape(text, &mut out),
            StringPart::Interpolation(expr) => {
                out.push('{');
                render_flat(&[expression(expr)], &mut out);
                out.push('}');
            }
        }
    }
    out.push('"');
    out
}

fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '"' | '\\' | '{' | '}' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            plain => out.push(plain),
        }
    }
}
