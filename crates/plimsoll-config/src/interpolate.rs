//! Variables in values, as Compose fills them in: `$VAR`, `${VAR}`, `${VAR:-default}`, `${VAR-default}`, `${VAR:?error}`,
//! `${VAR?error}`, `${VAR:+instead}`, `${VAR+instead}`, each within another, and `$$` for a dollar sign.

/// How deep variables may lie in the defaults of others.
const DEEPEST: u32 = 16;
/// The longest value, bytes.
pub(crate) const LONGEST: usize = 1 << 20;

/// The variable that is the replica's own port, and is not known before the replica is.
pub(crate) const PORT: &str = "PORT";

/// Why variables cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// A dollar sign without a name behind it; the rest of the text from there.
    Syntax(String),
    /// `${NAME:?message}`, and there is no such variable.
    Required { name: String, message: String },
    /// Too many within one another.
    TooDeep,
    /// Longer than [`LONGEST`].
    TooLong,
}

/// Where variables come from, and what is said of them.
pub(crate) struct Filler<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    /// `PORT` stays, as `${PORT}`.
    keeps_port: bool,
    /// Variables that were not there and had no default: they are empty.
    pub(crate) unset: Vec<String>,
}

impl<'a> Filler<'a> {
    pub(crate) fn new(lookup: &'a dyn Fn(&str) -> Option<String>, keeps_port: bool) -> Self {
        Self { lookup, keeps_port, unset: Vec::new() }
    }

    /// The text with its variables filled in.
    pub(crate) fn fill(&mut self, text: &str) -> Result<String, Wrong> {
        let mut out = String::with_capacity(text.len());
        self.expand(text, 0, &mut out)?;
        Ok(out)
    }

    fn expand(&mut self, text: &str, depth: u32, out: &mut String) -> Result<(), Wrong> {
        if depth > DEEPEST {
            return Err(Wrong::TooDeep);
        }
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let from = &rest[at..];
            let behind = &from[1..];
            if let Some(behind) = behind.strip_prefix('$') {
                out.push('$');
                rest = behind;
            } else if let Some(inner) = behind.strip_prefix('{') {
                let end = closing(inner).ok_or_else(|| syntax(from))?;
                self.braced(&inner[..end], depth, out).map_err(|wrong| match wrong {
                    Wrong::Syntax(inner) if inner.is_empty() => syntax(from),
                    wrong => wrong,
                })?;
                rest = &inner[end + 1..];
            } else {
                let name = name(behind);
                if name.is_empty() {
                    return Err(syntax(from));
                }
                self.plain(name, out);
                rest = &behind[name.len()..];
            }
            if out.len() > LONGEST {
                return Err(Wrong::TooLong);
            }
        }
        out.push_str(rest);
        Ok(())
    }

    fn plain(&mut self, name: &str, out: &mut String) {
        if self.keeps_port && name == PORT {
            // In one way of writing, so that whoever fills it in later finds it, and `$PORTAL` is nobody's.
            out.push_str("${PORT}");
            return;
        }
        match (self.lookup)(name) {
            Some(value) => out.push_str(&value),
            None => self.unset.push(name.to_owned()),
        }
    }

    /// What stands between braces.
    fn braced(&mut self, inner: &str, depth: u32, out: &mut String) -> Result<(), Wrong> {
        let name = name(inner);
        let rest = &inner[name.len()..];
        if name.is_empty() {
            return Err(Wrong::Syntax(String::new()));
        }
        if rest.is_empty() {
            self.plain(name, out);
            return Ok(());
        }
        let (empty_is_unset, rest) = match rest.strip_prefix(':') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let mut chars = rest.chars();
        let (how, word) = (chars.next(), chars.as_str());
        let kept = self.keeps_port && name == PORT;
        let value = if kept { Some("${PORT}".to_owned()) } else { (self.lookup)(name) };
        let value = value.filter(|value| !(empty_is_unset && value.is_empty()));
        match (how, value) {
            (Some('-' | '?'), Some(value)) => out.push_str(&value),
            (Some('-'), None) | (Some('+'), Some(_)) => self.expand(word, depth + 1, out)?,
            (Some('+'), None) => {}
            (Some('?'), None) => {
                let mut message = String::new();
                self.expand(word, depth + 1, &mut message)?;
                return Err(Wrong::Required { name: name.to_owned(), message });
            }
            _ => return Err(Wrong::Syntax(String::new())),
        }
        Ok(())
    }
}

/// The rest of a text from a dollar sign that is no variable.
fn syntax(from: &str) -> Wrong {
    Wrong::Syntax(from.chars().take(20).collect())
}

/// The name that a text begins with.
fn name(text: &str) -> &str {
    let is_part = |at: usize, byte: u8| byte == b'_' || byte.is_ascii_alphabetic() || at > 0 && byte.is_ascii_digit();
    let end = text.bytes().enumerate().position(|(at, byte)| !is_part(at, byte)).unwrap_or(text.len());
    &text[..end]
}

/// Where the brace that is open before this text is closed: one for each `${` within it further on.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut open = 1;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
            }
            b'$' if bytes.get(at + 1) == Some(&b'{') => {
                open += 1;
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(text: &str, keeps_port: bool) -> Result<(String, Vec<String>), Wrong> {
        let lookup = |name: &str| match name {
            "FOO" => Some("first".to_owned()),
            "BAR" => Some(String::new()),
            "PORT" => Some("80".to_owned()),
            _ => None,
        };
        let mut filler = Filler::new(&lookup, keeps_port);
        let text = filler.fill(text)?;
        Ok((text, filler.unset))
    }

    fn filled(text: &str) -> Result<String, Wrong> {
        with(text, false).map(|(text, _)| text)
    }

    /// What Compose makes of these, with FOO=first and an empty BAR.
    #[test]
    fn composes_own_vectors() {
        for (text, expected) in [
            ("foo", "foo"),
            ("", ""),
            ("$${foo}", "${foo}"),
            ("$$$$", "$$"),
            ("$$FOO", "$FOO"),
            ("$$$FOO", "$first"),
            ("$FOO-bar", "first-bar"),
            ("$FOO.bar", "first.bar"),
            ("$FOO$FOO", "firstfirst"),
            ("This ${missing} var", "This  var"),
            ("This ${BAR} var", "This  var"),
            ("This $FOO var", "This first var"),
            ("This ${FOO} var", "This first var"),
            ("ok ${missing:-def}", "ok def"),
            ("ok ${missing-def}", "ok def"),
            ("ok ${missing-}", "ok "),
            ("ok ${BAR:-def}", "ok def"),
            ("ok ${FOO:-def}", "ok first"),
            ("ok ${BAR-def}", "ok "),
            ("ok ${BAR:-/non:-alphanumeric}", "ok /non:-alphanumeric"),
            ("ok ${UNSET_VAR-$FOO}", "ok first"),
            ("ok ${UNSET_VAR-${FOO}}", "ok first"),
            ("ok ${UNSET_VAR-${FOO} ${FOO}}", "ok first first"),
            ("ok ${BAR:-$FOO}", "ok first"),
            ("ok ${BAR:-${FOO}}", "ok first"),
            ("ok ${BAR:-${FOO} ${FOO}}", "ok first first"),
            ("ok ${BAR:-${BAR:-${FOO}}}", "ok first"),
            ("ok ${FOO:?err}", "ok first"),
            ("ok ${FOO?err}", "ok first"),
            ("ok ${BAR?err}", "ok "),
            ("ok ${FOO:+there}", "ok there"),
            ("ok ${FOO+there}", "ok there"),
            ("ok ${BAR:+there}", "ok "),
            ("ok ${BAR+there}", "ok there"),
            ("ok ${missing:+there}", "ok "),
            ("ok ${missing+there}", "ok "),
            ("ok ${FOO+${missing-x}}", "ok x"),
            ("${UNSET_VAR-myerror?msg}", "myerror?msg"),
            ("${FOO?bar-baz}", "first"),
            ("${BAR:-default_value_for_empty_var}", "default_value_for_empty_var"),
            ("${UNSET_VAR-default_value_for_unset_var}", "default_value_for_unset_var"),
            ("ok ${missing:-{\"a\": 1}}", "ok {\"a\": 1}"),
        ] {
            assert_eq!(filled(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_compose_refuses() {
        for text in
            ["${", "$}", "${}", "${ }", "${ foo}", "${foo }", "${foo!}", "${FOO:}", "$", "a $ b", "$1", "${1}", "$-"]
        {
            assert!(matches!(filled(text), Err(Wrong::Syntax(_))), "{text}: {:?}", filled(text));
        }
        for (text, name, message) in [
            ("not ok ${UNSET_VAR:?Mandatory Variable Unset}", "UNSET_VAR", "Mandatory Variable Unset"),
            ("not ok ${BAR:?Mandatory Variable Empty}", "BAR", "Mandatory Variable Empty"),
            ("not ok ${UNSET_VAR:?}", "UNSET_VAR", ""),
            ("not ok ${UNSET_VAR?Mandatory Variable Unset}", "UNSET_VAR", "Mandatory Variable Unset"),
            ("not ok ${UNSET_VAR?}", "UNSET_VAR", ""),
            ("not ok ${UNSET_VAR:?Mandatory Variable ${FOO}}", "UNSET_VAR", "Mandatory Variable first"),
            ("not ok ${UNSET_VAR?Mandatory Variable ${FOO}}", "UNSET_VAR", "Mandatory Variable first"),
            ("${UNSET_VAR?bar-baz}", "UNSET_VAR", "bar-baz"),
        ] {
            let wrong = Wrong::Required { name: name.to_owned(), message: message.to_owned() };
            assert_eq!(filled(text), Err(wrong), "{text}");
        }
    }

    #[test]
    fn the_first_sign_counts() {
        for (text, expected) in [
            ("${missing-va:-lu:?e}", "va:-lu:?e"),
            ("${missing-va+lu?e}", "va+lu?e"),
            ("${missing-va?lu+e}", "va?lu+e"),
            ("${FOO:+va:?lu:-e}", "va:?lu:-e"),
            ("${FOO+va:+lue}", "va:+lue"),
            ("${FOO+va?lu-e}", "va?lu-e"),
        ] {
            assert_eq!(filled(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_port_of_a_replica_stays() {
        for (text, expected) in [
            ("$PORT", "${PORT}"),
            ("http://[::1]:${PORT}/x", "http://[::1]:${PORT}/x"),
            ("${PORT:-80}${PORT:?x}", "${PORT}${PORT}"),
            ("${PORT:+--port ${PORT}}", "--port ${PORT}"),
            ("$$PORT $PORTAL", "$PORT "),
        ] {
            assert_eq!(with(text, true).map(|(text, _)| text), Ok(expected.to_owned()), "{text}");
        }
        assert_eq!(filled("$PORT"), Ok("80".to_owned()));
    }

    #[test]
    fn what_is_not_there_is_told() {
        let (text, unset) = with("$A ${B} ${C:-} ${D+x} ${FOO:-$E}", false).unwrap();
        assert_eq!((text.as_str(), unset.join(" ").as_str()), ("    first", "A B"));
    }

    #[test]
    fn bounds() {
        let deep = (0..40).fold("x".to_owned(), |inner, _| format!("${{missing-{inner}}}"));
        assert_eq!(filled(&deep), Err(Wrong::TooDeep));
        let long = |_: &str| Some("x".repeat(100_000));
        assert_eq!(Filler::new(&long, false).fill(&"$A".repeat(100_000)), Err(Wrong::TooLong));
        assert!(matches!(filled(&"${A-".repeat(100_000)), Err(Wrong::Syntax(_))));
    }

    proptest! {
        #[test]
        fn never_panics(text in "[$\\{\\}:?+A-Z é-]{0,40}") {
            let _ = with(&text, true);
        }

        #[test]
        fn doubled_dollars_are_plain(text in "[ -~é\n]{0,40}") {
            prop_assert_eq!(filled(&text.replace('$', "$$")), Ok(text));
        }
    }
}
