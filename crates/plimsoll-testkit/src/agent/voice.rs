//! What the agent says, in the words of its protocol. It is written when [`Voice::flush`] is called, all at once.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::Step;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// `partial`: deltas are asked for.
    Claude {
        partial: bool,
    },
    /// `ids`: it says which turn it speaks of.
    Jsonl {
        ids: bool,
    },
    Exec,
}

pub(super) struct Voice {
    protocol: Protocol,
    session: String,
    model: String,
    window: u64,
    turn: String,
    messages: u64,
    words: usize,
    out: Vec<u8>,
    /// Said when the next turn begins.
    owed: Vec<u8>,
    is_closed: bool,
}

impl Voice {
    pub(super) fn new(protocol: Protocol, session: String, model: String, window: u64) -> Self {
        let (turn, out, owed) = (String::new(), Vec::new(), Vec::new());
        Self { protocol, session, model, window, turn, messages: 0, words: 0, out, owed, is_closed: false }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(super) fn session(&self) -> &str {
        &self.session
    }

    pub(super) fn turn(&self) -> &str {
        &self.turn
    }

    fn say(&mut self, mut value: Value) {
        if matches!(self.protocol, Protocol::Jsonl { ids: true }) {
            value["id"] = json!(self.turn);
        }
        serde_json::to_writer(&mut self.out, &value).expect("memory");
        self.out.push(b'\n');
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Writes what was said. Nobody who listens: that is the end.
    pub(super) fn flush(&mut self) -> Step {
        let mut left = self.out.as_slice();
        while !left.is_empty() && !self.is_closed {
            match rustix::io::retry_on_intr(|| rustix::io::write(rustix::stdio::stdout(), left)) {
                Ok(count) => left = &left[count..],
                Err(_) => return Err(ExitCode::FAILURE),
            }
        }
        self.out.clear();
        self.out.shrink_to(64 << 10);
        Ok(())
    }

    /// Closes standard output, or as near as can be: what is said later goes nowhere.
    pub(super) fn close(&mut self) {
        let nowhere = std::fs::File::options().write(true).open("/dev/null").expect("/dev/null");
        rustix::stdio::dup2_stdout(nowhere).expect("another standard output");
        self.is_closed = true;
    }

    pub(super) fn begin(&mut self, turn: &str) {
        turn.clone_into(&mut self.turn);
        let owed = std::mem::take(&mut self.owed);
        self.raw(&owed);
        if let Protocol::Claude { .. } = self.protocol {
            let cwd = std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default();
            self.say(json!({
                "type": "system", "subtype": "init", "cwd": cwd, "session_id": self.session, "tools": ["Write"],
                "mcp_servers": [], "model": self.model, "permissionMode": "default", "slash_commands": [],
                "apiKeySource": "none", "claude_code_version": "2.1.0", "output_style": "default",
                "uuid": self.uuid(0),
            }));
            self.messages += 1;
            let message = json!({
                "type": "message_start",
                "message": {"id": self.message(), "role": "assistant", "model": self.model, "content": [], "usage": {}},
            });
            self.event(&message);
            self.event(&json!({
                "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""},
            }));
        }
    }

    fn message(&self) -> String {
        format!("msg_{:08}", self.messages)
    }

    /// Good enough to tell lines apart.
    fn uuid(&self, number: u64) -> String {
        format!("{:08x}-0000-4000-9000-{:012x}", std::process::id(), self.messages << 16 | number)
    }

    fn event(&mut self, event: &Value) {
        if let Protocol::Claude { partial: true } = self.protocol {
            self.say(json!({
                "type": "stream_event", "uuid": self.uuid(1), "session_id": self.session, "event": event,
                "parent_tool_use_id": null,
            }));
        }
    }

    pub(super) fn delta(&mut self, text: &str) {
        match self.protocol {
            Protocol::Claude { .. } => self.event(&json!({
                "type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text},
            })),
            Protocol::Jsonl { .. } => self.say(json!({"type": "delta", "text": text})),
            Protocol::Exec => self.raw(text.as_bytes()),
        }
    }

    /// The end of an answer whose deltas have been said; `words` were told so far.
    pub(super) fn last(&mut self, answer: &str, words: usize) {
        self.event(&json!({"type": "content_block_stop", "index": 0}));
        self.whole(answer, words);
    }

    /// An answer without deltas.
    pub(super) fn again(&mut self, answer: &str, words: usize) {
        match self.protocol {
            Protocol::Exec => self.raw(answer.as_bytes()),
            Protocol::Claude { .. } | Protocol::Jsonl { .. } => self.whole(answer, words),
        }
    }

    /// An answer that is said only when the next turn begins.
    pub(super) fn owe(&mut self, answer: &str, words: usize) {
        let before = std::mem::take(&mut self.out);
        self.again(answer, words);
        self.owed = std::mem::replace(&mut self.out, before);
    }

    fn whole(&mut self, answer: &str, read: usize) {
        let written = answer.split_whitespace().count();
        self.words += written;
        let read = read + self.words - written;
        match self.protocol {
            Protocol::Claude { .. } => {
                let usage = json!({
                    "input_tokens": read, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                    "output_tokens": written,
                });
                self.say(json!({
                    "type": "assistant",
                    "message": {
                        "model": self.model, "id": self.message(), "type": "message", "role": "assistant",
                        "content": [{"type": "text", "text": answer}], "stop_reason": null, "usage": usage,
                    },
                    "parent_tool_use_id": null, "session_id": self.session, "uuid": self.uuid(2),
                }));
                self.event(&json!({"type": "message_stop"}));
                self.result("success", false, answer, &usage);
            }
            Protocol::Jsonl { .. } => self.say(json!({
                "type": "final", "text": answer, "usage": {"prompt_tokens": read, "completion_tokens": written},
                "context_percent": (read + written) as f64 / self.window as f64 * 100.0,
            })),
            Protocol::Exec => {}
        }
    }

    fn result(&mut self, subtype: &str, is_error: bool, text: &str, usage: &Value) {
        let mut result = json!({
            "type": "result", "subtype": subtype, "is_error": is_error, "duration_ms": 1, "duration_api_ms": 1,
            "num_turns": 1, "stop_reason": null, "session_id": self.session, "total_cost_usd": 0.0, "usage": usage,
            "modelUsage": {}, "permission_denials": [], "uuid": self.uuid(3),
        });
        result["modelUsage"][self.model.as_str()] = json!({"contextWindow": self.window});
        let (key, value) = if subtype == "success" { ("result", json!(text)) } else { ("errors", json!([text])) };
        result[key] = value;
        self.say(result);
    }

    pub(super) fn failed(&mut self, text: &str) {
        match self.protocol {
            Protocol::Claude { .. } => self.result("success", true, text, &json!({})),
            Protocol::Jsonl { .. } => self.say(json!({"type": "error", "message": text})),
            Protocol::Exec => eprintln!("{text}"),
        }
    }

    /// A turn that was not begun.
    pub(super) fn refused(&mut self, text: &str) {
        self.result("error_during_execution", true, text, &json!({}));
    }

    pub(super) fn interrupted(&mut self) {
        match self.protocol {
            Protocol::Claude { .. } => {
                self.result("error_during_execution", true, "the request was interrupted", &json!({}));
            }
            Protocol::Jsonl { .. } => self.say(json!({"type": "error", "message": "cancelled"})),
            Protocol::Exec => {}
        }
    }

    /// Answers what the host wants.
    pub(super) fn answer(&mut self, request: &str, subtype: &str) {
        let response = match subtype {
            "initialize" => json!({
                "commands": [], "output_style": "default", "available_output_styles": ["default"], "models": [],
                "account": {},
            }),
            "get_context_usage" => {
                let percent = self.words as f64 / self.window as f64 * 100.0;
                json!({"totalTokens": self.words, "maxTokens": self.window, "percentage": percent, "categories": []})
            }
            "mcp_status" => json!({"mcpServers": []}),
            _ => json!({}),
        };
        self.say(json!({
            "type": "control_response",
            "response": {"subtype": "success", "request_id": request, "response": response},
        }));
    }

    pub(super) fn may_use_tool(&mut self, request: &str) {
        self.say(json!({
            "type": "control_request", "request_id": request,
            "request": {
                "subtype": "can_use_tool", "tool_name": "Write", "input": {"file_path": "x", "content": "y"},
                "permission_suggestions": [], "tool_use_id": "toolu_1",
            },
        }));
    }

    /// A line of `bytes` bytes that means nothing.
    pub(super) fn line_of(&mut self, bytes: usize) {
        let (head, tail): (&[u8], &[u8]) = match self.protocol {
            Protocol::Claude { .. } => (
                br#"{"type":"user","message":{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":""#,
                br#""}]},"parent_tool_use_id":null}"#,
            ),
            Protocol::Jsonl { .. } => (br#"{"type":"log","text":""#, br#""}"#),
            Protocol::Exec => (b"", b""),
        };
        self.raw(head);
        let length = self.out.len() + bytes.saturating_sub(head.len() + tail.len());
        self.out.resize(length, b'x');
        self.raw(tail);
        self.out.push(b'\n');
    }
}
