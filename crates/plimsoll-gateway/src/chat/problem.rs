//! What went wrong, in the shape that clients of the chat API read: all four keys, each time.

use std::time::Duration;

use serde::Serialize;

use crate::desk::Denial;

/// A client waits no longer than this when it is told to come back: the SDKs give up above it. Seconds.
const LONGEST_WAIT_S: u64 = 120;
/// A stop is over after this, or the gateway is not there to ask. Seconds.
const STOPPING_S: u32 = 10;

/// An error of the chat API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status, while one can still be sent.
    pub status: u16,
    /// What, why and what to do.
    pub message: String,
    /// The part of the body that it is about, such as `messages[2].content`.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// When to come again, seconds from 1 to 120; there with 429 and 503.
    pub retry_after_s: Option<u32>,
    /// Whether the SDKs are to try again by themselves; `None` leaves it to the status.
    pub retries: Option<bool>,
}

impl Problem {
    /// A body that will be refused however often it comes. `param` may be empty.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into()).filter(|param| !param.is_empty());
        Self { status: 400, message: message.into(), param, code: None, retry_after_s: None, retries: None }
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The body is larger than `most` bytes.
    #[must_use]
    pub fn too_large(most: usize) -> Self {
        let message = format!("the body is larger than {} MiB: send fewer or shorter messages", most >> 20);
        Self { status: 413, ..Self::invalid("", message) }.code("request_too_large")
    }

    /// No token, an unknown one, or one that is not for this pool.
    #[must_use]
    pub fn unauthorized(message: &str) -> Self {
        Self { status: 401, ..Self::invalid("", message) }.code("invalid_api_key")
    }

    /// The token's rate is used up for so long.
    #[must_use]
    pub fn rate(wait: Duration) -> Self {
        Self::busy("this token's rate is used up".to_owned(), "rate_limit_exceeded", wait)
    }

    /// There is no such model.
    #[must_use]
    pub fn no_model(model: &str) -> Self {
        let mut shown: String = model.chars().take(60).flat_map(char::escape_debug).collect();
        if model.chars().nth(60).is_some() {
            shown.push('…');
        }
        let message = format!("the model `{shown}` does not exist here: GET /v1/models lists those that do");
        Self { status: 404, ..Self::invalid("model", message) }.code("model_not_found")
    }

    /// Why a turn of this model did not get a session.
    #[must_use]
    pub fn denied(model: &str, denial: &Denial) -> Self {
        match denial {
            Denial::UnknownPool => Self::no_model(model),
            Denial::Full(wait) => Self::busy("as many turns wait as may".to_owned(), "queue_full", *wait),
            Denial::Late(wait) => Self::busy("no session became free in time".to_owned(), "queue_timeout", *wait),
            Denial::Short(wait) => {
                Self::busy("memory is short: no new conversation begins now".to_owned(), "memory_short", *wait)
            }
            Denial::Circuit(wait) => {
                let message = "the agent has failed again and again, and is given time".to_owned();
                Self { status: 503, ..Self::busy(message, "circuit_open", *wait) }
            }
            Denial::Unproven(wait) => {
                let message = "this machine cannot prove that the conversation is its own: Redis does not answer, or \
                               another machine has taken it over";
                Self { status: 503, ..Self::busy(message.to_owned(), "lease_lost", *wait) }
            }
            Denial::Stopping => {
                let message = "plimsoll is stopping".to_owned();
                let wait = Duration::from_secs(STOPPING_S.into());
                Self { status: 503, ..Self::busy(message, "stopping", wait) }
            }
        }
    }

    /// The agent did not answer in good order, and why. A turn that ran is not to run again by a client's own doing.
    #[must_use]
    pub fn agent(why: &str) -> Self {
        let message = format!("the agent did not answer: {why}");
        let problem = Self { status: 502, retries: Some(false), ..Self::invalid("", message) };
        problem.code("agent_failed")
    }

    fn busy(message: String, code: &'static str, wait: Duration) -> Self {
        Self { status: 429, retry_after_s: Some(retry_after_s(wait)), ..Self::invalid("", message) }.code(code)
    }

    /// The word of its kind, which follows from the status.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body: a JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        let error = Error { message: &self.message, kind: self.kind(), param: self.param.as_deref(), code: self.code };
        serde_json::to_string(&Body { error }).unwrap_or_default()
    }

    /// The same as an event of a stream that has begun, after which there is none.
    #[must_use]
    pub fn event(&self) -> String {
        format!("data: {}\n\n", self.json())
    }

    /// Headers that go with the status, beside those of every answer.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let after = self.retry_after_s.map(|seconds| ("retry-after", seconds.to_string()));
        let retries = self.retries.map(|retries| ("x-should-retry", retries.to_string()));
        let challenge = (self.status == 401).then(|| ("www-authenticate", "Bearer".to_owned()));
        after.into_iter().chain(retries).chain(challenge).collect()
    }
}

/// Whole seconds, rounded up, within what clients wait.
#[must_use]
pub fn retry_after_s(wait: Duration) -> u32 {
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    u32::try_from(seconds.clamp(1, LONGEST_WAIT_S)).unwrap_or(1)
}

#[derive(Serialize)]
struct Body<'a> {
    error: Error<'a>,
}

#[derive(Serialize)]
struct Error<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn body(problem: &Problem) -> Value {
        serde_json::from_str(&problem.json()).unwrap()
    }

    #[test]
    fn denials_as_clients_read_them() {
        let wait = Duration::from_millis(2500);
        for (denial, status, kind, code, after) in [
            (Denial::UnknownPool, 404, "invalid_request_error", "model_not_found", None),
            (Denial::Full(wait), 429, "rate_limit_error", "queue_full", Some(3)),
            (Denial::Late(Duration::ZERO), 429, "rate_limit_error", "queue_timeout", Some(1)),
            (Denial::Short(Duration::from_secs(500)), 429, "rate_limit_error", "memory_short", Some(120)),
            (Denial::Circuit(wait), 503, "server_error", "circuit_open", Some(3)),
            (Denial::Unproven(wait), 503, "server_error", "lease_lost", Some(3)),
            (Denial::Stopping, 503, "server_error", "stopping", Some(10)),
        ] {
            let problem = Problem::denied("m", &denial);
            assert_eq!((problem.status, problem.retry_after_s), (status, after), "{denial:?}");
            let error = &body(&problem)["error"];
            assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)));
            let header = after.map(|seconds| ("retry-after", u32::to_string(&seconds)));
            assert_eq!(problem.headers(), Vec::from_iter(header));
        }
    }

    #[test]
    fn all_four_keys_each_time() {
        let problem = Problem::agent("its line of memory was met");
        assert_eq!(
            body(&problem),
            json!({"error": {"message": "the agent did not answer: its line of memory was met", "type": "server_error", "param": null, "code": "agent_failed"}})
        );
        assert_eq!(problem.headers(), [("x-should-retry", "false".to_owned())]);
        assert_eq!(problem.event(), format!("data: {}\n\n", problem.json()));
        let error = body(&Problem::no_model(&"x\n".repeat(99)))["error"].clone();
        assert_eq!(error["param"], "model");
        assert!(error["message"].as_str().unwrap().len() < 250);
        assert_eq!(Problem::too_large(8 << 20).status, 413);
        assert_eq!(Problem::unauthorized("x").headers()[0].0, "www-authenticate");
        assert_eq!(Problem::rate(Duration::from_secs(7)).retry_after_s, Some(7));
    }

    proptest! {
        #[test]
        fn a_wait_is_within_what_clients_wait(nanos in any::<u64>()) {
            let wait = Duration::from_nanos(nanos);
            let told = retry_after_s(wait);
            prop_assert!((1..=120).contains(&told));
            prop_assert!(u64::from(told) >= wait.as_secs().min(120));
        }

        /// An event is one line, whatever is in the message.
        #[test]
        fn an_event_is_one_line(why in "(?s).{0,60}") {
            let event = Problem::agent(&why).event();
            prop_assert_eq!(event.find('\n'), Some(event.len() - 2));
            prop_assert!(!event.contains('\r'));
        }
    }
}
