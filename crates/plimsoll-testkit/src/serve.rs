//! Pools behind `plimsoll up`'s gateway on a real kernel: one case a promise, through the built binary and plain HTTP, with
//! the agent of this program, checked against `/proc` and the groups' own files. While a case runs its sessions are counted
//! from outside again and again: there are never more processes than the pool may have.

mod apart;
mod clients;
mod lives;
mod machines;
mod overload;
mod past;
mod protocols;
mod queue;
mod refusals;
mod rooms;
mod scene;
mod warm;
mod watchdogs;

use std::process::ExitCode;

use crate::harness::Options;
use crate::stack::world::Check;
use scene::Scene;

struct Case {
    name: &'static str,
    run: fn(&mut Scene) -> Check,
}

macro_rules! cases {
    ($($page:ident :: $name:ident),* $(,)?) => { &[$(Case { name: stringify!($name), run: $page::$name }),*] };
}

const CASES: &[Case] = cases![
    lives::a_conversation_keeps_its_process,
    lives::turns_of_a_conversation_are_in_order,
    lives::idle_sessions_are_closed,
    lives::max_turns_recycles,
    lives::max_turns_differ,
    lives::max_context_recycles,
    lives::recycle_above_after_a_turn,
    lives::max_age_recycles,
    lives::the_hard_line,
    lives::children_go_with_their_session,
    lives::whoever_ignores_everything_is_ended,
    lives::closed_on_request,
    lives::a_conversation_outlives_the_supervisor,
    past::an_agent_takes_its_conversation_up_again,
    past::a_transcript_outlives_the_supervisor,
    past::a_transcript_that_is_lost,
    past::an_agent_that_does_not_find_it,
    past::an_agent_that_does_not_find_it_when_asked,
    past::a_conversation_is_told,
    past::a_conversation_is_forgotten,
    watchdogs::a_start_that_takes_too_long,
    watchdogs::a_first_byte_that_does_not_come,
    watchdogs::an_agent_that_hears_nothing,
    watchdogs::an_answer_that_stalls,
    watchdogs::a_turn_that_takes_too_long,
    watchdogs::the_circuit_opens_and_closes_by_itself,
    watchdogs::an_agent_that_only_ends_is_not_started_for_ever,
    watchdogs::agents_that_end_in_each_first_turn,
    queue::who_waits_is_served_in_order,
    queue::one_more_than_may_wait,
    queue::who_waits_for_too_long,
    overload::ten_times_what_fits,
    clients::one_that_goes_away_cancels_its_turn,
    clients::one_that_asks_again_joins_the_turn,
    warm::a_warm_session_is_taken_and_replaced,
    warm::no_process_is_shared_between_requests,
    warm::unrelated_requests_share_a_process,
    protocols::the_words_of_claude,
    protocols::the_words_of_jsonl,
    protocols::a_process_a_turn,
    protocols::whatever_is_no_word_is_skipped,
    protocols::a_line_that_is_too_long,
    protocols::an_agent_that_ends_within_its_turn,
    refusals::bodies_that_are_none,
    refusals::bodies_that_are_too_large,
    refusals::heads_that_are_refused,
    refusals::tokens_and_their_rates,
    apart::sessions_cannot_see_each_other,
    apart::what_is_not_in_force_is_told,
    rooms::the_answer_is_in_the_200,
    rooms::the_answer_is_posted_into_its_room,
    machines::any_machine_takes_any_turn,
    machines::who_asks_again_elsewhere_is_answered_once,
    machines::a_machine_that_dies_loses_its_leases,
    machines::what_was_acknowledged_is_answered,
    machines::a_machine_that_slept,
    machines::redis_is_killed,
    machines::redis_is_paused,
    machines::nothing_is_lost_or_mixed,
];

/// Runs the suite.
pub(crate) fn run(options: &Options) -> ExitCode {
    if options.flag("--list") {
        CASES.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    let filter = options.text("--filter").unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for case in CASES.iter().filter(|case| case.name.contains(&filter)) {
        let mut scene = Scene::new(options);
        match one(case, &mut scene) {
            Ok(()) => {
                match scene.world.left_out {
                    Some(why) => println!("not tried: {}: {why}", case.name),
                    None => println!("PASS {}", case.name),
                }
                passed += u32::from(scene.world.left_out.is_none());
                scene.world.end();
                let _ = std::fs::remove_dir_all(&scene.world.dir);
            }
            Err(why) => {
                failed += 1;
                println!("FAIL {}: {why}", case.name);
                scene.world.end();
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A case; whatever it was about, there were never too many processes, in the end nothing is left, and the journal tells all
/// of it.
fn one(case: &Case, scene: &mut Scene) -> Check {
    let ran = (case.run)(scene);
    let counted = scene.end_count();
    ran?;
    counted?;
    if scene.world.is_up() {
        scene.no_survivors()?;
        scene.world.down()?;
    }
    scene.world.clean()?;
    scene.world.audit()
}
