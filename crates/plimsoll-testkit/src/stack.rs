//! `plimsoll up` on a real kernel: one case a promise, through the built binary and its control socket, checked against
//! `/proc` and the groups' own files.

mod crash;
pub(crate) mod doors;
mod limits;
mod lives;
pub(crate) mod world;

use std::process::ExitCode;

use crate::harness::Options;
use world::{Check, World};

struct Case {
    name: &'static str,
    run: fn(&mut World) -> Check,
}

macro_rules! cases {
    ($($page:ident :: $name:ident),* $(,)?) => { &[$(Case { name: stringify!($name), run: $page::$name }),*] };
}

const CASES: &[Case] = cases![
    limits::limits_are_in_force,
    limits::oom_at_its_own_line,
    limits::on_limit_largest_keeps_the_root,
    limits::stage_file_and_a_signal_under_pressure,
    limits::a_hook_under_pressure,
    limits::best_effort_goes_when_the_budget_is_short,
    limits::alerts_reach_a_command_and_a_server,
    lives::up_in_order_and_down_in_reverse,
    lives::healthy_and_completed_dependencies,
    lives::restart_policies,
    lives::a_good_run_is_restarted_at_once,
    lives::stopped_stays_stopped,
    lives::unhealthy_is_restarted,
    lives::a_probe_that_cannot_run_is_told,
    lives::a_probe_that_hangs_is_ended,
    lives::stop_signal_then_grace_then_kill,
    lives::daemons_go_with_their_service,
    lives::a_program_that_is_not_there,
    lives::detached_in_a_delegated_group,
    doors::an_oom_costs_no_request,
    doors::the_end_of_the_only_one_costs_no_request,
    doors::scale_out_and_in,
    doors::a_port_that_is_taken,
    doors::reload_touches_what_changed,
    doors::an_invalid_file_changes_nothing,
    doors::what_cannot_be_is_refused,
    doors::restart_one_after_the_other,
    crash::supervisor_killed,
    crash::guard_killed,
    crash::both_killed_then_swept,
    crash::counters_and_rows_go_on,
    crash::stores_that_cannot_be_read_are_kept,
    crash::a_second_up_on_the_same_state,
    crash::a_full_disk_below_the_logs,
    crash::a_full_disk_below_everything,
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
        let mut world = World::new(options);
        match one(case, &mut world) {
            Ok(()) => {
                // What this user or tier cannot do is not what is tested here.
                match world.left_out {
                    Some(why) => println!("not tried: {}: {why}", case.name),
                    None => println!("PASS {}", case.name),
                }
                passed += u32::from(world.left_out.is_none());
                world.end();
                let _ = std::fs::remove_dir_all(&world.dir);
            }
            Err(why) => {
                failed += 1;
                println!("FAIL {}: {why}", case.name);
                world.end();
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A case; whatever it was about, in the end nothing is left, and the journal tells all of it.
fn one(case: &Case, world: &mut World) -> Check {
    (case.run)(world)?;
    if world.is_up() {
        world.down()?;
    }
    world.clean()?;
    world.audit()
}
