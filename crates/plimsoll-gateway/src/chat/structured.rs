//! Answers that have to be JSON: what the agent is told, what of its answer is taken, and what it is asked when that will not
//! do. It is asked once more; an answer that is still none is a failure of the agent's.

use std::sync::Arc;

use serde_json::Value;

use super::schema::Schema;

/// The largest answer that is looked at, bytes: as a tree it takes many times as much.
const LARGEST_ANSWER: usize = 1 << 20;

/// `response_format`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// Any JSON object.
    Object,
    /// JSON as a schema has it.
    Schema(Arc<Schema>),
}

impl Format {
    pub(super) fn word(&self) -> String {
        match self {
            Self::Text => String::new(),
            Self::Object => "object".to_owned(),
            Self::Schema(schema) => schema.json().to_string(),
        }
    }

    /// What the agent is told behind the messages; `None` when it may answer as it likes. Without it an agent that knows
    /// nothing of the request's format would be asked twice each time.
    #[must_use]
    pub fn instruction(&self) -> Option<String> {
        match self {
            Self::Text => None,
            Self::Object => Some("Answer with one JSON object alone: no words around it, no code fence.".to_owned()),
            Self::Schema(schema) => Some(format!(
                "Answer with JSON alone that is valid by this JSON Schema: no words around it, no code fence.\n{}",
                schema.json()
            )),
        }
    }

    /// What of the answer is handed on: all of a text; of JSON the value alone, as it was written.
    ///
    /// # Errors
    /// Why it is not as it has to be, in words for the agent.
    pub fn take<'a>(&self, answer: &'a str) -> Result<&'a str, String> {
        let schema = match self {
            Self::Text => return Ok(answer),
            Self::Object => None,
            Self::Schema(schema) => Some(schema),
        };
        if answer.len() > LARGEST_ANSWER {
            return Err("it is longer than 1 MiB".to_owned());
        }
        let (text, value) = json_of(answer).ok_or_else(|| "it is no JSON".to_owned())?;
        match schema {
            Some(schema) => schema.check(&value).map_err(|miss| miss.to_string())?,
            None if !value.is_object() => return Err("it is JSON, and no object".to_owned()),
            None => {}
        }
        Ok(text)
    }

    /// The one further question, when the answer would not do for this reason.
    #[must_use]
    pub fn ask_again(&self, why: &str) -> String {
        let how = self.instruction().unwrap_or_default();
        format!("Your last answer cannot be used: {why}. Give it again, corrected.\n{how}")
    }

    /// Why there is no answer when the second one would not do either.
    #[must_use]
    pub fn failed(why: &str) -> String {
        format!("its answer is not as `response_format` has it, and neither was the first: {why}")
    }
}

/// The JSON in an answer: all of it, what stands in its one code fence, or from the first bracket to the last.
fn json_of(answer: &str) -> Option<(&str, Value)> {
    let all = answer.trim();
    let bare = bracketed(all);
    [Some(all), fenced(all), bare].into_iter().flatten().find_map(|text| Some((text, serde_json::from_str(text).ok()?)))
}

fn fenced(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("```")?;
    let (word, rest) = rest.split_once('\n')?;
    let is_word = word.trim().is_empty() || word.trim().eq_ignore_ascii_case("json");
    let (inside, behind) = rest.rsplit_once("```")?;
    (is_word && !behind.contains("```")).then_some(inside.trim())
}

fn bracketed(text: &str) -> Option<&str> {
    let start = text.find(['{', '['])?;
    let close = if text[start..].starts_with('{') { '}' } else { ']' };
    let end = text.rfind(close)?;
    text.get(start..=end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn by(schema: Value) -> Format {
        Format::Schema(Arc::new(Schema::new(schema).unwrap()))
    }

    #[test]
    fn json_is_found_in_an_answer() {
        for (answer, taken) in [
            ("{\"a\": 1}", "{\"a\": 1}"),
            (" \n{\"a\": 1}\n", "{\"a\": 1}"),
            ("```json\n{\"a\": 1}\n```", "{\"a\": 1}"),
            ("```\n{\"a\": 1}```\n", "{\"a\": 1}"),
            ("Here it is:\n```JSON\r\n{\"a\": 1}\n```\nMore?", "{\"a\": 1}"),
            ("Here it is: {\"a\": \"}\"}. More?", "{\"a\": \"}\"}"),
            ("{\"a\": \"```\"}", "{\"a\": \"```\"}"),
        ] {
            assert_eq!(Format::Object.take(answer), Ok(taken), "{answer}");
        }
        for (answer, why) in [
            ("", "it is no JSON"),
            ("no", "it is no JSON"),
            ("{\"a\": 1", "it is no JSON"),
            ("} {", "it is no JSON"),
            ("```python\n{\n```", "it is no JSON"),
            ("[1]", "it is JSON, and no object"),
            ("5", "it is JSON, and no object"),
        ] {
            assert_eq!(Format::Object.take(answer), Err(why.to_owned()), "{answer}");
        }
        let long = format!("\"{}\"", "x".repeat(LARGEST_ANSWER));
        assert_eq!(Format::Object.take(&long), Err("it is longer than 1 MiB".to_owned()));
        assert_eq!(Format::Text.take(&long), Ok(long.as_str()));
    }

    #[test]
    fn by_a_schema_and_once_more() {
        let format = by(json!({"type": "array", "items": {"type": "integer"}}));
        assert_eq!(format.take("```json\n[1, 2]\n```"), Ok("[1, 2]"));
        let why = format.take("[1, \"2\"]").unwrap_err();
        assert_eq!(why, "at $[1]: it is a string, and has to be integer");
        let again = format.ask_again(&why);
        assert!(
            again.contains(&why) && again.contains("{\"items\":{\"type\":\"integer\"},\"type\":\"array\"}"),
            "{again}"
        );
        assert!(Format::failed(&why).ends_with(&why) && Format::Text.instruction().is_none());
        assert!(Format::Object.instruction().unwrap().contains("JSON object"));
    }

    proptest! {
        #[test]
        fn any_answer_is_taken_or_not(answer in "(?s).{0,60}", marks in "[`{}\\[\\]\njson\": 1,]{0,40}") {
            for answer in [&answer, &marks] {
                for format in [Format::Text, Format::Object, by(json!({"type": "object"}))] {
                    if let Ok(taken) = format.take(answer) {
                        prop_assert!(answer.contains(taken));
                        prop_assert!(format == Format::Text || serde_json::from_str::<Value>(taken).unwrap().is_object());
                    }
                }
            }
        }

        /// However it is wrapped, an object is taken as it was written.
        #[test]
        fn an_object_in_words(text in ".{0,20}", before in "[a-z .:\n]{0,20}", behind in "[a-z .\n]{0,20}", fence in any::<bool>()) {
            let object = json!({"a": text}).to_string();
            let wrapped = if fence { format!("{before}\n```json\n{object}\n```{behind}") } else { format!("{before}{object}{behind}") };
            prop_assert_eq!(Format::Object.take(&wrapped), Ok(object.as_str()));
        }
    }
}
