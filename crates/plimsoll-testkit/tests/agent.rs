//! The gateway's side of the talk with agents against real processes: the kit's own agent, and plain commands.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::Duration;

use plimsoll_gateway::agent::{Agent, Answer, Message, Piece, Prompt, Role, claude};
use plimsoll_gateway::desk::Turn;
use plimsoll_model::pool::Protocol;
use tokio::runtime::{Builder, LocalOptions};
use tokio::time::{Instant, sleep, timeout};

/// Whoever waits longer for something has found a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shorter than anything that is waited for in vain.
const SOON: Duration = Duration::from_secs(20);

const MAX_LINE: u64 = 8 << 20;

/// An agent and its process, which is killed when dropped.
struct Live {
    agent: Agent,
    child: Child,
    turns: u64,
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "agents, from outside")]
fn adopt(protocol: Protocol, max_line: u64, words: &[&str]) -> Live {
    let mut child = std::process::Command::new(words[0])
        .args(&words[1..])
        // It keeps transcripts as the real one does, and not among those of whoever tests.
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let agent = Agent::adopt(protocol, max_line, OwnedFd::from(stdin), OwnedFd::from(stdout), |_| {}).unwrap();
    Live { agent, child, turns: 0 }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Claude => "claude",
        Protocol::Jsonl => "jsonl",
        Protocol::Exec => "exec",
    }
}

/// The kit's agent, not started yet.
fn fake(protocol: Protocol, options: &[&str]) -> Live {
    let mut command = vec![env!("CARGO_BIN_EXE_plimsoll-testkit"), "agent", "--protocol", word(protocol)];
    command.extend(options);
    let command: Vec<String> = command.into_iter().map(str::to_owned).collect();
    let command = if protocol == Protocol::Claude { claude::arguments(&command, None) } else { command };
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    adopt(protocol, MAX_LINE, &command)
}

/// The kit's agent, ready.
async fn ready(protocol: Protocol, options: &[&str]) -> Live {
    let live = fake(protocol, options);
    live.agent.start().await.unwrap();
    live
}

impl Live {
    fn ask(&mut self, text: &str) -> Answer {
        self.turns += 1;
        let message = Message { role: Role::User, content: text.to_owned() };
        let (turn, session) = (Turn(self.turns), "room 1".to_owned());
        self.agent.turn(Prompt { turn, session, messages: vec![message], system: None })
    }

    async fn answer(&mut self, text: &str) -> Whole {
        let answer = self.ask(text);
        whole(answer).await
    }

    async fn text(&mut self, text: &str) -> String {
        let whole = self.answer(text).await;
        assert!(matches!(whole.last, Piece::Final { .. }), "{:.80}: {whole:?}", text);
        whole.answer()
    }
}

#[derive(Debug)]
struct Whole {
    deltas: Vec<String>,
    last: Piece,
}

impl Whole {
    fn answer(&self) -> String {
        match &self.last {
            Piece::Final { text: Some(text), .. } => text.clone(),
            _ => self.deltas.concat(),
        }
    }

    fn why(&self) -> &str {
        match &self.last {
            Piece::Broken(why) => why,
            _ => panic!("{self:?}"),
        }
    }
}

async fn whole(mut answer: Answer) -> Whole {
    let mut deltas = Vec::new();
    loop {
        let piece = timeout(PATIENCE, answer.next()).await.expect("a piece").expect("a last piece");
        match piece {
            Piece::Delta(text) => deltas.push(text),
            Piece::Alive => {}
            last => {
                assert_eq!(answer.next().await, None);
                return Whole { deltas, last };
            }
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap().block_on(test);
}

const LINES: [Protocol; 2] = [Protocol::Claude, Protocol::Jsonl];

#[test]
fn turns_of_every_protocol() {
    run(async {
        for protocol in LINES {
            let mut live = ready(protocol, &["--window", "100"]).await;
            let first = live.answer("hello you").await;
            assert_eq!((first.deltas.len(), first.deltas.concat().as_str()), (3, "echo: hello you"), "{first:?}");
            assert_eq!(first.answer(), "echo: hello you");
            let Piece::Final { usage, context_percent, agent_session, .. } = first.last else { panic!() };
            let usage = usage.unwrap();
            assert_eq!((usage.prompt_tokens, usage.completion_tokens), (2, 3));
            assert_eq!(context_percent, Some(5.0));
            assert_eq!(agent_session.is_some(), protocol == Protocol::Claude);
            assert_eq!(agent_session, live.agent.agent_session());
            assert_eq!(live.text("turns").await, "2");
            assert_eq!(live.text("pid").await, live.child.id().to_string());
            assert_eq!(live.text("history").await, "hello you | turns | pid | history");
            assert_eq!(live.agent.garbage(), 0);
        }
        let mut live = ready(Protocol::Exec, &[]).await;
        assert_eq!(live.text("hello you").await, "echo: hello you");
        let again = live.answer("and now?").await;
        assert!(again.why().contains("only turn"), "{again:?}");
        assert!(timeout(Duration::from_millis(100), live.agent.lost()).await.is_err(), "used up is not lost");
        assert!(live.child.wait().unwrap().success());
    });
}

#[test]
fn without_partial_messages_the_answer_is_the_same() {
    run(async {
        let program = env!("CARGO_BIN_EXE_plimsoll-testkit");
        let mut live = adopt(Protocol::Claude, MAX_LINE, &[program, "agent", "--protocol", "claude"]);
        live.agent.start().await.unwrap();
        let first = live.answer("hello").await;
        assert_eq!((first.deltas.concat(), first.answer()), ("echo: hello".to_owned(), "echo: hello".to_owned()));
    });
}

#[test]
fn an_interrupted_turn_ends_and_the_next_one_is_answered() {
    run(async {
        for (protocol, question) in [
            (Protocol::Claude, "!sleep 600s\nhello"),
            (Protocol::Jsonl, "!sleep 600s\nhello"),
            (Protocol::Claude, "!pace 600s\nhello"),
            (Protocol::Jsonl, "!pace 600s\nhello"),
        ] {
            let mut live = ready(protocol, &[]).await;
            assert!(!live.agent.interrupt());
            for _ in 0..3 {
                let answer = live.ask(question);
                sleep(Duration::from_millis(50)).await;
                assert!(live.agent.is_busy());
                assert!(live.agent.interrupt());
                assert!(!live.agent.interrupt(), "once a turn");
                assert_eq!(whole(answer).await.last, Piece::Interrupted);
                assert!(!live.agent.is_busy());
                assert_eq!(live.text("hello").await, "echo: hello");
            }
            // One that has not even begun.
            let answer = live.ask(question);
            assert!(live.agent.interrupt());
            assert_eq!(whole(answer).await.last, Piece::Interrupted);
            assert_eq!(live.text("hello").await, "echo: hello");
        }
        let mut live = ready(Protocol::Exec, &[]).await;
        let answer = live.ask("!sleep 600s\nhello");
        sleep(Duration::from_millis(50)).await;
        assert!(!live.agent.interrupt(), "it has no word for that");
        let _ = live.child.kill();
        let whole = whole(answer).await;
        assert!(whole.why().contains("without an answer"), "{whole:?}");
    });
}

#[test]
fn an_agent_that_ends_in_the_middle_is_broken() {
    run(async {
        for protocol in LINES {
            for deed in ["!cut 3", "!exit 3", "!close\n!sleep 1s"] {
                let mut live = ready(protocol, &[]).await;
                assert_eq!(live.text("hello").await, "echo: hello");
                let whole = live.answer(deed).await;
                assert_eq!(whole.why(), "the agent closed its output in the middle of a turn", "{deed}");
                assert!(timeout(PATIENCE, live.agent.lost()).await.unwrap().0.contains("closed its output"));
                assert!(live.answer("hello").await.why().contains("closed its output"));
            }
        }
    });
}

#[test]
fn an_agent_that_never_gets_ready_says_why() {
    run(async {
        let mut live = fake(Protocol::Claude, &["--start", "!exit 3"]);
        let why = timeout(PATIENCE, live.agent.start()).await.unwrap().unwrap_err();
        assert!(why.0.contains("before it was ready") || why.0.contains("does not read"), "{why}");
        assert!(matches!(live.answer("hello").await.last, Piece::Broken(_)));
        // Between turns, and without a question.
        let mut live = ready(Protocol::Jsonl, &[]).await;
        let _ = live.child.kill();
        assert!(timeout(PATIENCE, live.agent.lost()).await.unwrap().0.contains("closed its output"));
        // Slow is not dead.
        let began = Instant::now();
        let mut live = ready(Protocol::Claude, &["--start", "!sleep 300ms"]).await;
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert_eq!(live.text("hello").await, "echo: hello");
        // A question before it is ready.
        let mut live = fake(Protocol::Claude, &[]);
        assert!(live.answer("hello").await.why().contains("not ready"));
    });
}

#[test]
fn garbage_and_binary_are_skipped() {
    run(async {
        for protocol in LINES {
            let mut live = ready(protocol, &["--start", "!garbage"]).await;
            for _ in 0..3 {
                assert_eq!(live.text("!garbage\n!binary\nhello").await, "echo: hello");
            }
            assert!(live.agent.garbage() >= 10, "{}", live.agent.garbage());
        }
        let mut live = ready(Protocol::Exec, &[]).await;
        let text = live.text("!binary\nhello").await;
        assert!(text.ends_with("echo: hello") && text.contains(char::REPLACEMENT_CHARACTER), "{text:?}");
    });
}

#[test]
fn a_line_may_be_long_but_not_longer() {
    run(async {
        for protocol in LINES {
            let mut live = ready(protocol, &[]).await;
            assert_eq!(live.text("!line 7m\nhello").await, "echo: hello");
            let whole = live.answer("!line 50m\nhello").await;
            assert!(whole.why().contains("max_line") && whole.deltas.is_empty(), "{whole:?}");
            assert!(timeout(PATIENCE, live.agent.lost()).await.unwrap().0.contains("max_line"));
        }
    });
}

#[test]
fn a_second_answer_is_nobodys() {
    run(async {
        for (protocol, deeds) in
            [(Protocol::Claude, &["!twice", "!late", "!twice\n!late"][..]), (Protocol::Jsonl, &["!twice"])]
        {
            for deed in deeds {
                let mut live = ready(protocol, &[]).await;
                for turn in 0..50 {
                    let (asked, expected) = (format!("{deed}\nhello {turn}"), format!("echo: hello {turn}"));
                    let whole = live.answer(&asked).await;
                    assert_eq!((whole.answer(), whole.deltas.concat()), (expected.clone(), expected), "{protocol:?}");
                }
            }
        }
        let mut live = ready(Protocol::Jsonl, &["--ids"]).await;
        for turn in 0..50 {
            assert_eq!(live.text(&format!("!late\nhello {turn}")).await, format!("echo: hello {turn}"));
        }
    });
}

#[test]
fn a_grandchild_that_holds_the_pipe_delays_nothing() {
    run(async {
        for protocol in [Protocol::Claude, Protocol::Jsonl, Protocol::Exec] {
            let mut live = ready(protocol, &[]).await;
            let mut answer = if protocol == Protocol::Exec {
                live.ask("!child hold\nchildren")
            } else {
                live.text("!child hold\nhello").await;
                let pids = live.text("children").await;
                live.ask(&format!("!say {pids}\n!deltas 1\n!cut 3"))
            };
            let pids = loop {
                if let Piece::Delta(text) = timeout(PATIENCE, answer.next()).await.unwrap().unwrap() {
                    break text;
                }
            };
            live.child.wait().unwrap();
            // Its output is open as before; who knows that it is gone says so.
            let more = timeout(Duration::from_millis(200), answer.next()).await;
            assert!(!more.is_ok_and(|piece| piece.is_some_and(|piece| piece.is_last())));
            let began = Instant::now();
            live.agent.end("its memory line was met");
            let last = whole(answer).await.last;
            assert!(began.elapsed() < SOON);
            match protocol {
                Protocol::Exec => assert!(matches!(last, Piece::Final { .. }), "{last:?}"),
                Protocol::Claude | Protocol::Jsonl => {
                    assert_eq!(last, Piece::Broken("its memory line was met".to_owned()));
                    assert_eq!(live.agent.lost().await.0, "its memory line was met");
                }
            }
            for pid in pids.split(' ') {
                let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        }
    });
}

#[test]
fn a_large_question_and_a_large_answer_cross() {
    run(async {
        let question = "x".repeat(5 << 20);
        // It writes while it reads, and much more than a pipe takes before it reads.
        for script in ["exec cat", "head -c 3000000 /dev/zero | tr '\\0' y; exec cat"] {
            let mut live = adopt(Protocol::Exec, MAX_LINE, &["sh", "-c", script]);
            live.agent.start().await.unwrap();
            let text = live.text(&question).await;
            assert!(text.ends_with(&question), "{}", text.len());
        }
        for protocol in LINES {
            let mut live = ready(protocol, &[]).await;
            let whole = live.answer(&question).await;
            assert_eq!(whole.answer().len(), question.len() + 6);
            assert_eq!(whole.deltas.concat().len(), question.len() + 6);
            assert!(whole.deltas.iter().all(|delta| delta.len() <= 32 << 10));
        }
    });
}

#[test]
fn an_agent_that_never_reads_holds_nobody_up() {
    run(async {
        let mut live = adopt(Protocol::Jsonl, MAX_LINE, &["sleep", "600"]);
        live.agent.start().await.unwrap();
        let answer = live.ask(&"x".repeat(5 << 20));
        sleep(Duration::from_millis(50)).await;
        assert!(live.agent.interrupt());
        for _ in 0..1000 {
            live.agent.stage("degrade", 0.5);
        }
        live.agent.hangup();
        let began = Instant::now();
        live.agent.end("stopped");
        assert_eq!(whole(answer).await.why(), "stopped");
        assert!(began.elapsed() < SOON);
        // The question is not read, and an answer comes all the same.
        let mut live = adopt(Protocol::Exec, MAX_LINE, &["echo", "fine"]);
        live.agent.start().await.unwrap();
        sleep(Duration::from_millis(50)).await;
        assert_eq!(live.text(&"x".repeat(5 << 20)).await, "fine\n");
    });
}

#[test]
fn whoever_listens_slowly_makes_the_agent_wait() {
    run(async {
        for protocol in LINES {
            let mut live = ready(protocol, &[]).await;
            let text = "0123456789".repeat(200_000);
            let mut answer = live.ask(&format!("!deltas 20000\n{text}"));
            sleep(Duration::from_millis(500)).await;
            assert!(live.agent.is_busy(), "2 MB went somewhere");
            let (mut heard, mut deltas) = (0, 0);
            while let Some(piece) = timeout(PATIENCE, answer.next()).await.unwrap() {
                if let Piece::Delta(text) = piece {
                    (heard, deltas) = (heard + text.len(), deltas + 1);
                }
            }
            assert_eq!(heard, text.len() + 6);
            assert!(deltas > 10_000, "{deltas}");
            // Nobody listens any more: the turn goes on to its end, and the next one is answered.
            drop(live.ask(&format!("!deltas 20000\n{text}")));
            while live.agent.is_busy() {
                sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(live.text("hello").await, "echo: hello");
        }
    });
}

#[test]
fn what_goes_wrong_in_good_order_costs_no_session() {
    run(async {
        for protocol in LINES {
            let mut live = ready(protocol, &[]).await;
            assert_eq!(live.answer("!error no such model").await.last, Piece::Failed("no such model".to_owned()));
            let busy = live.ask("!sleep 100ms\nhello");
            assert!(live.answer("me too").await.why().contains("a turn already"));
            assert_eq!(whole(busy).await.answer(), "echo: hello");
        }
        let mut live = ready(Protocol::Claude, &[]).await;
        assert_eq!(live.text("!tool").await, "tool: deny");
    });
}

#[test]
fn stages_and_the_end_of_input_reach_the_agent() {
    run(async {
        let mut live = ready(Protocol::Jsonl, &[]).await;
        live.agent.stage("degrade", 0.5);
        assert_eq!(live.text("hello").await, "echo: hello");
        assert_eq!(live.text("stage").await, "degrade");
        // Within a turn: what was asked is answered, then it goes.
        let answer = live.ask("!sleep 200ms\nhello");
        sleep(Duration::from_millis(50)).await;
        live.agent.hangup();
        assert_eq!(whole(answer).await.answer(), "echo: hello");
        assert!(timeout(PATIENCE, live.agent.lost()).await.is_ok());
        assert!(live.child.wait().unwrap().success());
    });
}

#[test]
fn an_agent_that_talks_to_itself_is_lost() {
    run(async {
        let live = adopt(Protocol::Jsonl, 1 << 10, &["yes", "garbage"]);
        live.agent.start().await.unwrap();
        let why = timeout(PATIENCE, live.agent.lost()).await.unwrap();
        assert!(why.0.contains("without being asked"), "{why}");
    });
}

#[test]
fn a_conversation_is_taken_up_again() {
    run(async {
        let folder = std::env::temp_dir().join(format!("plimsoll-agent-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let state = folder.to_str().unwrap();
        let mut live = ready(Protocol::Claude, &["--state", state]).await;
        live.text("my name is Ida").await;
        let session = live.agent.agent_session().unwrap();
        drop(live);
        let resume = format!("--resume={session}");
        let mut live = ready(Protocol::Claude, &["--state", state, &resume]).await;
        assert_eq!(live.text("history").await, "my name is Ida | history");
        assert_eq!(live.agent.agent_session(), Some(session));
        let stranger = fake(Protocol::Claude, &["--state", state, "--resume=unknown"]);
        assert!(timeout(PATIENCE, stranger.agent.start()).await.unwrap().is_err());
        let _ = std::fs::remove_dir_all(folder);
    });
}

#[test]
fn many_agents_of_one_thread() {
    run(async {
        let mut tasks = Vec::new();
        for number in 0..16 {
            let protocol = LINES[number % 2];
            tasks.push(tokio::task::spawn_local(async move {
                let mut live = ready(protocol, &[]).await;
                for turn in 0..100 {
                    assert_eq!(live.text(&format!("{number} {turn}")).await, format!("echo: {number} {turn}"));
                }
            }));
        }
        let done = Rc::new(std::cell::Cell::new(0));
        for task in tasks {
            timeout(PATIENCE, task).await.unwrap().unwrap();
            done.set(done.get() + 1);
        }
        assert_eq!(done.get(), 16);
    });
}
