use proptest::prelude::*;

use super::*;

fn token() -> Token {
    Token { id: "k7q2mzab".to_owned(), secret: [0xa5; 16], pin: [0x3c; 32] }
}

#[test]
fn a_token_is_one_printable_line_with_four_parts() {
    let text = token().reveal();
    assert!(text.starts_with("mj1.k7q2mzab."), "{text}");
    assert!(text.bytes().all(|b| b.is_ascii_graphic()));
    assert_eq!(text.split('.').count(), 4);
}

#[test]
fn each_kind_of_damage_has_its_own_message() {
    let text = token().reveal();
    let parts: Vec<&str> = text.split('.').collect();
    let [_, id, secret, pin] = parts[..] else { panic!("four parts") };
    let cases = [
        (String::new(), TokenError::NotAToken),
        ("hello".to_owned(), TokenError::NotAToken),
        ("-----BEGIN CERTIFICATE-----".to_owned(), TokenError::NotAToken),
        (format!("MJ1.{id}.{secret}.{pin}"), TokenError::NotAToken),
        (format!("mj2.{id}.{secret}.{pin}"), TokenError::WrongVersion),
        (format!("mj10.{id}.{secret}.{pin}"), TokenError::WrongVersion),
        ("mj1".to_owned(), TokenError::Truncated),
        (format!("mj1.{id}"), TokenError::Truncated),
        (format!("mj1.{id}.{secret}"), TokenError::Truncated),
        (format!("mj1.{id}.{secret}."), TokenError::Truncated),
        (text[..text.len() - 1].to_owned(), TokenError::Truncated),
        (format!("{text}x"), TokenError::TooLong),
        (format!("{text}.x"), TokenError::TooLong),
        (format!("mj1..{secret}.{pin}"), TokenError::BadId),
        (format!("mj1.K7Q2.{secret}.{pin}"), TokenError::BadId),
        (format!("mj1.{}.{secret}.{pin}", "a".repeat(33)), TokenError::BadId),
        (format!("mj1.{id}.{}.{pin}", &secret[1..]), TokenError::BadSecret),
        (format!("mj1.{id}.{}.{pin}", secret.to_uppercase()), TokenError::BadSecret),
        (format!("mj1.{id}.{secret}.!{}", &pin[1..]), TokenError::BadPin),
        (format!("mj1.{id}.{secret}.{}=", &pin[1..]), TokenError::BadPin),
    ];
    for (text, expected) in cases {
        assert_eq!(Token::parse(&text), Err(expected), "{text}");
    }
}

#[test]
fn messages_and_debug_never_repeat_the_secret() {
    let secret = base32().encode(&token().secret);
    assert!(!format!("{:?}", token()).contains(&secret));
    let error = Token::parse(&format!("mj1.id.{secret}x.pin")).unwrap_err();
    assert!(!error.to_string().contains(&secret));
}

#[test]
fn white_space_around_a_token_is_ignored() {
    assert_eq!(Token::parse(&format!("  {}\n", token().reveal())), Ok(token()));
}

proptest! {
    #[test]
    fn every_token_reads_back(id in "[a-z0-9]{1,32}", secret: [u8; 16], pin: [u8; 32]) {
        let token = Token { id, secret, pin };
        prop_assert_eq!(Token::parse(&token.reveal()), Ok(token));
    }

    #[test]
    fn what_is_accepted_prints_back(text in "mj1\\.[a-z0-9]{1,9}\\.[a-z2-7]{26}\\.[A-Za-z0-9_-]{43}") {
        if let Ok(token) = Token::parse(&text) {
            prop_assert_eq!(token.reveal(), text);
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = Token::parse(&text);
    }
}
