//! Keeps secrets out of certificates and logs: the values of secret variables, and what looks like a secret.
//!
//! Hidden are the values of names that look secret (`--token X`, `--token=X`, `-e API_KEY=X`, `"apiKey": "X"`,
//! `X-Api-Key: X`), whatever follows `Authorization:`, passwords in URLs, keys of well-known kinds, what stands behind the
//! short options of programs that are known for it (`mysql -pX`, `curl -u me:X`: [`RULES`]), and values that were listed as
//! secret, wherever they stand. A long random word alone is not: most are hashes and ids. It is a net, and no proof: a
//! password as a bare argument looks like any other word.

/// What stands in a secret's place.
const HIDDEN: &str = "***";

/// Parts of a name whose value is a secret; `-` and `_` in names count as nothing.
const SECRET_WORDS: [&str; 12] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "privatekey",
    "accesskey",
    "signingkey",
    "encryptionkey",
    "credential",
    "authorization",
];

/// Names that have such a part and hold no secret: counts of tokens, and where a secret lies.
const HARMLESS_PARTS: [&str; 6] = ["tokeniz", "maxtoken", "mintoken", "numtoken", "tokenlimit", "tokencount"];
const HARMLESS_ENDS: [&str; 3] = ["file", "path", "dir"];

/// Beginnings of well-known kinds of keys.
const KEY_BEGINNINGS: [&str; 16] = [
    "sk-",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "hf_",
    "AKIA",
    "ASIA",
    "AIza",
];

/// A shorter word is no key of a well-known kind.
const SHORTEST_KEY: usize = 16;

/// A shorter value of a variable whose name looks secret is likely to stand elsewhere by chance.
const SHORTEST: usize = 6;

/// The same of a variable that was listed: somebody meant it.
const SHORTEST_LISTED: usize = 4;

/// What a short option of some programs is followed by.
#[derive(Debug)]
struct Rule {
    programs: &'static [&'static str],
    option: &'static str,
    /// The subcommand that it belongs to; others of the same program mean something else by it.
    verb: Option<&'static str>,
    next: Next,
    /// Also in the same word: `-pX`. The letters that may stand before it there: `-sSuX`.
    glued: Option<&'static str>,
}

impl Rule {
    const fn of(
        programs: &'static [&'static str],
        option: &'static str,
        next: Next,
        glued: Option<&'static str>,
    ) -> Self {
        Self { programs, option, verb: None, next, glued }
    }
}

/// curl's short options without a value.
const CURL_FLAGS: &str = "#012346BGIJLNORSVafgijklnpqsvZ";

const RULES: [Rule; 13] = [
    Rule::of(&["curl"], "-u", Next::Login, Some(CURL_FLAGS)),
    Rule::of(&["curl"], "-U", Next::Login, Some(CURL_FLAGS)),
    Rule::of(&["curl"], "-b", Next::Cookie, Some(CURL_FLAGS)),
    Rule::of(&["curl", "wget"], "--user", Next::Login, None),
    Rule::of(&["curl"], "--proxy-user", Next::Login, None),
    Rule::of(&["http", "https", "xh"], "-a", Next::Secret, Some("")),
    Rule::of(&["redis-cli"], "-a", Next::Secret, None),
    Rule::of(&["sshpass"], "-p", Next::Secret, Some("ev")),
    // Alone it asks for the password, and the next word is a database.
    Rule::of(
        &[
            "mysql",
            "mysqldump",
            "mysqladmin",
            "mysqlimport",
            "mysqlshow",
            "mysqlcheck",
            "mysqlslap",
            "mysqlbinlog",
            "mysqlpump",
            "mariadb",
            "mariadb-dump",
            "mariadb-admin",
            "mariadb-import",
            "mariadb-check",
        ],
        "-p",
        Next::Any,
        Some("BCEFGHLNPQVWnqrstvwABf"),
    ),
    Rule::of(
        &["mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport", "mongostat"],
        "-p",
        Next::Secret,
        Some(""),
    ),
    Rule::of(
        &["ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami", "ldappasswd"],
        "-w",
        Next::Secret,
        Some(""),
    ),
    Rule::of(&["zip", "unzip"], "-P", Next::Secret, Some("")),
    Rule {
        programs: &["docker", "podman", "nerdctl", "buildah", "skopeo", "helm", "crane", "oras", "az", "oc", "cf"],
        option: "-p",
        verb: Some("login"),
        next: Next::Secret,
        glued: Some(""),
    },
];

/// So often is looked whether hiding one thing has uncovered another; two rounds are the rule.
const ROUNDS: usize = 16;

/// Whether a variable or option of this name holds a secret.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let joined: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).take(200).collect();
    let name = name.trim_start_matches('-');
    let last = name.rsplit(['_', '-']).next().unwrap_or_default();
    // `PWD` and `OLDPWD` are directories.
    let short = ["pass", "pwd", "pw", "auth", "jwt", "cookie", "cookies", "pin"]
        .iter()
        .any(|word| last.eq_ignore_ascii_case(word));
    if short && !name.eq_ignore_ascii_case("pwd") {
        return true;
    }
    SECRET_WORDS.iter().any(|word| joined.contains(word))
        && !HARMLESS_PARTS.iter().any(|part| joined.contains(part))
        && !HARMLESS_ENDS.iter().any(|end| joined.ends_with(end))
}

/// Values of the variables with secret names that are long enough not to stand elsewhere by chance.
pub fn secret_values<'e>(env: impl Iterator<Item = (&'e str, &'e str)>) -> Vec<String> {
    env.filter(|(name, value)| value.len() >= SHORTEST && is_secret_name(name))
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// Values of the variables that were listed (`PLIMSOLL_REDACT=NAME,NAME`), whatever their names look like.
pub fn listed_values<'e>(list: &str, env: impl Iterator<Item = (&'e str, &'e str)>) -> Vec<String> {
    let listed = |name: &str| list.split(',').any(|one| one.trim() == name);
    env.filter(|(name, value)| value.len() >= SHORTEST_LISTED && listed(name))
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// The arguments with secrets hidden: as many as were given, none longer than twice its length and three bytes.
/// Hiding twice is hiding once.
#[must_use]
pub fn redact_command(args: &[String], secrets: &[String]) -> Vec<String> {
    // The longest first, so that no rest of one is left behind a shorter one within it.
    let mut secrets: Vec<&str> =
        secrets.iter().map(String::as_str).filter(|value| value.len() >= SHORTEST_LISTED).collect();
    secrets.sort_unstable_by_key(|value| std::cmp::Reverse(value.len()));
    let mut shown = hide_in_command(args, &secrets);
    for _ in 0..ROUNDS {
        let again = hide_in_command(&shown, &secrets);
        if again == shown {
            return shown;
        }
        shown = again;
    }
    // Never seen; whatever it was, it is not shown.
    vec![HIDDEN.to_owned(); args.len()]
}

/// Goes over the arguments once. What was hidden may have been a program or an option, so that its neighbours look
/// different the next time.
fn hide_in_command(args: &[String], secrets: &[&str]) -> Vec<String> {
    let mut line = Line::default();
    args.iter()
        .map(|arg| {
            let glued = line.glued(arg);
            let hidden = match line.next {
                Next::Secret if !arg.is_empty() && !is_option(arg) => HIDDEN.to_owned(),
                Next::Login if !is_option(arg) && arg.contains(':') => hide_login(arg, secrets),
                Next::Cookie if !is_option(arg) && arg.contains('=') => HIDDEN.to_owned(),
                _ => match glued {
                    Some(at) => redact_text(&format!("{}{HIDDEN}", &arg[..at]), secrets),
                    None => redact_text(arg, secrets),
                },
            };
            // `-pTopSecret` is no name of a secret, but one.
            let named = if glued.is_some() { Next::Any } else { by_name(arg) };
            line.next = line.behind(arg).max(named);
            line.take(arg);
            hidden
        })
        .collect()
}

/// What the next argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Next {
    #[default]
    Any,
    /// `name=value`, or the name of a file.
    Cookie,
    /// `user:password`.
    Login,
    Secret,
}

/// What follows an option of this name, whatever the program.
fn by_name(arg: &str) -> Next {
    let secret = arg.starts_with('-') && !arg.contains(['=', ' ']) && is_secret_name(arg);
    if secret { Next::Secret } else { Next::Any }
}

/// What is known of a command line on the way through it.
#[derive(Debug, Default)]
struct Line {
    /// The program's rules; those of the latest word that names one, for it may be started by another (`sudo curl …`).
    rules: Vec<&'static Rule>,
    /// The word before was a long option: this one is its value (`--name mysql`).
    is_value: bool,
    /// Its subcommand: the first word behind it that is one of those that matter.
    verb: Option<String>,
    next: Next,
}

impl Line {
    /// Goes on behind an argument.
    fn take(&mut self, arg: &str) {
        const VERBS: [&str; 7] = ["login", "run", "create", "exec", "compose", "build", "start"];
        let name = arg.rsplit('/').next().unwrap_or_default();
        let rules: Vec<&Rule> = RULES.iter().filter(|rule| rule.programs.contains(&name)).collect();
        if !rules.is_empty() && !self.is_value {
            (self.rules, self.verb) = (rules, None);
        } else if self.verb.is_none() && VERBS.contains(&arg) {
            self.verb = Some(arg.to_owned());
        }
        self.is_value = arg.len() > 2 && arg.starts_with("--") && !arg.contains('=');
    }

    fn rules(&self) -> impl Iterator<Item = &'static Rule> {
        self.rules.iter().copied().filter(|rule| rule.verb.is_none() || rule.verb == self.verb.as_deref())
    }

    /// What follows this argument.
    fn behind(&self, arg: &str) -> Next {
        let rule = self.rules().find(|rule| {
            let flags = rule.glued.unwrap_or_default();
            let letters = arg.strip_prefix('-').and_then(|arg| arg.strip_suffix(&rule.option[1..]));
            arg == rule.option
                || !flags.is_empty() && letters.is_some_and(|letters| letters.chars().all(|c| flags.contains(c)))
        });
        rule.map_or(Next::Any, |rule| rule.next)
    }

    /// Where the secret begins that stands in the same word as its option.
    fn glued(&self, arg: &str) -> Option<usize> {
        self.rules().find_map(|rule| {
            let from = if rule.option.starts_with("--") {
                arg.strip_prefix(rule.option)?.starts_with('=').then_some(rule.option.len() + 1)?
            } else {
                let (flags, letter) = (rule.glued?, &rule.option[1..]);
                let at = arg.strip_prefix('-')?.find(letter)? + 1;
                arg[1..at].chars().all(|c| flags.contains(c)).then_some(at + 1)?
            };
            let value = &arg[from..];
            match rule.next {
                Next::Login => value.find(':').map(|colon| from + colon + 1).filter(|&at| at < arg.len()),
                Next::Cookie => value.contains('=').then_some(from),
                _ => (!value.is_empty()).then_some(from),
            }
        })
    }
}

/// Rather another option than a value.
fn is_option(arg: &str) -> bool {
    arg.starts_with("--") || (arg.len() == 2 && arg.starts_with('-'))
}

/// `user:password` without the password; the user may be a key itself, with an empty password behind it.
fn hide_login(login: &str, secrets: &[&str]) -> String {
    let user = login.split(':').next().unwrap_or_default();
    let shown = format!("{}:{HIDDEN}", redact_text(user, secrets));
    // A listed value with a colon in it may reach over both.
    let reaches = |secret: &&str| secret.contains(':') && (login.contains(secret) || shown.contains(secret));
    if secrets.iter().any(reaches) { HIDDEN.to_owned() } else { shown }
}

fn redact_text(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for _ in 0..ROUNDS {
        let mut hidden = text.clone();
        for secret in secrets {
            if hidden.contains(secret) {
                hidden = hidden.replace(secret, HIDDEN);
            }
        }
        let hidden = hide_keys(&hide_options(&hide_values(&hide_url_passwords(&hidden))));
        if hidden == text {
            return text;
        }
        text = hidden;
    }
    // Never seen; whatever it was, it is not shown.
    HIDDEN.to_owned()
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// A shell's command line without what stands behind the options of [`RULES`].
fn hide_options(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let (mut shown, mut at) = (0, 0);
    let mut line = Line::default();
    while at < bytes.len() {
        if bytes[at].is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let end = at + bytes[at..].iter().take_while(|byte| !byte.is_ascii_whitespace()).count();
        let word = &text[at..end];
        let secret = match line.next {
            Next::Secret if !is_option(word) => value(bytes, at, b";|&)"),
            Next::Login if !is_option(word) => {
                word.find(':').and_then(|colon| value(bytes, at + colon + 1, b";|&)\"'`"))
            }
            Next::Cookie if !is_option(word) && word.contains('=') => value(bytes, at, b";|&)"),
            _ => line.glued(word).and_then(|from| value(bytes, at + from, b";|&)")),
        };
        line.next = line.behind(word);
        let word = word.trim_start_matches(['(', '$', '`', '"', '\'']);
        line.take(word);
        // Behind one of these another command begins.
        if word.ends_with([';', '|', '&', ')']) {
            line = Line::default();
        }
        at = end;
        if let Some((from, to)) = secret {
            out.push_str(&text[shown..from]);
            out.push_str(HIDDEN);
            (shown, at) = (to, to.max(end));
        }
    }
    out.push_str(&text[shown..]);
    out
}

/// `name=value`, `--name value`, `"name": "value"` and `Name: value` without the value, where the name looks secret.
fn hide_values(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let (mut shown, mut at) = (0, 0);
    while at < bytes.len() {
        if !is_name_byte(bytes[at]) {
            at += 1;
            continue;
        }
        let end = at + bytes[at..].iter().take_while(|&&byte| is_name_byte(byte)).count();
        match value_of(text, at, end) {
            Some((from, to)) => {
                out.push_str(&text[shown..from]);
                out.push_str(HIDDEN);
                (shown, at) = (to, to);
            }
            None => at = end,
        }
    }
    out.push_str(&text[shown..]);
    out
}

/// Where the secret value of the name at `start..end` stands.
fn value_of(text: &str, start: usize, end: usize) -> Option<(usize, usize)> {
    let (bytes, name) = (text.as_bytes(), &text[start..end]);
    if name.eq_ignore_ascii_case("bearer") {
        let (from, to) = word(bytes, end + spaces(bytes, end), b"");
        let token = &bytes[from..to];
        let random = token.len() >= 20 || (token.len() >= 8 && token.iter().any(u8::is_ascii_digit));
        return (random && from > end).then_some((from, to));
    }
    if !is_secret_name(name) {
        return None;
    }
    // A name in quotes, which may be escaped themselves.
    let opening = bytes[..start].last().copied().filter(|byte| is_quote(*byte));
    let escape = usize::from(bytes.get(end) == Some(&b'\\'));
    let quoted = opening.is_some() && bytes.get(end + escape) == opening.as_ref();
    let behind = if quoted { end + escape + 1 } else { end };
    let sign = behind + spaces(bytes, behind);
    let header = name.to_ascii_lowercase().ends_with("authorization");
    match bytes.get(sign) {
        // A whole argument `NAME=value`: the value may have anything in it.
        Some(b'=') if start == 0 && sign == end => nonempty(sign + 1, bytes.len()),
        Some(b'=') if bytes.get(sign + 1) != Some(&b'=') => value(bytes, sign + 1, b"&;)}]"),
        Some(b':') if quoted => value(bytes, sign + 1, b",;)}]"),
        // A header is an argument of its own, or in quotes: its value goes to their end.
        Some(b':') if bytes.get(sign + 1) != Some(&b':') && (header || start == 0 || opening.is_some()) => {
            let close = |byte: &u8| opening.map_or(is_quote(*byte), |quote| *byte == quote);
            let from = sign + 1 + spaces(bytes, sign + 1);
            let to = from + bytes[from..].iter().take_while(|byte| !close(byte)).count();
            let scheme = word(bytes, from, b"").1;
            let rest = scheme + spaces(bytes, scheme);
            let keeps =
                ["bearer", "basic", "token", "digest"].iter().any(|s| text[from..scheme].eq_ignore_ascii_case(s));
            if keeps && rest < to { nonempty(rest, to) } else { nonempty(from, to) }
        }
        Some(_) if name.starts_with("--") && sign > end && bytes[sign] != b'-' => value(bytes, sign, b";|&)"),
        _ => None,
    }
}

fn is_quote(byte: u8) -> bool {
    matches!(byte, b'"' | b'\'' | b'`')
}

fn spaces(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..).unwrap_or_default().iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// From `at` to the next white space, quote, or one of these.
fn word(bytes: &[u8], at: usize, ends: &[u8]) -> (usize, usize) {
    let length = bytes
        .get(at..)
        .unwrap_or_default()
        .iter()
        .take_while(|&&byte| !byte.is_ascii_whitespace() && !is_quote(byte) && !ends.contains(&byte))
        .count();
    (at, at + length)
}

/// A value in quotes, or up to one of `ends`. What opens a bracket is a structure with names of its own.
fn value(bytes: &[u8], at: usize, ends: &[u8]) -> Option<(usize, usize)> {
    let at = at + spaces(bytes, at);
    let escape = usize::from(bytes.get(at) == Some(&b'\\'));
    let Some(quote) = bytes.get(at + escape).copied().filter(|byte| is_quote(*byte)) else {
        let (from, to) = word(bytes, at, ends);
        return if matches!(bytes.get(from), Some(b'{' | b'[')) { None } else { nonempty(from, to) };
    };
    let from = at + escape + 1;
    let mut to = from;
    // To the closing quote: one as much escaped as the opening one.
    while to < bytes.len() && bytes[to] != quote {
        to += if bytes[to] == b'\\' && escape == 0 && to + 1 < bytes.len() { 2 } else { 1 };
    }
    if escape == 1 && to > from && to < bytes.len() && bytes[to - 1] == b'\\' {
        to -= 1;
    }
    nonempty(from, to)
}

/// A place with something in it.
fn nonempty(from: usize, to: usize) -> Option<(usize, usize)> {
    (from < to).then_some((from, to))
}

/// Keys of well-known kinds, and JSON Web Tokens.
fn hide_keys(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let (mut shown, mut at) = (0, 0);
    while at < bytes.len() {
        let dotted = bytes[at..].starts_with(b"eyJ");
        let in_key = |byte: &u8| is_name_byte(*byte) || (dotted && *byte == b'.');
        let length = bytes[at..].iter().take_while(|byte| in_key(byte)).count();
        if length == 0 {
            at += 1;
            continue;
        }
        let word = &text[at..at + length];
        let known = KEY_BEGINNINGS.iter().any(|beginning| word.starts_with(beginning))
            && word.bytes().any(|byte| byte.is_ascii_digit());
        let token = dotted && word.bytes().filter(|&byte| byte == b'.').count() == 2;
        if length >= SHORTEST_KEY && (known || token) {
            out.push_str(&text[shown..at]);
            out.push_str(HIDDEN);
            shown = at + length;
        }
        at += length;
    }
    out.push_str(&text[shown..]);
    out
}

/// `scheme://user:password@host` without the password.
fn hide_url_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        out.push_str(before);
        let end = behind
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>'))
            .unwrap_or(behind.len());
        let url = &behind[..end];
        let authority = &url[..url.find(['/', '?', '#']).unwrap_or(url.len())];
        // A password with a slash in it is no port.
        let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
        let stray = authority.contains(':') && !port.bytes().all(|byte| byte.is_ascii_digit()) && !port.ends_with(']');
        let login_end = authority.rfind('@').or_else(|| if stray { url.rfind('@') } else { None });
        let login = login_end.map_or("", |login_end| &url[..login_end]);
        if let Some((user, password)) = login.split_once(':')
            && !password.is_empty()
        {
            out.push_str(user);
            out.push(':');
            out.push_str(HIDDEN);
        } else {
            out.push_str(login);
        }
        rest = &behind[login.len()..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
