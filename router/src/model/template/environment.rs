//! The template engine, set up as transformers sets up Jinja2: an immutable sandbox with `trim_blocks` and
//! `lstrip_blocks`, its own `tojson`, `raise_exception`, `strftime_now`, and the tag `generation`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueOrKwargs};
use minijinja::{Environment, Error, State, UndefinedBehavior, Value};

use super::arguments::Args;
use super::filters::{self, Native};
use super::limits::{FRAMES_MAX, Rendering};
use super::{functions, methods, operators, predicates, rewrite, source, text};

/// Name of the template in its environment, and in error messages.
pub(super) const NAME: &str = "chat template";

/// One of our functions in the engine's form.
pub(super) fn native(
    function: Native,
) -> impl Fn(&mut State<'_, '_>, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static {
    move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| function(state, Args::new(args.into_values()))
}

/// An environment with the one template `template`.
pub(super) fn build(template: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::empty();
    // In debug mode the engine copies what a failing line names into the error.
    environment.set_debug(false);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_recursion_limit(FRAMES_MAX);
    // `rewrite` has seen to white space already.
    environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, state, value| {
        let rendering = Rendering::of(state)?;
        let text = text::str(&rendering, value)?;
        rendering.work(text.len())?;
        out.write_str(&text).map_err(Error::from)
    });
    filters::add(&mut environment);
    predicates::add(&mut environment);
    functions::add(&mut environment);
    let internal: [(&str, Native); 13] = [
        (rewrite::ARITHMETIC, operators::arithmetic),
        (rewrite::ATTRIBUTE, operators::attribute),
        (rewrite::COMPARE, operators::compare),
        (rewrite::CONCATENATE, operators::concatenate),
        (rewrite::DICT, operators::build_dict),
        (rewrite::ITEM, operators::item),
        (rewrite::ITERATE, operators::iterate),
        (rewrite::KEEP, operators::keep),
        (rewrite::LIST, operators::build_list),
        (rewrite::NEGATIVE, operators::negative),
        (rewrite::SLICE, operators::slice),
        (rewrite::TUPLE, operators::build_tuple),
        (source::GENERATION, operators::generation),
    ];
    for (name, function) in internal {
        environment.add_function(name, native(function));
    }
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    let normal = source::normalize(template)?;
    environment.add_template_owned(NAME, rewrite::rewrite(&normal, syntax)?)?;
    Ok(environment)
}
