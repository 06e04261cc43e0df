//! Calls of functions and entries: templates that are inlined.

use nucleus_ir::ast::{Block, Expr, Name, Param, ParamType, ResultType, TensorPattern};
use nucleus_ir::diagnostics::Diagnostic;
use nucleus_ir::ops::op_info;
use nucleus_ir::source::Span;
use nucleus_ir::suggest::nearest;
use nucleus_ir::{DType, Dim, Op};

use super::evaluator::{Eval, Evaluator, Frame};
use super::limits;
use super::locals::Locals;
use super::patterns::Match;
use super::program::Callable;
use super::tensors::canonical;
use super::term::Term;

/// What a call gives for a parameter, with its place; `None` where the default is meant.
type Argument = Option<(Term, Span)>;

/// A parameter of a function or an input of an entry.
struct Parameter<'p> {
    name: &'p Name,
    /// The tensor type, unless `value` says otherwise.
    pattern: Option<&'p TensorPattern>,
    value: Option<&'p ParamType>,
    default: Option<&'p Expr>,
}

impl<'p> Evaluator<'p> {
    pub(super) fn call(
        &mut self,
        callee: &'p Name,
        args: &'p [Expr],
        named: &'p [(Name, Expr)],
        span: Span,
    ) -> Eval<Term> {
        let name = callee.node.as_str();
        let program = self.program;
        if let Some((module, callable)) = program.callable(self.frame.module, name) {
            return self.inline(name, module, callable, args, named, span);
        }
        if let Some(result) = self.builtin(name, args, named, span)? {
            return Ok(result);
        }
        match op_info(name) {
            Some(info) => self.op_call(&info, args, named, span),
            None => {
                let message = format!("there is no function or op `{name}`");
                let mut diagnostic = Diagnostic::error(message).label(callee.span, "not known here");
                let table = nucleus_ir::ops::op_table();
                if let Some(near) = nearest(name, table.iter().map(|info| info.name)) {
                    diagnostic = diagnostic.help(format!("there is an op `{near}`"));
                }
                self.poison(diagnostic)
            }
        }
    }

    fn inline(
        &mut self,
        name: &'p str,
        module: usize,
        callable: Callable<'p>,
        args: &'p [Expr],
        named: &'p [(Name, Expr)],
        span: Span,
    ) -> Eval<Term> {
        let parameters = parameters(callable);
        let Some(given) = self.arguments(name, &parameters, args, named, span)? else {
            return Ok(Term::Poison);
        };
        if self.calls.len() >= limits::CALL_DEPTH {
            return self.stop(format!("calls are nested more than {} deep", limits::CALL_DEPTH), span);
        }
        let frame = Frame { module, locals: Locals::default() };
        let outer = std::mem::replace(&mut self.frame, frame);
        self.calls.push((name, span));
        let result = self.body(name, callable, &parameters, given)?;
        self.calls.pop();
        self.frame = outer;
        Ok(result)
    }

    /// The arguments in the order of the parameters, evaluated in the caller; `None` after an error.
    fn arguments(
        &mut self,
        callee: &str,
        parameters: &[Parameter<'p>],
        args: &'p [Expr],
        named: &'p [(Name, Expr)],
        span: Span,
    ) -> Eval<Option<Vec<Argument>>> {
        let mut given: Vec<Argument> = vec![None; parameters.len()];
        let mut usable = true;
        if args.len() > parameters.len() {
            let message = format!("`{callee}` takes {} arguments, given {}", parameters.len(), args.len());
            self.report(Diagnostic::error(message).label(args[parameters.len()].span, "one too many"))?;
            usable = false;
        }
        for (slot, arg) in given.iter_mut().zip(args) {
            *slot = Some((self.expr(arg)?, arg.span));
        }
        for (name, arg) in named {
            let term = self.expr(arg)?;
            let slot = parameters.iter().position(|parameter| parameter.name.node == name.node);
            let message = match slot {
                None => format!("`{callee}` has no parameter `{}`", name.node),
                Some(slot) if given[slot].is_some() => {
                    format!("parameter `{}` of `{callee}` is given twice", name.node)
                }
                Some(slot) => {
                    given[slot] = Some((term, arg.span));
                    continue;
                }
            };
            let mut diagnostic = Diagnostic::error(message).label(name.span, "");
            let known = parameters.iter().map(|parameter| parameter.name.node.as_str());
            if slot.is_none()
                && let Some(near) = nearest(&name.node, known)
            {
                diagnostic = diagnostic.help(format!("there is `{near}`"));
            }
            self.report(diagnostic)?;
            usable = false;
        }
        for (parameter, slot) in parameters.iter().zip(&given) {
            if slot.is_none() && parameter.default.is_none() {
                let message = format!("`{callee}` needs an argument for `{}`", parameter.name.node);
                let diagnostic = Diagnostic::error(message).label(span, "in this call");
                self.report(diagnostic.label(parameter.name.span, "this parameter has no default"))?;
                usable = false;
            }
        }
        usable &= given.iter().flatten().all(|(term, _)| !term.is_poison());
        Ok(usable.then_some(given))
    }

    /// Binds the parameters in the new frame, evaluates the body, and checks its result.
    fn body(
        &mut self,
        name: &str,
        callable: Callable<'p>,
        parameters: &[Parameter<'p>],
        given: Vec<Argument>,
    ) -> Eval<Term> {
        let mut tensors = Vec::new();
        for (parameter, slot) in parameters.iter().zip(given) {
            let (term, span) = match (slot, parameter.default) {
                (Some((term, span)), _) => (term, span),
                // The default of an optional input needs its shape: it waits until the patterns have bound their names.
                (None, Some(_)) if parameter.pattern.is_some() => {
                    tensors.push((parameter, None));
                    continue;
                }
                (None, Some(default)) => (self.expr(default)?, default.span),
                (None, None) => return Ok(Term::Poison),
            };
            match parameter.value {
                Some(ty) => {
                    let term = self.argument_value(name, parameter, ty, term, span)?;
                    if term.is_poison() {
                        return Ok(Term::Poison);
                    }
                    self.frame.locals.declare(&parameter.name.node, term);
                }
                None => tensors.push((parameter, Some((term, span)))),
            }
        }
        for (parameter, slot) in &tensors {
            if let (Some(pattern), Some((Term::Tensor(value), _))) = (parameter.pattern, slot) {
                let shape = self.graph.ty(*value).shape.clone();
                self.bind_pattern(pattern, &shape);
            }
        }
        let mut leading: Option<Vec<Dim>> = None;
        let mut leading_count = 0;
        for (parameter, slot) in tensors {
            let Some(pattern) = parameter.pattern else { continue };
            let (term, axes) = match slot {
                Some((term, span)) => self.argument_tensor(name, parameter, pattern, term, span)?,
                None => (self.default_tensor(parameter, pattern)?, None),
            };
            if term.is_poison() {
                return Ok(Term::Poison);
            }
            if pattern.leading {
                leading_count += 1;
                leading = axes;
            }
            self.frame.locals.declare(&parameter.name.node, term);
        }
        let leading = if leading_count == 1 { leading } else { None };
        match callable {
            Callable::Function(function) => {
                let term = self.block(&function.body)?;
                match &function.result {
                    Some(result) => self.result(name, result, term, &function.body, leading.as_deref()),
                    None => Ok(term),
                }
            }
            Callable::Entry(entry) => {
                let term = self.block(&entry.body)?;
                let patterns: Vec<&TensorPattern> = entry.outputs.iter().map(|output| &output.ty).collect();
                self.result_tensors(name, &patterns, term, &entry.body, None)
            }
        }
    }

    /// Reports an error about an argument, at its place in the caller.
    fn argument_error(&mut self, diagnostic: Diagnostic, parameter: &Parameter<'p>) -> Eval<Term> {
        let place = parameter.pattern.map_or(parameter.name.span, |pattern| pattern.span.0);
        let diagnostic = diagnostic.label(place, "the parameter is declared here");
        self.report_below(diagnostic, self.calls.len() - 1)?;
        Ok(Term::Poison)
    }

    fn argument_value(
        &mut self,
        callee: &str,
        parameter: &Parameter<'p>,
        ty: &ParamType,
        term: Term,
        span: Span,
    ) -> Eval<Term> {
        match fit(ty, term) {
            Ok(term) => Ok(term),
            Err(term) => {
                let name = &parameter.name.node;
                let message = format!(
                    "argument `{name}` of `{callee}` must be {}, given {}",
                    kind(ty),
                    term.describe(&self.graph)
                );
                let mut diagnostic = Diagnostic::error(message).label(span, "this argument");
                if matches!((ty, &term), (ParamType::Int, Term::Float(_))) {
                    diagnostic =
                        diagnostic.help("`/` on ints is a float; use floor_div, ceil_div, floor or ceil");
                }
                self.argument_error(diagnostic, parameter)
            }
        }
    }

    fn argument_tensor(
        &mut self,
        callee: &str,
        parameter: &Parameter<'p>,
        pattern: &'p TensorPattern,
        term: Term,
        span: Span,
    ) -> Eval<(Term, Option<Vec<Dim>>)> {
        let name = &parameter.name.node;
        let Term::Tensor(value) = term else {
            let message = format!(
                "argument `{name}` of `{callee}` must be a tensor, given {}",
                term.describe(&self.graph)
            );
            let diagnostic = Diagnostic::error(message).label(span, "this argument");
            return Ok((self.argument_error(diagnostic, parameter)?, None));
        };
        let ty = self.graph.ty(value).clone();
        match self.matches(pattern, ty.dtype, &ty.shape)? {
            Match::Yes(axes) => Ok((term, Some(axes))),
            Match::Poison => Ok((Term::Poison, None)),
            Match::No(expected) => {
                let message = format!("argument `{name}` of `{callee}` has type {ty}, expected {expected}");
                let diagnostic = Diagnostic::error(message).label(span, "this argument");
                Ok((self.argument_error(diagnostic, parameter)?, None))
            }
        }
    }

    /// The tensor that an optional input of an entry stands for when a call leaves it out.
    fn default_tensor(&mut self, parameter: &Parameter<'p>, pattern: &'p TensorPattern) -> Eval<Term> {
        let Some(default) = parameter.default else { return Ok(Term::Poison) };
        let number = match self.expr(default)? {
            Term::Bool(value) => f64::from(u8::from(value)),
            other => match other.as_float() {
                Some(number) => number,
                None => return Ok(Term::Poison),
            },
        };
        let Some(shape) = self.shape_of(&pattern.dims)? else { return Ok(Term::Poison) };
        let dtype = pattern.dtype.unwrap_or(DType::F32);
        let constant = Op::Constant { value: canonical(number), dtype };
        match self.value(constant, &[], default.span)? {
            Some(scalar) => self.tensor_op(Op::Broadcast { shape }, &[scalar], default.span),
            None => Ok(Term::Poison),
        }
    }

    fn result(
        &mut self,
        name: &str,
        result: &'p ResultType,
        term: Term,
        body: &'p Block,
        leading: Option<&[Dim]>,
    ) -> Eval<Term> {
        let span = body.value.as_ref().map(|value| value.span);
        match result {
            ResultType::Tensor(pattern) => {
                let span = span.unwrap_or(pattern.span.0);
                let leading = leading.filter(|_| pattern.leading);
                self.check_tensor(pattern, term, span, &format!("the result of `{name}`"), leading)
            }
            ResultType::Tuple(patterns) => {
                let patterns: Vec<&TensorPattern> = patterns.iter().collect();
                self.result_tensors(name, &patterns, term, body, leading)
            }
            ResultType::Value(ParamType::AnyTensor) if matches!(term, Term::Tensor(_) | Term::Poison) => {
                Ok(term)
            }
            ResultType::Value(_) if term.is_poison() => Ok(term),
            ResultType::Value(ty) => match fit(ty, term) {
                Ok(term) => Ok(term),
                Err(term) => {
                    let given = term.describe(&self.graph);
                    let message = format!("the result of `{name}` must be {}, it is {given}", kind(ty));
                    let diagnostic = Diagnostic::error(message);
                    self.poison(match span {
                        Some(span) => diagnostic.label(span, "this value"),
                        None => diagnostic,
                    })
                }
            },
        }
    }

    fn result_tensors(
        &mut self,
        name: &str,
        patterns: &[&'p TensorPattern],
        term: Term,
        body: &'p Block,
        leading: Option<&[Dim]>,
    ) -> Eval<Term> {
        let span = body.value.as_ref().map(|value| value.span);
        let span = span.or_else(|| patterns.first().map(|pattern| pattern.span.0)).unwrap_or_default();
        let what = format!("the result of `{name}`");
        let items = match (&term, patterns) {
            (Term::Poison, _) => return Ok(term),
            (Term::Tuple(items), _) if items.len() == patterns.len() => items.clone(),
            (_, [pattern]) => {
                return self.check_tensor(pattern, term, span, &what, leading.filter(|_| pattern.leading));
            }
            _ => {
                let message = format!(
                    "{what} must be {} tensors, it is {}",
                    patterns.len(),
                    term.describe(&self.graph)
                );
                return self.poison(Diagnostic::error(message).label(span, "this value"));
            }
        };
        let mut checked = Vec::with_capacity(items.len());
        for (item, pattern) in items.iter().zip(patterns) {
            let leading = leading.filter(|_| pattern.leading);
            checked.push(self.check_tensor(pattern, item.clone(), span, &what, leading)?);
        }
        if let ([_], [one]) = (patterns, checked.as_slice()) {
            return Ok(one.clone());
        }
        Ok(Term::Tuple(checked.into()))
    }
}

fn parameters(callable: Callable<'_>) -> Vec<Parameter<'_>> {
    match callable {
        Callable::Function(function) => function.params.iter().map(parameter).collect(),
        Callable::Entry(entry) => {
            let inputs = entry.inputs.iter();
            inputs
                .map(|input| Parameter {
                    name: &input.name,
                    pattern: Some(&input.ty),
                    value: None,
                    default: input.default.as_ref(),
                })
                .collect()
        }
    }
}

fn parameter(param: &Param) -> Parameter<'_> {
    let (pattern, value) = match &param.ty {
        ParamType::Tensor(pattern) => (Some(pattern), None),
        other => (None, Some(other)),
    };
    Parameter { name: &param.name, pattern, value, default: param.default.as_ref() }
}

/// The value as a parameter of that type has it: an int is accepted for a float.
fn fit(ty: &ParamType, term: Term) -> Result<Term, Term> {
    match (ty, term) {
        (ParamType::AnyTensor, term @ Term::Tensor(_))
        | (ParamType::Int, term @ (Term::Int(_) | Term::Dim(_)))
        | (ParamType::Float, term @ Term::Float(_))
        | (ParamType::Bool, term @ Term::Bool(_))
        | (ParamType::String, term @ Term::Str(_)) => Ok(term),
        (ParamType::Float, Term::Int(value)) => Ok(Term::Float(value as f64)),
        (ParamType::List(element), Term::List(items)) => {
            let fitted: Result<Vec<Term>, Term> =
                items.iter().map(|item| fit(element, item.clone())).collect();
            match fitted {
                Ok(fitted) => Ok(Term::List(fitted.into())),
                Err(_) => Err(Term::List(items)),
            }
        }
        (_, term) => Err(term),
    }
}

fn kind(ty: &ParamType) -> String {
    match ty {
        ParamType::Tensor(_) | ParamType::AnyTensor => "a tensor".to_owned(),
        ParamType::Int => "an int or a size".to_owned(),
        ParamType::Float => "a float".to_owned(),
        ParamType::Bool => "a bool".to_owned(),
        ParamType::String => "a string".to_owned(),
        ParamType::List(element) => format!("a list, each element {}", kind(element)),
    }
}
