//! A template in the engine's own Jinja, with Python's meaning.
//!
//! The engine's operators, loops and look-ups have a meaning of their own for values that Python treats otherwise: it
//! goes over `none`, orders a number and a text, has no `'%s' % x`. They cannot be replaced, but functions can. So the
//! template is parsed, and written again with calls of our functions (`operators.rs`) where its meaning must be
//! Python's: `{{ a + b * c }}` becomes `{{ __py_op(a, "+", __py_op(b, "*", c)) }}`. Statements, scopes, macros and calls stay the
//! engine's.
//!
//! Text between tags becomes an expression as well, so that all output passes our formatter, which counts it; white
//! space has been trimmed by then. Line numbers stay as they are, for error messages.

use std::fmt::Write;

use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr, Stmt, UnaryOpKind};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind, Value};

use super::environment::NAME;
use super::methods;
use super::source::write_quoted;
use super::text::float;

pub(super) const ARITHMETIC: &str = "__py_op";
pub(super) const ATTRIBUTE: &str = "__py_attr";
pub(super) const COMPARE: &str = "__py_cmp";
pub(super) const CONCATENATE: &str = "__py_cat";
pub(super) const DICT: &str = "__py_dict";
pub(super) const ITEM: &str = "__py_item";
pub(super) const ITERATE: &str = "__py_iter";
pub(super) const KEEP: &str = "__py_keep";
pub(super) const LIST: &str = "__py_list";
pub(super) const NEGATIVE: &str = "__py_neg";
pub(super) const SLICE: &str = "__py_slice";
pub(super) const TUPLE: &str = "__py_tuple";

/// Writes `template` again. `syntax` is how it is to be read.
pub(super) fn rewrite(template: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let parsed = parse(template, NAME, syntax)?;
    let mut printer = Printer { out: String::with_capacity(template.len() * 2), line: 1, withs: 0 };
    printer.statement(&parsed)?;
    Ok(printer.out)
}

struct Printer {
    out: String,
    /// The line that is being written.
    line: usize,
    /// Names made up so far.
    withs: usize,
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("{what} is not supported in chat templates"))
}

impl Printer {
    /// Writes a tag that stood on `line`.
    fn tag(&mut self, line: u16, open: &str, content: &str, close: &str) {
        self.out.push_str(open);
        while self.line < usize::from(line) {
            self.out.push('\n');
            self.line += 1;
        }
        let _ = write!(self.out, " {content} {close}");
    }

    fn block(&mut self, line: u16, content: &str) {
        self.tag(line, "{%", content, "%}");
    }

    fn body(&mut self, statements: &[Stmt<'_>]) -> Result<(), Error> {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Result<(), Error> {
        match statement {
            Stmt::Template(template) => self.body(&template.children)?,
            Stmt::EmitRaw(raw) => {
                let mut text = String::with_capacity(raw.raw.len() + 2);
                write_quoted(raw.raw, &mut text);
                self.tag(raw.span().start_line, "{{", &text, "}}");
            }
            Stmt::EmitExpr(emit) => {
                let line = emit.span().start_line;
                self.tag(line, "{{", &loose(&emit.expr)?, "}}");
            }
            Stmt::ForLoop(for_loop) => self.for_loop(for_loop)?,
            Stmt::IfCond(condition) => self.condition(condition, "if")?,
            Stmt::WithBlock(with) => self.with(with)?,
            Stmt::Set(set) => {
                let line = set.span().start_line;
                let target = target(&set.target)?;
                let value = match &set.target {
                    Expr::List(_) => format!("{ITERATE}({})", loose(&set.expr)?),
                    Expr::GetAttr(attr) if attr.name.starts_with('_') => {
                        return Err(refused("storing a name that begins with an underscore"));
                    }
                    // The namespace is named as well: in a macro the engine finds only what is read somewhere.
                    Expr::GetAttr(attr) => format!("{KEEP}({}, {})", loose(&set.expr)?, loose(&attr.expr)?),
                    _ => loose(&set.expr)?,
                };
                self.block(line, &format!("set {target} = {value}"));
            }
            Stmt::SetBlock(set) => {
                let line = set.span().start_line;
                let filter = match &set.filter {
                    Some(filter) => format!(" | {}", filter_chain(filter)?),
                    None => String::new(),
                };
                self.block(line, &format!("set {}{filter}", target(&set.target)?));
                self.body(&set.body)?;
                self.block(0, "endset");
            }
            Stmt::FilterBlock(block) => {
                self.block(block.span().start_line, &format!("filter {}", filter_chain(&block.filter)?));
                self.body(&block.body)?;
                self.block(0, "endfilter");
            }
            Stmt::Block(block) => {
                let required = if block.required { " required" } else { "" };
                self.block(block.span().start_line, &format!("block {}{required}", block.name));
                self.body(&block.body)?;
                self.block(0, "endblock");
            }
            Stmt::Macro(declared) => {
                let line = declared.span().start_line;
                let args = parameters(&declared.args, &declared.defaults)?;
                self.block(line, &format!("macro {}({args})", declared.name));
                self.body(&declared.body)?;
                self.block(0, "endmacro");
            }
            Stmt::CallBlock(block) => {
                let caller = &block.macro_decl;
                let args = parameters(&caller.args, &caller.defaults)?;
                let args = if caller.args.is_empty() { String::new() } else { format!("({args})") };
                self.block(block.span().start_line, &format!("call{args} {}", call(&block.call)?));
                self.body(&caller.body)?;
                self.block(0, "endcall");
            }
            Stmt::Continue(at) => self.block(at.span().start_line, "continue"),
            Stmt::Break(at) => self.block(at.span().start_line, "break"),
            // Jinja2 has it in an extension that transformers does not load.
            Stmt::Do(_) => return Err(refused("the tag 'do'")),
            Stmt::AutoEscape(_) => return Err(refused("the tag 'autoescape'")),
            // There is nothing to load them from, in transformers neither.
            Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                return Err(refused("another template"));
            }
        }
        Ok(())
    }

    fn for_loop(&mut self, for_loop: &ast::Spanned<ast::ForLoop<'_>>) -> Result<(), Error> {
        let mut tag = format!("for {} in {ITERATE}({}", target(&for_loop.target)?, loose(&for_loop.iter)?);
        // Texts among the items can be taken apart.
        tag.push_str(if matches!(for_loop.target, Expr::List(_)) { ", true)" } else { ")" });
        if let Some(filter) = &for_loop.filter_expr {
            let _ = write!(tag, " if {}", loose(filter)?);
        }
        if for_loop.recursive {
            tag.push_str(" recursive");
        }
        self.block(for_loop.span().start_line, &tag);
        self.body(&for_loop.body)?;
        if !for_loop.else_body.is_empty() {
            self.block(0, "else");
            self.body(&for_loop.else_body)?;
        }
        self.block(0, "endfor");
        Ok(())
    }

    fn condition(&mut self, condition: &ast::Spanned<ast::IfCond<'_>>, word: &str) -> Result<(), Error> {
        let test = operand(&condition.expr, Level::Or)?;
        self.block(condition.expr.span().start_line, &format!("{word} {test}"));
        self.body(&condition.true_body)?;
        match condition.false_body.as_slice() {
            [] => {}
            // A chain stays flat, however long it is.
            [Stmt::IfCond(next)] => return self.condition(next, "elif"),
            otherwise => {
                self.block(0, "else");
                self.body(otherwise)?;
            }
        }
        self.block(0, "endif");
        Ok(())
    }

    /// In Jinja2 the values of a `with` do not see its names.
    fn with(&mut self, with: &ast::Spanned<ast::WithBlock<'_>>) -> Result<(), Error> {
        let line = with.span().start_line;
        let (mut values, mut names) = (Vec::new(), Vec::new());
        for (name, value) in &with.assignments {
            self.withs += 1;
            values.push(format!("__py_with{} = {}", self.withs, loose(value)?));
            let name = match name {
                Expr::List(_) => format!("({})", target(name)?),
                name => target(name)?,
            };
            names.push(format!("{name} = __py_with{}", self.withs));
        }
        self.block(line, &format!("with {}", values.join(", ")));
        self.block(0, &format!("with {}", names.join(", ")));
        self.body(&with.body)?;
        self.block(0, "endwith");
        self.block(0, "endwith");
        Ok(())
    }
}

/// What is assigned to.
fn target(expr: &Expr<'_>) -> Result<String, Error> {
    match expr {
        Expr::Var(name) => Ok(name.id.to_owned()),
        Expr::GetAttr(attr) => Ok(format!("{}.{}", target(&attr.expr)?, attr.name)),
        Expr::List(list) => {
            let mut names = Vec::with_capacity(list.items.len());
            for item in &list.items {
                let name = target(item)?;
                names.push(if matches!(item, Expr::List(_)) { format!("({name})") } else { name });
            }
            // One name with a comma behind it takes a sequence of one apart.
            Ok(if let [name] = names.as_slice() { format!("{name},") } else { names.join(", ") })
        }
        other => Err(refused(&format!("assigning to this {}", other.description()))),
    }
}

fn parameters(names: &[Expr<'_>], defaults: &[Expr<'_>]) -> Result<String, Error> {
    let plain = names.len() - defaults.len();
    let mut parameters = Vec::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        let name = target(name)?;
        parameters.push(match at.checked_sub(plain) {
            Some(at) => format!("{name} = {}", loose(&defaults[at])?),
            None => name,
        });
    }
    Ok(parameters.join(", "))
}

/// How tightly an expression binds; what binds less than its place asks is put into brackets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    If,
    Or,
    And,
    Not,
    Atom,
}

/// An expression where nothing needs brackets around it.
fn loose(expr: &Expr<'_>) -> Result<String, Error> {
    print(expr).map(|(text, _)| text)
}

/// An expression that binds at least as `level` asks.
fn operand(expr: &Expr<'_>, level: Level) -> Result<String, Error> {
    let (text, own) = print(expr)?;
    Ok(if own < level { format!("({text})") } else { text })
}

fn atom(expr: &Expr<'_>) -> Result<String, Error> {
    operand(expr, Level::Atom)
}

fn print(expr: &Expr<'_>) -> Result<(String, Level), Error> {
    let text = match expr {
        Expr::Var(name) => name.id.to_owned(),
        Expr::Const(constant) => constant_text(&constant.value)?,
        Expr::Slice(slice) => {
            let bound =
                |bound: &Option<Expr<'_>>| bound.as_ref().map_or_else(|| Ok("none".to_owned()), loose);
            let (start, stop, step) = (bound(&slice.start)?, bound(&slice.stop)?, bound(&slice.step)?);
            format!("{SLICE}({}, {start}, {stop}, {step})", loose(&slice.expr)?)
        }
        Expr::UnaryOp(unary) => match (&unary.op, &unary.expr) {
            (UnaryOpKind::Not, inner) => {
                return Ok((format!("not {}", operand(inner, Level::Not)?), Level::Not));
            }
            (UnaryOpKind::Neg, Expr::Const(constant)) if constant.value.is_number() => {
                format!("(-{})", constant_text(&constant.value)?)
            }
            (UnaryOpKind::Neg, inner) => format!("{NEGATIVE}({})", loose(inner)?),
        },
        Expr::BinOp(binary) => return binary_text(binary),
        Expr::Compare(compare) => {
            let mut text = format!("{COMPARE}({}", loose(&compare.expr)?);
            for op in &compare.ops {
                let sign = match op.op {
                    CompareOpKind::Eq => "==",
                    CompareOpKind::Ne => "!=",
                    CompareOpKind::Lt => "<",
                    CompareOpKind::Lte => "<=",
                    CompareOpKind::Gt => ">",
                    CompareOpKind::Gte => ">=",
                    CompareOpKind::In => "in",
                    CompareOpKind::NotIn => "not in",
                };
                let _ = write!(text, ", \"{sign}\", {}", loose(&op.expr)?);
            }
            text + ")"
        }
        Expr::IfExpr(choice) => {
            let (then, test) =
                (operand(&choice.true_expr, Level::Or)?, operand(&choice.test_expr, Level::Or)?);
            let otherwise = match &choice.false_expr {
                Some(otherwise) => format!(" else {}", loose(otherwise)?),
                None => String::new(),
            };
            return Ok((format!("{then} if {test}{otherwise}"), Level::If));
        }
        Expr::Filter(filter) => {
            let of = filter.expr.as_ref().ok_or_else(|| refused("a filter of nothing"))?;
            format!("{} | {}{}", atom(of)?, filter.name, arguments(&filter.args)?)
        }
        Expr::Test(test) => {
            // With brackets even if they are empty, or the next word would be an argument.
            format!("{} is {}{}", atom(&test.expr)?, test.name, arguments(&test.args)?)
        }
        Expr::GetAttr(attr) if methods::is_known(attr.name) || attr.name.starts_with("__") => {
            format!("{ATTRIBUTE}({}, \"{}\")", loose(&attr.expr)?, attr.name)
        }
        Expr::GetAttr(attr) => format!("{}.{}", postfix(&attr.expr)?, attr.name),
        Expr::GetItem(item) => format!("{ITEM}({}, {})", loose(&item.expr)?, loose(&item.subscript_expr)?),
        Expr::Call(inner) => call(inner)?,
        Expr::List(list) => items(LIST, "[", &list.items, "]")?,
        Expr::Tuple(tuple) if tuple.items.is_empty() => "()".to_owned(),
        Expr::Tuple(tuple) => items(TUPLE, "(", &tuple.items, ",)")?,
        Expr::Map(map) => {
            let mut parts = Vec::with_capacity(map.keys.len() * 2);
            for (key, value) in map.keys.iter().zip(&map.values) {
                parts.push(loose(key)?);
                parts.push(loose(value)?);
            }
            format!("{DICT}({})", parts.join(", "))
        }
    };
    Ok((text, Level::Atom))
}

/// Operators that follow one another from the left become one call, so that a long sum is no deep one.
fn binary_text(binary: &ast::BinOp<'_>) -> Result<(String, Level), Error> {
    if let BinOpKind::ScAnd | BinOpKind::ScOr = binary.op {
        let (word, level) =
            if matches!(binary.op, BinOpKind::ScAnd) { ("and", Level::And) } else { ("or", Level::Or) };
        // What stands on the left may be the same operator; on the right it came in brackets.
        let right = if level == Level::And { Level::Not } else { Level::And };
        let text = format!("{} {word} {}", operand(&binary.left, level)?, operand(&binary.right, right)?);
        return Ok((text, level));
    }
    let (function, sign) = function_of(binary.op);
    let mut text = match (&binary.left, function) {
        (Expr::BinOp(left), ARITHMETIC | CONCATENATE) if function_of(left.op).0 == function => {
            let (mut inner, _) = binary_text(left)?;
            inner.pop();
            inner
        }
        (left, _) => format!("{function}({}", loose(left)?),
    };
    if let Some(sign) = sign {
        let _ = write!(text, ", \"{sign}\"");
    }
    let _ = write!(text, ", {})", loose(&binary.right)?);
    Ok((text, Level::Atom))
}

/// The function in the place of an operator, and what it is told of which one.
fn function_of(op: BinOpKind) -> (&'static str, Option<&'static str>) {
    match op {
        BinOpKind::Add => (ARITHMETIC, Some("+")),
        BinOpKind::Sub => (ARITHMETIC, Some("-")),
        BinOpKind::Mul => (ARITHMETIC, Some("*")),
        BinOpKind::Div => (ARITHMETIC, Some("/")),
        BinOpKind::FloorDiv => (ARITHMETIC, Some("//")),
        BinOpKind::Rem => (ARITHMETIC, Some("%")),
        BinOpKind::Pow => (ARITHMETIC, Some("**")),
        BinOpKind::Concat => (CONCATENATE, None),
        BinOpKind::Eq => (COMPARE, Some("==")),
        BinOpKind::Ne => (COMPARE, Some("!=")),
        BinOpKind::Lt => (COMPARE, Some("<")),
        BinOpKind::Lte => (COMPARE, Some("<=")),
        BinOpKind::Gt => (COMPARE, Some(">")),
        BinOpKind::Gte => (COMPARE, Some(">=")),
        // The two that are left are no functions: `binary_text` has seen to them.
        BinOpKind::In | BinOpKind::ScAnd | BinOpKind::ScOr => (COMPARE, Some("in")),
    }
}

/// What an attribute is read of, or what is called.
fn postfix(expr: &Expr<'_>) -> Result<String, Error> {
    match expr {
        // They bind like atoms, but a dot behind them belongs to their last name.
        Expr::Filter(_) | Expr::Test(_) => loose(expr).map(|text| format!("({text})")),
        _ => atom(expr),
    }
}

fn call(call: &ast::Call<'_>) -> Result<String, Error> {
    let args = arguments(&call.args)?;
    Ok(match &call.expr {
        // The loop goes over it.
        Expr::Var(name) if name.id == "loop" => match call.args.as_slice() {
            [CallArg::Pos(over)] => format!("loop({ITERATE}({}))", loose(over)?),
            _ => return Err(refused("a loop called with other than one value")),
        },
        Expr::GetAttr(attr) => format!("{}.{}{args}", postfix(&attr.expr)?, attr.name),
        called => format!("{}{args}", postfix(called)?),
    })
}

fn arguments(args: &[CallArg<'_>]) -> Result<String, Error> {
    let mut parts = Vec::with_capacity(args.len());
    for arg in args {
        parts.push(match arg {
            CallArg::Pos(value) => loose(value)?,
            CallArg::Kwarg(name, value) => format!("{name}={}", loose(value)?),
            CallArg::PosSplat(values) => format!("*{ITERATE}({})", loose(values)?),
            CallArg::KwargSplat(values) => format!("**{}", operand(values, Level::Or)?),
        });
    }
    Ok(format!("({})", parts.join(", ")))
}

/// Filters without the value that they are applied to.
fn filter_chain(expr: &Expr<'_>) -> Result<String, Error> {
    let Expr::Filter(filter) = expr else { return Err(refused("this filter")) };
    let own = format!("{}{}", filter.name, arguments(&filter.args)?);
    match &filter.expr {
        Some(before) => Ok(format!("{} | {own}", filter_chain(before)?)),
        None => Ok(own),
    }
}

/// A list or tuple. Only what is computed could be nested without end.
fn items(function: &str, open: &str, items: &[Expr<'_>], close: &str) -> Result<String, Error> {
    let texts = items.iter().map(loose).collect::<Result<Vec<_>, _>>()?.join(", ");
    let constant = items.iter().all(|item| matches!(item, Expr::Const(_)));
    Ok(if constant { format!("{open}{texts}{close}") } else { format!("{function}({texts})") })
}

fn constant_text(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        let mut out = String::with_capacity(text.len() + 2);
        write_quoted(text, &mut out);
        return Ok(out);
    }
    if value.is_none() {
        return Ok("none".to_owned());
    }
    if value.is_number() && !value.is_integer() {
        let number = f64::try_from(value.clone())?;
        // The engine reads no "inf", but what is larger than all numbers.
        return Ok(if number.is_infinite() { "1e999".to_owned() } else { float(number) });
    }
    Ok(value.to_string().to_lowercase())
}
