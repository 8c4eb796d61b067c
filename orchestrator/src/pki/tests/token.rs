//! Tokens in text, and what their secrets grant.

use super::*;
use orchestrator_core::model::{Secret16, Tokens};
use proptest::prelude::*;

fn tokens() -> Tokens {
    Tokens { worker: Secret16([7; 16]), manager: Secret16([9; 16]) }
}

fn text() -> String {
    Token { digest: CaDigest::of(b"a certificate"), secret: tokens().worker.0 }.to_string()
}

fn refusal(text: &str) -> String {
    text.parse::<Token>().unwrap_err().to_string()
}

/// What the cluster makes of a token: the CA must be its own, and the secret one of its two.
fn used(text: &str) -> Option<Role> {
    let token: Token = text.parse().ok()?;
    (token.digest == CaDigest::of(b"a certificate")).then(|| granted(&token.secret, &tokens()))?
}

#[test]
fn each_secret_grants_its_own_role() {
    assert_eq!(granted(&[7; 16], &tokens()), Some(Role::Worker));
    assert_eq!(granted(&[9; 16], &tokens()), Some(Role::Manager));
    assert_eq!(granted(&[8; 16], &tokens()), None);
    assert_eq!(used(&text()), Some(Role::Worker));
}

#[test]
fn a_token_has_the_length_it_is_known_by() {
    assert_eq!(text().len(), "EDGE-1-".len() + 50 + 1 + 25);
    let lowest = Token { digest: CaDigest([0; 32]), secret: [0; 16] };
    assert_eq!(lowest.to_string(), format!("EDGE-1-{}-{}", "0".repeat(50), "0".repeat(25)));
}

#[test]
fn every_change_of_one_character_is_refused() {
    let whole = text();
    let others = ('0'..='9').chain('a'..='z').chain("AZ-_ .é\0".chars());
    for (at, was) in whole.char_indices() {
        for is in others.clone().filter(|is| *is != was) {
            let changed = format!("{}{is}{}", &whole[..at], &whole[at + 1..]);
            assert_eq!(used(&changed), None, "{changed}");
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let whole = text();
    for end in 0..whole.len() {
        assert!(whole[..end].parse::<Token>().is_err(), "{}", &whole[..end]);
        assert!(whole[end + 1..].parse::<Token>().is_err(), "{}", &whole[end + 1..]);
    }
}

#[test]
fn what_is_wrong_is_said() {
    let (digest, secret) = ("0".repeat(50), "0".repeat(25));
    assert_eq!(refusal(" \n"), "the join token is empty");
    assert_eq!(
        refusal("SWMTKN-1-49nj1cmql0jkz5s954yi3oex3nedyz0fb0xx14ie39trti4wxv-8vxv8rssmk743ojnwacrr2e7c"),
        "this is a docker join token (SWMTKN): a token of this cluster begins with EDGE-1- and comes from `edgectl \
         cluster join-token`"
    );
    assert_eq!(refusal("hunter2hunter2"), "not a join token: it begins with \"hunt\", not with \"EDGE-1-\"");
    assert_eq!(
        refusal(&format!("EDGE-2-{digest}-{secret}")),
        "the join token is of version \"2\", and this program knows version \"1\""
    );
    assert_eq!(
        refusal(&format!("EDGE-1-{digest}")),
        "the join token has 3 parts, not 4 (EDGE-1-<CA digest>-<secret>): was it cut off?"
    );
    assert_eq!(
        refusal(&format!("EDGE-1-{digest}-{}", &secret[1..])),
        "the secret in the join token has 24 characters, not 25: was it cut off?"
    );
    assert_eq!(
        refusal(&format!("EDGE-1-{}O{}-{secret}", &digest[..9], &digest[10..])),
        "the CA digest in the join token has 'O' at place 10: only 0-9 and a-z may stand there"
    );
    assert_eq!(
        refusal(&format!("EDGE-1-{}-{secret}", "z".repeat(50))),
        "the CA digest in the join token is larger than any that is given out: was it mistyped?"
    );
}

#[test]
fn a_newline_after_the_token_does_no_harm() {
    assert_eq!(used(&format!("{}\n", text())), Some(Role::Worker));
}

#[test]
fn debug_output_keeps_the_secret() {
    let token: Token = text().parse().unwrap();
    let secret = text().rsplit('-').next().unwrap().to_owned();
    assert!(!format!("{token:?}").contains(&secret));
}

proptest! {
    #[test]
    fn text_round_trips(digest: [u8; 32], secret: [u8; 16]) {
        let read: Token = Token { digest: CaDigest(digest), secret }.to_string().parse().unwrap();
        prop_assert_eq!((read.digest.0, read.secret), (digest, secret));
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}", tail in "[0-9a-z-]{0,90}") {
        let _ = text.parse::<Token>();
        let _ = format!("EDGE-1-{tail}").parse::<Token>();
    }
}
