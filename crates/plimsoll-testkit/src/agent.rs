//! An agent that speaks as real ones do and misbehaves on command.
//!
//! ```text
//! plimsoll-testkit agent --protocol claude|jsonl|exec [--start DEED]… [--every DEED]… [--script FILE]
//!                        [--state DIR] [--resume ID] [--session-id ID] [--late-refusal] [--ids] [--window TOKENS] [-v]
//! ```
//! It answers `echo: ` and what it was asked, and some questions otherwise: `pid`, `turns` (which turn of this process it
//! is), `history` (all that it was told, by ` | `), `stage` (of memory, as it was told), `children` (their pids). Lines of the question that are [`Deed`]s (`!leak 10m`, `!exit 3`) are
//! done first; they are no part of the question. `--start` does one before anything is read, `--every` one in each turn.
//! A script has the same words, a list for the start, one for every turn, and one for each of the first turns; a line of
//! it that is no deed is the answer:
//!
//! ```json
//! {"start": ["!sleep 1s"], "every": ["!leak 1m"], "turns": [["!deltas 5", "the answer"], ["!exit 3"]]}
//! ```
//! As `claude` it keeps a transcript as the real one does: `~/.claude/projects/FOLDER/ID.jsonl`, where the folder is the one
//! that it works in, every other character than letters and digits a dash (claude-code #58591), a line a message.
//! `--resume ID` takes that up again; where it is not there, the process ends with what the real one says, or with
//! `--late-refusal` its first turn fails with that. `--state` keeps transcripts in a folder of one's choice instead.
//! `PLIMSOLL_AGENT_SCRIPT` and `PLIMSOLL_AGENT_STATE` stand for two options where a command cannot be changed. What it does not know of the real
//! one's flags it skips. No read ahead, no thread: it starts in a moment and answers with one write.

mod deed;
mod inbox;
mod voice;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::signal;
use rustix::process::setsid;
use serde_json::{Value, json};

use crate::harness::{argument, command, flag, me};
use deed::Deed;
use inbox::{Heard, Inbox};
use voice::{Protocol, Voice};

/// What hangs, hangs for so long.
const LONGEST: Duration = Duration::from_secs(600);

/// For an answer to something that the agent asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// How something went on, or with which code the process ends.
type Step<T = ()> = Result<T, ExitCode>;

/// What is asked in a turn.
struct Question {
    /// The turn's id, where the protocol has one.
    id: String,
    /// What a user asks now.
    text: String,
    /// All that is told with it.
    told: Vec<String>,
}

/// What a waiting agent heard.
#[derive(PartialEq, Eq)]
enum Pause {
    Over,
    Interrupted,
}

struct Agent {
    args: Vec<String>,
    voice: Voice,
    inbox: Inbox,
    script: Value,
    every: Vec<Deed>,
    /// Where its transcripts are.
    state: Option<PathBuf>,
    /// What it says of the conversation that it was to take up again, and has not.
    refusal: Option<String>,
    history: Vec<String>,
    turns: usize,
    asked: u64,
    stage: String,
    /// The answer of the coming turn, as the last one had it.
    next: Option<String>,
    ignores_eof: bool,
    held: Vec<Vec<u8>>,
    children: Vec<Child>,
}

/// How a turn is to be answered.
struct Manner {
    say: Option<String>,
    error: Option<String>,
    deltas: usize,
    pace: Duration,
    twice: bool,
    late: bool,
    stall: bool,
    cut: Option<u8>,
}

pub(crate) fn run(args: &[String]) -> ExitCode {
    if flag(args, "-v") || flag(args, "--version") {
        println!("2.1.0 (fake)");
        return ExitCode::SUCCESS;
    }
    if flag(args, "--child") {
        return stay();
    }
    let mut agent = match Agent::new(args) {
        Ok(agent) => agent,
        Err(code) => return code,
    };
    let code = match agent.live() {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => code,
    };
    if agent.ignores_eof && code == ExitCode::SUCCESS {
        std::thread::sleep(LONGEST);
    }
    code
}

/// A child that has left its parent's session.
fn stay() -> ExitCode {
    let _ = setsid();
    signal::ignore(1);
    std::thread::sleep(LONGEST);
    ExitCode::SUCCESS
}

/// All values of an option that may be repeated.
fn all(args: &[String], name: &str) -> Vec<Deed> {
    args.windows(2).filter(|pair| pair[0] == name).map(|pair| Deed::parse(&pair[1])).collect()
}

/// `--name value` and `--name=value`.
fn value(args: &[String], name: &str) -> Option<String> {
    let joined = args.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
    joined.or_else(|| argument(args, name))
}

fn lines(list: &Value) -> Vec<Deed> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(Deed::parse).collect()
}

impl Agent {
    fn new(args: &[String]) -> Step<Self> {
        let from_env = |name: &str| std::env::var(name).ok();
        let script = argument(args, "--script").or_else(|| from_env("PLIMSOLL_AGENT_SCRIPT"));
        let script = script.map(|path| std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}")));
        let script = script.map_or(Value::Null, |text| serde_json::from_slice(&text).expect("a script of JSON"));
        let state = argument(args, "--state").or_else(|| from_env("PLIMSOLL_AGENT_STATE")).map(PathBuf::from);
        let resumed = value(args, "--resume");
        let session = resumed.clone().or_else(|| value(args, "--session-id")).unwrap_or_else(|| {
            let (pid, nanos) = (std::process::id(), Instant::now().since_boot().as_nanos() as u64);
            format!("{pid:08x}-0000-4000-8000-{:012x}", nanos & 0xffff_ffff_ffff)
        });
        let protocol = match value(args, "--protocol").as_deref() {
            Some("jsonl") => Protocol::Jsonl { ids: flag(args, "--ids") },
            Some("exec") => Protocol::Exec,
            _ => Protocol::Claude { partial: flag(args, "--include-partial-messages") },
        };
        let state = state.or_else(|| if matches!(protocol, Protocol::Claude { .. }) { projects() } else { None });
        let window = value(args, "--window").map_or(200_000, |text| text.parse().expect("tokens"));
        let model = value(args, "--model").unwrap_or_else(|| "fake-1".to_owned());
        let mut every = all(args, "--every");
        every.extend(lines(&script["every"]));
        let mut agent = Self {
            args: args.to_vec(),
            voice: Voice::new(protocol, session, model, window),
            inbox: Inbox::default(),
            script,
            every,
            state,
            refusal: None,
            history: Vec::new(),
            turns: 0,
            asked: 0,
            stage: "normal".to_owned(),
            next: None,
            ignores_eof: false,
            held: Vec::new(),
            children: Vec::new(),
        };
        if let Some(id) = resumed.filter(|_| matches!(protocol, Protocol::Claude { .. })) {
            let transcript = agent.transcript().and_then(|file| std::fs::read_to_string(file).ok());
            let Some(transcript) = transcript else {
                let refusal = format!("No conversation found with session ID: {id}");
                if flag(args, "--late-refusal") {
                    agent.refusal = Some(refusal);
                    return Ok(agent);
                }
                eprintln!("{refusal}");
                return Err(ExitCode::FAILURE);
            };
            let lines = transcript.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let told = lines.filter(|line| line["type"] == "user").map(|line| text_of(&line["message"]["content"]));
            agent.history = told.collect();
        }
        Ok(agent)
    }

    /// Where the conversation is kept.
    fn transcript(&self) -> Option<PathBuf> {
        let name: String = self.voice.session().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        self.state.as_ref().map(|folder| folder.join(format!("{name}.jsonl")))
    }

    /// Writes down what was said, by `user` or `assistant`.
    fn remember(&mut self, role: &str, said: &[String]) {
        let Some(file) = self.transcript() else { return };
        let line = |text: &String| {
            let message = json!({"role": role, "content": text});
            format!("{}\n", json!({"type": role, "sessionId": self.voice.session(), "message": message}))
        };
        let text: String = said.iter().map(line).collect();
        let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let open = made.and_then(|()| std::fs::OpenOptions::new().append(true).create(true).open(file));
        open.and_then(|mut open| open.write_all(text.as_bytes())).expect("the transcript");
    }

    fn live(&mut self) -> Step {
        let mut first = all(&self.args, "--start");
        first.extend(lines(&self.script["start"]));
        let mut manner = Manner::new();
        for deed in first {
            // Nobody is heard before it has started.
            match deed {
                Deed::Sleep(pause) => std::thread::sleep(pause),
                deed => _ = self.act(deed, &mut manner)?,
            }
        }
        if self.voice.protocol() == Protocol::Exec {
            let text = String::from_utf8_lossy(&self.inbox.rest()).into_owned();
            return self.turn(Question { id: String::new(), told: vec![text.clone()], text });
        }
        loop {
            match self.inbox.next(None) {
                Heard::Line(line) => {
                    let Ok(said) = serde_json::from_slice::<Value>(&line) else { continue };
                    if let Some(question) = self.question(&said) {
                        self.turn(question)?;
                    } else {
                        let _ = self.aside(&said, "")?;
                    }
                }
                Heard::Nothing => {}
                Heard::End => return Ok(()),
            }
        }
    }

    /// The turn that a line asks for, if it is one.
    fn question(&self, said: &Value) -> Option<Question> {
        match (self.voice.protocol(), said["type"].as_str()?) {
            (Protocol::Claude { .. }, "user") => {
                let content = text_of(&said["message"]["content"]);
                // What is told before the question is no question: a command in it was done long ago.
                let mut text = content.as_str();
                for end in ["</system>\n\n", "</conversation>\n\n"] {
                    text = text.rsplit_once(end).map_or(text, |(_, text)| text);
                }
                Some(Question { id: String::new(), text: text.to_owned(), told: vec![content] })
            }
            (Protocol::Jsonl { .. }, "turn") => {
                let messages = said["messages"].as_array()?;
                let told: Vec<String> = messages.iter().map(|message| text_of(&message["content"])).collect();
                let id = said["id"].as_str().unwrap_or_default().to_owned();
                Some(Question { id, text: told.last()?.clone(), told })
            }
            _ => None,
        }
    }

    /// Hears what is no question, in the middle of turn `id` or between two. Whether it ends that turn.
    fn aside(&mut self, said: &Value, id: &str) -> Step<bool> {
        let (request, kind) = (said["request_id"].as_str().unwrap_or_default(), said["type"].as_str());
        match (kind, said["request"]["subtype"].as_str()) {
            (Some("control_request"), Some(subtype)) => {
                self.voice.answer(request, subtype);
                self.voice.flush()?;
                Ok(subtype == "interrupt")
            }
            (Some("pressure"), _) => {
                said["stage"].as_str().unwrap_or_default().clone_into(&mut self.stage);
                Ok(false)
            }
            (Some("cancel"), _) => Ok(said["id"].as_str() == Some(id)),
            _ => Ok(false),
        }
    }

    /// Waits, and listens meanwhile; what is asked next is kept for later.
    fn pause(&mut self, pause: Duration, id: &str) -> Step<Pause> {
        let began = Instant::now();
        loop {
            let left = pause.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(Pause::Over);
            }
            match self.inbox.next(Some(left)) {
                Heard::Line(line) => {
                    let said = serde_json::from_slice::<Value>(&line).unwrap_or_default();
                    if self.question(&said).is_some() {
                        self.inbox.put_off(line);
                    } else if self.aside(&said, id)? {
                        return Ok(Pause::Interrupted);
                    }
                }
                Heard::Nothing => {}
                Heard::End => std::thread::sleep(pause.saturating_sub(began.elapsed())),
            }
        }
    }

    fn turn(&mut self, question: Question) -> Step {
        self.turns += 1;
        let Question { id, text, told } = question;
        if let Some(refusal) = &self.refusal {
            self.voice.refused(refusal);
            return self.voice.flush();
        }
        self.remember("user", &told);
        self.history.extend(told);
        self.voice.begin(&id);
        let asked: Vec<Deed> = text.lines().map(Deed::parse).collect();
        let mut deeds = self.every.clone();
        deeds.extend(lines(&self.script["turns"][self.turns - 1]));
        // A question in the question's own words is no answer.
        let (said, own): (Vec<Deed>, Vec<Deed>) = asked.into_iter().partition(|deed| matches!(deed, Deed::Text(_)));
        deeds.extend(own);
        let mut manner = Manner { say: self.next.take(), ..Manner::new() };
        for deed in deeds {
            if self.act(deed, &mut manner)? == Pause::Interrupted {
                self.voice.interrupted();
                return self.voice.flush();
            }
        }
        let said: Vec<String> = said.into_iter().filter_map(Deed::text).collect();
        let answer = match manner.say.take() {
            Some(answer) => answer,
            None => match said.join("\n").trim() {
                "pid" => std::process::id().to_string(),
                "turns" => self.turns.to_string(),
                "history" => self.history.join(" | "),
                "stage" => self.stage.clone(),
                "children" => {
                    let pids: Vec<String> = self.children.iter().map(|child| child.id().to_string()).collect();
                    pids.join(" ")
                }
                text => format!("echo: {text}"),
            },
        };
        self.answer(&id, &answer, &manner)
    }

    fn answer(&mut self, id: &str, answer: &str, manner: &Manner) -> Step {
        if let Some(error) = &manner.error {
            self.voice.failed(error);
            return self.voice.flush();
        }
        let parts = parts(answer, manner.deltas);
        for (number, part) in parts.iter().enumerate() {
            if number > 0 && !manner.pace.is_zero() {
                self.voice.flush()?;
                if self.pause(manner.pace, id)? == Pause::Interrupted {
                    self.voice.interrupted();
                    return self.voice.flush();
                }
            }
            self.voice.delta(part);
            if manner.stall {
                self.voice.flush()?;
                std::thread::sleep(LONGEST);
            }
            if let Some(code) = manner.cut {
                self.voice.flush()?;
                return Err(ExitCode::from(code));
            }
        }
        let words = self.history.iter().map(|text| text.split_whitespace().count()).sum();
        self.remember("assistant", &[answer.to_owned()]);
        self.voice.last(answer, words);
        if manner.twice {
            self.voice.again("a second answer", words);
        }
        if manner.late {
            self.voice.owe("a late second answer", words);
        }
        self.voice.flush()
    }

    fn act(&mut self, deed: Deed, manner: &mut Manner) -> Step<Pause> {
        let id = self.voice.turn().to_owned();
        match deed {
            Deed::Text(text) | Deed::Say(text) => manner.say = Some(text),
            Deed::Next(text) => self.next = Some(text),
            Deed::Leak(bytes) => self.held.push(vec![1; bytes]),
            Deed::Peak(bytes) => drop(std::hint::black_box(vec![1u8; bytes])),
            Deed::Sleep(pause) => return self.pause(pause, &id),
            Deed::Pace(pause) => manner.pace = pause,
            Deed::Deltas(count) => manner.deltas = count.max(1),
            Deed::Hang => std::thread::sleep(LONGEST),
            Deed::Stall => manner.stall = true,
            Deed::Child { holds } => self.child(holds),
            Deed::IgnoreEof => self.ignores_eof = true,
            Deed::IgnoreTerm => signal::ignore(15),
            Deed::Garbage => self.voice.raw(b"npm warn deprecated agent@1\n{\"type\":\n]]}{\n\n\"text\"\n[1]\nnull\n"),
            Deed::Binary => {
                let all: Vec<u8> = (0..=255u8).chain(*b"{\"type\":\"\xff\xfe\"}\n\0\n").collect();
                self.voice.raw(&all);
            }
            Deed::Line(bytes) => self.voice.line_of(bytes),
            Deed::Twice => manner.twice = true,
            Deed::Late => manner.late = true,
            Deed::Exit(code) => {
                self.voice.flush()?;
                return Err(ExitCode::from(code));
            }
            Deed::Cut(code) => manner.cut = Some(code),
            Deed::Close => {
                self.voice.flush()?;
                self.voice.close();
            }
            Deed::Away => {
                if std::env::var_os("PLIMSOLL_AGENT_AWAY").is_none() {
                    self.voice.flush()?;
                    let other = command(me()).arg("agent").args(&self.args).env("PLIMSOLL_AGENT_AWAY", "1").spawn();
                    self.children.push(other.expect("another one like us"));
                    return Err(ExitCode::SUCCESS);
                }
            }
            Deed::Error(text) => manner.error = Some(text),
            Deed::Read(path) => {
                let read = std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                manner.say = Some(read.unwrap_or_else(|error| format!("cannot read: {}", error.kind())));
            }
            Deed::Write(path) => {
                let written = std::fs::write(path, "words");
                manner.say = Some(match written {
                    Ok(()) => "written".to_owned(),
                    Err(error) => format!("cannot write: {}", error.kind()),
                });
            }
            Deed::Signal(pid) => {
                manner.say = Some(match signal::send(pid, 0) {
                    Ok(()) => "allowed".to_owned(),
                    Err(error) => format!("cannot signal: {error}"),
                });
            }
            Deed::Tool => return self.tool(manner, &id),
        }
        Ok(Pause::Over)
    }

    fn child(&mut self, holds: bool) {
        let stream = if holds { Stdio::inherit } else { Stdio::null };
        let child = command(me())
            .args(["agent", "--child"])
            .stdin(Stdio::null())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .expect("a child");
        self.children.push(child);
    }

    /// Asks whether a tool may be used, and answers with what it was told.
    fn tool(&mut self, manner: &mut Manner, id: &str) -> Step<Pause> {
        self.asked += 1;
        let request = format!("agent_{}", self.asked);
        self.voice.may_use_tool(&request);
        self.voice.flush()?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let Heard::Line(line) = self.inbox.next(Some(PATIENCE)) else { break };
            let said = serde_json::from_slice::<Value>(&line).unwrap_or_default();
            let response = &said["response"];
            if response["request_id"].as_str() == Some(&request) {
                let behavior = response["response"]["behavior"].as_str().unwrap_or("error");
                manner.say = Some(format!("tool: {behavior}"));
                return Ok(Pause::Over);
            }
            if self.question(&said).is_some() {
                self.inbox.put_off(line);
            } else if self.aside(&said, id)? {
                return Ok(Pause::Interrupted);
            }
        }
        manner.say = Some("tool: no answer".to_owned());
        Ok(Pause::Over)
    }
}

impl Manner {
    fn new() -> Self {
        Self {
            say: None,
            error: None,
            deltas: 3,
            pace: Duration::ZERO,
            twice: false,
            late: false,
            stall: false,
            cut: None,
        }
    }
}

/// Where the real one keeps the transcripts of conversations in this folder.
fn projects() -> Option<PathBuf> {
    let config = std::env::var_os("CLAUDE_CONFIG_DIR").map(PathBuf::from);
    let config = config.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".claude")))?;
    let dash = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let folder: String = std::env::current_dir().ok()?.to_str()?.chars().map(dash).collect();
    Some(config.join("projects").join(folder))
}

/// A message's content: a text, or a list of blocks.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// A text in about so many parts, of whole characters.
fn parts(text: &str, count: usize) -> Vec<&str> {
    let size = text.len().div_ceil(count).max(1);
    let (mut parts, mut rest) = (Vec::with_capacity(count), text);
    while !rest.is_empty() {
        let (part, behind) = rest.split_at(rest.ceil_char_boundary(size));
        parts.push(part);
        rest = behind;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_whole() {
        for text in ["", "a", "caf\u{e9} \u{1f600} and more", "abcdef"] {
            for count in 1..9 {
                let parts = parts(text, count);
                assert_eq!(parts.concat(), text);
                assert!(parts.len() <= count, "{parts:?}");
            }
        }
    }
}
