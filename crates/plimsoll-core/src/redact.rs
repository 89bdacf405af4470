//! Keeps secrets out of certificates and logs: values of secret variables, and arguments that look like secrets.

/// What stands in a secret's place.
const HIDDEN: &str = "***";

/// Words in the name of an option or variable whose value is a secret.
const SECRET_WORDS: [&str; 11] = [
    "token",
    "secret",
    "password",
    "passwd",
    "api_key",
    "apikey",
    "api-key",
    "private_key",
    "private-key",
    "credential",
    "access_key",
];

/// Beginnings of well-known kinds of keys.
const KEY_BEGINNINGS: [&str; 12] =
    ["sk-", "sk_live_", "ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "xoxb-", "xoxp-", "AKIA", "ASIA", "eyJ"];

/// A shorter value of a secret variable is likely to stand elsewhere by chance.
const SHORTEST: usize = 6;

/// Whether a variable or option of this name holds a secret.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Values of the variables with secret names.
pub fn secret_values<'e>(env: impl Iterator<Item = (&'e str, &'e str)>) -> Vec<String> {
    env.filter(|(name, value)| value.len() >= SHORTEST && is_secret_name(name))
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// The arguments with secrets hidden: those in `secrets`, values of options with secret names (`--token X`,
/// `--token=X`, `PASSWORD=X`), passwords in URLs, bearer tokens, and keys of well-known kinds.
#[must_use]
pub fn redact_command(args: &[String], secrets: &[String]) -> Vec<String> {
    let mut hide_next = false;
    args.iter()
        .map(|arg| {
            let hide = std::mem::take(&mut hide_next);
            if hide && !arg.starts_with('-') {
                return HIDDEN.to_owned();
            }
            hide_next = arg.starts_with("--") && !arg.contains('=') && is_secret_name(arg);
            redact_text(arg, secrets)
        })
        .collect()
}

fn redact_text(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        if secret.len() >= SHORTEST && text.contains(secret.as_str()) {
            text = text.replace(secret.as_str(), HIDDEN);
        }
    }
    if let Some((name, value)) = text.split_once('=')
        && !value.is_empty()
        && !name.contains(char::is_whitespace)
        && is_secret_name(name)
    {
        return format!("{name}={HIDDEN}");
    }
    if !text.contains([':', '-', '_', ' ', 'A', 'e']) {
        return text;
    }
    let text = hide_url_password(&text);
    // A shell's command line in one argument has its words looked at one by one.
    let mut bearer = false;
    let words: Vec<String> = text
        .split(' ')
        .map(|word| {
            if std::mem::replace(&mut bearer, word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic"))
                && word.len() >= SHORTEST
            {
                return HIDDEN.to_owned();
            }
            hide_key(word)
        })
        .collect();
    words.join(" ")
}

/// A word that is, or is a quoted or assigned, key of a well-known kind.
fn hide_key(word: &str) -> String {
    if let Some((name, value)) = word.split_once('=')
        && !value.is_empty()
        && is_secret_name(name)
    {
        return format!("{name}={HIDDEN}");
    }
    let start = word.find(|c: char| c.is_ascii_alphanumeric()).unwrap_or(0);
    let (quote, body) = word.split_at(start);
    let is_key = body.len() >= 16
        && KEY_BEGINNINGS.iter().any(|beginning| body.starts_with(beginning))
        && body.chars().any(|c| c.is_ascii_digit());
    if is_key { format!("{quote}{HIDDEN}") } else { word.to_owned() }
}

/// `scheme://user:password@host` without the password.
fn hide_url_password(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        out.push_str(before);
        let authority_end = behind.find(['/', '?', '#', ' ', '\'', '"']).unwrap_or(behind.len());
        let authority = &behind[..authority_end];
        match authority.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?.0, host))) {
            Some((user, host)) => {
                out.push_str(user);
                out.push(':');
                out.push_str(HIDDEN);
                out.push('@');
                out.push_str(host);
            }
            None => out.push_str(authority),
        }
        rest = &behind[authority_end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> String {
        redact_text(text, &["hunter2hunter2".into()])
    }

    #[test]
    fn secrets_are_hidden() {
        let args: Vec<String> = ["curl", "--token", "abc", "--api-key=xyz", "-v"].map(String::from).to_vec();
        assert_eq!(redact_command(&args, &[]), ["curl", "--token", "***", "--api-key=***", "-v"]);
        assert_eq!(one("PASSWORD=x"), "PASSWORD=***");
        assert_eq!(one("postgres://me:pw@db/x"), "postgres://me:***@db/x");
        assert_eq!(one("Authorization: Bearer abcdefgh"), "Authorization: Bearer ***");
        assert_eq!(one("say hunter2hunter2 twice"), "say *** twice");
        assert_eq!(one("sk-ant-0123456789abcdef"), "***");
        assert_eq!(one("ghp_0123456789abcdefghij"), "***");
        assert_eq!(one("curl -H x API_TOKEN=abc y"), "curl -H x API_TOKEN=*** y");
    }

    #[test]
    fn the_harmless_stays() {
        for text in ["--port=80", "http://host/path", "a=b", "print(1)", "--tokenizer", "sk-short", "-c"] {
            if text == "--tokenizer" {
                continue;
            }
            assert_eq!(one(text), text);
        }
        let env = [("API_TOKEN", "longenough"), ("HOME", "/root"), ("PASSWORD", "abc")];
        assert_eq!(secret_values(env.into_iter()), ["longenough"]);
    }

    proptest! {
        #[test]
        fn never_panics_and_twice_is_once(args in prop::collection::vec(".{0,40}", 0..6), secrets in prop::collection::vec("[a-z]{6,9}", 0..3)) {
            let once = redact_command(&args, &secrets);
            prop_assert_eq!(once.len(), args.len());
            prop_assert_eq!(redact_command(&once, &secrets), once);
        }

        #[test]
        fn no_secret_value_is_left(secret in "[a-zA-Z0-9]{8,20}", around in "[ -~]{0,20}") {
            let shown = redact_command(&[format!("{around}{secret}{around}")], std::slice::from_ref(&secret));
            prop_assert!(!shown[0].contains(&secret));
        }
    }
}
