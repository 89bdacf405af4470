//! Words of a command that is written as one text: quotation marks and backslashes as a shell takes them, and nothing else
//! of a shell.

/// Signs of a shell that only a shell understands.
const SHELL_ONLY: [&str; 10] = ["&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1"];

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) words: Vec<String>,
    /// The first word that was perhaps meant for a shell.
    pub(crate) for_a_shell: Option<String>,
}

/// Splits the text into words.
///
/// # Errors
/// What is never closed.
pub(crate) fn split(text: &str) -> Result<Words, &'static str> {
    let mut read = Words::default();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(read);
        }
        let (mut word, mut quoted) = (String::new(), false);
        while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
            match c {
                '\'' => {
                    quoted = true;
                    loop {
                        match chars.next().ok_or("a single quotation mark is never closed")? {
                            '\'' => break,
                            c => word.push(c),
                        }
                    }
                }
                '"' => {
                    quoted = true;
                    loop {
                        match chars.next().ok_or("a double quotation mark is never closed")? {
                            '"' => break,
                            '\\' => match chars.next().ok_or("a double quotation mark is never closed")? {
                                c @ ('"' | '\\' | '$' | '`') => word.push(c),
                                '\n' => {}
                                c => word.extend(['\\', c]),
                            },
                            c => word.push(c),
                        }
                    }
                }
                '\\' => {
                    quoted = true;
                    match chars.next().ok_or("a backslash stands at the end")? {
                        '\n' => {}
                        c => word.push(c),
                    }
                }
                c => word.push(c),
            }
        }
        if !quoted && read.for_a_shell.is_none() && SHELL_ONLY.contains(&word.as_str()) {
            read.for_a_shell = Some(word.clone());
        }
        read.words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_a_shell_takes_them() {
        for (text, words) in [
            ("python3 app.py --port 80", vec!["python3", "app.py", "--port", "80"]),
            ("  a\tb\n c ", vec!["a", "b", "c"]),
            ("sh -c 'echo \"$A\"; exit'", vec!["sh", "-c", "echo \"$A\"; exit"]),
            ("a\"b c\"d '' \"\"", vec!["ab cd", "", ""]),
            (r#""a\"b\\c\d" e\ f"#, vec![r#"a"b\c\d"#, "e f"]),
            ("", vec![]),
        ] {
            assert_eq!(split(text).unwrap().words, words, "{text}");
        }
        for text in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(split(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_shell_would_do_is_noticed() {
        assert_eq!(split("a && b | c").unwrap().for_a_shell.as_deref(), Some("&&"));
        assert_eq!(split("a '&&' b\\|c").unwrap().for_a_shell, None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-c '\"\\\\\n]{0,40}") {
            let _ = split(&text);
        }

        #[test]
        fn quoted_words_are_read_back(words in prop::collection::vec("[^']{0,10}", 0..5)) {
            let text: String = words.iter().map(|word| format!("'{word}' ")).collect();
            prop_assert_eq!(split(&text).unwrap().words, words);
        }
    }
}
