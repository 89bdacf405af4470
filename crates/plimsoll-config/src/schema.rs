//! The file's grammar as a JSON Schema (draft 2020-12), for editors.
//!
//! Written from the very tables that the parser reads by. Where a value may have variables, the schema lets it through: what
//! comes of it is only known when they are filled in.

use serde_json::{Map, Value, json};

use crate::keys::{self, Kind, Table};

/// A variable somewhere, which may become anything.
const VARIABLE: &str = r"\$";
const SIZE: &str = r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*([bB]|[kKmMgGtTpP]([iI]?[bB])?)?\s*$";
const DURATION: &str = r"^\s*([0-9]+(\.[0-9]*)?|((\.[0-9]+|[0-9]+(\.[0-9]*)?)(ns|us|ms|s|m|h|d))+)\s*$";
const PERCENT: &str = r"^\s*[0-9]+(\.[0-9]+)?\s*%\s*$";
const CORES: &str = r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*$";
const SIGNAL: &str = r"^\s*(([sS][iI][gG])?[a-zA-Z]+[0-9]?([+-][0-9]+)?|[0-9]+)\s*$";
const RESTART: &str = r"^(no|always|unless-stopped|on-failure(:[0-9]+)?)$";
const LISTEN: &str = r"^\s*(([0-9.]+|localhost|\[[0-9a-fA-F:.]+\]):)?[0-9]+\s*$";
const WHEN: &str = r"^\s*(memory|service\s+\S+\s+(rss|memory|restarts))\s*[<>]\s*[0-9.].*$";

/// The whole schema.
#[must_use]
pub fn schema() -> Value {
    let mut root = table(&keys::STACK);
    let Value::Object(object) = &mut root else { return root };
    let mut head = Map::new();
    head.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    head.insert("title".to_owned(), json!("plimsoll.yaml"));
    head.insert("description".to_owned(), json!("A stack of services and pools inside one budget of memory."));
    // What has to be there may come out of a merge.
    let either = keys::EITHER.iter().chain(&["<<"]).map(|key| json!({ "required": [key] }));
    object.insert("anyOf".to_owned(), either.collect());
    head.append(object);
    Value::Object(head)
}

fn table(table: &Table) -> Value {
    let property = |key: &keys::Key| {
        let mut value = kind(key.kind);
        if let Value::Object(object) = &mut value {
            object.insert("description".to_owned(), json!(key.about));
        }
        (key.name.to_owned(), value)
    };
    let mut object = json!({
        "type": "object",
        "properties": table.keys.iter().map(property).collect::<Map<String, Value>>(),
        "patternProperties": { "^x-": {}, "^<<$": {} },
        "additionalProperties": false,
    });
    if let (Value::Object(object), [_, ..]) = (&mut object, table.required) {
        // What is required may come out of a merge.
        object.insert("anyOf".to_owned(), json!([{ "required": table.required }, { "required": ["<<"] }]));
    }
    object
}

/// A text of this pattern, or one with variables.
fn text(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": format!("{pattern}|{VARIABLE}") })
}

/// A number, or a text of this pattern.
fn number_or(number: &str, minimum: i64, pattern: &str) -> Value {
    json!({ "anyOf": [{ "type": number, "minimum": minimum }, text(pattern)] })
}

fn scalar() -> Value {
    json!({ "type": ["string", "number", "boolean"] })
}

fn kind(kind: Kind) -> Value {
    let list_of = |items: Value, least: u32| json!({ "type": "array", "items": items, "minItems": least });
    match kind {
        Kind::Text => scalar(),
        Kind::Flag => json!({ "anyOf": [{ "type": "boolean" }, text("^(true|false)$")] }),
        Kind::Size => number_or("integer", 0, SIZE),
        Kind::SizeOrMinus => number_or("integer", -1, &format!(r"{SIZE}|^\s*-1\s*$")),
        Kind::Amount => number_or("integer", 0, &format!("{SIZE}|{PERCENT}")),
        Kind::Percent => text(PERCENT),
        Kind::Cores => number_or("number", 0, CORES),
        Kind::Count(least) => number_or("integer", i64::from(least), r"^\s*[0-9]+\s*$"),
        Kind::CountOrMinus => number_or("integer", -1, r"^\s*([0-9]+|-1)\s*$"),
        Kind::Duration => number_or("number", 0, DURATION),
        Kind::Signal => number_or("integer", 1, SIGNAL),
        Kind::Restart => text(RESTART),
        Kind::Listen => number_or("integer", 1, LISTEN),
        Kind::When => text(WHEN),
        Kind::Webhook => text("^http://"),
        Kind::Redis => text("^redis://"),
        Kind::Word(words) => json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": VARIABLE }] }),
        Kind::Command => {
            json!({ "anyOf": [{ "type": "string", "minLength": 1 }, list_of(scalar(), 1)] })
        }
        Kind::Test => json!({ "anyOf": [{ "type": "string", "minLength": 1 }, {
            "type": "array",
            "prefixItems": [{ "anyOf": [{ "enum": ["CMD", "CMD-SHELL", "NONE"] }, { "type": "string", "pattern": VARIABLE }] }],
            "items": scalar(),
            "minItems": 1,
        }] }),
        Kind::Environment => json!({ "anyOf": [
            { "type": "object", "additionalProperties": { "type": ["string", "number", "boolean", "null"] } },
            list_of(json!({ "type": "string" }), 0),
        ] }),
        Kind::EnvFile => json!({ "anyOf": [
            { "type": "string", "minLength": 1 },
            list_of(json!({ "anyOf": [{ "type": "string", "minLength": 1 }, table(&keys::ENV_FILE)] }), 0),
        ] }),
        Kind::Depends => json!({ "anyOf": [
            list_of(json!({ "type": "string" }), 0),
            { "type": "object", "additionalProperties": { "anyOf": [table(&keys::DEPENDENCY), { "type": "null" }] } },
        ] }),
        Kind::Texts => list_of(scalar(), 0),
        Kind::Map(of) => table(of),
        Kind::Named(of) => json!({
            "type": "object",
            "patternProperties": { "^(x-.*|<<)$": {} },
            "propertyNames": { "pattern": "^(<<|[a-zA-Z0-9_][a-zA-Z0-9._-]*)$" },
            "additionalProperties": table(of),
            "minProperties": 1,
        }),
        Kind::Each(of) => list_of(table(of), 0),
    }
}
