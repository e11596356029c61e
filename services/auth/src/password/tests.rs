use agentbox_contracts::audit::Origin;

use super::*;

fn secret(text: &str) -> Secret {
    Secret(text.to_owned())
}

#[test]
fn password_of_8_to_256_characters_that_is_not_guessed_first_is_accepted() {
    for (password, good) in [
        (String::new(), false),
        ("fk3-x9q".to_owned(), false),
        ("fk3-x9qz".to_owned(), true),
        ("дверь-17".to_owned(), true),
        ("abcd".repeat(64), true),
        (format!("{}e", "abcd".repeat(64)), false),
        ("correct horse battery staple".to_owned(), true),
        ("password".to_owned(), false),
        (" PassWord ".to_owned(), false),
        ("password2026!".to_owned(), false),
        ("12345678".to_owned(), false),
        (" ".repeat(8), false),
        ("\u{a0}\t \u{2003}\u{2002}\u{2001}  ".to_owned(), false),
        ("aabbaabb".to_owned(), false),
        ("x".repeat(256), false),
        ("Alice.Smith".to_owned(), false),
        ("alice.smith99".to_owned(), false),
        ("not-alice.smith".to_owned(), true),
    ] {
        let outcome = check("new_password", &Secret(password.clone()), "alice.smith");
        assert_eq!(outcome.is_ok(), good, "{password}");
        if let Err(error) = outcome {
            assert!(
                error.message.starts_with("new_password:"),
                "{}",
                error.message
            );
        }
    }
    // A user without a name, which does not exist, has no further rule.
    assert!(check("new_password", &secret("fk3-x9qz"), "").is_ok());
}

#[test]
fn common_passwords_are_listed_in_lower_case_without_blanks() {
    for word in COMMON.lines() {
        assert_eq!(word, word.trim().to_lowercase());
        assert!(!word.is_empty());
    }
}

#[tokio::test]
async fn hash_verifies_only_its_password_and_has_the_owasp_parameters() {
    let hasher = Hasher::new(2, 8, 4).await.unwrap();
    let hash = hasher.hash(&secret("correct horse")).await.unwrap();
    assert!(
        hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
        "{hash}"
    );
    assert_ne!(hash, hasher.hash(&secret("correct horse")).await.unwrap());
    assert!(
        hasher
            .verify(&secret("correct horse"), Some(&hash))
            .await
            .unwrap()
    );
    assert!(
        !hasher
            .verify(&secret("wrong horse"), Some(&hash))
            .await
            .unwrap()
    );
    assert!(!hasher.verify(&secret("correct horse"), None).await.unwrap());
}

#[tokio::test]
async fn hash_with_other_parameters_verifies() {
    let argon2 = Argon2::new(
        Algorithm::Argon2id,
        Version::V0x13,
        Params::new(64, 1, 1, None).unwrap(),
    );
    let password = secret("correct horse");
    let mut memory = vec![Block::new(); argon2.params().block_count()];
    let hash = compute_hash(&argon2, &mut memory, &password, b"a salt of its own").unwrap();
    let hash = hash.to_string();
    assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{hash}");
    let hasher = Hasher::new(1, 1, 1).await.unwrap();
    assert!(hasher.verify(&password, Some(&hash)).await.unwrap());
    let other = secret("wrong horse");
    assert!(!hasher.verify(&other, Some(&hash)).await.unwrap());
}

/// The resident memory of this process in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let resident = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    kib >> 10
}

#[tokio::test]
async fn memory_of_many_computations_is_that_of_those_at_once() {
    const AT_ONCE: u32 = 2;
    // As other work does: many threads wait for some, and each may run a computation.
    let started = Arc::new(std::sync::Barrier::new(32));
    let threads = (0..32).map(|_| {
        let started = Arc::clone(&started);
        tokio::task::spawn_blocking(move || started.wait())
    });
    futures::future::join_all(threads).await;
    let hasher = Hasher::new(AT_ONCE, 16, 16).await.unwrap();
    let before = resident_mib();
    let password = secret("correct horse");
    for _ in 0..10 {
        let hashes = std::iter::repeat_with(|| hasher.hash(&password)).take(12);
        for hash in futures::future::join_all(hashes).await {
            assert!(hasher.dummy_hash.len() == hash.unwrap().len());
        }
    }
    // The margin is for the tests that run beside this one.
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < 16 * 19, "{grown} MiB more");
    let kept = hasher.memory.kept_count();
    assert!(kept <= AT_ONCE as usize, "memory of {kept} computations");
}

#[tokio::test]
async fn request_beyond_the_queue_is_refused_and_the_others_are_served() {
    let hasher = Arc::new(Hasher::new(1, 2, 4).await.unwrap());
    let hash = hasher.hash(&secret("correct horse")).await.unwrap();
    let password = secret("correct horse");
    let calls = std::iter::repeat_with(|| hasher.verify(&password, Some(&hash))).take(10);
    let outcomes = futures::future::join_all(calls).await;
    let served = outcomes.iter().filter(|o| matches!(o, Ok(true))).count();
    let refused = outcomes
        .iter()
        .filter(|o| matches!(o, Err(HasherError::Busy)))
        .count();
    assert_eq!((served, refused), (3, 7));
    assert!(
        hasher.verify(&password, Some(&hash)).await.unwrap(),
        "the permits are released"
    );
}

#[tokio::test]
async fn flood_of_one_network_leaves_places_for_others() {
    let hasher = Hasher::new(1, 8, 2).await.unwrap();
    let password = secret("correct horse");
    let hash = hasher.hash(&password).await.unwrap();
    let log_in_from = |address: &str| {
        let origin = Origin::new(None, address.parse().unwrap(), None);
        agentbox_bus::with_origin(origin, hasher.verify(&password, Some(hash.as_str())))
    };
    let attempts = [
        ("192.0.2.1", true),
        ("192.0.2.1", true),
        ("192.0.2.1", false),
        ("192.0.2.2", true),
        ("2001:db8::1", true),
        ("2001:db8::2", true),
        ("2001:db8::3", false),
        ("2001:db8:0:1::1", true),
    ];
    for _ in 0..2 {
        let logins = attempts.map(|(address, _)| log_in_from(address));
        let outcomes = futures::future::join_all(logins).await;
        for ((address, expected), outcome) in attempts.into_iter().zip(outcomes) {
            assert_eq!(outcome.is_ok(), expected, "{address}: {outcome:?}");
        }
        let held = hasher.networks.held.lock().unwrap();
        assert!(held.is_empty(), "the places are released");
    }
}
