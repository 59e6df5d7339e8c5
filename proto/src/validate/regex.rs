//! Whether a regular expression is one that RE2 takes, and means the same here.
//!
//! The engine is `regex`; its language is RE2's but for corners. Where one of them would refuse or read differently,
//! the expression is refused, with the place of the trouble.

use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{self, Ast, ClassSetBinaryOpKind, ClassSetItem, Flag, FlagsItemKind, Visitor};

use crate::yaml::shorten;

/// Says what is wrong with an expression, and at which character.
pub(super) fn check(expression: &str) -> Result<(), String> {
    if expression.is_empty() {
        return Err("a regular expression must not be empty".to_owned());
    }
    if expression.len() > MOST_BYTES {
        return Err(format!("the regular expression is longer than {MOST_BYTES} bytes"));
    }
    if let Some(at) = re2_only(expression) {
        return Err(at_character(
            expression,
            at,
            "\\C and \\Q…\\E are not supported; escape single characters instead",
        ));
    }
    let mut parser = ParserBuilder::new().nest_limit(MOST_NESTED).build();
    let tree = parser
        .parse(expression)
        .map_err(|error| at_character(expression, error.span().start.offset, &error.kind().to_string()))?;
    ast::visit(&tree, Corners { expression })?;
    // The classes and flags of the whole: `\p{Nonsense}` is only found here.
    regex_syntax::hir::translate::Translator::new()
        .translate(expression, &tree)
        .map(|_| ())
        .map_err(|error| at_character(expression, error.span().start.offset, &error.kind().to_string()))
}

/// Istio's bound: Envoy's is on the compiled program, which is longer.
const MOST_BYTES: usize = 1_024;
/// RE2's bound on nesting is 1,000; nobody writes a tenth of it.
const MOST_NESTED: u32 = 100;
/// RE2's bound.
const MOST_REPEATED: u32 = 1_000;

fn at_character(expression: &str, offset: usize, reason: &str) -> String {
    let character = expression.get(..offset).map_or(0, |before| before.chars().count()) + 1;
    format!("{:?} is no regular expression at character {character}: {reason}", shorten(expression))
}

/// Finds what RE2 takes and `regex` does not.
fn re2_only(expression: &str) -> Option<usize> {
    let mut letters = expression.char_indices();
    while let Some((at, letter)) = letters.next() {
        if letter == '\\' && matches!(letters.next(), Some((_, 'C' | 'Q' | 'E'))) {
            return Some(at);
        }
    }
    None
}

/// Finds what `regex` takes and RE2 does not, or reads differently.
struct Corners<'e> {
    expression: &'e str,
}

impl Corners<'_> {
    fn refuse(&self, span: &ast::Span, reason: &str) -> Result<(), String> {
        Err(at_character(self.expression, span.start.offset, reason))
    }
}

impl Visitor for Corners<'_> {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), String> {
        match ast {
            Ast::Repetition(repetition) => match &repetition.op.kind {
                ast::RepetitionKind::Range(range) if most(range) > MOST_REPEATED => {
                    self.refuse(&repetition.op.span, "more than 1000 repetitions")
                }
                _ => Ok(()),
            },
            Ast::Flags(flags) => self.flags(&flags.flags),
            Ast::Group(group) => group.flags().map_or(Ok(()), |flags| self.flags(flags)),
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), String> {
        match item {
            ClassSetItem::Bracketed(class) => {
                self.refuse(&class.span, "a class within a class; escape the inner \"[\"")
            }
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, op: &ast::ClassSetBinaryOp) -> Result<(), String> {
        let sign = match op.kind {
            ClassSetBinaryOpKind::Intersection => "&&",
            ClassSetBinaryOpKind::Difference => "--",
            ClassSetBinaryOpKind::SymmetricDifference => "~~",
        };
        self.refuse(&op.span, &format!("{sign:?} in a class; escape it"))
    }
}

impl Corners<'_> {
    fn flags(&self, flags: &ast::Flags) -> Result<(), String> {
        for item in &flags.items {
            if let FlagsItemKind::Flag(Flag::Unicode | Flag::CRLF | Flag::IgnoreWhitespace) = item.kind {
                return self.refuse(&item.span, "a flag that RE2 does not know (it knows i, m, s, U)");
            }
        }
        Ok(())
    }
}

const fn most(range: &ast::RepetitionRange) -> u32 {
    match range {
        ast::RepetitionRange::Exactly(count) | ast::RepetitionRange::AtLeast(count) => *count,
        ast::RepetitionRange::Bounded(_, most) => *most,
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn what_re2_takes_is_taken() {
        for expression in [
            "/api/.*",
            "^/v[0-9]+(/.*)?$",
            "(?i)prod|test",
            "a{2,1000}",
            "(?P<name>x)",
            r"\d+\.\pL",
            "[[:alpha:]]+",
            r"\x41",
        ] {
            assert_eq!(check(expression), Ok(()), "{expression}");
        }
    }

    #[test]
    fn what_re2_refuses_is_refused_with_its_place() {
        let message = |expression: &str| check(expression).unwrap_err();
        assert_eq!(
            message("ab(?=c)"),
            "\"ab(?=c)\" is no regular expression at character 3: look-around, including look-ahead and look-behind, is not supported"
        );
        assert_eq!(
            message("(a)\\1"),
            "\"(a)\\\\1\" is no regular expression at character 4: backreferences are not supported"
        );
        assert_eq!(
            message("x{1001}"),
            "\"x{1001}\" is no regular expression at character 2: more than 1000 repetitions"
        );
        assert!(message(r"a\Qb\E").contains("at character 2"));
        assert!(message(r"\C").contains("at character 1"));
        assert!(message("*").contains("at character 1"));
        assert!(message("[a&&b]").contains("escape it"));
        assert!(message("é(").contains("at character 2"));
    }

    #[test]
    fn an_escaped_backslash_is_no_escape() {
        assert_eq!(check(r"\\Quote"), Ok(()));
    }
}
