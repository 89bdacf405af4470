//! Whether a value is as a JSON Schema has it: the usual part of draft 2020-12.
//!
//! A validator of our own: the crate `jsonschema` without its features is sixty further crates, half a minute of building and
//! a regular expression engine that can be made to run for ever by a pattern, which here comes from whoever asks. What
//! this one does not know is refused when the schema comes, by its name, rather than taken for fulfilled.
//!
//! Known: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `minProperties`, `maxProperties`,
//! `items`, `prefixItems`, `minItems`, `maxItems`, `uniqueItems`, `minLength`, `maxLength`, `pattern` (no look-around, no
//! back references), `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf`, `anyOf`, `oneOf`, `allOf`,
//! `not`, `$ref` within the schema, `$defs`, `definitions`; without effect, as the draft has it: `format`, `title`,
//! `description`, `default`, `examples`, `deprecated`, `readOnly`, `writeOnly`, `$schema`, `$id`, `$comment` and all that
//! begins with `x-`. Refused: `patternProperties`, `propertyNames`, `contains`, `if`, `dependentRequired`, `$dynamicRef`,
//! `unevaluatedProperties` and the like.

use std::collections::{BTreeMap, BTreeSet};

use regex_lite::{Regex, RegexBuilder};
use serde_json::{Map, Number, Value};

/// Comparisons for one value: an answer of a megabyte takes some ten thousand, a schema that branches without end all.
const MOST_STEPS: u64 = 2_000_000;
/// Schemas within one another while a value is looked at, references included: the thread's stack is small.
const DEEPEST: u32 = 48;
/// Schemas within one another as they are written, for the same reason.
const DEEPEST_WRITTEN: u32 = 32;
/// What a pattern may compile to, bytes.
const LARGEST_PATTERN: usize = 64 << 10;

/// A schema whose words are all known.
#[derive(Debug, Clone)]
pub struct Schema {
    root: Value,
    patterns: BTreeMap<String, Regex>,
}

impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root
    }
}

/// Why a schema is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the schema at `{at}`: {why}")]
pub struct Refused {
    at: String,
    why: String,
}

/// Why a value is not as it has to be, in words for whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Miss {
    /// At one place.
    #[error("{0}")]
    Wrong(String),
    /// Nobody knows.
    #[error("the schema branches too often to be checked")]
    Spent,
}

impl Schema {
    /// Takes a schema.
    ///
    /// # Errors
    /// The first word that is not known, or has a value that it cannot have.
    pub fn new(root: Value) -> Result<Self, Refused> {
        let mut schema = Self { root: Value::Null, patterns: BTreeMap::new() };
        let mut admitting =
            Admitting { root: &root, seen: BTreeSet::new(), left: Vec::new(), patterns: &mut schema.patterns };
        admitting.admit(&root, "#", 0)?;
        while let Some((at, target)) = admitting.left.pop() {
            admitting.admit(target, at, 0)?;
        }
        schema.root = root;
        Ok(schema)
    }

    /// As it was given.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.root
    }

    /// Is this value as it has to be?
    ///
    /// # Errors
    /// The first place where it is not.
    pub fn check(&self, value: &Value) -> Result<(), Miss> {
        let mut checking = Checking { schema: self, left: MOST_STEPS, path: "$".to_owned() };
        checking.check(&self.root, value, 0)
    }
}

const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];

struct Admitting<'a, 'p> {
    root: &'a Value,
    /// References that were met.
    seen: BTreeSet<&'a str>,
    /// Of those, the ones that are still to be followed: one after the other, for a chain of them may be long.
    left: Vec<(&'a str, &'a Value)>,
    patterns: &'p mut BTreeMap<String, Regex>,
}

impl<'a> Admitting<'a, '_> {
    fn admit(&mut self, schema: &'a Value, at: &str, depth: u32) -> Result<(), Refused> {
        let refuse = |why: String| Err(Refused { at: at.to_owned(), why });
        if depth > DEEPEST_WRITTEN {
            return refuse(format!("more than {DEEPEST_WRITTEN} schemas within one another are too many"));
        }
        let words = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(words) => words,
            _ => return refuse("a schema is an object, or true or false".to_owned()),
        };
        for (word, is) in words {
            let here = format!("{at}/{word}");
            let is_number = is.as_u64().is_some();
            let fits = match word.as_str() {
                "type" => {
                    let names = if let Value::Array(names) = is { names.as_slice() } else { std::slice::from_ref(is) };
                    let unknown = names.iter().find(|name| !name.as_str().is_some_and(|name| TYPES.contains(&name)));
                    if let Some(name) = unknown {
                        let name: String = name.to_string().chars().filter(|c| *c != '"').take(40).collect();
                        return refuse(format!("there is no type `{name}`"));
                    }
                    !names.is_empty()
                }
                "enum" => is.is_array(),
                "required" => is.as_array().is_some_and(|names| names.iter().all(Value::is_string)),
                "minProperties" | "maxProperties" | "minItems" | "maxItems" | "minLength" | "maxLength" => is_number,
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => is.is_number(),
                "multipleOf" => is.as_f64().is_some_and(|step| step > 0.0),
                "uniqueItems" => is.is_boolean(),
                "pattern" => match is.as_str() {
                    Some(pattern) => {
                        self.pattern(pattern, at)?;
                        true
                    }
                    None => false,
                },
                "properties" | "$defs" | "definitions" => match is {
                    Value::Object(all) => {
                        for (name, schema) in all {
                            self.admit(schema, &format!("{here}/{name}"), depth + 1)?;
                        }
                        true
                    }
                    _ => false,
                },
                "additionalProperties" | "items" | "not" => {
                    self.admit(is, &here, depth + 1)?;
                    true
                }
                "prefixItems" | "anyOf" | "oneOf" | "allOf" => match is {
                    Value::Array(all) if !all.is_empty() => {
                        for (index, schema) in all.iter().enumerate() {
                            self.admit(schema, &format!("{here}/{index}"), depth + 1)?;
                        }
                        true
                    }
                    _ => false,
                },
                "$ref" => match is.as_str() {
                    Some(to) => {
                        let Some(target) = within(self.root, to) else {
                            return refuse("a `$ref` leads to a place within the schema: `#/$defs/NAME`".to_owned());
                        };
                        if self.seen.insert(to) {
                            self.left.push((to, target));
                        }
                        true
                    }
                    None => false,
                },
                "const" | "format" | "title" | "description" | "default" | "examples" | "deprecated" | "readOnly"
                | "writeOnly" | "$schema" | "$id" | "$comment" => true,
                word if word.starts_with("x-") => true,
                word => {
                    let word: String = word.chars().take(40).flat_map(char::escape_debug).collect();
                    return refuse(format!("`{word}` is not supported here"));
                }
            };
            if !fits {
                return refuse(format!("`{word}` cannot have this value"));
            }
        }
        Ok(())
    }

    fn pattern(&mut self, pattern: &str, at: &str) -> Result<(), Refused> {
        if self.patterns.contains_key(pattern) {
            return Ok(());
        }
        match RegexBuilder::new(pattern).size_limit(LARGEST_PATTERN).build() {
            Ok(regex) => {
                self.patterns.insert(pattern.to_owned(), regex);
                Ok(())
            }
            Err(error) => {
                Err(Refused { at: at.to_owned(), why: format!("the pattern is not supported here: {error}") })
            }
        }
    }
}

/// The place that a reference leads to.
fn within<'v>(root: &'v Value, to: &str) -> Option<&'v Value> {
    root.pointer(to.strip_prefix('#')?)
}

struct Checking<'s> {
    schema: &'s Schema,
    left: u64,
    path: String,
}

impl Checking<'_> {
    fn spend(&mut self, steps: usize) -> Result<(), Miss> {
        let left = self.left.checked_sub(steps as u64);
        self.left = left.ok_or(Miss::Spent)?;
        Ok(())
    }

    fn wrong<T>(&self, why: impl AsRef<str>) -> Result<T, Miss> {
        let path: String = self.path.chars().take(200).collect();
        Err(Miss::Wrong(format!("at {path}: {}", why.as_ref())))
    }

    /// The same one step further in.
    fn within(&mut self, step: &str, schema: &Value, value: &Value, depth: u32) -> Result<(), Miss> {
        let end = self.path.len();
        self.path.push_str(step);
        let found = self.check(schema, value, depth + 1);
        self.path.truncate(end);
        found
    }

    fn check(&mut self, schema: &Value, value: &Value, depth: u32) -> Result<(), Miss> {
        self.spend(1)?;
        let words = match schema {
            Value::Bool(false) => return self.wrong("nothing may be here"),
            Value::Object(words) if depth < DEEPEST => words,
            Value::Object(_) => return Err(Miss::Spent),
            _ => return Ok(()),
        };
        self.spend(words.len())?;
        if let Some(is) = words.get("type") {
            let names = if let Value::Array(names) = is { names.as_slice() } else { std::slice::from_ref(is) };
            if !names.iter().filter_map(Value::as_str).any(|name| is_of(value, name)) {
                let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                return self.wrong(format!("it is {}, and has to be {}", what(value), names.join(" or ")));
            }
        }
        if let Some(Value::Array(all)) = words.get("enum") {
            let mut is_one = false;
            for one in all {
                is_one = is_one || self.same(one, value)?;
            }
            if !is_one {
                return self.wrong(format!("it has to be one of {}", shown(&Value::Array(all.clone()))));
            }
        }
        if let Some(one) = words.get("const")
            && !self.same(one, value)?
        {
            return self.wrong(format!("it has to be {}", shown(one)));
        }
        match value {
            Value::Object(object) => self.object(words, object, depth)?,
            Value::Array(items) => self.array(words, items, depth)?,
            Value::String(text) => self.text(words, text)?,
            Value::Number(number) => self.number(words, number)?,
            Value::Bool(_) | Value::Null => {}
        }
        self.combined(words, value, depth)
    }

    fn combined(&mut self, words: &Map<String, Value>, value: &Value, depth: u32) -> Result<(), Miss> {
        if let Some(to) = words.get("$ref").and_then(Value::as_str)
            && let Some(target) = within(&self.schema.root, to)
        {
            self.check(target, value, depth + 1)?;
        }
        for schema in words.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.check(schema, value, depth + 1)?;
        }
        for (word, most) in [("anyOf", usize::MAX), ("oneOf", 1)] {
            let Some(all) = words.get(word).and_then(Value::as_array) else { continue };
            let (mut right, mut first) = (0, None);
            for schema in all {
                match self.check(schema, value, depth + 1) {
                    Ok(()) => right += 1,
                    Err(Miss::Spent) => return Err(Miss::Spent),
                    Err(Miss::Wrong(why)) => first = first.or(Some(why)),
                }
                if right > most || (right == 1 && word == "anyOf") {
                    break;
                }
            }
            match (right, first) {
                (0, Some(why)) => return self.wrong(format!("none of `{word}` fits; of the first, {why}")),
                (right, _) if right > most => return self.wrong(format!("more than one of `{word}` fits")),
                _ => {}
            }
        }
        if let Some(schema) = words.get("not") {
            match self.check(schema, value, depth + 1) {
                Ok(()) => return self.wrong("it is what `not` forbids"),
                Err(Miss::Spent) => return Err(Miss::Spent),
                Err(Miss::Wrong(_)) => {}
            }
        }
        Ok(())
    }

    fn object(&mut self, words: &Map<String, Value>, object: &Map<String, Value>, depth: u32) -> Result<(), Miss> {
        self.spend(object.len())?;
        for name in words.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.spend(1)?;
            if !object.contains_key(name) {
                return self.wrong(format!("{} is missing", shown(&name.into())));
            }
        }
        self.count(words, "Properties", object.len(), "properties")?;
        let properties = words.get("properties").and_then(Value::as_object);
        for (name, value) in object {
            let known = properties.and_then(|known| known.get(name));
            let Some(schema) = known.or_else(|| words.get("additionalProperties")) else { continue };
            if schema == &Value::Bool(false) {
                return self.wrong(format!("{} may not be there", shown(&name.as_str().into())));
            }
            self.within(&format!(".{name}"), schema, value, depth)?;
        }
        Ok(())
    }

    fn array(&mut self, words: &Map<String, Value>, items: &[Value], depth: u32) -> Result<(), Miss> {
        self.spend(items.len())?;
        self.count(words, "Items", items.len(), "items")?;
        let first = words.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let rest = words.get("items");
        for (index, item) in items.iter().enumerate() {
            if let Some(schema) = first.get(index).or(rest) {
                self.within(&format!("[{index}]"), schema, item, depth)?;
            }
        }
        if words.get("uniqueItems") == Some(&Value::Bool(true)) {
            for (index, item) in items.iter().enumerate() {
                for other in &items[..index] {
                    if self.same(item, other)? {
                        return self.wrong(format!("the item {index} is there twice"));
                    }
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, words: &Map<String, Value>, text: &str) -> Result<(), Miss> {
        if words.contains_key("minLength") || words.contains_key("maxLength") {
            self.count(words, "Length", text.chars().count(), "characters")?;
        }
        if let Some(pattern) = words.get("pattern").and_then(Value::as_str)
            && let Some(regex) = self.schema.patterns.get(pattern)
        {
            // Its time goes with both lengths.
            self.spend(text.len().saturating_mul(pattern.len()) / 16)?;
            if !regex.is_match(text) {
                return self.wrong(format!("the text has to match {}", shown(&pattern.into())));
            }
        }
        Ok(())
    }

    fn number(&mut self, words: &Map<String, Value>, number: &Number) -> Result<(), Miss> {
        let Some(is) = number.as_f64() else { return Ok(()) };
        let bound = |word: &str| words.get(word).and_then(Value::as_f64);
        let broken = [
            bound("minimum").filter(|bound| is < *bound).map(|bound| ("at least", bound)),
            bound("maximum").filter(|bound| is > *bound).map(|bound| ("at most", bound)),
            bound("exclusiveMinimum").filter(|bound| is <= *bound).map(|bound| ("more than", bound)),
            bound("exclusiveMaximum").filter(|bound| is >= *bound).map(|bound| ("less than", bound)),
        ];
        if let Some((said, bound)) = broken.into_iter().flatten().next() {
            return self.wrong(format!("{number} has to be {said} {bound}"));
        }
        if let Some(step) = words.get("multipleOf").and_then(Value::as_f64) {
            let times = is / step;
            // A tenth is no number of a computer's.
            if (times - times.round()).abs() > 1e-9 * times.abs().max(1.0) {
                return self.wrong(format!("{number} has to be a multiple of {step}"));
            }
        }
        Ok(())
    }

    /// `minItems` and its like.
    fn count(&self, words: &Map<String, Value>, of: &str, is: usize, called: &str) -> Result<(), Miss> {
        let bound = |side: &str| words.get(&format!("{side}{of}")).and_then(Value::as_u64);
        match (bound("min"), bound("max")) {
            (Some(least), _) if (is as u64) < least => {
                self.wrong(format!("there are {is} {called}, and have to be at least {least}"))
            }
            (_, Some(most)) if is as u64 > most => {
                self.wrong(format!("there are {is} {called}, and may be at most {most}"))
            }
            _ => Ok(()),
        }
    }

    /// Equal as JSON has it: 1 is 1.0.
    fn same(&mut self, a: &Value, b: &Value) -> Result<bool, Miss> {
        self.spend(1)?;
        Ok(match (a, b) {
            (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                for (a, b) in a.iter().zip(b) {
                    if !self.same(a, b)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
                for (name, a) in a {
                    match b.get(name) {
                        Some(b) if self.same(a, b)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (a, b) => a == b,
        })
    }
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "boolean" => value.is_boolean(),
        _ => value.is_null(),
    }
}

fn what(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "an object",
        Value::Array(_) => "an array",
        Value::String(_) => "a string",
        Value::Number(_) => "a number",
        Value::Bool(_) => "a boolean",
        Value::Null => "null",
    }
}

/// A value as JSON, not too long.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 120;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn holds(schema: &Value, value: &Value) -> bool {
        let schema = Schema::new(schema.clone()).unwrap_or_else(|why| panic!("{schema}: {why}"));
        schema.check(value).is_ok()
    }

    #[test]
    fn every_word() {
        for (schema, right, wrong) in [
            (json!(true), vec![json!(1)], vec![]),
            (json!(false), vec![], vec![json!(1)]),
            (json!({"type": "object"}), vec![json!({})], vec![json!([]), json!(null)]),
            (json!({"type": ["array", "null"]}), vec![json!([]), json!(null)], vec![json!({})]),
            (json!({"type": "integer"}), vec![json!(1), json!(-1), json!(2.0)], vec![json!(1.5), json!("1")]),
            (json!({"type": "number"}), vec![json!(1.5)], vec![json!("1"), json!(true)]),
            (
                json!({"enum": [1, "a", null, [1.0]]}),
                vec![json!(1.0), json!("a"), json!(null), json!([1])],
                vec![json!("b"), json!([2])],
            ),
            (json!({"const": {"a": [1]}}), vec![json!({"a": [1]})], vec![json!({"a": []}), json!({"a": [1], "b": 1})]),
            (
                json!({"properties": {"a": {"type": "string"}}}),
                vec![json!({}), json!({"a": "", "b": 1}), json!(5)],
                vec![json!({"a": 1})],
            ),
            (json!({"required": ["a"]}), vec![json!({"a": null})], vec![json!({})]),
            (
                json!({"properties": {"a": true}, "additionalProperties": false}),
                vec![json!({"a": 1})],
                vec![json!({"b": 1})],
            ),
            (json!({"additionalProperties": {"type": "null"}}), vec![json!({"a": null})], vec![json!({"b": 1})]),
            (
                json!({"minProperties": 1, "maxProperties": 2}),
                vec![json!({"a": 1})],
                vec![json!({}), json!({"a": 1, "b": 1, "c": 1})],
            ),
            (json!({"items": {"type": "null"}}), vec![json!([]), json!([null])], vec![json!([null, 1])]),
            (
                json!({"prefixItems": [{"type": "null"}], "items": false}),
                vec![json!([]), json!([null])],
                vec![json!([null, null]), json!([1])],
            ),
            (json!({"minItems": 1, "maxItems": 2}), vec![json!([1])], vec![json!([]), json!([1, 2, 3])]),
            (
                json!({"uniqueItems": true}),
                vec![json!([1, "1", [1], {"a": 1}])],
                vec![json!([1, 2, 1.0]), json!([{"a": 1}, {"a": 1}])],
            ),
            (json!({"minLength": 2, "maxLength": 3}), vec![json!("äb"), json!(5)], vec![json!("a"), json!("abcd")]),
            (json!({"pattern": "^[a-z]+$"}), vec![json!("abc"), json!(5)], vec![json!("aBc"), json!("")]),
            (json!({"minimum": 1, "maximum": 2.5}), vec![json!(1), json!(2.5), json!("0")], vec![json!(0.9), json!(3)]),
            (json!({"exclusiveMinimum": 1, "exclusiveMaximum": 3}), vec![json!(2)], vec![json!(1), json!(3)]),
            (json!({"multipleOf": 0.1}), vec![json!(0.3), json!(7)], vec![json!(0.35)]),
            (json!({"anyOf": [{"type": "null"}, {"type": "string"}]}), vec![json!(null), json!("")], vec![json!(1)]),
            (
                json!({"oneOf": [{"type": "integer"}, {"minimum": 5}]}),
                vec![json!(1), json!(5.5)],
                vec![json!(5), json!(1.5)],
            ),
            (json!({"allOf": [{"type": "integer"}, {"minimum": 5}]}), vec![json!(5)], vec![json!(1), json!(5.5)]),
            (json!({"not": {"type": "null"}}), vec![json!(1)], vec![json!(null)]),
            (json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}), vec![json!(null)], vec![json!(1)]),
            (
                json!({"properties": {"next": {"$ref": "#"}}, "required": ["v"]}),
                vec![json!({"v": 1, "next": {"v": 2}})],
                vec![json!({"v": 1, "next": {}})],
            ),
            (
                json!({"format": "email", "title": "t", "x-y": 1, "$schema": "s", "default": 1}),
                vec![json!("no mail")],
                vec![],
            ),
        ] {
            right.iter().for_each(|value| assert!(holds(&schema, value), "{schema} {value}"));
            wrong.iter().for_each(|value| assert!(!holds(&schema, value), "{schema} {value}"));
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (schema, at, why) in [
            (json!(5), "#", "a schema is an object"),
            (json!({"type": "objekt"}), "#", "no type `objekt`"),
            (json!({"type": []}), "#", "cannot have this value"),
            (json!({"properties": {"a": {"if": {}}}}), "#/properties/a", "`if` is not supported"),
            (json!({"patternProperties": {}}), "#", "`patternProperties` is not supported"),
            (json!({"minLength": -1}), "#", "`minLength` cannot have this value"),
            (json!({"required": "a"}), "#", "`required` cannot have this value"),
            (json!({"items": [1]}), "#/items", "a schema is an object"),
            (json!({"anyOf": []}), "#", "`anyOf` cannot have this value"),
            (json!({"multipleOf": 0}), "#", "`multipleOf` cannot have this value"),
            (json!({"$ref": "http://example.org/x"}), "#", "within the schema"),
            (json!({"$ref": "#/$defs/none"}), "#", "within the schema"),
            (json!({"pattern": "(?=x)"}), "#", "the pattern is not supported"),
            (json!({"pattern": "(a{1000}){1000}"}), "#", "the pattern is not supported"),
            (json!({"$ref": "#/x-a", "x-a": {"contains": 1}}), "#/x-a", "`contains` is not supported"),
        ] {
            let refused = Schema::new(schema.clone()).unwrap_err();
            assert!(refused.at == at && refused.why.contains(why), "{schema}: {refused}");
        }
    }

    #[test]
    fn a_miss_says_where() {
        let schema = json!({"type": "object", "required": ["rows"], "properties": {"rows": {"items": {"properties": {"n": {"type": "integer"}}}}}});
        let schema = Schema::new(schema).unwrap();
        let told = |value: Value| schema.check(&value).unwrap_err().to_string();
        assert_eq!(
            told(json!({"rows": [{"n": 1}, {"n": "x"}]})),
            "at $.rows[1].n: it is a string, and has to be integer"
        );
        assert_eq!(told(json!({})), "at $: \"rows\" is missing");
    }

    /// A schema that would take for ever, or a stack without end, is given up.
    #[test]
    fn work_is_bounded() {
        let circle = Schema::new(json!({"$ref": "#"})).unwrap();
        assert_eq!(circle.check(&json!(1)), Err(Miss::Spent));
        let branches =
            json!({"anyOf": [{"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}]});
        assert_eq!(Schema::new(branches).unwrap().check(&json!(1)), Err(Miss::Spent));
        let unique = Schema::new(json!({"uniqueItems": true})).unwrap();
        assert_eq!(unique.check(&Value::from((0..10_000).collect::<Vec<i32>>())), Err(Miss::Spent));
        let pattern = Schema::new(json!({"pattern": "(a*)*b"})).unwrap();
        assert!(matches!(pattern.check(&json!("a".repeat(10_000))), Err(Miss::Wrong(_))));
        assert_eq!(pattern.check(&json!("a".repeat(10_000_000))), Err(Miss::Spent));
    }

    /// The thread of this room has half a megabyte.
    #[test]
    fn a_small_stack_will_do() {
        let work = || {
            let circle = json!({"anyOf": [{"type": "null"}, {"allOf": [{"properties": {"a": {"$ref": "#"}}}]}]});
            let circle = Schema::new(circle).unwrap();
            let deep: Value = serde_json::from_str(&("{\"a\":".repeat(120) + "1" + &"}".repeat(120))).unwrap();
            assert_eq!(circle.check(&deep), Err(Miss::Spent));
            assert_eq!(Schema::new(json!({"$ref": "#"})).unwrap().check(&deep), Err(Miss::Spent));
            let nested = "{\"not\":".repeat(120) + "{}" + &"}".repeat(120);
            assert!(Schema::new(serde_json::from_str(&nested).unwrap()).unwrap_err().why.contains("too many"));
            let chain: Map<String, Value> =
                (0..2000).map(|n| (n.to_string(), json!({"$ref": format!("#/$defs/{}", n + 1)}))).collect();
            let chain = json!({"$ref": "#/$defs/0", "$defs": chain});
            let _ = Schema::new(chain).map(|chain| chain.check(&json!(1)));
        };
        std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
    }

    fn any_json() -> impl Strategy<Value = Value> {
        const WORDS: [&str; 18] = [
            "type",
            "object",
            "properties",
            "a",
            "items",
            "required",
            "enum",
            "anyOf",
            "not",
            "$ref",
            "#",
            "#/$defs/a",
            "$defs",
            "pattern",
            "minLength",
            "const",
            "integer",
            "array",
        ];
        let word = prop::sample::select(WORDS.as_slice()).prop_map(str::to_owned);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3i64..9).prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(word.clone(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_schema_is_taken_or_refused(schema in any_json(), value in any_json()) {
            if let Ok(schema) = Schema::new(schema) {
                let _ = schema.check(&value);
            }
        }

        #[test]
        fn a_value_is_its_own_const(value in any_json(), other in any_json()) {
            let schema = Schema::new(json!({"const": value.clone()})).unwrap();
            prop_assert!(schema.check(&value).is_ok());
            prop_assert_eq!(schema.check(&other).is_ok(), value == other);
            prop_assert_eq!(holds(&json!({"not": {"const": value.clone()}}), &other), value != other);
        }
    }
}
