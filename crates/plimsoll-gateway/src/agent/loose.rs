//! Values as agents write them: whatever is not what it should be is nothing, and costs no memory, however large it is.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A text, number or flag; anything else is nothing.
#[derive(Debug, Default)]
pub(super) enum Scalar<'a> {
    #[default]
    Nothing,
    Text(Cow<'a, str>),
    Number(f64),
    Flag(bool),
}

impl<'a> Scalar<'a> {
    pub(super) fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.into_owned()),
            _ => None,
        }
    }

    pub(super) fn word(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => "",
        }
    }

    /// A name that may be written as a number as well.
    pub(super) fn name(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.into_owned()),
            Self::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) if number.is_finite() => Some(*number),
            _ => None,
        }
    }

    /// A whole number that is none below zero; what is larger than 64 bits is the largest.
    pub(super) fn count(&self) -> Option<u64> {
        self.number().filter(|&number| number >= 0.0).map(|number| number as u64)
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self, Self::Flag(true))
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

/// For a visitor that cares only about some kinds of values: all others become `$nothing`.
macro_rules! others_are {
    ($nothing:expr, $life:lifetime, $($kind:ident)*) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("anything")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        $(others_are!(@ $nothing, $life, $kind);)*
    };
    (@ $nothing:expr, $life:lifetime, flag) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($nothing)
        }
    };
    (@ $nothing:expr, $life:lifetime, number) => {
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($nothing)
        }
    };
    (@ $nothing:expr, $life:lifetime, text) => {
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok($nothing)
        }
    };
    (@ $nothing:expr, $life:lifetime, list) => {
        fn visit_seq<A: SeqAccess<$life>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok($nothing)
        }
    };
    (@ $nothing:expr, $life:lifetime, object) => {
        fn visit_map<A: MapAccess<$life>>(self, mut object: A) -> Result<Self::Value, A::Error> {
            while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok($nothing)
        }
    };
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar<'de>;
            others_are!(Scalar::Nothing, 'de, list object);

            fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
                Ok(Scalar::Flag(flag))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Scalar::Number(number as f64))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Scalar::Number(number as f64))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                Ok(Scalar::Number(number))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Scalar::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Scalar::Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// All text of a list of texts or of `{"type":"text","text":"…"}`, joined, or a text itself.
#[derive(Debug, Default)]
pub(super) struct Texts(pub(super) String);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Texts;
            others_are!(Texts::default(), 'de, flag number object);

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Texts(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut all = String::new();
                while let Some(Block(text)) = list.next_element()? {
                    all.push_str(&text);
                }
                Ok(Texts(all))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// One of [`Texts`].
struct Block<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Block<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Block<'de>;
            others_are!(Block(Cow::Borrowed("")), 'de, flag number list);

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Block(Cow::Owned(text.to_owned())))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Block(Cow::Borrowed(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let (mut is_text, mut text) = (false, Scalar::Nothing);
                while let Some(Block(key)) = object.next_key()? {
                    match &*key {
                        "type" => is_text = object.next_value::<Scalar<'de>>()?.word() == "text",
                        "text" => text = object.next_value()?,
                        _ => drop(object.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(match text {
                    Scalar::Text(text) if is_text => Block(text),
                    _ => Block(Cow::Borrowed("")),
                })
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The largest `contextWindow` of an object of objects, tokens.
#[derive(Debug, Default)]
pub(super) struct Window(pub(super) Option<u64>);

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Model<'a> {
            #[serde(borrow, default, rename = "contextWindow")]
            window: Scalar<'a>,
        }
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Window;
            others_are!(Window::default(), 'de, flag number text list);

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let mut largest = None;
                while let Some((_, model)) = object.next_entry::<IgnoredAny, Model<'de>>()? {
                    largest = largest.max(model.window.count());
                }
                Ok(Window(largest))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The first byte of a line's value, if there is any.
pub(super) fn first(line: &[u8]) -> Option<u8> {
    line.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}
