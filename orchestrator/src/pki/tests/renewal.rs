//! Certificates are replaced in time, for years.

use super::*;
use proptest::{prelude::*, test_runner::TestRng};

fn subject(issued: UnixMillis, validity: Millis) -> Subject {
    Subject {
        node: NodeKey::generate().node_id(),
        role: Role::Worker,
        cluster: CLUSTER,
        not_before: before(issued, BACKDATE),
        not_after: issued + validity,
    }
}

#[test]
fn renewal_comes_between_half_and_four_fifths_of_life() {
    let hour = subject(START, HOUR);
    assert_eq!(renew_at(&hour, 0.0), START + Millis::from_secs(1800));
    assert_eq!(renew_at(&hour, 1.0), START + Millis::from_secs(2880));
}

#[test]
fn ten_thousand_renewals_over_years_never_lapse() {
    let cluster = Cluster::new(CLUSTER);
    let mut random = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let mut share = || f64::from(random.next_u32()) / f64::from(u32::MAX);
    let mut longest = START;
    for node in 0..100 {
        let key = NodeKey::generate();
        let validity = if node % 2 == 0 { DEFAULT_VALIDITY } else { MIN_VALIDITY };
        let csr = key.csr();
        let issue = |now| {
            let der = cluster.authority.issue(&csr, CLUSTER, Role::Worker, now, validity).unwrap();
            Subject::of(&der).unwrap()
        };
        let mut now = START;
        let mut held = issue(now);
        for _ in 0..100 {
            let due = renew_at(&held, share());
            // Managers may be away for as long as a sixth of a certificate's life before anyone notices.
            let answered = due + Millis((validity.0 as f64 / 6.0 * share()) as u64);
            assert!(now < due && answered <= held.not_after, "{held:?} was renewed at {answered:?}");
            now = answered;
            held = issue(now);
            assert!(held.not_before <= now);
        }
        longest = longest.max(now);
    }
    assert!(longest > START + Millis::from_secs(15 * 365 * 86_400), "years, not days");
}

proptest! {
    #[test]
    fn renewal_lies_within_any_validity(random: f64, validity in MIN_VALIDITY.0..u64::MAX / 4, at in BACKDATE.0..u64::MAX / 4) {
        let held = subject(UnixMillis(at), Millis(validity));
        let due = renew_at(&held, random);
        prop_assert!(UnixMillis(at) < due && due < held.not_after);
    }
}
