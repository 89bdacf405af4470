//! The stream-json of the Claude Code CLI: one process, many turns, told apart by what comes when: a turn's lines carry no
//! name of the turn.

pub mod wire;

use plimsoll_model::pool::{PoolSpec, Protocol, Rehydrate};

use super::dialog::Word;
use super::piece::Piece;
use super::prompt::Prompt;
use wire::{Outcome, Said};

/// The command with the flags that make it speak stream-json, each unless it is there already, and with the conversation
/// that it is to take up again. They stand at the end: a wrapper (`npx claude`) has to pass on what it is given.
#[must_use]
pub fn arguments(command: &[String], resume: Option<&str>) -> Vec<String> {
    let has = |flag: &str| has(command, flag);
    let mut all = command.to_vec();
    let flags: [&[&str]; 4] = [
        &["--output-format", "stream-json"],
        &["--verbose"],
        &["--input-format", "stream-json"],
        &["--include-partial-messages"],
    ];
    for flag in flags.into_iter().filter(|flag| !has(flag[0])) {
        all.extend(flag.iter().map(|&word| word.to_owned()));
    }
    if let Some(session) = resume.filter(|_| !has("--resume") && !has("-r")) {
        all.push(format!("--resume={session}"));
    }
    all
}

/// Whether a pool's agents are to take their conversations up again by themselves, and can: not where the command says
/// which conversation theirs is, or that none is kept.
#[must_use]
pub fn resumes(pool: &PoolSpec) -> bool {
    let own = ["--resume", "-r", "--continue", "--session-id", "--no-session-persistence"];
    pool.rehydrate == Rehydrate::Resume
        && pool.protocol == Protocol::Claude
        && !own.iter().any(|flag| has(&pool.process.command, flag))
}

fn has(command: &[String], flag: &str) -> bool {
    command.iter().any(|word| word == flag || word.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))
}

/// What was said so far and what is expected next.
#[derive(Debug, Default)]
pub struct Dialog {
    state: State,
    /// Requests of ours so far: their names are never used twice.
    requests: u64,
    session: Option<String>,
    habit: Habit,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    New,
    /// The name of the request that has to be answered first.
    Starting(String),
    Idle,
    Turn(Progress),
}

/// Whether each turn so far began with an `init`. Where that is so, whatever comes before a turn's own belongs to an
/// earlier one: a second answer, or the echo of an interrupt that came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Habit {
    #[default]
    Unknown,
    Always,
    NotAlways,
}

#[derive(Debug, Default)]
struct Progress {
    has_begun: bool,
    is_interrupted: bool,
    /// Text of the message that is streamed has been passed on.
    is_streamed: bool,
    /// What was passed on last ends without a newline: a further message does not stick to it.
    is_open: bool,
    /// A further message has begun.
    is_further: bool,
    message: Option<String>,
    context: Option<u64>,
}

impl Progress {
    fn text(&mut self, text: String, say: &mut impl FnMut(Word)) {
        if text.is_empty() {
            return;
        }
        let is_apart = std::mem::take(&mut self.is_further) && self.is_open;
        self.is_open = !text.ends_with('\n');
        let text = if is_apart { format!("\n\n{text}") } else { text };
        say(Word::Piece(Piece::Delta(text)));
    }
}

impl Dialog {
    pub(super) fn is_in_turn(&self) -> bool {
        matches!(self.state, State::Turn(_))
    }

    fn request(&mut self) -> String {
        self.requests += 1;
        format!("plimsoll_{}", self.requests)
    }

    pub(super) fn start(&mut self) -> Option<Vec<u8>> {
        let request = self.request();
        let said = wire::initialize(&request);
        self.state = State::Starting(request);
        Some(said)
    }

    pub(super) fn begin(&mut self, prompt: &Prompt) -> Vec<u8> {
        self.state = State::Turn(Progress::default());
        wire::user(&prompt.text())
    }

    pub(super) fn interrupt(&mut self) -> Option<Vec<u8>> {
        let State::Turn(turn) = &mut self.state else { return None };
        if std::mem::replace(&mut turn.is_interrupted, true) {
            return None;
        }
        let request = self.request();
        Some(wire::interrupt(&request))
    }

    pub(super) fn hear(&mut self, line: &[u8], mut say: impl FnMut(Word)) {
        let said = wire::parse(line);
        match &said {
            Said::Garbage if line.iter().all(u8::is_ascii_whitespace) => return,
            Said::Garbage => return say(Word::Garbage),
            // Whatever the state: it waits for the answer.
            Said::Asks { request, what } if what == "can_use_tool" => say(Word::Reply(wire::deny(request))),
            Said::Asks { request, what } => say(Word::Reply(wire::refuse(request, what))),
            _ => {}
        }
        match &mut self.state {
            State::New | State::Idle => {
                if let Said::Init { session: Some(session) } = said {
                    self.session = Some(session);
                }
            }
            State::Starting(request) => match said {
                Said::Answers { request: answered, error } if answered == *request => {
                    self.state = State::Idle;
                    say(match error {
                        None => Word::Ready,
                        Some(error) => Word::Unfit(format!("the agent refused to start: {error}")),
                    });
                }
                _ => {}
            },
            State::Turn(_) => self.in_turn(said, say),
        }
    }

    fn in_turn(&mut self, said: Said, mut say: impl FnMut(Word)) {
        let State::Turn(turn) = &mut self.state else { return };
        if let Said::Init { session } = said {
            if !std::mem::replace(&mut turn.has_begun, true) && self.habit == Habit::Unknown {
                self.habit = Habit::Always;
            }
            self.session = session.or(self.session.take());
            return say(Word::Piece(Piece::Alive));
        }
        if !turn.has_begun && self.habit == Habit::Always {
            return;
        }
        match said {
            Said::Begins => {
                (turn.is_further, turn.is_streamed) = (true, false);
                say(Word::Piece(Piece::Alive));
            }
            Said::Delta(text) => {
                turn.is_streamed = true;
                turn.text(text, &mut say);
            }
            Said::Message { id, text, context } => {
                turn.context = context.or(turn.context);
                // A message comes once more as a whole after it was streamed, in as many parts as it has.
                if std::mem::take(&mut turn.is_streamed) {
                    say(Word::Piece(Piece::Alive));
                } else {
                    turn.is_further |= id.is_none() || id != turn.message;
                    if text.is_empty() {
                        say(Word::Piece(Piece::Alive));
                    }
                    turn.text(text, &mut say);
                }
                turn.message = id;
            }
            Said::Result(outcome) => {
                if !turn.has_begun {
                    self.habit = Habit::NotAlways;
                }
                let (is_interrupted, context) = (turn.is_interrupted, turn.context);
                self.state = State::Idle;
                self.session = outcome.session.clone().or(self.session.take());
                say(Word::Piece(last(*outcome, is_interrupted, context, self.session.clone())));
            }
            Said::Other | Said::Asks { .. } => say(Word::Piece(Piece::Alive)),
            Said::Init { .. } | Said::Answers { .. } | Said::Garbage => {}
        }
    }

    pub(super) fn end(&mut self, why: &str, mut say: impl FnMut(Word)) {
        if self.is_in_turn() {
            say(Word::Piece(Piece::Broken(why.to_owned())));
        }
        self.state = State::Idle;
    }

    /// The agent's own name for the conversation, once it has told.
    pub(super) fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }
}

fn last(outcome: Outcome, is_interrupted: bool, context: Option<u64>, session: Option<String>) -> Piece {
    // An older one has no subtype.
    let is_success = !outcome.is_error && matches!(outcome.subtype.as_str(), "success" | "");
    if is_success {
        let percent = |(used, window): (u64, u64)| used as f64 / window as f64 * 100.0;
        return Piece::Final {
            text: outcome.text.filter(|text| !text.is_empty()),
            usage: outcome.usage,
            context_percent: context.zip(outcome.window.filter(|&window| window > 0)).map(percent),
            agent_session: session,
        };
    }
    if is_interrupted {
        return Piece::Interrupted;
    }
    let told = outcome.text.filter(|text| !text.is_empty());
    let told = told.or_else(|| Some(outcome.errors).filter(|errors| !errors.is_empty()));
    Piece::Failed(told.unwrap_or_else(|| format!("the agent ended the turn with {}", outcome.subtype)))
}

#[cfg(test)]
mod tests {
    use super::super::prompt::ask;
    use super::*;

    const INIT: &str = r#"{"type":"system","subtype":"init","session_id":"s1"}"#;
    const DONE: &str = r#"{"type":"result","subtype":"success","is_error":false,"result":"Hello","session_id":"s1"}"#;
    const STOPPED: &str = r#"{"type":"result","subtype":"error_during_execution","is_error":true,"session_id":"s1"}"#;

    fn delta(text: &str) -> String {
        format!(
            r#"{{"type":"stream_event","event":{{"type":"content_block_delta","delta":{{"type":"text_delta","text":"{text}"}}}}}}"#
        )
    }

    fn message(id: &str, text: &str) -> String {
        format!(r#"{{"type":"assistant","message":{{"id":"{id}","content":[{{"type":"text","text":"{text}"}}]}}}}"#)
    }

    fn hear(dialog: &mut Dialog, line: &str) -> Vec<Word> {
        let mut words = Vec::new();
        dialog.hear(line.as_bytes(), |word| words.push(word));
        words.retain(|word| *word != Word::Piece(Piece::Alive));
        words
    }

    fn started() -> Dialog {
        let mut dialog = Dialog::default();
        dialog.start().unwrap();
        let answer = r#"{"type":"control_response","response":{"subtype":"success","request_id":"plimsoll_1"}}"#;
        assert_eq!(hear(&mut dialog, &answer.replace("_1", "_2")), []);
        assert_eq!(hear(&mut dialog, answer), [Word::Ready]);
        assert_eq!(hear(&mut dialog, answer), []);
        dialog
    }

    fn text(words: &[Word]) -> String {
        words
            .iter()
            .filter_map(|word| if let Word::Piece(Piece::Delta(text)) = word { Some(&**text) } else { None })
            .collect()
    }

    fn ends(words: &[Word]) -> bool {
        matches!(words, [Word::Piece(Piece::Final { .. })])
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn flags_are_added_and_never_doubled() {
        let all = "claude --model x --output-format stream-json --verbose --input-format stream-json --include-partial-messages";
        assert_eq!(arguments(&words(&["claude", "--model", "x"]), None).join(" "), all);
        let given = words(&["claude", "--verbose", "--input-format=stream-json", "--resume=a"]);
        let expected = "claude --verbose --input-format=stream-json --resume=a --output-format stream-json \
                        --include-partial-messages";
        assert_eq!(arguments(&given, Some("b")).join(" "), expected);
        let once = arguments(&words(&["claude"]), Some("b"));
        assert_eq!(once.last().map(String::as_str), Some("--resume=b"));
        assert_eq!(arguments(&once, Some("b")), once);
    }

    #[test]
    fn text_is_said_once_whichever_way_it_comes() {
        let mut dialog = started();
        dialog.begin(&ask(1, "hi"));
        let lines = [INIT.into(), delta("Hel"), delta("lo"), message("m1", "Hello")];
        let heard: Vec<Word> = lines.iter().flat_map(|line: &String| hear(&mut dialog, line)).collect();
        assert_eq!(text(&heard), "Hello");
        assert!(ends(&hear(&mut dialog, DONE)));
        dialog.begin(&ask(2, "hi"));
        // Without partial messages, and with a tool between two of the model's.
        let lines = [INIT.into(), message("m2", "Let me see."), message("m3", "Hel"), message("m3", "lo")];
        let heard: Vec<Word> = lines.iter().flat_map(|line: &String| hear(&mut dialog, line)).collect();
        assert_eq!(text(&heard), "Let me see.\n\nHello");
        let last = hear(&mut dialog, DONE);
        let [Word::Piece(Piece::Final { text, agent_session, .. })] = &last[..] else { panic!("{last:?}") };
        assert_eq!((text.as_deref(), agent_session.as_deref()), (Some("Hello"), Some("s1")));
    }

    #[test]
    fn a_second_answer_never_reaches_the_next_turn() {
        let mut dialog = started();
        dialog.begin(&ask(1, "hi"));
        hear(&mut dialog, INIT);
        assert!(ends(&hear(&mut dialog, DONE)));
        assert_eq!(hear(&mut dialog, DONE), []);
        dialog.begin(&ask(2, "hi"));
        for late in [message("m1", "old").as_str(), DONE, STOPPED] {
            assert_eq!(hear(&mut dialog, late), []);
        }
        assert!(dialog.is_in_turn());
        hear(&mut dialog, INIT);
        assert!(ends(&hear(&mut dialog, DONE)));
    }

    #[test]
    fn an_agent_without_init_is_understood_as_well() {
        let mut dialog = started();
        for turn in 1..4 {
            dialog.begin(&ask(turn, "hi"));
            assert_eq!(text(&hear(&mut dialog, &message("m", "Hello"))), "Hello");
            assert!(ends(&hear(&mut dialog, DONE)));
        }
    }

    #[test]
    fn interrupted_is_not_failed() {
        let mut dialog = started();
        assert_eq!(dialog.interrupt(), None);
        dialog.begin(&ask(1, "hi"));
        hear(&mut dialog, INIT);
        let said = String::from_utf8(dialog.interrupt().unwrap()).unwrap();
        assert!(said.contains("\"interrupt\"") && said.contains("plimsoll_2"), "{said}");
        assert_eq!(dialog.interrupt(), None);
        assert_eq!(hear(&mut dialog, STOPPED), [Word::Piece(Piece::Interrupted)]);
        dialog.begin(&ask(2, "hi"));
        hear(&mut dialog, INIT);
        let failed = hear(&mut dialog, STOPPED);
        assert!(matches!(&failed[..], [Word::Piece(Piece::Failed(why))] if why.contains("error_during")), "{failed:?}");
        dialog.begin(&ask(3, "hi"));
        hear(&mut dialog, INIT);
        dialog.interrupt();
        assert!(ends(&hear(&mut dialog, DONE)));
    }

    #[test]
    fn what_it_asks_is_answered() {
        let mut dialog = started();
        let asks =
            r#"{"type":"control_request","request_id":"q7","request":{"subtype":"can_use_tool","tool_name":"X"}}"#;
        for (asks, answer) in
            [(asks.to_owned(), "\"deny\""), (asks.replace("can_use_tool", "mcp_message"), "\"error\"")]
        {
            let words = hear(&mut dialog, &asks);
            let [Word::Reply(said)] = &words[..] else { panic!("{words:?}") };
            let said = String::from_utf8_lossy(said);
            assert!(said.contains("\"q7\"") && said.contains(answer), "{said}");
        }
    }

    #[test]
    fn how_much_of_the_context_is_used() {
        let mut dialog = started();
        dialog.begin(&ask(1, "hi"));
        hear(&mut dialog, INIT);
        hear(
            &mut dialog,
            r#"{"type":"assistant","message":{"content":[],"usage":{"input_tokens":40,"output_tokens":10}}}"#,
        );
        let done = r#"{"type":"result","subtype":"success","result":"x","modelUsage":{"m":{"contextWindow":200}}}"#;
        let last = hear(&mut dialog, done);
        let [Word::Piece(Piece::Final { context_percent, .. })] = &last[..] else { panic!("{last:?}") };
        assert_eq!(*context_percent, Some(25.0));
    }
}
