//! Secrets in commands. The input: values listed as secret, an empty line, arguments; one a line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_core::redact::{is_secret_name, redact_command, secret_values};

/// A shorter value is not looked for: it is likely to stand elsewhere by chance.
const SHORTEST: usize = 6;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (secrets, args) = text.split_once("\n\n").unwrap_or(("", &text));
    let words = |text: &str| text.split('\n').map(str::to_owned).collect::<Vec<String>>();
    let (secrets, args) = (words(secrets), words(args));
    let shown = redact_command(&args, &secrets);
    assert_eq!(shown.len(), args.len());
    for (shown, given) in shown.iter().zip(&args) {
        assert!(shown.len() <= 2 * given.len() + 3, "{given:?} became {shown:?}");
        let survivor = secrets.iter().find(|secret| secret.len() >= SHORTEST && shown.contains(*secret));
        assert_eq!(survivor, None, "{given:?} became {shown:?}");
    }
    assert_eq!(redact_command(&shown, &secrets), shown, "hiding twice is hiding once");
    variables(&args);
});

/// The values of variables with secret names are listed, long enough, and no others.
fn variables(args: &[String]) {
    let variables: Vec<(&str, &str)> = args.iter().filter_map(|arg| arg.split_once('=')).collect();
    let listed = secret_values(variables.iter().copied());
    let mut expected = variables.iter().filter(|(name, value)| value.len() >= SHORTEST && is_secret_name(name));
    assert!(listed.iter().all(|value| expected.next().is_some_and(|(_, secret)| secret == value)));
    assert!(expected.next().is_none());
    // As an argument of its own it goes whole; a name may look like a secret itself.
    for (name, value) in variables.iter().filter(|(name, _)| is_secret_name(name)) {
        if !value.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            let shown = redact_command(&[format!("{name}={value}")], &[]).concat();
            assert!(shown == format!("{name}=***") || shown == "***=***", "{name}={value:?} became {shown:?}");
        }
    }
}
