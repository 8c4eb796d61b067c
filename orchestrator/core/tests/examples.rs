//! The planner by example: what happens, and what it answers. The lines are explained in `support`.

#![cfg(test)]

mod support;
use support::Cluster;

/// Runs a script in a new cluster and compares all that it printed.
#[track_caller]
fn check(script: &str, expected: &str) {
    let printed = Cluster::new().run(script);
    let expected: String =
        expected.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect();
    assert!(printed == expected, "\n--- printed\n{printed}\n--- expected\n{expected}");
}

#[test]
fn replicas_are_spread_over_the_nodes() {
    check(
        "
        node a
        node b
        service web replicas=3 publish=8080:80
        plan
        all running
        plan
        ",
        "
        + web.1/a: v1, on a with 1 ports
        + web.2/a: v1, on b with 1 ports
        + web.3/a: v1, on a with 1 ports
        ~ web: ports 8080:80
        --
        ",
    );
}

#[test]
fn scaling_up_fills_the_lowest_free_slots_and_replaces_nothing() {
    check(
        "
        node a
        node b
        service web replicas=2
        plan
        all running
        update web replicas=4 label=x
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        ~ web.1/a: v2
        ~ web.2/a: v2
        + web.3/a: v2, on a
        + web.4/a: v2, on b
        ",
    );
}

#[test]
fn scaling_down_prefers_what_does_not_run_then_the_newest_on_the_busiest_node() {
    check(
        "
        node a
        node b
        service web replicas=5
        plan
        web.1 running
        web.2 running
        web.3 running
        web.5 running
        update web replicas=2
        plan
        web.3/a gone
        web.4/a gone
        web.5/a gone
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        + web.3/a: v1, on a
        + web.4/a: v1, on b
        + web.5/a: v1, on a
        --
        ~ web.1/a: v2
        ~ web.2/a: v2
        ~ web.3/a: remove
        ~ web.4/a: remove
        ~ web.5/a: remove
        --
        - web.3/a
        - web.4/a
        - web.5/a
        ",
    );
}

#[test]
fn a_removed_service_goes_when_its_tasks_are_gone() {
    check(
        "
        node a
        service web replicas=2
        plan
        all running
        remove web
        plan
        web.1 gone
        plan
        web.2 gone
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on a
        --
        ~ web.1/a: remove
        ~ web.2/a: remove
        --
        - web.1/a
        --
        - web
        - web v1
        - web.2/a
        ",
    );
}

#[test]
fn a_removed_service_frees_its_name_at_once() {
    check(
        "
        node a
        service web
        plan
        remove web
        service web
        service web
        plan
        ",
        "
        + web.1/a: v1, on a
        refused: name conflicts with an existing object: service web already exists
        --
        ~ web.1/a: remove
        + web.1/b: v1, on a
        ",
    );
}

#[test]
fn a_task_that_ended_is_replaced_after_the_delay() {
    check(
        "
        node a
        service web restart_delay=5
        plan
        web.1 running
        time 10
        web.1 failed 1
        plan
        time 4
        plan
        time 1
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: failed
        ? web.1/a: waits for the restart delay
        wake in 5 s
        --
        ? web.1/a: waits for the restart delay
        wake in 1 s
        --
        ~ web.1/a: shutdown
        + web.1/b: v1, on a
        ",
    );
}

#[test]
fn restart_condition_none_leaves_the_slot_alone() {
    check(
        "
        node a
        service web restart=none
        plan
        web.1 failed 1
        plan
        time 100
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: failed
        ? web.1/a: not restarted: its restart condition does not ask for it
        --
        ? web.1/a: not restarted: its restart condition does not ask for it
        ",
    );
}

#[test]
fn restart_on_failure_leaves_what_completed() {
    check(
        "
        node a
        service web replicas=2 restart=on-failure restart_delay=0
        plan
        web.1 complete 0
        web.2 failed 3
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on a
        --
        ~ web.1/a: complete
        ~ web.2/a: shutdown, failed
        + web.2/b: v1, on a
        ? web.1/a: not restarted: its restart condition does not ask for it
        ",
    );
}

#[test]
fn restart_attempts_are_counted() {
    check(
        "
        node a
        service web restart_attempts=2 restart_delay=1
        plan
        web.1 failed 1
        time 1
        plan
        web.1 failed 1
        plan
        time 1
        plan
        web.1 failed 1
        time 1
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: shutdown, failed
        + web.1/b: v1, on a
        --
        ~ web.1/b: failed
        ? web.1/b: waits for the restart delay
        wake in 1 s
        --
        ~ web.1/b: shutdown
        + web.1/c: v1, on a
        --
        ~ web.1/c: failed
        ? web.1/c: not restarted: all 2 attempts are used up
        ",
    );
}

#[test]
fn restart_attempts_outside_the_window_do_not_count() {
    check(
        "
        node a
        service web restart_attempts=1 restart_window=60 restart_delay=0
        plan
        web.1 failed 1
        plan
        time 90
        web.1 failed 1
        plan
        time 10
        web.1 failed 1
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: shutdown, failed
        + web.1/b: v1, on a
        --
        ~ web.1/b: shutdown, failed
        + web.1/c: v1, on a
        --
        ~ web.1/c: failed
        ? web.1/c: not restarted: all 1 attempts are used up
        ",
    );
}

#[test]
fn what_cannot_be_started_is_tried_ever_more_seldom() {
    check(
        "
        node a
        service web restart_delay=5
        plan
        web.1 rejected
        plan
        time 5
        plan
        web.1 rejected
        plan
        time 10
        plan
        web.1 rejected
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: rejected
        ? web.1/a: waits for the restart delay
        wake in 5 s
        --
        ~ web.1/a: shutdown
        + web.1/b: v1, on a
        --
        ~ web.1/b: rejected
        ? web.1/b: waits for the restart delay
        wake in 10 s
        --
        ~ web.1/b: shutdown
        + web.1/c: v1, on a
        --
        ~ web.1/c: rejected
        ? web.1/c: waits for the restart delay
        wake in 20 s
        ",
    );
}

#[test]
fn history_is_kept_up_to_the_limit() {
    check(
        "
        node a
        service web restart_delay=0
        plan
        web.1 failed 1
        plan
        web.1 failed 1
        plan
        web.1 failed 1
        plan
        web.1 failed 1
        plan
        web.1 failed 1
        plan
        web.1 failed 1
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: shutdown, failed
        + web.1/b: v1, on a
        --
        ~ web.1/b: shutdown, failed
        + web.1/c: v1, on a
        --
        ~ web.1/c: shutdown, failed
        + web.1/d: v1, on a
        --
        ~ web.1/d: shutdown, failed
        + web.1/e: v1, on a
        --
        ~ web.1/e: shutdown, failed
        + web.1/f: v1, on a
        --
        - web.1/a
        ~ web.1/f: shutdown, failed
        + web.1/g: v1, on a
        ",
    );
}

#[test]
fn tasks_of_a_dead_node_are_replaced_at_once_and_end_when_it_returns() {
    check(
        "
        node a
        node b
        service web replicas=2
        plan
        all running
        down b
        plan
        all running
        up b
        plan
        web.2/a shutdown
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        ~ web.2/a: shutdown
        + web.2/b: v1, on a
        wake in 86400 s
        --
        --
        ~ web.2/a: shutdown
        ",
    );
}

#[test]
fn a_node_that_never_reports_is_down_after_the_grace_period() {
    check(
        "
        node a
        node b
        service web replicas=2
        plan
        all running
        forget b
        time 1
        plan
        time 4
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        wake in 4 s
        --
        ~ web.2/a: shutdown
        + web.2/b: v1, on a
        wake in 86400 s
        ",
    );
}

#[test]
fn tasks_of_a_node_that_is_down_for_a_day_are_given_up() {
    check(
        "
        node a
        node b
        service web replicas=2
        plan
        all running
        down b
        plan
        all running
        time 86400
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        ~ web.2/a: shutdown
        + web.2/b: v1, on a
        wake in 86400 s
        --
        ~ web.2/a: orphaned
        ",
    );
}

#[test]
fn tasks_of_a_node_that_left_are_orphaned() {
    check(
        "
        node a
        node b
        service web replicas=2
        plan
        all running
        leave b
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        ~ web.2/a: shutdown, orphaned
        + web.2/b: v1, on a
        ",
    );
}

#[test]
fn draining_moves_tasks_once_they_have_ended() {
    check(
        "
        node a
        node b
        service web replicas=2
        plan
        all running
        drain b
        plan
        web.2/a shutdown
        plan
        all running
        activate b
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        ~ web.2/a: shutdown
        + web.2/b: v1, waits
        ? web.2/b: waits for the end of task web.2/a
        wake in 70 s
        --
        ~ web.2/a: shutdown
        ~ web.2/b: on a
        --
        ",
    );
}

#[test]
fn ten_replicas_are_spread_evenly_over_five_nodes() {
    check(
        "
        node a
        node b
        node c
        node d
        node e
        service web replicas=10
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.10/a: v1, on e
        + web.2/a: v1, on b
        + web.3/a: v1, on c
        + web.4/a: v1, on d
        + web.5/a: v1, on e
        + web.6/a: v1, on a
        + web.7/a: v1, on b
        + web.8/a: v1, on c
        + web.9/a: v1, on d
        ",
    );
}

#[test]
fn a_start_first_service_is_moved_off_a_drained_node_without_falling_below_its_replicas() {
    check(
        "
        node a
        node b
        node c
        service web replicas=2 start-first
        plan
        all running
        drain b
        plan
        web.2/b starting
        plan
        web.2/b running
        plan
        web.2/a shutdown
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        + web.2/b: v1, on c
        --
        --
        ~ web.2/a: shutdown
        --
        ~ web.2/a: shutdown
        ",
    );
}

#[test]
fn a_move_that_is_called_off_leaves_the_task_that_serves() {
    check(
        "
        node a
        node b
        service web start-first
        plan
        all running
        drain a
        plan
        activate a
        plan
        drain a
        plan
        all running
        activate a
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        + web.1/b: v1, on b
        --
        ~ web.1/b: shutdown
        --
        + web.1/c: v1, waits
        ? web.1/c: waits for the end of task web.1/b
        wake in 70 s
        --
        - web.1/c
        ",
    );
}

#[test]
fn a_successor_that_fails_is_tried_again_after_the_delay_while_the_old_task_serves() {
    check(
        "
        node a
        node b
        service web start-first
        plan
        all running
        drain a
        plan
        web.1/b failed 1
        plan
        time 5
        plan
        web.1/c running
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        + web.1/b: v1, on b
        --
        ~ web.1/b: failed
        ? web.1/b: waits for the restart delay
        wake in 5 s
        --
        ~ web.1/b: shutdown
        + web.1/c: v1, on b
        --
        ~ web.1/a: shutdown
        ",
    );
}

#[test]
fn a_node_that_dies_while_it_is_drained_keeps_nothing() {
    check(
        "
        node a
        node b
        service web start-first
        plan
        all running
        drain a
        plan
        down a
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        + web.1/b: v1, on b
        --
        ~ web.1/a: shutdown
        wake in 86400 s
        ",
    );
}

#[test]
fn the_tasks_of_a_removed_node_are_replaced() {
    check(
        "
        node a
        node b
        service web replicas=2 start-first
        plan
        all running
        leave b
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        ~ web.2/a: shutdown, orphaned
        + web.2/b: v1, on a
        ",
    );
}

#[test]
fn a_task_that_does_not_end_holds_up_its_successor_for_its_grace_period_and_a_minute() {
    check(
        "
        node a
        node b
        service web
        plan
        all running
        drain a
        plan
        time 70
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: shutdown
        + web.1/b: v1, waits
        ? web.1/b: waits for the end of task web.1/a
        wake in 70 s
        --
        ~ web.1/b: on b
        ",
    );
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_no_more() {
    check(
        "
        node a
        pause a
        service web
        plan
        activate a
        plan
        pause a
        plan
        ",
        "
        + web.1/a: v1, waits
        ? web.1/a: no suitable node (1 node not available for new tasks)
        --
        ~ web.1/a: on a
        --
        ",
    );
}

#[test]
fn a_global_service_has_a_task_on_each_node_that_fits() {
    check(
        "
        node a label=zone:x
        node b label=zone:y
        node c label=zone:x
        service agent global constraint=node.labels.zone==x
        plan
        all running
        node d label=zone:x
        drain a
        plan
        agent.a shutdown
        plan
        activate a
        plan
        leave c
        plan
        ",
        "
        + agent.a/a: v1, on a
        + agent.c/a: v1, on c
        --
        ~ agent.a/a: shutdown
        + agent.d/a: v1, on d
        --
        ~ agent.a/a: shutdown
        --
        + agent.a/b: v1, on a
        --
        - agent.c/a
        ",
    );
}

#[test]
fn a_global_service_comes_to_nodes_that_join() {
    check(
        "
        node a
        service agent global
        plan
        all running
        node b
        plan
        ",
        "
        + agent.a/a: v1, on a
        --
        + agent.b/a: v1, on b
        ",
    );
}

#[test]
fn a_global_task_waits_for_its_node_to_come_back() {
    check(
        "
        node a
        service agent global
        plan
        all running
        down a
        plan
        up a
        plan
        ",
        "
        + agent.a/a: v1, on a
        --
        --
        ",
    );
}

#[test]
fn a_task_that_is_bound_to_its_node_waits_for_it_and_is_not_restarted_when_it_is_back() {
    check(
        "
        node a
        node b
        service bound constraint=node.hostname==a
        plan
        all running
        down a
        plan
        up a
        plan
        ",
        "
        + bound.1/a: v1, on a
        --
        --
        ",
    );
}

#[test]
fn no_suitable_node_is_explained() {
    check(
        "
        node a memory=256
        node b cpus=1
        node c arch=amd64
        node d label=zone:x
        node e held=tcp:8080:apache2
        node f
        down f
        service web replicas=2 publish=8080:80 arch=arm64 reserve_memory=512 reserve_cpus=2 constraint=node.labels.zone!=x
        plan
        ",
        "
        + web.1/a: v1, waits
        + web.2/a: v1, waits
        ~ web: ports 8080:80
        ? web.1/a: no suitable node (insufficient resources on 2 nodes; unsupported platform on 1 node; scheduling constraints not satisfied on 1 node; port 8080/tcp is held by apache2 on 1 node: stop it or publish another port; 1 node not available for new tasks)
        ? web.2/a: no suitable node (insufficient resources on 2 nodes; unsupported platform on 1 node; scheduling constraints not satisfied on 1 node; port 8080/tcp is held by apache2 on 1 node: stop it or publish another port; 1 node not available for new tasks)
        ",
    );
}

#[test]
fn no_node_at_all_is_explained() {
    check(
        "
        node a
        leave a
        service web
        plan
        ",
        "
        + web.1/a: v1, waits
        ? web.1/a: no suitable node
        ",
    );
}

#[test]
fn reservations_fill_nodes() {
    check(
        "
        node a memory=1024
        node b memory=2048
        service web replicas=4 reserve_memory=900
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        + web.3/a: v1, on b
        + web.4/a: v1, waits
        ? web.4/a: no suitable node (insufficient resources on 2 nodes)
        ",
    );
}

#[test]
fn max_per_node_is_kept() {
    check(
        "
        node a
        node b
        service web replicas=3 max_per_node=1
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        + web.3/a: v1, waits
        ? web.3/a: no suitable node (max replicas per node limit exceed)
        ",
    );
}

#[test]
fn host_ports_are_given_to_one_task_per_node() {
    check(
        "
        node a
        node b
        service web replicas=3 host=80:80
        plan
        all running
        update web replicas=2
        plan
        ",
        "
        + web.1/a: v1, on a with 1 ports
        + web.2/a: v1, on b with 1 ports
        + web.3/a: v1, waits
        ~ web: ports 80:80
        ? web.3/a: no suitable node (host-mode port already in use on 2 nodes)
        --
        ~ web.1/a: v2
        ~ web.2/a: v2
        - web.3/a
        ",
    );
}

#[test]
fn tasks_are_spread_over_label_values_first() {
    check(
        "
        node a label=zone:x
        node b label=zone:x
        node c label=zone:y
        service web replicas=4 spread=node.labels.zone
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on c
        + web.3/a: v1, on b
        + web.4/a: v1, on c
        ",
    );
}

#[test]
fn the_cluster_chooses_ports_that_nobody_has() {
    check(
        "
        node a held=tcp:30001:apache2
        service web publish=0:80 publish=30000:81
        plan
        service api publish=0:80
        plan
        update web publish=0:82
        plan
        ",
        "
        + web.1/a: v1, on a with 2 ports
        ~ web: ports 30002:80 30000:81
        --
        + api.1/a: v1, on a with 1 ports
        ~ api: ports 30003:80
        --
        ~ web.1/a: v2, on a with 3 ports
        ~ web: ports 30002:80 30000:81 30004:82
        ",
    );
}

#[test]
fn an_update_replaces_tasks_one_after_the_other_old_first() {
    check(
        "
        node a
        node b
        service web replicas=2
        plan
        all running
        update web image=nginx:2
        plan
        web.1/a shutdown
        plan
        web.1/b running
        plan
        web.2/a shutdown
        plan
        web.2/b running
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web: Updating
        ? web.1/b: waits for the end of task web.1/a
        wake in 70 s
        --
        ~ web.1/a: shutdown
        ~ web.1/b: on a
        --
        ~ web.2/a: shutdown
        + web.2/b: v2, waits
        ? web.2/b: waits for the end of task web.2/a
        wake in 70 s
        --
        ~ web.2/a: shutdown
        ~ web.2/b: on b
        --
        ~ web: Completed
        ",
    );
}

#[test]
fn an_update_goes_in_batches_with_a_delay_between() {
    check(
        "
        node a
        service web replicas=4 parallelism=2 delay=10
        plan
        all running
        update web force
        plan
        web.1/a shutdown
        web.2/a shutdown
        plan
        web.1/b running
        web.2/b running
        plan
        time 10
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on a
        + web.3/a: v1, on a
        + web.4/a: v1, on a
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web.2/a: shutdown
        + web.2/b: v2, waits
        ~ web: Updating
        ? web.1/b: waits for the end of task web.1/a
        ? web.2/b: waits for the end of task web.2/a
        wake in 70 s
        --
        ~ web.1/a: shutdown
        ~ web.1/b: on a
        ~ web.2/a: shutdown
        ~ web.2/b: on a
        --
        wake in 10 s
        --
        ~ web.3/a: shutdown
        + web.3/b: v2, waits
        ~ web.4/a: shutdown
        + web.4/b: v2, waits
        ? web.3/b: waits for the end of task web.3/a
        ? web.4/b: waits for the end of task web.4/a
        wake in 70 s
        ",
    );
}

#[test]
fn start_first_ends_the_old_task_when_the_new_one_runs() {
    check(
        "
        node a
        service web replicas=2 start-first max_per_node=2
        plan
        all running
        update web image=nginx:2
        plan
        web.1/b running
        plan
        web.1/a shutdown
        plan
        web.2/b running
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on a
        --
        + web.1/b: v2, on a
        ~ web: Updating
        --
        ~ web.1/a: shutdown
        + web.2/b: v2, on a
        --
        ~ web.1/a: shutdown
        --
        ~ web.2/a: shutdown
        ~ web: Completed
        ",
    );
}

#[test]
fn a_failing_update_pauses_and_goes_on_when_asked_again() {
    check(
        "
        node a
        service web replicas=2 restart_delay=5
        plan
        all running
        update web image=nginx:2
        plan
        web.1/a shutdown
        plan
        web.1/b failed 1
        plan
        time 5
        plan
        update web
        plan
        web.1/c running
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on a
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web: Updating
        ? web.1/b: waits for the end of task web.1/a
        wake in 70 s
        --
        ~ web.1/a: shutdown
        ~ web.1/b: on a
        --
        ~ web.1/b: failed
        ~ web: Paused
        ? web.1/b: waits for the restart delay
        ? web: update paused: update the service again to go on, or roll it back
        wake in 5 s
        --
        ~ web.1/b: shutdown
        + web.1/c: v2, on a
        ? web: update paused: update the service again to go on, or roll it back
        --
        ~ web.1/c: v3
        ~ web: Updating
        --
        ~ web.2/a: shutdown
        + web.2/b: v3, waits
        ? web.2/b: waits for the end of task web.2/a
        wake in 70 s
        ",
    );
}

#[test]
fn failures_within_the_allowance_do_not_pause() {
    check(
        "
        node a
        service web replicas=4 parallelism=0 max_failure_ppm=250000 restart_delay=5
        plan
        all running
        update web image=nginx:2
        plan
        web.1/a shutdown
        web.2/a shutdown
        web.3/a shutdown
        web.4/a shutdown
        plan
        web.1/b failed 1
        plan
        web.2/b failed 1
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on a
        + web.3/a: v1, on a
        + web.4/a: v1, on a
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web.2/a: shutdown
        + web.2/b: v2, waits
        ~ web.3/a: shutdown
        + web.3/b: v2, waits
        ~ web.4/a: shutdown
        + web.4/b: v2, waits
        ~ web: Updating
        ? web.1/b: waits for the end of task web.1/a
        ? web.2/b: waits for the end of task web.2/a
        ? web.3/b: waits for the end of task web.3/a
        ? web.4/b: waits for the end of task web.4/a
        wake in 70 s
        --
        ~ web.1/a: shutdown
        ~ web.1/b: on a
        ~ web.2/a: shutdown
        ~ web.2/b: on a
        ~ web.3/a: shutdown
        ~ web.3/b: on a
        ~ web.4/a: shutdown
        ~ web.4/b: on a
        --
        ~ web.1/b: failed
        ? web.1/b: waits for the restart delay
        wake in 5 s
        --
        ~ web.2/b: failed
        ~ web: Paused
        ? web.1/b: waits for the restart delay
        ? web.2/b: waits for the restart delay
        wake in 5 s
        ",
    );
}

#[test]
fn a_failing_update_is_rolled_back() {
    check(
        "
        node a
        service web replicas=2 on_failure=rollback
        plan
        all running
        update web image=nginx:2
        plan
        web.1/a shutdown
        plan
        web.1/b rejected
        plan
        web.1/c running
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on a
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web: Updating
        ? web.1/b: waits for the end of task web.1/a
        wake in 70 s
        --
        ~ web.1/a: shutdown
        ~ web.1/b: on a
        --
        + web v3
        ~ web.1/b: shutdown, rejected
        + web.1/c: v3, on a
        ~ web.2/a: v3
        ~ web: wants v3, RollbackStarted
        --
        ~ web: RollbackCompleted
        ",
    );
}

#[test]
fn a_failing_update_whose_old_port_is_another_services_by_now_pauses() {
    check(
        "
        node a
        service web publish=8080:80 on_failure=rollback restart_delay=60
        plan
        all running
        update web image=broken no_ports
        plan
        service api publish=8080:80
        web.1/a shutdown
        plan
        web.1/b failed 1
        plan
        ",
        "
        + web.1/a: v1, on a with 1 ports
        ~ web: ports 8080:80
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web: ports , Updating
        ? web.1/b: waits for the end of task web.1/a
        wake in 70 s
        --
        + api.1/a: v1, on a with 1 ports
        ~ api: ports 8080:80
        ~ web.1/a: shutdown
        ~ web.1/b: on a
        --
        ~ web.1/b: failed
        ~ web: Paused
        ? web.1/b: waits for the restart delay
        wake in 60 s
        ",
    );
}

#[test]
fn an_update_back_to_the_old_spec_in_the_middle_of_a_move_moves_on() {
    check(
        "
        node a
        node b
        service web start-first
        plan
        all running
        drain a
        update web image=two
        plan
        update web image=nginx
        plan
        web.1/b shutdown
        plan
        web.1/c running
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        + web.1/b: v2, on b
        ~ web: Updating
        --
        - web v1
        ~ web.1/a: v3
        ~ web.1/b: shutdown
        + web.1/c: v3, waits
        ~ web: Updating
        ? web.1/c: waits for the end of task web.1/b
        wake in 70 s
        --
        ~ web.1/b: shutdown
        ~ web.1/c: on b
        --
        ~ web.1/a: shutdown
        ~ web: Completed
        ",
    );
}

#[test]
fn the_user_rolls_back() {
    check(
        "
        node a
        service web
        plan
        all running
        update web image=nginx:2
        plan
        web.1/a shutdown
        plan
        web.1/b running
        plan
        rollback web
        plan
        web.1/b shutdown
        plan
        web.1/c running
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web: Updating
        ? web.1/b: waits for the end of task web.1/a
        wake in 70 s
        --
        ~ web.1/a: shutdown
        ~ web.1/b: on a
        --
        ~ web: Completed
        --
        ~ web.1/b: shutdown
        + web.1/c: v3, waits
        ? web.1/c: waits for the end of task web.1/b
        wake in 70 s
        --
        ~ web.1/b: shutdown
        ~ web.1/c: on a
        --
        ~ web: RollbackCompleted
        ",
    );
}

#[test]
fn a_change_of_published_ports_keeps_the_tasks() {
    check(
        "
        node a
        service web publish=8080:80
        plan
        all running
        update web publish=8081:81
        plan
        ",
        "
        + web.1/a: v1, on a with 1 ports
        ~ web: ports 8080:80
        --
        ~ web.1/a: v2, on a with 2 ports
        ~ web: ports 8080:80 8081:81
        ",
    );
}

#[test]
fn an_update_is_monitored_before_it_is_completed() {
    check(
        "
        node a
        service web monitor=20
        plan
        all running
        update web image=nginx:2
        plan
        web.1/a shutdown
        plan
        web.1/b running
        plan
        time 20
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web: Updating
        ? web.1/b: waits for the end of task web.1/a
        wake in 70 s
        --
        ~ web.1/a: shutdown
        ~ web.1/b: on a
        --
        wake in 20 s
        --
        ~ web: Completed
        ",
    );
}

#[test]
fn a_fix_replaces_what_never_started_without_delay() {
    check(
        "
        node a
        service web image=typo restart_delay=30
        plan
        web.1 rejected
        plan
        update web image=nginx
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: rejected
        ? web.1/a: waits for the restart delay
        wake in 30 s
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, on a
        ~ web: Updating
        ",
    );
}

#[test]
fn an_update_of_tasks_that_have_no_node_replaces_them_at_once() {
    check(
        "
        node a
        service web constraint=node.labels.gpu==yes
        plan
        update web image=nginx:2
        plan
        ",
        "
        + web.1/a: v1, waits
        ? web.1/a: no suitable node (scheduling constraints not satisfied on 1 node)
        --
        - web.1/a
        + web.1/b: v2, waits
        ~ web: Updating
        ? web.1/b: no suitable node (scheduling constraints not satisfied on 1 node)
        ",
    );
}

#[test]
fn the_update_of_a_global_service_does_not_wait_for_dead_nodes() {
    check(
        "
        node a
        node b
        service agent global
        plan
        all running
        down a
        update agent image=nginx:2
        plan
        agent.b shutdown
        plan
        agent.b running
        plan
        up a
        plan
        ",
        "
        + agent.a/a: v1, on a
        + agent.b/a: v1, on b
        --
        ~ agent.b/a: shutdown
        + agent.b/b: v2, waits
        ~ agent: Updating
        ? agent.b/b: waits for the end of task agent.b/a
        wake in 70 s
        --
        ~ agent.b/a: shutdown
        ~ agent.b/b: on b
        --
        ~ agent: Completed
        --
        ~ agent.a/a: shutdown
        + agent.a/b: v2, waits
        ~ agent: Updating
        ? agent.a/b: waits for the end of task agent.a/a
        wake in 70 s
        ",
    );
}

#[test]
fn an_update_back_to_the_old_spec_keeps_the_old_tasks() {
    check(
        "
        node a
        service web replicas=2 start-first
        plan
        all running
        update web image=nginx:2
        plan
        update web image=nginx
        plan
        web.1/b shutdown
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on a
        --
        + web.1/b: v2, on a
        ~ web: Updating
        --
        - web v1
        ~ web.1/a: v3
        ~ web.1/b: shutdown
        ~ web.2/a: v3
        --
        ~ web.1/b: shutdown
        ",
    );
}

#[test]
fn host_ports_are_bound_by_new_tasks() {
    check(
        "
        node a
        service web
        plan
        all running
        update web host=80:80
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: shutdown
        + web.1/b: v2, waits
        ~ web: ports 80:80, Updating
        ? web.1/b: waits for the end of task web.1/a
        wake in 70 s
        ",
    );
}

#[test]
fn a_port_belongs_to_one_service() {
    check(
        "
        node a
        service web publish=8080:80
        service api publish=8080:80
        service api host=8080:80
        service api publish=8081:80
        update api publish=8080:81
        ",
        "
        refused: port '8080' is already in use by service 'web' (4bd7fdd46jai484vfz2hn8u5w) as an ingress port
        refused: port '8080' is already in use by service 'web' (4bd7fdd46jai484vfz2hn8u5w) as an ingress port
        refused: port '8080' is already in use by service 'web' (4bd7fdd46jai484vfz2hn8u5w) as an ingress port
        ",
    );
}

#[test]
fn a_node_on_which_a_service_keeps_failing_is_avoided() {
    check(
        "
        node a
        node b
        service web replicas=2 restart_delay=1
        plan
        web.2 running
        web.1 rejected
        time 1
        plan
        web.1 rejected
        time 2
        plan
        web.1 rejected
        time 4
        plan
        ",
        "
        + web.1/a: v1, on a
        + web.2/a: v1, on b
        --
        ~ web.1/a: shutdown, rejected
        + web.1/b: v1, on a
        --
        ~ web.1/b: shutdown, rejected
        + web.1/c: v1, on a
        --
        ~ web.1/c: shutdown, rejected
        + web.1/d: v1, on b
        ",
    );
}

#[test]
fn a_new_spec_that_cannot_be_started_either_waits_anew() {
    check(
        "
        node a
        service web image=typo restart_delay=5 on_failure=continue
        plan
        web.1 rejected
        time 600
        update web image=worse
        plan
        web.1 rejected
        plan
        ",
        "
        + web.1/a: v1, on a
        --
        ~ web.1/a: shutdown, rejected
        + web.1/b: v2, on a
        ~ web: Updating
        --
        ~ web.1/b: rejected
        ~ web: Completed
        ? web.1/b: waits for the restart delay
        wake in 5 s
        ",
    );
}
